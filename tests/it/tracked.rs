//! A file that is taken as it is: `kiln build` itself, on a plan with one tracked file.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use assert_cmd::Command;

fn kiln(home: &Path, call: &[&str]) -> (String, i32) {
    let output = Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args(call)
        .current_dir(home)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (text.into_owned(), output.status.code().unwrap())
}

fn plan(keys: &str) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let plan = format!(
        "[plan]\nname = \"pot\"\n[stage.clay]\nkind = \"fetch\"\nurl = \"file:clay.txt\"\n{keys}"
    );
    fs::write(home.path().join("plan.toml"), plan).unwrap();
    fs::write(home.path().join("clay.txt"), "grey").unwrap();
    home
}

#[test]
fn it_is_fetched_anew_whenever_its_bytes_change_and_only_then() {
    let home = plan("tracked = true\n");
    let (clay, out) = (
        home.path().join("clay.txt"),
        home.path().join("out/pot/clay/clay.txt"),
    );
    let build = |expected: &str| {
        let (said, code) = kiln(home.path(), &["build", "plan.toml"]);
        assert!(said.contains(expected) && code == 0, "{expected}: {said}");
        fs::read_to_string(&out).unwrap()
    };
    assert_eq!(build("1 part ran"), "grey");
    assert_eq!(build("nothing to do"), "grey");
    fs::File::options()
        .write(true)
        .open(&clay)
        .unwrap()
        .set_modified(SystemTime::UNIX_EPOCH)
        .unwrap();
    assert_eq!(build("nothing to do"), "grey");
    fs::write(&clay, "red!").unwrap();
    let (why, _) = kiln(home.path(), &["explain", "plan.toml", "clay"]);
    assert!(why.contains("tracked: \"b3:"), "{why}");
    assert_eq!(build("1 part ran"), "red!");
    fs::write(&clay, "grey").unwrap();
    assert_eq!(build("0 parts ran, 1 from the cache"), "grey");
    fs::remove_file(&clay).unwrap();
    let (said, code) = kiln(home.path(), &["build", "plan.toml"]);
    assert!(said.contains("clay.txt") && code == 1, "{said}");
}

#[test]
fn only_a_file_without_a_pin_is_tracked() {
    let refused = |keys: &str| kiln(plan(keys).path(), &["check", "plan.toml"]);
    let (said, code) = refused(&format!(
        "tracked = true\nsha256 = \"{}\"\n",
        "0".repeat(64)
    ));
    assert!(
        said.contains("a tracked file has no `sha256`") && code == 2,
        "{said}"
    );
    let (said, code) = refused("tracked = true\nunpack = true\n");
    assert!(said.contains("is not unpacked") && code == 2, "{said}");
}
