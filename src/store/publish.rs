//! Writes the parts of a manifest as files of a folder, atomically, unless they are there already.

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
use crate::action::{Blob, Content, Manifest, PartName};
use crate::base::{Code, Context, Digest, Problem, Result, read_file};

/// The record of what was written, in each published folder. Marks a folder that kiln may replace.
pub const RECORD: &str = ".kiln.json";

/// Prefix of folders that are being written or removed.
const TEMPORARY: &str = ".kiln-tmp-";

/// Bytes of a window that are copied at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// The digest that was written for each part, and the stamp of its file after that.
type Record = BTreeMap<PartName, (Digest, Stamp)>;

/// How written files share their bytes with the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Links {
    /// Reflinks if the file system has them, otherwise copies.
    #[default]
    Reflink,
    /// Reflinks, otherwise hard links: read-only files. Editing one also changes the blob in the
    /// cache, which kiln notices when it reads the blob. Copies if the cache is on another disk, or
    /// the part is a window.
    Hard,
}

/// Sizes of the files that were written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Bytes of files that share their space with the cache.
    pub shared_bytes: u64,
    /// Bytes of files that do not.
    pub copied_bytes: u64,
}

impl std::ops::AddAssign for Space {
    fn add_assign(&mut self, other: Space) {
        self.shared_bytes += other.shared_bytes;
        self.copied_bytes += other.copied_bytes;
    }
}

/// Writes the parts of `manifest` to `folder` and removes all other files there. Returns what was
/// written, or `None` if the folder already had exactly these parts.
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
    let folder = &resolve_parent(folder);
    if is_up_to_date(folder, manifest) {
        return Ok(None);
    }
    // One writer at a time: another kiln may be writing the same parts right now.
    let parent = folder.parent().unwrap_or(Path::new("/"));
    let _lock = LockedFolder::lock(parent)?;
    if is_up_to_date(folder, manifest) {
        return Ok(None);
    }
    // A folder with a damaged record is still one that kiln wrote.
    if !folder.join(RECORD).exists() && is_in_use(folder)? {
        let message = format!("{} is there, but kiln did not write it", folder.display());
        return Err(Problem::new(Code::PublishForeign, message).help(
            "move it away, or write somewhere else with --out; a folder that kiln wrote holds a \
             file .kiln.json",
        ));
    }
    LockedFolder::remove_abandoned(parent, TEMPORARY)?;
    let temporary = LockedFolder::create(parent, TEMPORARY)?;
    let written = write_and_swap(blobs, manifest, temporary.path(), folder, links);
    // It contains the old parts, or the new ones as far as they were written.
    temporary.remove()?;
    Ok(Some(written?))
}

/// `folder` with links above it resolved, since locks follow none.
fn resolve_parent(folder: &Path) -> PathBuf {
    if let Some(parent) = folder.parent()
        && let Some(name) = folder.file_name()
        && let Ok(parent) = parent.canonicalize()
    {
        return parent.join(name);
    }
    folder.into()
}

/// Whether `folder` has exactly the parts of `manifest`, untouched since they were written.
/// Compares digests in the record and stamps; reads no part.
fn is_up_to_date(folder: &Path, manifest: &Manifest) -> bool {
    let Some(record) = read_record(folder) else {
        return false;
    };
    if record.len() != manifest.parts.len() {
        return false;
    }
    for (name, part) in &manifest.parts {
        match record.get(name) {
            Some((digest, stamp))
                if *digest == part.content.digest
                    && is_untouched(&folder.join(name.as_str()), stamp) => {}
            _ => return false,
        }
    }
    true
}

fn read_record(folder: &Path) -> Option<Record> {
    let text = read_file(&folder.join(RECORD), MAX_TEXT_BYTES).ok()?;
    serde_json::from_slice(&text).ok()
}

fn is_untouched(path: &Path, stamp: &Stamp) -> bool {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return false;
    };
    let now = Stamp::of(&metadata);
    now == *stamp || now.without_change_time() == *stamp
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

fn write_and_swap(
    blobs: &dyn BlobStore,
    manifest: &Manifest,
    temporary: &Path,
    folder: &Path,
    links: Links,
) -> Result<Space> {
    let space = write(blobs, manifest, temporary, links)?;
    swap(temporary, folder).context(Code::PublishIo, || {
        format!("put {} in place", folder.display())
    })?;
    Ok(space)
}

