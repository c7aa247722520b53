//! Manifests as folders for people: whole or not at all, and not at all when already there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, ioctl_ficlone, renameat_with, syncfs};
use rustix::io::Errno;

use super::BlobStore;
use super::disk::MAX_TEXT_BYTES;
use super::folder::LockedFolder;
use super::stamp::Stamp;
use crate::action::{Blob, Manifest, PartName};
use crate::base::{Code, Context, Digest, Problem, Result, read_file};

/// Lies in each published folder and says what the folder holds. Marks it as one that kiln may
/// replace.
pub const RECORD: &str = ".kiln.json";

/// Folders that are being written, or on their way out, begin with this.
const TEMPORARY: &str = ".kiln-tmp-";

/// As much of a window is copied at a time.
const PIECE_BYTES: usize = 1 << 20;

/// What was written for each part, and its file's stamp right after.
type Record = BTreeMap<PartName, (Digest, Stamp)>;

/// How written files share their bytes with the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Links {
    /// Reflinks, where the file system has them; else they are copies.
    #[default]
    Reflink,
    /// Reflinks, else hard links: read-only, and whoever edits one all the same spoils the cache's
    /// own, which kiln notices when it reads it. Copies, where the cache is on another disk or
    /// a file is a part of a blob.
    Hard,
}

/// The bytes of what was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// In files that take no space of their own.
    pub shared_bytes: u64,
    /// In files that do.
    pub copied_bytes: u64,
}

impl std::ops::AddAssign for Space {
    fn add_assign(&mut self, other: Space) {
        self.shared_bytes += other.shared_bytes;
        self.copied_bytes += other.copied_bytes;
    }
}

/// Makes `folder` hold exactly the parts of `manifest`; yields what had to be written, or `None` if
/// nothing had to.
pub fn publish(
    blobs: &dyn BlobStore,
    manifest: &Manifest,
    folder: &Path,
    links: Links,
) -> Result<Option<Space>> {
    if folder.is_symlink() {
        let message = format!(
            "{} is a link: what lies behind it may be another's",
            folder.display()
        );
        return Err(Problem::new(Code::PublishForeign, message).help(
            "remove it; the folder that --out names may be a link, those of the stages may not",
        ));
    }
    // The folders above it may be links, and locks follow none.
    let above = folder
        .parent()
        .and_then(|parent| parent.canonicalize().ok());
    let folder = &above
        .zip(folder.file_name())
        .map_or(folder.into(), |(above, name)| above.join(name));
    let is_there = || read_record(folder).is_some_and(|record| holds(folder, &record, manifest));
    if is_there() {
        return Ok(None);
    }
    // One writer at a time: it may be that another kiln is just about to write the very same.
    let parent = folder.parent().unwrap_or(Path::new("/"));
    let _turn = LockedFolder::wait(parent)?;
    if is_there() {
        return Ok(None);
    }
    // A damaged record still says whose folder it is.
    if !folder.join(RECORD).exists() && is_in_use(folder)? {
        let message = format!("{} is there, but kiln did not write it", folder.display());
        return Err(Problem::new(Code::PublishForeign, message).help(
            "move it away, or write somewhere else with --out; a folder that kiln wrote holds a \
             file .kiln.json",
        ));
    }
    LockedFolder::sweep(parent, TEMPORARY)?;
    let fresh = LockedFolder::create(parent, TEMPORARY)?;
    let done = write(blobs, manifest, fresh.path(), links).and_then(|space| {
        swap(fresh.path(), folder)
            .context(Code::PublishIo, || {
                format!("put {} in place", folder.display())
            })
            .map(|()| space)
    });
    // Holds the old content now, or what was written of the new.
    fresh.remove()?;
    done.map(Some)
}

fn read_record(folder: &Path) -> Option<Record> {
    serde_json::from_slice(&read_file(&folder.join(RECORD), MAX_TEXT_BYTES).ok()?).ok()
}

/// Whether `folder` still is what `record` says, and that is what `manifest` asks for. Stats, reads
/// nothing.
fn holds(folder: &Path, record: &Record, manifest: &Manifest) -> bool {
    let is_untouched = |name: &PartName, stamp: &Stamp| {
        let now = fs::symlink_metadata(folder.join(name.as_str())).map(|file| Stamp::of(&file));
        now.is_ok_and(|now| now == *stamp || now.of_a_link() == *stamp)
    };
    record.len() == manifest.parts.len()
        && record
            .iter()
            .zip(&manifest.parts)
            .all(|((name, (digest, stamp)), (wanted, part))| {
                name == wanted && *digest == part.content.digest && is_untouched(name, stamp)
            })
}

