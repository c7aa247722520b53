//! The paths that a command line may write to: no file that it reads, no path twice, and nothing in
//! the cache.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use crate::base::{Code, Problem, Result};
use crate::store::RECORD;

/// Extensions of files that people write or that lock a build. A report never replaces such a file.
const PROTECTED_EXTENSIONS: [&str; 2] = ["toml", "lock"];

/// Limit of dangling links that are followed.
const MAX_LINKS: usize = 8;

/// The paths of one command line that are in use.
pub(super) struct OutputPaths {
    cache: PathBuf,
    /// Folders that have only files of kiln.
    artifact_folders: Vec<PathBuf>,
    /// Files that are read or written.
    used_files: Vec<PathBuf>,
}

impl OutputPaths {
    /// For a command that reads the files `read`.
    pub(super) fn new(cache: &Path, read: impl IntoIterator<Item = PathBuf>) -> OutputPaths {
        OutputPaths {
            cache: resolved(cache),
            artifact_folders: vec![],
            used_files: read.into_iter().collect(),
        }
    }

    /// Reserves `folders` for artifacts, and the `files` beside them.
    pub(super) fn reserve_artifacts(
        &mut self,
        folders: impl Iterator<Item = PathBuf>,
        files: impl Iterator<Item = PathBuf>,
    ) {
        for folder in folders {
            self.artifact_folders.push(resolved(&folder));
        }
        self.used_files.extend(files);
    }

    /// Reserves `path` for the file `what`, or fails if something else uses it.
    pub(super) fn reserve_file(&mut self, what: &str, path: &Path) -> Result<()> {
        self.check_outside_cache(what, path)?;
        if self.is_used(path) {
            let message = format!(
                "{what} would be written to {}, which is used for something else",
                path.display()
            );
            return Err(Problem::new(Code::CallPlace, message).help("choose another file name"));
        }
        self.used_files.push(path.into());
        Ok(())
    }

    fn is_used(&self, path: &Path) -> bool {
        for file in &self.used_files {
            if is_same_file(file, path) {
                return true;
            }
        }
        let real = resolved(path);
        for extension in PROTECTED_EXTENSIONS {
            if real.extension() == Some(extension.as_ref()) && real.exists() {
                return true;
            }
        }
        for folder in real.ancestors().skip(1) {
            if folder.join(RECORD).exists() {
                return true;
            }
        }
        for folder in &self.artifact_folders {
            if real.starts_with(folder) {
                return true;
            }
        }
        false
    }

    /// Fails if `path`, to which `what` would be written, is in the cache.
    pub(super) fn check_outside_cache(&self, what: &str, path: &Path) -> Result<()> {
        if !resolved(path).starts_with(&self.cache) {
            return Ok(());
        }
        let message = format!(
            "{what} would be written to {}, which is in the cache {}",
            path.display(),
            self.cache.display()
        );
        Err(Problem::new(Code::CallPlace, message).help("choose a path outside of the cache"))
    }
}

/// Whether two paths name the same file, or would if it existed.
fn is_same_file(one: &Path, other: &Path) -> bool {
    match (fs::metadata(one), fs::metadata(other)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => resolved(one) == resolved(other),
    }
}

/// The absolute path without links and `..`, even if it does not exist.
fn resolved(path: &Path) -> PathBuf {
    resolve_links(path, MAX_LINKS)
}

fn resolve_links(path: &Path, max_links: usize) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.into());
    let mut real = PathBuf::new();
    for component in absolute.components() {
        if component == Component::ParentDir {
            real.pop();
            continue;
        }
        real.push(component);
        // A link to a path that does not exist yet is followed, too.
        match (real.canonicalize(), real.read_link()) {
            (Ok(canonical), _) => real = canonical,
            (Err(_), Ok(target)) if max_links > 0 => {
                real.pop();
                real = resolve_links(&real.join(target), max_links - 1);
            }
            _ => {}
        }
    }
    real
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unused_paths_are_writable() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        fs::create_dir(at("cache")).unwrap();
        std::os::unix::fs::symlink(at("cache"), at("link")).unwrap();
        for file in ["plan.toml", "text", "old.json", "lib.toml"] {
            fs::write(at(file), "").unwrap();
        }
        fs::hard_link(at("text"), at("same")).unwrap();
        let output_paths = || OutputPaths::new(&at("cache"), [at("plan.toml"), at("text")]);
        for good in [
            "new.json",
            "old.json",
            "folder/new.json",
            "new.toml",
            "cachet",
        ] {
            output_paths().reserve_file("the log", &at(good)).unwrap();
        }
        fs::create_dir(at("published")).unwrap();
        fs::write(at("published").join(RECORD), "").unwrap();
        std::os::unix::fs::symlink("cache/later", at("dangling")).unwrap();
        std::os::unix::fs::symlink("lib.toml", at("a.log")).unwrap();
        for bad in [
            "plan.toml",
            "text",
            "same",
            "lib.toml",
            "a.log",
            "cache/new",
            "cache/a/b",
            "link/new",
            "cache",
            "none/../cache/x",
            "dangling",
            "out/stage/x",
            "out/receipt.json",
            "published/a/b",
        ] {
            let mut paths = output_paths();
            paths.reserve_artifacts(
                [at("out/stage")].into_iter(),
                [at("out/receipt.json")].into_iter(),
            );
            paths.reserve_file("the log", &at(bad)).unwrap_err();
        }
        let mut paths = output_paths();
        paths.reserve_file("the log", &at("new")).unwrap();
        let problem = paths
            .reserve_file("the report", &home.path().join("./new"))
            .unwrap_err();
        assert!(
            problem
                .message
                .starts_with("the report would be written to "),
            "{problem}"
        );
    }
}
