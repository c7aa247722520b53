//! What a cache folder looks like: how it is known to be one, and the names of all that kiln keeps
//! in it. Nothing under another name is kiln's, so nothing else is ever read or removed.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::base::{Code, Context, Problem, Result, head, new_file_in};

/// The layout that this code reads and writes; bumped when an older kiln would misread it.
pub(super) const LAYOUT: &str = "kiln cache 1\n";
/// Folders of processes in `tmp/` begin with this.
pub(super) const OWN: &str = "kiln-";
/// The file that says what the folder is.
const FILE: &str = "layout";
/// Files that may lie in a folder before it becomes a cache, as a repository keeps them.
const NEUTRAL: [&str; 4] = ["README.md", ".gitignore", ".gitkeep", "CACHEDIR.TAG"];
/// What the layout is written under, before it has its name.
const UNNAMED: &str = ".kiln-layout-";
/// A subfolder with files named by digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    Blobs,
    Actions,
    Notes,
}

impl Room {
    const fn folder(self) -> &'static str {
        match self {
            Room::Blobs => "blobs",
            Room::Actions => "actions",
            Room::Notes => "notes",
        }
    }

    const fn suffix(self) -> &'static str {
        match self {
            Room::Actions => ".json",
            Room::Blobs | Room::Notes => "",
        }
    }

    /// The file named by `hex`, in the cache `root`.
    pub(super) fn path(self, root: &Path, hex: &str) -> PathBuf {
        root.join(self.folder())
            .join(hex.get(..2).unwrap_or_default())
            .join(format!("{hex}{}", self.suffix()))
    }

    /// All files of the cache `root` that have such a name, sorted. No link is followed.
    pub(super) fn files(self, root: &Path) -> Result<Vec<PathBuf>> {
        let mut files = vec![];
        for dir in
            entries(&root.join(self.folder()))?.filter(|entry| is(entry, fs::FileType::is_dir))
        {
            let name = dir.file_name();
            let Some(dir_name) = name.to_str().filter(|name| name.len() == 2 && is_hex(name))
            else {
                continue;
            };
            let is_ours = |name: &str| {
                name.strip_suffix(self.suffix())
                    .is_some_and(|hex| is_digest(hex) && hex.starts_with(dir_name))
            };
            let found = entries(&dir.path())?.filter(|entry| is(entry, fs::FileType::is_file));
            files.extend(
                found
                    .filter(|file| file.file_name().to_str().is_some_and(is_ours))
                    .map(|file| file.path()),
            );
        }
        files.sort();
        Ok(files)
    }
}

/// The folders of half-finished work in the cache `root`, sorted.
pub(super) fn partials(root: &Path) -> Result<Vec<PathBuf>> {
    let folders = entries(&root.join("partial"))?.filter(|entry| is(entry, fs::FileType::is_dir));
    let ours = folders.filter(|entry| entry.file_name().to_str().is_some_and(is_digest));
    let mut partials: Vec<PathBuf> = ours.map(|entry| entry.path()).collect();
    partials.sort();
    Ok(partials)
}

/// Makes `root` a cache if it may become one, or says why not. Yields its absolute path: the cache
/// may be named by a relative one, and vendor libraries change the working directory.
pub(super) fn claim(root: &Path) -> Result<PathBuf> {
    let failed = || format!("open the cache {}", root.display());
    fs::create_dir_all(root).context(Code::StoreIo, failed)?;
    let root = root.canonicalize().context(Code::StoreIo, failed)?;
    let path = root.join(FILE);
    match head(&path, 2 * LAYOUT.len() as u64) {
        Ok(found) if found == LAYOUT.as_bytes() => {}
        Ok(found) => return Err(unknown(&path, &found)),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            match entries(&root)?.find(|entry| !is_neutral(&entry.file_name().to_string_lossy())) {
                // Another kiln may just have claimed it.
                Some(_) if path.exists() => {}
                Some(stranger) => {
                    return Err(foreign(&root, &stranger.file_name().to_string_lossy()));
                }
                None => write_layout(&root)
                    .context(Code::StoreIo, || format!("write {}", path.display()))?,
            }
        }
        Err(error) => {
            return Err(error).context(Code::StoreIo, || format!("read {}", path.display()));
        }
    }
    for room in ["blobs", "actions", "notes", "partial", "tmp", "last"] {
        let path = root.join(room);
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => {
                if let Some(link) =
                    entries(&path)?.find(|entry| is(entry, fs::FileType::is_symlink))
                {
                    return Err(no_folder(&link.path()));
                }
            }
            Ok(_) => return Err(no_folder(&path)),
            Err(_) => match fs::create_dir_all(&path) {
                // Who may only read it finds nothing there.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
                    ) => {}
                made => made.context(Code::StoreIo, failed)?,
            },
        }
    }
    Ok(root)
}

fn write_layout(root: &Path) -> io::Result<()> {
    let mut file = new_file_in(root, UNNAMED)?;
    file.write_all(LAYOUT.as_bytes())?;
    // A cache without it would not be known as one after a power cut.
    file.as_file().sync_all()?;
    file.persist(root.join(FILE))?;
    File::open(root)?.sync_all()
}

fn is_neutral(name: &str) -> bool {
    NEUTRAL.contains(&name) || name.starts_with(UNNAMED)
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

/// The number of a layout that some kiln wrote.
fn layout_number(text: &[u8]) -> Option<u32> {
    let number = std::str::from_utf8(text)
        .ok()?
        .strip_prefix("kiln cache ")?
        .strip_suffix('\n')?;
    number
        .parse()
        .ok()
        .filter(|number| *number > 0 && !text.contains(&b'+'))
}

fn foreign(root: &Path, stranger: &str) -> Problem {
    let message = format!(
        "{} is no cache: it holds `{stranger}`, and no file `layout` in which kiln says that the \
         folder is its own",
        root.display()
    );
    Problem::new(Code::StoreForeign, message)
        .help("name a folder that is missing or empty with --cache")
}

fn no_folder(path: &Path) -> Problem {
    let message = format!(
        "{} is not a folder of the cache itself, but a link or a file",
        path.display()
    );
    Problem::new(Code::StoreForeign, message).help(
        "kiln follows no link inside of a cache: remove it, and name the folder elsewhere with \
         --cache",
    )
}

fn entries(folder: &Path) -> Result<impl Iterator<Item = fs::DirEntry> + use<>> {
    let entries: io::Result<Vec<fs::DirEntry>> = match fs::read_dir(folder) {
        // Removed meanwhile.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(vec![]),
        Err(error) => Err(error),
        Ok(entries) => entries.collect(),
    };
    Ok(entries
        .context(Code::StoreIo, || format!("list {}", folder.display()))?
        .into_iter())
}

fn is(entry: &fs::DirEntry, kind: fn(&fs::FileType) -> bool) -> bool {
    entry.file_type().is_ok_and(|found| kind(&found))
}

fn is_hex(name: &str) -> bool {
    name.bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_digest(name: &str) -> bool {
    name.len() == 64 && is_hex(name)
}