fn is_in_use(folder: &Path) -> Result<bool> {
    match fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).context(Code::PublishIo, || {
            format!("look into {}", folder.display())
        }),
    }
}

fn write(blobs: &dyn BlobStore, manifest: &Manifest, folder: &Path, links: Links) -> Result<Space> {
    let mut record = Record::new();
    let mut space = Space::default();
    for (name, part) in &manifest.parts {
        let content = &part.content;
        let gone = || {
            Problem::new(
                Code::StoreGone,
                format!(
                    "the blob {} of `{name}` is gone from the cache",
                    content.blob()
                ),
            )
            .help("run the same command again: what made this blob runs again")
        };
        let path = folder.join(name.as_str());
        let put = match content.window {
            None => put(
                &blobs.path(&content.digest)?.ok_or_else(gone)?,
                &path,
                links,
            ),
            Some(_) => {
                copy(&blobs.content(content)?.ok_or_else(gone)?, &path).map(|stamp| (stamp, false))
            }
        };
        let (stamp, is_shared) =
            put.context(Code::PublishIo, || format!("write {}", path.display()))?;
        let bytes = if is_shared {
            &mut space.shared_bytes
        } else {
            &mut space.copied_bytes
        };
        *bytes += content.digest.size_bytes;
        record.insert(name.clone(), (content.digest, stamp));
    }
    let finish = || -> io::Result<()> {
        fs::write(folder.join(RECORD), serde_json::to_vec(&record)?)?;
        // One flush for hundreds of files; the record must not outlive what it vouches for.
        Ok(syncfs(File::open(folder)?)?)
    };
    finish()
        .context(Code::PublishIo, || format!("write {}", folder.display()))
        .map(|()| space)
}

/// Yields the stamp of the new file at `path`, and whether it shares its bytes with `blob`.
fn put(blob: &Path, path: &Path, links: Links) -> io::Result<(Stamp, bool)> {
    let mut from = File::open(blob)?;
    let mut to = create(path)?;
    if ioctl_ficlone(&to, &from).is_ok() {
        return Ok((Stamp::of(&to.metadata()?), true));
    }
    if links == Links::Hard {
        fs::remove_file(path)?;
        if fs::hard_link(blob, path).is_ok() {
            return Ok((Stamp::of(&fs::metadata(path)?).of_a_link(), true));
        }
        to = File::create_new(path)?;
    }
    io::copy(&mut from, &mut to)?;
    Ok((Stamp::of(&to.metadata()?), false))
}

/// Yields the stamp of the new file at `path`, which holds `bytes`.
fn copy(bytes: &Blob, path: &Path) -> io::Result<Stamp> {
    let mut to = create(path)?;
    bytes.stream(PIECE_BYTES, |piece| to.write_all(piece))?;
    Ok(Stamp::of(&to.metadata()?))
}

fn create(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    File::create_new(path)
}

/// Puts `fresh` at `folder`; what was there is at `fresh` afterwards.
fn swap(fresh: &Path, folder: &Path) -> io::Result<()> {
    match renameat_with(CWD, fresh, CWD, folder, RenameFlags::EXCHANGE) {
        Err(Errno::NOENT) => fs::rename(fresh, folder),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => swap_in_steps(fresh, folder),
        done => Ok(done?),
    }
}

/// For file systems that cannot exchange: for a moment there is no `folder`.
fn swap_in_steps(fresh: &Path, folder: &Path) -> io::Result<()> {
    let mut aside = PathBuf::from(fresh);
    aside.as_mut_os_string().push("-old");
    fs::rename(folder, &aside)?;
    fs::rename(fresh, folder)?;
    fs::rename(&aside, fresh)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_change_places_on_any_file_system() {
        for swap in [swap, swap_in_steps] {
            let root = tempfile::tempdir().unwrap();
            let (fresh, folder) = (root.path().join(".fresh"), root.path().join("stage"));
            fs::create_dir(&fresh).unwrap();
            fs::create_dir(&folder).unwrap();
            fs::write(fresh.join("new"), "").unwrap();
            fs::write(folder.join("old"), "").unwrap();
            swap(&fresh, &folder).unwrap();
            assert!(folder.join("new").exists() && fresh.join("old").exists());
        }
    }
}
