//! The layout of a cache folder: how it is recognized, and the names of all files that kiln keeps
//! in it. Files with other names are not kiln's and are never read or removed.

use std::fs::{self, File, FileType};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::base::{Code, Context, Problem, Result, head, new_file_in};

/// The layout that this code reads and writes; increased when an older kiln would misread it.
pub(super) const LAYOUT: &str = "kiln cache 1\n";
/// Prefix of the folders of processes in `tmp/`.
pub(super) const PROCESS_PREFIX: &str = "kiln-";
/// The file that contains [`LAYOUT`].
const LAYOUT_FILE: &str = "layout";
/// Files that may exist in a folder before it becomes a cache, as repositories have them.
const NEUTRAL: [&str; 4] = ["README.md", ".gitignore", ".gitkeep", "CACHEDIR.TAG"];
/// Prefix of the temporary file that becomes the layout file.
const UNNAMED: &str = ".kiln-layout-";
/// A subfolder of the cache whose files are named by digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CacheDir {
    Blobs,
    Actions,
    Notes,
}

impl CacheDir {
    const fn folder(self) -> &'static str {
        match self {
            CacheDir::Blobs => "blobs",
            CacheDir::Actions => "actions",
            CacheDir::Notes => "notes",
        }
    }

    const fn suffix(self) -> &'static str {
        match self {
            CacheDir::Actions => ".json",
            CacheDir::Blobs | CacheDir::Notes => "",
        }
    }

    /// The file named by `hex`, in the cache `root`.
    pub(super) fn path(self, root: &Path, hex: &str) -> PathBuf {
        root.join(self.folder())
            .join(hex.get(..2).unwrap_or_default())
            .join(format!("{hex}{}", self.suffix()))
    }

    /// All files of the cache `root` with such a name, sorted. Follows no links.
    pub(super) fn files(self, root: &Path) -> Result<Vec<PathBuf>> {
        let mut files = vec![];
        for dir in entries(&root.join(self.folder()))? {
            let dir_name = dir.file_name();
            let Some(prefix) = dir_name.to_str() else {
                continue;
            };
            if prefix.len() != 2 || !is_hex(prefix) || !has_type(&dir, FileType::is_dir) {
                continue;
            }
            for file in entries(&dir.path())? {
                if self.is_name(&file, prefix) && has_type(&file, FileType::is_file) {
                    files.push(file.path());
                }
            }
        }
        files.sort();
        Ok(files)
    }

    /// Whether `file` has the name of a file in the folder `prefix`.
    fn is_name(self, file: &fs::DirEntry, prefix: &str) -> bool {
        let name = file.file_name();
        match name
            .to_str()
            .unwrap_or_default()
            .strip_suffix(self.suffix())
        {
            Some(hex) => is_digest(hex) && hex.starts_with(prefix),
            None => false,
        }
    }
}

/// The folders of partial work in the cache `root`, sorted.
pub(super) fn partials(root: &Path) -> Result<Vec<PathBuf>> {
    let mut partials = vec![];
    for entry in entries(&root.join("partial"))? {
        let is_ours = is_digest(entry.file_name().to_str().unwrap_or_default());
        if is_ours && has_type(&entry, FileType::is_dir) {
            partials.push(entry.path());
        }
    }
    partials.sort();
    Ok(partials)
}

/// All files below `folder`, sorted.
pub(super) fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = vec![];
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in entries(&folder)? {
            if has_type(&entry, FileType::is_dir) {
                folders.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Removes a file; one that does not exist is not an error.
pub(super) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.context(Code::StoreIo, || format!("remove {}", path.display())),
    }
}