/// Writes all parts and the record into the new folder `folder`.
fn write(blobs: &dyn BlobStore, manifest: &Manifest, folder: &Path, links: Links) -> Result<Space> {
    let mut record = Record::new();
    let mut space = Space::default();
    for (name, part) in &manifest.parts {
        let digest = part.content.digest;
        let (stamp, is_shared) = write_part(blobs, name, &part.content, folder, links)?;
        if is_shared {
            space.shared_bytes += digest.size_bytes;
        } else {
            space.copied_bytes += digest.size_bytes;
        }
        record.insert(name.clone(), (digest, stamp));
    }
    finish(&record, folder).context(Code::PublishIo, || format!("write {}", folder.display()))?;
    Ok(space)
}

/// Writes one part. Returns the stamp of its file, and whether it shares its bytes with the cache.
fn write_part(
    blobs: &dyn BlobStore,
    name: &PartName,
    content: &Content,
    folder: &Path,
    links: Links,
) -> Result<(Stamp, bool)> {
    let path = folder.join(name.as_str());
    let failed = || format!("write {}", path.display());
    if content.window.is_some() {
        let Some(bytes) = blobs.content(content)? else {
            return Err(gone(name, content));
        };
        let stamp = copy_bytes(&bytes, &path).context(Code::PublishIo, failed)?;
        return Ok((stamp, false));
    }
    let Some(blob) = blobs.path(&content.digest)? else {
        return Err(gone(name, content));
    };
    link_or_copy(&blob, &path, links).context(Code::PublishIo, failed)
}

fn gone(name: &PartName, content: &Content) -> Problem {
    let blob = content.blob();
    Problem::new(
        Code::StoreGone,
        format!("the blob {blob} of `{name}` is gone from the cache"),
    )
    .help("run the same command again: what made this blob runs again")
}

/// Writes the record and makes all files durable: one sync for hundreds of files. The record must
/// not be durable before the files.
fn finish(record: &Record, folder: &Path) -> io::Result<()> {
    fs::write(folder.join(RECORD), serde_json::to_vec(record)?)?;
    Ok(syncfs(File::open(folder)?)?)
}

/// Writes the file `path` with the bytes of the file `blob`. Returns its stamp, and whether it
/// shares its bytes with `blob`.
fn link_or_copy(blob: &Path, path: &Path, links: Links) -> io::Result<(Stamp, bool)> {
    let mut from = File::open(blob)?;
    let mut to = create(path)?;
    if ioctl_ficlone(&to, &from).is_ok() {
        return Ok((Stamp::of(&to.metadata()?), true));
    }
    if links == Links::Hard {
        fs::remove_file(path)?;
        if fs::hard_link(blob, path).is_ok() {
            return Ok((Stamp::of(&fs::metadata(path)?).without_change_time(), true));
        }
        to = File::create_new(path)?;
    }
    io::copy(&mut from, &mut to)?;
    Ok((Stamp::of(&to.metadata()?), false))
}

/// Writes the file `path` with `bytes`. Returns its stamp.
fn copy_bytes(bytes: &Blob, path: &Path) -> io::Result<Stamp> {
    let mut to = create(path)?;
    bytes.stream(CHUNK_BYTES, |chunk| to.write_all(chunk))?;
    Ok(Stamp::of(&to.metadata()?))
}

fn create(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    File::create_new(path)
}

/// Exchanges the folders `new` and `folder`; `folder` need not exist.
fn swap(new: &Path, folder: &Path) -> io::Result<()> {
    match renameat_with(CWD, new, CWD, folder, RenameFlags::EXCHANGE) {
        Err(Errno::NOENT) => fs::rename(new, folder),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => swap_in_steps(new, folder),
        done => Ok(done?),
    }
}

/// For file systems that cannot exchange: for a moment, `folder` does not exist.
fn swap_in_steps(new: &Path, folder: &Path) -> io::Result<()> {
    let mut aside = PathBuf::from(new);
    aside.as_mut_os_string().push("-old");
    fs::rename(folder, &aside)?;
    fs::rename(new, folder)?;
    fs::rename(&aside, new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_exchanged_on_any_file_system() {
        for swap in [swap, swap_in_steps] {
            let root = tempfile::tempdir().unwrap();
            let (new, folder) = (root.path().join(".new"), root.path().join("stage"));
            fs::create_dir(&new).unwrap();
            fs::create_dir(&folder).unwrap();
            fs::write(new.join("new"), "").unwrap();
            fs::write(folder.join("old"), "").unwrap();
            swap(&new, &folder).unwrap();
            assert!(folder.join("new").exists() && new.join("old").exists());
        }
    }
}
