//! Builds of a plan with one tracked file.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use crate::support::call::kiln;

/// The output of a call on both streams, and its exit code.
fn run(home: &Path, arguments: &[&str]) -> (String, i32) {
    let (code, output, errors) = kiln(home, arguments);
    (output + &errors, code)
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
fn a_tracked_file_is_fetched_only_when_its_bytes_change() {
    let home = plan("tracked = true\n");
    let (clay, out) = (
        home.path().join("clay.txt"),
        home.path().join("out/pot/clay/clay.txt"),
    );
    let build = |expected: &str| {
        let (output, code) = run(home.path(), &["build", "plan.toml"]);
        assert!(
            output.contains(expected) && code == 0,
            "{expected}: {output}"
        );
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
    let (why, _) = run(home.path(), &["explain", "plan.toml", "clay"]);
    assert!(why.contains("tracked: \"b3:"), "{why}");
    assert_eq!(build("1 part ran"), "red!");
    fs::write(&clay, "grey").unwrap();
    assert_eq!(build("0 parts ran, 1 from the cache"), "grey");
    fs::remove_file(&clay).unwrap();
    let (output, code) = run(home.path(), &["build", "plan.toml"]);
    assert!(output.contains("clay.txt") && code == 1, "{output}");
}

#[test]
fn a_tracked_file_cannot_be_pinned_or_unpacked() {
    let check = |keys: &str| run(plan(keys).path(), &["check", "plan.toml"]);
    let (output, code) = check(&format!(
        "tracked = true\nsha256 = \"{}\"\n",
        "0".repeat(64)
    ));
    assert!(
        output.contains("a tracked file has no `sha256`") && code == 2,
        "{output}"
    );
    let (output, code) = check("tracked = true\nunpack = true\n");
    assert!(output.contains("is not unpacked") && code == 2, "{output}");
}