/// Opens the cache folder `root`, and creates it if there is none. Returns its absolute path, since
/// vendor libraries change the working directory.
pub(super) fn open_root(root: &Path) -> Result<PathBuf> {
    let failed = || format!("open the cache {}", root.display());
    fs::create_dir_all(root).context(Code::StoreIo, failed)?;
    let root = root.canonicalize().context(Code::StoreIo, failed)?;
    let path = root.join(LAYOUT_FILE);
    match head(&path, 2 * LAYOUT.len() as u64) {
        Ok(found) if found == LAYOUT.as_bytes() => {}
        Ok(found) => return Err(unknown(&path, &found)),
        Err(error) if error.kind() == ErrorKind::NotFound => create_layout(&root)?,
        Err(error) => {
            return Err(error).context(Code::StoreIo, || format!("read {}", path.display()));
        }
    }
    for name in ["blobs", "actions", "notes", "partial", "tmp", "last"] {
        let path = root.join(name);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => {
                for entry in entries(&path)? {
                    if has_type(&entry, FileType::is_symlink) {
                        return Err(not_a_folder(&entry.path()));
                    }
                }
            }
            Ok(_) => return Err(not_a_folder(&path)),
            Err(_) => match fs::create_dir_all(&path) {
                // A read-only cache without this folder has nothing in it.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
                    ) => {}
                created => created.context(Code::StoreIo, failed)?,
            },
        }
    }
    Ok(root)
}

/// Makes `root` a cache, unless it contains other files.
fn create_layout(root: &Path) -> Result<()> {
    let path = root.join(LAYOUT_FILE);
    for entry in entries(root)? {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if NEUTRAL.contains(&&*name) || name.starts_with(UNNAMED) {
            continue;
        }
        // Another kiln may have made it a cache in the meantime.
        if path.exists() {
            return Ok(());
        }
        return Err(foreign(root, &name));
    }
    write_layout(root).context(Code::StoreIo, || format!("write {}", path.display()))
}

fn write_layout(root: &Path) -> io::Result<()> {
    let mut file = new_file_in(root, UNNAMED)?;
    file.write_all(LAYOUT.as_bytes())?;
    // Without this file, the folder would be refused as foreign after a power cut.
    file.as_file().sync_all()?;
    file.persist(root.join(LAYOUT_FILE))?;
    File::open(root)?.sync_all()
}

fn unknown(path: &Path, found: &[u8]) -> Problem {
    let message = match layout_number(found) {
        Some(number) => format!(
            "{} says {number}, this kiln knows {:?}",
            path.display(),
            LAYOUT.trim()
        ),
        None => format!(
            "{} does not say {:?}, so this may be no cache of kiln's",
            path.display(),
            LAYOUT.trim()
        ),
    };
    Problem::new(Code::StoreLayout, message).help(format!(
        "name another folder with --cache; or, if it is a cache all the same, delete it, or write \
         that line into {} again",
        path.display()
    ))
}

/// The number of a layout that some version of kiln wrote.
fn layout_number(text: &[u8]) -> Option<u32> {
    let number = std::str::from_utf8(text)
        .ok()?
        .strip_prefix("kiln cache ")?
        .strip_suffix('\n')?;
    match number.parse() {
        Ok(number) if number > 0 && !text.contains(&b'+') => Some(number),
        _ => None,
    }
}

fn foreign(root: &Path, name: &str) -> Problem {
    let message = format!(
        "{} is no cache: it holds `{name}`, and no file `layout` in which kiln says that the \
         folder is its own",
        root.display()
    );
    Problem::new(Code::StoreForeign, message)
        .help("name a folder that is missing or empty with --cache")
}

fn not_a_folder(path: &Path) -> Problem {
    let message = format!(
        "{} is not a folder of the cache itself, but a link or a file",
        path.display()
    );
    Problem::new(Code::StoreForeign, message).help(
        "kiln follows no link inside of a cache: remove it, and name the folder elsewhere with \
         --cache",
    )
}

/// The entries of a folder; none if it does not exist.
fn entries(folder: &Path) -> Result<Vec<fs::DirEntry>> {
    let entries: io::Result<Vec<fs::DirEntry>> = match fs::read_dir(folder) {
        // Another process may remove it at any time.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(vec![]),
        Err(error) => Err(error),
        Ok(entries) => entries.collect(),
    };
    entries.context(Code::StoreIo, || format!("list {}", folder.display()))
}

/// Whether `entry` has a type; one that cannot be determined is no match.
fn has_type(entry: &fs::DirEntry, is_type: fn(&FileType) -> bool) -> bool {
    match entry.file_type() {
        Ok(found) => is_type(&found),
        Err(_) => false,
    }
}

fn is_hex(name: &str) -> bool {
    name.bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_digest(name: &str) -> bool {
    name.len() == 64 && is_hex(name)
}
