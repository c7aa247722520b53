//! Folders of one process. The lock is an `flock` on the folder itself, so it dies with its process
//! however that ends, and whoever can take it knows that the owner is gone.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::base::{Code, Context, Result};

/// A folder that only its owner uses, until it is dropped.
pub struct LockedFolder {
    path: PathBuf,
    _lock: File,
}

/// The right to do what one process at a time should do. Ends when dropped, or with its process.
#[derive(Default)]
pub struct ActionLock(Option<LockedFolder>);

impl From<LockedFolder> for ActionLock {
    fn from(folder: LockedFolder) -> ActionLock {
        ActionLock(Some(folder))
    }
}

impl Drop for ActionLock {
    fn drop(&mut self) {
        // What stays behind is an empty folder.
        let _ = self.0.take().map(LockedFolder::remove);
    }
}

#[derive(Clone, Copy)]
enum Wait {
    None,
    Endless,
}

fn make(path: &Path) -> Result<()> {
    let is_another_thing = || fs::symlink_metadata(path).is_ok_and(|found| !found.is_dir());
    loop {
        match fs::create_dir_all(path) {
            // Another process made it first, and removed it before it was looked at.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && !is_another_thing() => {}
            made => {
                return made.context(Code::StoreIo, || {
                    format!("make the folder {}", path.display())
                });
            }
        }
    }
}

impl LockedFolder {
    /// Makes `path` if need be and locks it; `None` while another process has it.
    pub fn take(path: &Path) -> Result<Option<LockedFolder>> {
        make(path)?;
        Self::lock(path, Wait::None)
    }

    /// Makes `path` if need be and locks it, as soon as no other process has it.
    pub fn wait(path: &Path) -> Result<LockedFolder> {
        loop {
            make(path)?;
            if let Some(folder) = Self::lock(path, Wait::Endless)? {
                return Ok(folder);
            }
        }
    }

    /// `None` if there is no such folder, or no patience to wait until another process lets go of
    /// it.
    fn lock(path: &Path, wait: Wait) -> Result<Option<LockedFolder>> {
        let failed = || format!("lock the folder {}", path.display());
        let flags = OFlags::NOFOLLOW | OFlags::DIRECTORY;
        let lock = match OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path)
        {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.context(Code::StoreIo, failed)?,
        };
        match wait {
            Wait::Endless => lock.lock().context(Code::StoreIo, failed)?,
            Wait::None => match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => {
                    return Err(error).context(Code::StoreIo, failed);
                }
            },
        }
        // Its last owner may have removed it between our open and our lock.
        let inode = lock.metadata().context(Code::StoreIo, failed)?.ino();
        let is_still_there = fs::metadata(path).is_ok_and(|now| now.ino() == inode);
        Ok(is_still_there.then(|| LockedFolder {
            path: path.into(),
            _lock: lock,
        }))
    }

    /// Makes and locks a new folder in `parent`, whose name starts with `prefix`.
    pub fn create(parent: &Path, prefix: &str) -> Result<LockedFolder> {
        loop {
            let mode = fs::Permissions::from_mode(0o777);
            let made = tempfile::Builder::new()
                .prefix(prefix)
                .permissions(mode)
                .tempdir_in(parent);
            let path = made
                .context(Code::StoreIo, || {
                    format!("make a folder in {}", parent.display())
                })?
                .keep();
            // A sweeper may have been faster than our lock; then the folder is gone, and we make
            // another.
            if let Some(folder) = Self::lock(&path, Wait::None)? {
                return Ok(folder);
            }
        }
    }

    /// Removes what dead processes left in `parent` under names that start with `prefix`. What
    /// cannot be removed, since it is another user's or the disk is read-only, stays.
    pub fn sweep(parent: &Path, prefix: &str) -> Result<()> {
        for entry in
            fs::read_dir(parent).context(Code::StoreIo, || format!("list {}", parent.display()))?
        {
            let Ok(entry) = entry else { continue };
            if entry.file_name().to_string_lossy().starts_with(prefix)
                && entry.file_type().is_ok_and(|kind| kind.is_dir())
                && let Ok(Some(dead)) = Self::lock(&entry.path(), Wait::None)
            {
                let _ = dead.remove();
            }
        }
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it with all it holds.
    pub fn remove(self) -> Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error)
                .context(Code::StoreIo, || {
                    format!("remove the folder {}", self.path.display())
                }),
            _ => Ok(()),
        }
    }
}
