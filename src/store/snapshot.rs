//! Local input files: hashed when they may have changed, and checked again after they were used.

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

/// Limit for the number of files in an input folder: far more than any SDK has.
const MAX_FILES: usize = 200_000;

/// Limit for the depth of an input folder, since links may form a cycle.
const MAX_DEPTH: usize = 64;

/// A second change within this time may leave the stamp as it is: file systems update times every
/// few milliseconds, and some network file systems every second or two.
const CLOCK_TICK_SECONDS: i64 = 2;

/// The state of an input file or folder at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputSnapshot {
    /// Of the bytes of a file; of the names and bytes of a folder.
    pub digest: Digest,
    files: Vec<(PathBuf, FileState)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FileState {
    stamp: Stamp,
    digest: Digest,
}

impl InputSnapshot {
    /// Takes a snapshot of `path`; fails when `cancel` is set. Reads a file only if its stamp is
    /// not the one in the note on it.
    pub fn take(notes: &dyn Notes, path: &Path, cancel: &AtomicBool) -> Result<InputSnapshot> {
        let metadata = fs::metadata(path).context(Code::InputIo, || {
            format!("read the input {}", path.display())
        })?;
        if !metadata.is_dir() {
            let state = file_state(notes, path, cancel)?;
            return Ok(InputSnapshot {
                digest: state.digest,
                files: vec![(path.into(), state)],
            });
        }
        let mut listing = String::new();
        let mut files = vec![];
        for file in files_below(path)? {
            let state = file_state(notes, &file, cancel)?;
            let name = file.strip_prefix(path).unwrap_or(&file);
            listing += &format!("{:?} {}\n", name.as_os_str().as_bytes(), state.digest);
            files.push((file, state));
        }
        Ok(InputSnapshot {
            digest: hash_bytes(listing.as_bytes()),
            files,
        })
    }

    /// Fails if the bytes of a file changed since. Files that were added to a folder do not count.
    pub fn check_unchanged(&self, notes: &dyn Notes, cancel: &AtomicBool) -> Result<()> {
        for (path, state) in &self.files {
            if let Ok(now) = fs::metadata(path)
                && Stamp::of(&now) == state.stamp
            {
                continue;
            }
            // The stamp may change while the bytes stay the same.
            match file_state(notes, path, cancel) {
                Ok(now) if now.digest == state.digest => {}
                _ if cancel.load(Ordering::Relaxed) => return Err(Problem::cancelled()),
                _ => return Err(changed(path)),
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

fn file_state(notes: &dyn Notes, path: &Path, cancel: &AtomicBool) -> Result<FileState> {
    let failed = || format!("read the input {}", path.display());
    let key = hash_bytes(&[b"digest of ", path.as_os_str().as_bytes()].concat());
    let file = open_file(path).context(Code::InputIo, failed)?;
    let metadata = file.metadata().context(Code::InputIo, failed)?;
    let stamp = Stamp::of(&metadata);
    if let Some(note) = notes.read(&key)?
        && let Ok(noted) = serde_json::from_str::<FileState>(&note.text)
        && noted.stamp == stamp
    {
        return Ok(noted);
    }
    let Some(digest) = hash_file_parallel(&file, cancel).context(Code::InputIo, failed)? else {
        return Err(Problem::cancelled());
    };
    let state = FileState { stamp, digest };
    let now = fs::metadata(path).context(Code::InputIo, failed)?;
    if Stamp::of(&now) != stamp {
        return Err(changed(path));
    }
    if next_change_is_visible(&metadata) {
        let text = serde_json::to_string(&state).context(Code::InputIo, failed)?;
        // Without the note, the file is read again the next time.
        let _ = notes.write(&key, &text);
    }
    Ok(state)
}

/// Whether another change would update the stamp. Not if the last change is recent, or in the
/// future because the clock was set back.
fn next_change_is_visible(metadata: &Metadata) -> bool {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let changed = metadata.mtime().max(metadata.ctime());
    match i64::try_from(now) {
        Ok(now) => now > changed.saturating_add(CLOCK_TICK_SECONDS),
        Err(_) => false,
    }
}

/// Hashes a file, one chunk on all threads while the next one is being read; `None` when `cancel`
/// is set. Reads instead of mapping, since a mapped file that is truncated is a fault.
pub fn hash_file_parallel(mut file: &File, cancel: &AtomicBool) -> io::Result<Option<Digest>> {
    const CHUNK_BYTES: u64 = 4 << 20;
    let mut hasher = Hasher::default();
    let (mut chunk, mut next) = (vec![], vec![]);
    loop {
        let (read, ()) = rayon::join(
            || file.by_ref().take(CHUNK_BYTES).read_to_end(&mut next),
            || hasher.update_with_all_threads(&chunk),
        );
        if read? == 0 {
            return Ok(Some(hasher.finish()));
        }
        if cancel.load(Ordering::Relaxed) {
            return Ok(None);
        }
        std::mem::swap(&mut chunk, &mut next);
        next.clear();
    }
}

/// All files below `folder`, sorted. Follows links.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = vec![];
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let failed = || format!("list {}", folder.display());
        for entry in fs::read_dir(&folder).context(Code::InputIo, failed)? {
            let path = entry.context(Code::InputIo, failed)?.path();
            let metadata = fs::metadata(&path)
                .context(Code::InputIo, || format!("look at {}", path.display()))?;
            if metadata.is_dir() {
                folders.push((path, depth + 1));
            } else {
                files.push(path);
            }
        }
        if files.len() + folders.len() > MAX_FILES || depth > MAX_DEPTH {
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
