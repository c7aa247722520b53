//! Programs that tests write.

use std::path::Path;
use std::process::Command;

/// Writes a program. Another process does it: a child that another test is starting at that moment
/// could hold a file that this process writes open a little longer, and a file that is open for
/// writing cannot be executed.
pub fn write_script(path: &Path, text: &str) {
    let write = "printf %s \"$1\" > \"$2\" && chmod 755 \"$2\"";
    let written = Command::new("sh")
        .args(["-c", write, "sh", text])
        .arg(path)
        .status()
        .unwrap();
    assert!(written.success(), "{}", path.display());
}
