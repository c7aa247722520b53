//! Folders that one process at a time uses. The lock is an `flock` on the folder itself, which ends
//! with its process, so a folder that can be locked has no owner any more.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::base::{Code, Context, Result};

/// A folder that is locked until this is dropped.
pub struct LockedFolder {
    path: PathBuf,
    _lock: File,
}

/// A lock on an action, which one process at a time should run. Released when dropped, or when the
/// process ends. The default locks nothing.
#[derive(Default)]
pub struct ActionLock(Option<LockedFolder>);

impl From<LockedFolder> for ActionLock {
    fn from(folder: LockedFolder) -> ActionLock {
        ActionLock(Some(folder))
    }
}

impl Drop for ActionLock {
    fn drop(&mut self) {
        if let Some(folder) = self.0.take() {
            // If it fails, an empty folder stays.
            let _ = folder.remove();
        }
    }
}

#[derive(Clone, Copy)]
enum Wait {
    No,
    Forever,
}

fn create_folder(path: &Path) -> Result<()> {
    loop {
        match fs::create_dir_all(path) {
            // Another process created it, and removed it before `create_dir_all` checked it.
            Err(error)
                if error.kind() == ErrorKind::AlreadyExists && !is_other_than_folder(path) => {}
            created => {
                return created.context(Code::StoreIo, || {
                    format!("make the folder {}", path.display())
                });
            }
        }
    }
}

fn is_other_than_folder(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Ok(found) => !found.is_dir(),
        Err(_) => false,
    }
}

impl LockedFolder {
    /// Creates `path` if it does not exist and locks it; `None` while another process has locked
    /// it.
    pub fn try_lock(path: &Path) -> Result<Option<LockedFolder>> {
        create_folder(path)?;
        Self::lock_existing(path, Wait::No)
    }

    /// Creates `path` if it does not exist and locks it. Waits while another process has locked it.
    pub fn lock(path: &Path) -> Result<LockedFolder> {
        loop {
            create_folder(path)?;
            if let Some(folder) = Self::lock_existing(path, Wait::Forever)? {
                return Ok(folder);
            }
        }
    }

    /// `None` if the folder does not exist, or is locked and this should not wait.
    fn lock_existing(path: &Path, wait: Wait) -> Result<Option<LockedFolder>> {
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
            Wait::Forever => lock.lock().context(Code::StoreIo, failed)?,
            Wait::No => match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => {
                    return Err(error).context(Code::StoreIo, failed);
                }
            },
        }
        // The last owner may have removed it after it was opened here and before it was locked.
        let inode = lock.metadata().context(Code::StoreIo, failed)?.ino();
        match fs::metadata(path) {
            Ok(now) if now.ino() == inode => Ok(Some(LockedFolder {
                path: path.into(),
                _lock: lock,
            })),
            _ => Ok(None),
        }
    }

    /// Creates and locks a new folder in `parent`, whose name starts with `prefix`.
    pub fn create(parent: &Path, prefix: &str) -> Result<LockedFolder> {
        loop {
            let mode = fs::Permissions::from_mode(0o777);
            let created = tempfile::Builder::new()
                .prefix(prefix)
                .permissions(mode)
                .tempdir_in(parent);
            let path = created
                .context(Code::StoreIo, || {
                    format!("make a folder in {}", parent.display())
                })?
                .keep();
            // Another process may have removed it as abandoned before it was locked.
            if let Some(folder) = Self::lock_existing(&path, Wait::No)? {
                return Ok(folder);
            }
        }
    }

    /// Removes the folders in `parent` that dead processes created, by the prefix of their names.
    /// A folder that cannot be removed, because of its owner or a read-only disk, stays.
    pub fn remove_abandoned(parent: &Path, prefix: &str) -> Result<()> {
        let entries =
            fs::read_dir(parent).context(Code::StoreIo, || format!("list {}", parent.display()))?;
        for entry in entries {
            let Ok(entry) = entry else { continue };
            if entry.file_name().to_string_lossy().starts_with(prefix)
                && let Ok(kind) = entry.file_type()
                && kind.is_dir()
                && let Ok(Some(abandoned)) = Self::lock_existing(&entry.path(), Wait::No)
            {
                let _ = abandoned.remove();
            }
        }
        Ok(())
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it with its contents.
    pub fn remove(self) -> Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed.context(Code::StoreIo, || {
                format!("remove the folder {}", self.path.display())
            }),
        }
    }
}
