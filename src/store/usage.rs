//! Who uses the cache: any number of processes together, or one that removes something, alone.

use std::fs::{File, TryLockError};
use std::path::Path;

use crate::base::{Code, Context, Result};

/// A share in the cache: an `flock` that dies with its process.
pub(super) struct Usage {
    folder: File,
}

impl Usage {
    /// Shares the cache with all others; waits until nobody has it alone.
    pub(super) fn share(folder: &Path) -> Result<Usage> {
        let share = || -> std::io::Result<File> {
            let folder = File::open(folder)?;
            folder.lock_shared()?;
            Ok(folder)
        };
        let folder = share().context(Code::StoreIo, || {
            format!("lock the folder {}", folder.display())
        })?;
        Ok(Usage { folder })
    }

    /// Has the cache alone from now on, unless others share it; they may take hours, so it does not
    /// wait. Then even the share is gone.
    pub(super) fn alone(&self) -> Result<bool> {
        match self.folder.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error).context(Code::StoreIo, || {
                "lock the cache for this process alone".into()
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_share_and_one_is_alone() {
        let folder = tempfile::tempdir().unwrap();
        let share = || Usage::share(folder.path()).unwrap();
        let other = share();
        assert!(!share().alone().unwrap());
        drop(other);
        let alone = share();
        assert!(alone.alone().unwrap());
        assert!(
            File::open(folder.path())
                .unwrap()
                .try_lock_shared()
                .is_err(),
            "newcomers wait"
        );
        drop(alone);
        share();
    }
}
