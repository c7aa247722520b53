//! Calls kiln.

use std::path::Path;

use assert_cmd::Command;

/// Calls kiln in a folder. Returns its exit code, standard output and standard error.
pub fn kiln(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::cargo_bin("kiln").unwrap();
    command.env_remove("GITHUB_ACTIONS").current_dir(folder);
    let output = command.args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}
