//! Atomic writes of small files.

use std::fs;
use std::io::{Error, ErrorKind, Result, Write};
use std::path::Path;

use tempfile::NamedTempFile;

use super::new_file_in;

/// Writes the file `path`, and creates its folder. Replaces a file that exists; a link is followed.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    check_replaceable(path)?;
    let target = path.canonicalize();
    let path = target.as_deref().unwrap_or(path);
    write_temporary(path, bytes)?.persist(path)?;
    Ok(())
}

/// Writes the new file `path`, and creates its folder. Fails if `path` exists.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    write_temporary(path, bytes)?.persist_noclobber(path)?;
    Ok(())
}

/// Fails if `path` exists and is not a file, nor a link to one. A rename would replace a device
/// such as `/dev/stdout` by a file, for all processes.
pub fn check_replaceable(path: &Path) -> Result<()> {
    // A broken link has only metadata of its own.
    if let Ok(found) = fs::metadata(path).or(fs::symlink_metadata(path))
        && !found.is_file()
    {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "something else than a file is there",
        ));
    }
    Ok(())
}

/// Writes a temporary file in the folder of `path`, ready to be renamed.
fn write_temporary(path: &Path, bytes: &[u8]) -> Result<NamedTempFile> {
    let folder = folder_of(path);
    fs::create_dir_all(folder)?;
    let mut file = new_file_in(folder, ".kiln-")?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    Ok(file)
}

/// The folder that contains the file `path`.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        // The parent of a name without a folder is empty.
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
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
