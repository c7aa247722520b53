//! The lock on the cache: shared by all processes that use it, exclusive for one that removes
//! files.

use std::fs::{File, TryLockError};
use std::path::Path;

use crate::base::{Code, Context, Result};

/// A lock on the cache: an `flock` that ends with its process.
pub(super) struct UsageLock {
    folder: File,
}

impl UsageLock {
    /// Takes a shared lock. Waits while another process has an exclusive one.
    pub(super) fn share(folder: &Path) -> Result<UsageLock> {
        let failed = || format!("lock the folder {}", folder.display());
        let file = File::open(folder).context(Code::StoreIo, failed)?;
        file.lock_shared().context(Code::StoreIo, failed)?;
        Ok(UsageLock { folder: file })
    }

    /// Makes the lock exclusive. Returns `false` while other processes share it, without waiting,
    /// since they may run for hours; then the shared lock is lost too.
    pub(super) fn try_upgrade(&self) -> Result<bool> {
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
    fn a_lock_is_shared_or_exclusive() {
        let folder = tempfile::tempdir().unwrap();
        let share = || UsageLock::share(folder.path()).unwrap();
        let other = share();
        assert!(!share().try_upgrade().unwrap());
        drop(other);
        let exclusive = share();
        assert!(exclusive.try_upgrade().unwrap());
        assert!(
            File::open(folder.path())
                .unwrap()
                .try_lock_shared()
                .is_err(),
            "newcomers wait"
        );
        drop(exclusive);
        share();
    }
}
