//! Writes executable scripts.

use std::path::Path;
use std::process::Command;

/// Writes a script, in another process. A child that another test forks at that moment could
/// inherit a file that this process has open, and a file that is open for writing cannot be
/// executed.
pub fn write_script(path: &Path, text: &str) {
    let write = "printf %s \"$1\" > \"$2\" && chmod 755 \"$2\"";
    let written = Command::new("sh")
        .args(["-c", write, "sh", text])
        .arg(path)
        .status()
        .unwrap();
    assert!(written.success(), "{}", path.display());
}
