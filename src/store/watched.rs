//! Files that are not the cache's own: hashed when they may have changed, and watched while they
//! are read.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{Notes, Stamp};
use crate::base::{Code, Context, Digest, Hasher, Problem, Result, hash_bytes, open_file};

/// Cap on the files below a watched folder: far above any SDK.
const MAX_FILES: usize = 200_000;

/// A change so shortly after another may leave the stamp as it is: clocks of file systems tick
/// every few milliseconds, and on some network file systems every second or two.
const TICK_SECONDS: i64 = 2;

/// A file or folder as it was when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Of the bytes of a file; of the names and bytes of a folder.
    pub digest: Digest,
    files: Vec<(PathBuf, Known)>,
}

/// What is known of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    stamp: Stamp,
    digest: Digest,
}

impl Watched {
    /// Looks at `path`, unless it is called off. A file is read only if its stamp is another than
    /// in the note on it.
    pub fn look(notes: &dyn Notes, path: &Path, cancel: &AtomicBool) -> Result<Watched> {
        let failed = || format!("read the input {}", path.display());
        if !fs::metadata(path).context(Code::InputIo, failed)?.is_dir() {
            let known = look_at_file(notes, path, cancel)?;
            return Ok(Watched {
                digest: known.digest,
                files: vec![(path.into(), known)],
            });
        }
        let mut listing = String::new();
        let mut files = vec![];
        for file in files_below(path)? {
            let known = look_at_file(notes, &file, cancel)?;
            let name = file.strip_prefix(path).unwrap_or(&file);
            listing += &format!("{:?} {}\n", name.as_os_str().as_bytes(), known.digest);
            files.push((file, known));
        }
        Ok(Watched {
            digest: hash_bytes(listing.as_bytes()),
            files,
        })
    }

    /// Refuses whatever was made meanwhile, if any of it is not what it was.
    pub fn check(&self, notes: &dyn Notes, cancel: &AtomicBool) -> Result<()> {
        for (path, known) in &self.files {
            let is_untouched = fs::metadata(path).is_ok_and(|now| Stamp::of(&now) == known.stamp);
            // Touched is not changed: only its bytes can say.
            if !is_untouched
                && !look_at_file(notes, path, cancel).is_ok_and(|now| now.digest == known.digest)
            {
                return Err(if cancel.load(Ordering::Relaxed) {
                    Problem::cancelled()
                } else {
                    changed(path)
                });
            }
        }
        Ok(())
    }
}

fn changed(path: &Path) -> Problem {
    Problem::new(
        Code::InputChanged,
        format!("{} changed while it was in use", path.display()),
    )
    .help("nothing that was made from it was kept; run the same command again when it is at rest")
}

fn look_at_file(notes: &dyn Notes, path: &Path, cancel: &AtomicBool) -> Result<Known> {
    let failed = || format!("read the input {}", path.display());
    let question = hash_bytes(&[b"digest of ", path.as_os_str().as_bytes()].concat());
    let file = open_file(path).context(Code::InputIo, failed)?;
    let metadata = file.metadata().context(Code::InputIo, failed)?;
    let stamp = Stamp::of(&metadata);
    let known = notes
        .read(&question)?
        .and_then(|note| serde_json::from_str::<Known>(&note.text).ok());
    if let Some(known) = known.filter(|known| known.stamp == stamp) {
        return Ok(known);
    }
    let digest = hash_ahead(&file, cancel)
        .context(Code::InputIo, failed)?
        .ok_or_else(Problem::cancelled)?;
    let known = Known { stamp, digest };
    let now = fs::metadata(path).context(Code::InputIo, failed)?;
    if Stamp::of(&now) != stamp {
        return Err(changed(path));
    }
    if is_at_rest(&metadata) {
        let text = serde_json::to_string(&known).context(Code::InputIo, failed)?;
        // What was not noted is read again the next time.
        let _ = notes.write(&question, &text);
    }
    Ok(known)
}

/// Whether another change would show in the stamp. A change in the future, after the clock was set
/// back, never is.
fn is_at_rest(metadata: &Metadata) -> bool {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let latest = metadata.mtime().max(metadata.ctime());
    i64::try_from(now).is_ok_and(|now| now > latest.saturating_add(TICK_SECONDS))
}

/// Hashes a file, one chunk on all threads while the next is being read. By reading, since a mapped
/// file that shrinks is a fault.
pub fn hash_ahead(mut file: &File, cancel: &AtomicBool) -> io::Result<Option<Digest>> {
    const CHUNK_BYTES: usize = 4 << 20;
    let mut hasher = Hasher::default();
    let (mut full, mut next) = (vec![], vec![]);
    loop {
        let (read, ()) = rayon::join(
            || {
                file.by_ref()
                    .take(CHUNK_BYTES as u64)
                    .read_to_end(&mut next)
            },
            || hasher.update_with_all_threads(&full),
        );
        if read? == 0 {
            return Ok(Some(hasher.finish()));
        }
        if cancel.load(Ordering::Relaxed) {
            return Ok(None);
        }
        std::mem::swap(&mut full, &mut next);
        next.clear();
    }
}

/// All files below `folder`, links followed, sorted.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = vec![];
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let failed = || format!("list {}", folder.display());
        for entry in fs::read_dir(&folder).context(Code::InputIo, failed)? {
            let path = entry.context(Code::InputIo, failed)?.path();
            let is_folder = fs::metadata(&path)
                .context(Code::InputIo, || format!("look at {}", path.display()))?
                .is_dir();
            match is_folder {
                true => folders.push((path, depth + 1)),
                false => files.push(path),
            }
        }
        // Links may lead in a circle.
        if files.len() + folders.len() > MAX_FILES || depth > 64 {
            let message = format!(
                "{} holds more than {MAX_FILES} files, or folders without end",
                folder.display()
            );
            return Err(Problem::new(Code::InputTooMany, message)
                .help("name the files and folders that matter"));
        }
    }
    files.sort();
    Ok(files)
}
