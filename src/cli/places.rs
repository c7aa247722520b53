//! Where a call may write: not over what it reads, not where it writes something else, and not into
//! the cache.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use crate::base::{Code, Problem, Result};
use crate::store::RECORD;

/// Files that people write, or that hold a build to its word: no report goes over one.
const WRITTEN_BY_HAND: [&str; 2] = ["toml", "lock"];

/// As many links to nothing are followed.
const MAX_LINKS: usize = 8;

/// What a call reads, what it has been allowed to write, and the folders that hold nothing but
/// kiln's own files.
pub(super) struct Places {
    cache: PathBuf,
    own: Vec<PathBuf>,
    taken: Vec<PathBuf>,
}

impl Places {
    /// Of a call that reads the files `read`.
    pub(super) fn new(cache: &Path, read: impl IntoIterator<Item = PathBuf>) -> Places {
        Places {
            cache: resolved(cache),
            own: vec![],
            taken: read.into_iter().collect(),
        }
    }

    /// Has artifacts written to `folders`, and beside them the `files`.
    pub(super) fn keep(
        &mut self,
        folders: impl Iterator<Item = PathBuf>,
        files: impl Iterator<Item = PathBuf>,
    ) {
        self.own.extend(folders.map(|folder| resolved(&folder)));
        self.taken.extend(files);
    }

    /// Whether the option `what` may name the file `path`. Nothing else may from now on.
    pub(super) fn take_file(&mut self, what: &str, path: &Path) -> Result<()> {
        self.refuse_in_cache(what, path)?;
        let real = resolved(path);
        let is_by_hand = real
            .extension()
            .is_some_and(|end| WRITTEN_BY_HAND.iter().any(|by_hand| end == *by_hand));
        let is_taken =
            self.taken.iter().any(|taken| is_same(taken, path)) || is_by_hand && real.exists();
        let is_published = real
            .ancestors()
            .skip(1)
            .any(|folder| folder.join(RECORD).exists());
        if is_taken || is_published || self.own.iter().any(|folder| real.starts_with(folder)) {
            let message = format!(
                "{what} would be written to {}, which is for something else",
                path.display()
            );
            return Err(Problem::new(Code::CallPlace, message).help("name a file of its own"));
        }
        self.taken.push(path.into());
        Ok(())
    }

    /// Whether the option `what` may name the folder or file `path`.
    pub(super) fn refuse_in_cache(&self, what: &str, path: &Path) -> Result<()> {
        if resolved(path).starts_with(&self.cache) {
            let message = format!(
                "{what} would be written to {}, which is in the cache {}",
                path.display(),
                self.cache.display()
            );
            return Err(
                Problem::new(Code::CallPlace, message).help("choose a place outside of the cache")
            );
        }
        Ok(())
    }
}

/// Whether two paths name one file, or would.
fn is_same(one: &Path, other: &Path) -> bool {
    match (fs::metadata(one), fs::metadata(other)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => resolved(one) == resolved(other),
    }
}

/// The absolute path without links and `..`, whether it exists or not.
fn resolved(path: &Path) -> PathBuf {
    resolve(path, MAX_LINKS)
}

fn resolve(path: &Path, links: usize) -> PathBuf {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.into());
    let mut real = PathBuf::new();
    for component in whole.components() {
        if component == Component::ParentDir {
            real.pop();
            continue;
        }
        real.push(component);
        // A link to what is not there yet leads there all the same.
        match (real.canonicalize(), real.read_link()) {
            (Ok(found), _) => real = found,
            (Err(_), Ok(target)) if links > 0 => {
                real.pop();
                real = resolve(&real.join(target), links - 1);
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
    fn a_call_writes_where_nothing_is_lost() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        fs::create_dir(at("cache")).unwrap();
        std::os::unix::fs::symlink(at("cache"), at("link")).unwrap();
        for file in ["plan.toml", "text", "old.json", "lib.toml"] {
            fs::write(at(file), "").unwrap();
        }
        fs::hard_link(at("text"), at("same")).unwrap();
        let places = || Places::new(&at("cache"), [at("plan.toml"), at("text")]);
        for good in [
            "new.json",
            "old.json",
            "folder/new.json",
            "new.toml",
            "cachet",
        ] {
            places().take_file("the log", &at(good)).unwrap();
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
            let mut places = places();
            places.keep(
                [at("out/stage")].into_iter(),
                [at("out/receipt.json")].into_iter(),
            );
            places.take_file("the log", &at(bad)).unwrap_err();
        }
        let mut places = places();
        places.take_file("the log", &at("new")).unwrap();
        let problem = places
            .take_file("the report", &home.path().join("./new"))
            .unwrap_err();
        assert!(
            problem
                .message
                .starts_with("the report would be written to "),
            "{problem}"
        );
    }
}
