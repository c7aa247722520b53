//! Small files that are there whole, or not at all.

use std::fs;
use std::io::{Result, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::NamedTempFile;

/// Puts `bytes` at `path`, in place of what was there. Its folder is made.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    beside(path, bytes)?.persist(path)?;
    Ok(())
}

/// Puts `bytes` at `path`, where nothing may be. Its folder is made.
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    beside(path, bytes)?.persist_noclobber(path)?;
    Ok(())
}

fn beside(path: &Path, bytes: &[u8]) -> Result<NamedTempFile> {
    let folder = folder(path);
    fs::create_dir_all(folder)?;
    let mode = fs::Permissions::from_mode(0o666);
    let mut file = tempfile::Builder::new().prefix(".kiln-").permissions(mode).tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    Ok(file)
}

/// The folder that a file lies in.
pub(super) fn folder(path: &Path) -> &Path {
    // The parent of a bare name is empty.
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
