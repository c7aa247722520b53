//! Reading local files, where a path may turn out to be a folder, pipe or device.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use tempfile::NamedTempFile;

use super::bytes as format_bytes;

/// Opens a regular file to read. Fails for anything else, without waiting: a pipe may have no
/// writer, and a device may have no end.
pub fn open_file(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)?;
    let kind = file.metadata()?.file_type();
    let what = match kind {
        _ if kind.is_file() => return Ok(file),
        _ if kind.is_dir() => "a folder",
        _ if kind.is_fifo() => "a pipe",
        _ if kind.is_socket() => "a socket",
        _ => "a device",
    };
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("it is {what}, not a file"),
    ))
}

/// The bytes of a file. Fails if it has more than `max_bytes`.
pub fn read_file(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let bytes = head(path, max_bytes.saturating_add(1))?;
    if bytes.len() as u64 > max_bytes {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has more than {}", format_bytes(max_bytes)),
        ));
    }
    Ok(bytes)
}

/// Whether the file at `path` contains exactly `bytes`.
pub fn has_bytes(path: &Path, bytes: &[u8]) -> bool {
    match head(path, bytes.len() as u64 + 1) {
        Ok(found) => found == bytes,
        Err(_) => false,
    }
}

/// The first `bytes` of a file of any size.
pub fn head(path: &Path, bytes: u64) -> io::Result<Vec<u8>> {
    let mut head = vec![];
    open_file(path)?.take(bytes).read_to_end(&mut head)?;
    Ok(head)
}

/// The last `bytes` of a file of any size, as text.
pub fn tail(path: &Path, bytes: u64) -> io::Result<String> {
    let mut file = open_file(path)?;
    let begin = file.metadata()?.len().saturating_sub(bytes);
    file.seek(SeekFrom::Start(begin))?;
    let mut tail = vec![];
    file.take(bytes).read_to_end(&mut tail)?;
    Ok(String::from_utf8_lossy(&tail).into_owned())
}

/// A new file in `folder`, whose name begins with `prefix`. Removed when dropped, unless it is
/// persisted. Its permissions are those that the umask allows.
pub fn new_file_in(folder: &Path, prefix: &str) -> io::Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(prefix)
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |path: &Path| open_file(path).unwrap_err().to_string();
        assert_eq!(refused(folder.path()), "it is a folder, not a file");
        assert_eq!(
            refused(Path::new("/dev/zero")),
            "it is a device, not a file"
        );
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        assert_eq!(refused(&pipe), "it is a pipe, not a file");
        let log = folder.path().join("log");
        std::fs::write(&log, "one two three").unwrap();
        assert_eq!(head(&log, 3).unwrap(), b"one");
        assert_eq!(read_file(&log, 13).unwrap(), b"one two three");
        assert_eq!(
            read_file(&log, 12).unwrap_err().to_string(),
            "it has more than 12 B"
        );
        assert!(has_bytes(&log, b"one two three"));
        assert!(!has_bytes(&log, b"one two") && !has_bytes(&log, b"one two three four"));
        assert_eq!(tail(&log, 5).unwrap(), "three");
        assert_eq!(tail(&log, 50).unwrap(), "one two three");
    }
}
