//! An SDK of Qualcomm as a source, with files in place of libraries.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::command_project::{CommandProject, Finished};

const PLAN: &str = r#"
[plan]
name = "sdk"
[stage.libraries]
kind = "fetch"
sdk = "${KILN_TEST_SDK}"
keep = true
"#;

/// A project with an SDK in the folder `sdk`.
fn project() -> CommandProject {
    let project = CommandProject::new("", "");
    fs::write(project.path("plan.toml"), PLAN).unwrap();
    let libraries = libraries(&project.path("sdk"));
    fs::create_dir_all(&libraries).unwrap();
    for name in [
        "libQnnHtp.so",
        "libQnnSystem.so",
        "libc++.so.1",
        "libSNPE.so",
    ] {
        fs::write(libraries.join(name), name).unwrap();
    }
    project
}

fn libraries(sdk: &Path) -> PathBuf {
    sdk.join("lib/x86_64-linux-clang")
}

/// Calls kiln with the environment variable of the plan.
fn run(project: &CommandProject, sdk: &Path, args: &[&str]) -> Finished {
    let output = project
        .kiln(args)
        .env("KILN_TEST_SDK", sdk)
        .output()
        .unwrap();
    Finished {
        code: output.status.code().unwrap(),
        output: String::from_utf8([output.stdout, output.stderr].concat()).unwrap(),
    }
}

#[track_caller]
fn check(finished: &Finished, code: i32, expected: &str) {
    let Finished {
        code: found,
        output,
    } = finished;
    assert!(
        *found == code && output.contains(expected),
        "{found}: {output}"
    );
}

#[test]
fn only_the_bytes_of_an_sdk_count() {
    let project = project();
    let build = |sdk: &str| run(&project, &project.path(sdk), &["build", "plan.toml"]);
    check(&build("sdk"), 0, "1 part ran");
    let mut names = vec![];
    for entry in fs::read_dir(project.path("out/sdk/libraries")).unwrap() {
        names.push(entry.unwrap().file_name().into_string().unwrap());
    }
    names.retain(|name| !name.starts_with('.'));
    names.sort();
    assert_eq!(names, ["libQnnHtp.so", "libQnnSystem.so", "libc++.so.1"]);
    check(&build("sdk"), 0, "nothing to do");
    fs::rename(project.path("sdk"), project.path("moved")).unwrap();
    check(&build("moved"), 0, "0 parts ran, 1 from the cache");
    fs::write(
        libraries(&project.path("moved")).join("libQnnHtp.so"),
        "new",
    )
    .unwrap();
    check(&build("moved"), 0, "1 part ran");
    let out = project.path("out/sdk/libraries/libQnnHtp.so");
    assert_eq!(fs::read_to_string(out).unwrap(), "new");
    let doctor = run(&project, &project.path("moved"), &["doctor", "plan.toml"]);
    check(&doctor, 0, "local files found: 3 paths");
}

#[test]
fn doctor_says_which_runtime_devices_need() {
    let project = CommandProject::new("", "");
    for (version, code, expected) in [
        ("2.3.0", 0, "needs the runtime of QNN 2.47 or later"),
        ("2.7.0", 0, "needs the runtime of QNN 2.51 or later"),
        (
            "9.9.9",
            4,
            "unknown: kiln does not know onnxruntime-qnn 9.9.9",
        ),
    ] {
        let plan = format!(
            "[plan]\nname = \"a\"\n[stage.qnn]\nkind = \"fetch\"\nurl = \
             \"pypi:onnxruntime-qnn=={version}\"\nunpack = true\n"
        );
        fs::write(project.path("plan.toml"), plan).unwrap();
        check(&project.run(&["doctor", "plan.toml"]), code, expected);
    }
}

#[test]
fn a_folder_that_is_no_sdk_is_refused() {
    let project = project();
    for (sdk, expected) in [
        (
            project.path("nowhere"),
            "there is no lib/x86_64-linux-clang/libQnnHtp.so",
        ),
        (PathBuf::from("sdk"), "`sdk` is not an absolute path"),
        (
            PathBuf::new(),
            "the environment variable `KILN_TEST_SDK` is not set",
        ),
    ] {
        let built = run(&project, &sdk, &["build", "plan.toml"]);
        check(&built, if sdk.is_absolute() { 4 } else { 2 }, expected);
    }
}

#[test]
fn only_an_sdk_and_programs_take_the_environment() {
    let project = project();
    for (from, to, expected) in [
        (
            "name = \"sdk\"",
            "name = \"${KILN_TEST_SDK}\"",
            "there is no variable `KILN_TEST_SDK`",
        ),
        (
            "${KILN_TEST_SDK}",
            "${kiln_test_sdk}",
            "there is no variable `kiln_test_sdk`",
        ),
        (
            "keep = true",
            "sha256 = \"00\"",
            "`sha256` is not for an SDK",
        ),
        (
            "keep = true",
            "url = \"file:a\"",
            "`url` and `sdk` exclude each other",
        ),
    ] {
        fs::write(project.path("plan.toml"), PLAN.replace(from, to)).unwrap();
        let checked = run(&project, &project.path("sdk"), &["check", "plan.toml"]);
        check(&checked, 2, expected);
    }
    project.plan("program = 'TOOL'\nargs = ['${KILN_TEST_SDK}']\noutputs = ['pot']");
    project.script("tool", "echo $1 >outputs/pot");
    let built = run(&project, Path::new("/opt/sdk"), &["build", "pots.toml"]);
    check(&built, 0, "ran");
    let pot = fs::read_to_string(project.path("out/pots/pot/pot")).unwrap();
    assert_eq!(pot, "/opt/sdk\n");
}
