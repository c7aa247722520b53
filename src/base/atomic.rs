//! Small files that are there whole, or not at all.

use std::fs;
use std::io::{Error, ErrorKind, Result, Write};
use std::path::Path;

use tempfile::NamedTempFile;

use super::new_file_in;

/// Puts `bytes` at `path`, in place of the file that was there, or that a link there leads to. Its
/// folder is made.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    check_replaceable(path)?;
    let path = &path.canonicalize().unwrap_or_else(|_| path.into());
    beside(path, bytes)?.persist(path)?;
    Ok(())
}

/// Puts `bytes` at `path`, where nothing may be. Its folder is made.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    beside(path, bytes)?.persist_noclobber(path)?;
    Ok(())
}

/// Refuses a path that something else than a file has, or a link to something else, as
/// `/dev/stdout` is: a rename would put a file in its place, for everybody.
pub fn check_replaceable(path: &Path) -> Result<()> {
    let (found, own) = (fs::metadata(path), fs::symlink_metadata(path));
    if found
        .as_ref()
        .or(own.as_ref())
        .is_ok_and(|found| !found.is_file())
    {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "something else than a file is there",
        ));
    }
    Ok(())
}

fn beside(path: &Path, bytes: &[u8]) -> Result<NamedTempFile> {
    let folder = folder(path);
    fs::create_dir_all(folder)?;
    let mut file = new_file_in(folder, ".kiln-")?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    Ok(file)
}

/// The folder that a file lies in.
pub fn folder(path: &Path) -> &Path {
    // The parent of a bare name is empty.
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("pipe"),
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        assert!(write_atomic(&at("pipe"), b"new").is_err());
        assert!(!at("pipe").is_file());
        for target in ["pipe", "nowhere", "/dev/null"] {
            std::os::unix::fs::symlink(target, at("link")).unwrap();
            assert!(write_atomic(&at("link"), b"new").is_err(), "{target}");
            assert!(at("link").is_symlink());
            fs::remove_file(at("link")).unwrap();
        }
        fs::write(at("file"), "old").unwrap();
        write_atomic(&at("file"), b"new").unwrap();
        assert_eq!(fs::read(at("file")).unwrap(), b"new");
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        write_atomic(&at("link"), b"newer").unwrap();
        assert!(at("link").is_symlink());
        assert_eq!(fs::read(at("file")).unwrap(), b"newer");
    }
}
