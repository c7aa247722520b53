//! Manifests as folders for people: whole or not at all, and not at all when already there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with, syncfs};
use rustix::io::Errno;

use super::BlobStore;
use super::folder::LockedFolder;
use super::stamp::Stamp;
use crate::action::{Content, Manifest, PartName};
use crate::base::{Context, Digest, Problem, Result};

const CODE: &str = "kiln::publish::io";

/// Lies in each published folder and says what the folder holds. Marks it as one that kiln may replace.
pub const RECORD: &str = ".kiln.json";

/// Folders that are being written, or on their way out, begin with this.
const TEMPORARY: &str = ".kiln-tmp-";

/// What was written for each part, and its file's stamp right after.
type Record = BTreeMap<PartName, (Digest, Stamp)>;

/// Makes `folder` hold exactly the parts of `manifest`; yields whether anything had to be written.
///
/// Files share their blocks with the cache where the file system can (reflink), and are copies
/// elsewhere. Never hard links: who edits one would edit the cache.
pub fn publish(blobs: &dyn BlobStore, manifest: &Manifest, folder: &Path) -> Result<bool> {
    // A link to a folder elsewhere stays a link.
    let folder = &folder.canonicalize().unwrap_or_else(|_| folder.into());
    let is_there = || read_record(folder).is_some_and(|record| holds(folder, &record, manifest));
    if is_there() {
        return Ok(false);
    }
    // One writer at a time: it may be that another kiln is just about to write the very same.
    let parent = folder.parent().unwrap_or(Path::new("/"));
    let _turn = LockedFolder::wait(parent)?;
    if is_there() {
        return Ok(false);
    }
    // A damaged record still says whose folder it is.
    if !folder.join(RECORD).exists() && is_in_use(folder)? {
        let message = format!("{} is there, but kiln did not write it", folder.display());
        return Err(Problem::new("kiln::publish::foreign", message).help(
            "move it away, or write somewhere else with --out; a folder that kiln wrote holds a file .kiln.json",
        ));
    }
    LockedFolder::sweep(parent, TEMPORARY)?;
    let fresh = LockedFolder::create(parent, TEMPORARY)?;
    let done = write(blobs, manifest, fresh.path())
        .and_then(|()| swap(fresh.path(), folder).context(CODE, || format!("put {} in place", folder.display())));
    // Holds the old content now, or what was written of the new.
    fresh.remove()?;
    done.map(|()| true)
}

fn read_record(folder: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(folder.join(RECORD)).ok()?).ok()
}

/// Whether `folder` still is what `record` says, and that is what `manifest` asks for. Stats, reads nothing.
fn holds(folder: &Path, record: &Record, manifest: &Manifest) -> bool {
    let is_untouched = |name: &PartName, stamp: &Stamp| {
        fs::symlink_metadata(folder.join(name.as_str())).is_ok_and(|file| Stamp::of(&file) == *stamp)
    };
    record.len() == manifest.parts.len()
        && record.iter().zip(&manifest.parts).all(|((name, (digest, stamp)), (wanted, part))| {
            name == wanted && *digest == part.content.digest && is_untouched(name, stamp)
        })
}

fn is_in_use(folder: &Path) -> Result<bool> {
    match fs::read_dir(folder) {
        Ok(mut entries) => Ok(entries.next().is_some()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).context(CODE, || format!("look into {}", folder.display())),
    }
}

fn write(blobs: &dyn BlobStore, manifest: &Manifest, folder: &Path) -> Result<()> {
    let mut record = Record::new();
    for (name, part) in &manifest.parts {
        let content = &part.content;
        let blob = blobs.path(&content.blob())?.ok_or_else(|| {
            Problem::new("kiln::store::gone", format!("the blob {} of `{name}` is gone from the cache", content.blob()))
                .help("run the same command again: what made this blob runs again")
        })?;
        let path = folder.join(name.as_str());
        let stamp = copy(&blob, content, &path).context(CODE, || format!("write {}", path.display()))?;
        record.insert(name.clone(), (content.digest, stamp));
    }
    let finish = || -> io::Result<()> {
        fs::write(folder.join(RECORD), serde_json::to_vec(&record)?)?;
        // One flush for hundreds of files; the record must not outlive what it vouches for.
        Ok(syncfs(File::open(folder)?)?)
    };
    finish().context(CODE, || format!("write {}", folder.display()))
}

/// `io::copy` between files is `copy_file_range`, which makes a reflink where the file system can.
fn copy(blob: &Path, content: &Content, path: &Path) -> io::Result<Stamp> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut from = File::open(blob)?;
    from.seek(SeekFrom::Start(content.window.map_or(0, |window| window.offset)))?;
    let mut to = File::create_new(path)?;
    let size_bytes = content.digest.size_bytes;
    if io::copy(&mut from.take(size_bytes), &mut to)? != size_bytes {
        return Err(io::Error::new(ErrorKind::UnexpectedEof, format!("{} is too short", blob.display())));
    }
    Ok(Stamp::of(&to.metadata()?))
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
