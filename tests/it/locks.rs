//! Locks: `build --lock`, `build --locked` and `verify`, with the helper program.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use crate::support::test_program::{PLAN, Project, VERSION, without_digests};
use crate::support::tree::files;
use serde_json::Value;

#[test]
fn the_lock_file_has_the_expected_format() {
    let project = Project::open();
    assert_eq!(
        project.stdout("build shop.toml --lock").lines().last(),
        Some("lock file written: shop.lock")
    );
    let expected = "\
# What this plan comes to, byte for byte. Written by `kiln build --lock`; `--locked` and `kiln \
                    verify` hold to it.

version = 1
plan = \"shop\"
digest = \"b3:\"

[tools.oven]
\"oven.so\" = \"b3:\"

[stage.bill]
kind = \"make\"
version = 1
params = \"b3:\"
keep = true
output = \"b3:\"

[stage.bill.actions]
\"\" = \"b3:\"

[stage.bill.artifacts.out]
blake3 = \"b3:\"
sha256 = \"c7ac11073184e0b1a58cbc05f3b8bd0afe06998e604d26370929af157e36fa69\"

[stage.clay]
kind = \"fetch\"
version = 1
params = \"b3:\"
keep = false
output = \"b3:\"

[stage.clay.actions]
\"\" = \"b3:\"

[stage.pots]
kind = \"make\"
version = 1
params = \"b3:\"
keep = [\"b\"]
output = \"b3:\"

[stage.pots.inputs]
from = [\"clay\"]

[stage.pots.actions]
a = \"b3:\"
\"b/c\" = \"b3:\"

[stage.pots.artifacts.\"b/c/out\"]
blake3 = \"b3:\"
sha256 = \"613e2ab18eb4fc639685eb10614f21b877c0b6734dfc48361a073aece78908f9\"

";
    let lock = without_digests(&project.read("shop.lock"));
    assert!(lock.starts_with(expected), "{lock}");
    let inode = fs::metadata(project.path("shop.lock")).unwrap().ino();
    assert!(
        project
            .stdout("build shop.toml --lock")
            .ends_with("lock file unchanged: shop.lock\n")
    );
    assert_eq!(
        fs::metadata(project.path("shop.lock")).unwrap().ino(),
        inode,
        "an equal lock is not written again"
    );
    // `gc --lock` accepts it.
    let kept = project.stdout("cache gc --lock shop.lock --max-size 0");
    assert!(kept.contains("remaining     6 results"), "{kept}");
}

#[test]
fn a_lock_does_not_depend_on_folder_jobs_or_stage_order() {
    let lock = |text: &str, call: &str| {
        let project = Project::open();
        fs::create_dir_all(project.path("deep/er")).unwrap();
        for file in ["oven.so", "clay.txt"] {
            fs::copy(project.path(file), project.path("deep/er").join(file)).unwrap();
        }
        project.write("deep/er/shop.toml", text);
        project.stdout(&format!("build deep/er/shop.toml --lock --out here {call}"));
        let records = ["deep/er/shop.lock", "here/receipt.json", "here/SHA256SUMS"]
            .map(|file| project.read(file));
        for record in &records {
            assert!(!record.contains(project.path("").to_str().unwrap()));
        }
        records
    };
    let first = lock(PLAN, "--jobs 1");
    let (head, bill) = PLAN.split_once("[stage.bill]").unwrap();
    let bill_first = format!("# In another order.\n[stage.bill]{bill}{head}")
        .replace("${text}", "p${o}t")
        .replace("text = \"pot\"", "o = \"o\"");
    assert_eq!(lock(&bill_first, "--jobs 4"), first);
    assert_eq!(lock(PLAN, "--set text=pot"), first);
    assert_ne!(lock(PLAN, "--set text=jar")[0], first[0]);
}

/// Locks the project, changes it, and compares the report of a locked build.
fn check(change: impl Fn(&Project), call: &str, environment: &[(&str, &str)], expected: &str) {
    let project = Project::open();
    project.stdout("build shop.toml --lock");
    let written = files(&project.path("out"));
    assert!(
        project
            .stdout("build shop.toml --locked")
            .starts_with("nothing to do")
    );
    change(&project);
    let (code, output, errors) =
        project.kiln(&format!("build shop.toml --locked {call}"), environment);
    let mut found = String::new();
    for line in without_digests(&output).lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        found += &format!("{}\n", words.join(" "));
    }
    assert_eq!((code, found.as_str()), (3, expected), "{errors}");
    assert!(errors.contains("kiln::lock::differs"), "{errors}");
    assert_eq!(
        files(&project.path("out")),
        written,
        "no artifact is written"
    );
}

#[test]
fn plan_changes_are_detected_before_anything_runs() {
    let plan = |old: &'static str, new: &'static str| {
        move |project: &Project| project.write("shop.toml", &PLAN.replace(old, new))
    };
    check(
        |_| {},
        "--set text=jar",
        &[],
        "stage cause what\npots plan a: text: \"pot\" -> \"jar\"\n",
    );
    check(
        plan("from = \"pots\"", "from = [\"clay\", \"pots\"]"),
        "",
        &[],
        "stage cause what\nware plan from: pots -> clay, pots\n",
    );
    check(
        plan("keep = [\"b\"]", "keep = true"),
        "",
        &[],
        "stage cause what\npots plan keep: [\"b\"] -> true\n",
    );
    check(
        plan("[stage.bill]", "[stage.note]"),
        "",
        &[],
        "stage cause what\nnote new make is not in the lock\nbill gone make is not in the plan\n",
    );
    check(
        plan("\"shop\"", "\"fair\""),
        "",
        &[],
        "stage cause what\n[plan] plan name: shop -> fair\n",
    );
}

#[test]
fn causes_are_distinguished_from_consequences() {
    check(
        |_| {},
        "",
        &[(VERSION, "2")],
        "stage cause what\npots kiln version of make: 1 -> 2\nware kiln version of make: 1 -> \
         2\nbill kiln version of make: 1 -> 2\n",
    );
    check(
        |project| project.write("oven.so", "cold"),
        "",
        &[],
        "stage cause what\ntools.oven input a local file: HERE/oven.so\ndigest: \"b3:\" \
         -> \"b3:\"\nware tool oven/oven.so: b3: -> b3:\n",
    );
    check(
        |project| project.write("clay.txt", "dry"),
        "",
        &[],
        "stage cause what\nclay input a local file: HERE/clay.txt\ndigest: \"b3:\" -> \
         \"b3:\"\npots input follows from clay\nb/c/out: b3: -> b3:\nware input follows from \
         pots\nout: b3: -> b3:\n",
    );
    // A build of a part of the plan.
    check(
        |project| project.write("clay.txt", "dry"),
        "clay",
        &[],
        "stage cause what\nclay input a local file: HERE/clay.txt\ndigest: \"b3:\" -> \
         \"b3:\"\n",
    );
}

#[test]
fn different_bytes_of_the_same_action_are_reported() {
    let project = Project::open();
    project.write(
        "shop.toml",
        &PLAN.replace("text = \"ware\"", "random = true"),
    );
    project.stdout("build shop.toml --lock");
    let (code, output, _) = project.kiln("build shop.toml --locked --cache elsewhere --json", &[]);
    assert_eq!(code, 3);
    let line = output
        .lines()
        .find(|line| line.contains("\"locked\""))
        .unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    let [ware] = line["differs"].as_array().unwrap().as_slice() else {
        panic!("{line}")
    };
    assert_eq!(
        (&ware["stage"], &ware["cause"]),
        (&"ware".into(), &"same-action".into())
    );
    let out = &ware["artifacts"][0];
    assert!(
        out["name"] == "out" && out["locked"].is_string() && out["locked"] != out["found"],
        "{out}"
    );
}

#[test]
fn invalid_lock_options_are_rejected() {
    let project = Project::open();
    for (call, code) in [
        ("build shop.toml --locked", "kiln::call::no_lock"),
        ("verify shop.toml", "kiln::call::no_lock"),
        ("build shop.toml ware --lock", "kiln::call::lock_of_part"),
        ("build shop.toml --lock --locked", "cannot be used with"),
    ] {
        let (exit, _, errors) = project.kiln(call, &[]);
        assert!(exit == 2 && errors.contains(code), "{call}: {errors}");
    }
    assert!(!project.path("out").exists());
}

/// Changes the artifacts and compares the report of `verify`.
fn check_verify(change: impl Fn(&Path), expected: &[&str]) {
    let project = Project::open();
    project.stdout("build shop.toml --lock --out here");
    fs::remove_dir_all(project.path("cache")).unwrap();
    fs::remove_file(project.path("shop.toml")).unwrap();
    assert_eq!(
        project.stdout("verify shop.toml --out here"),
        "3 files, 120.0 kB: no difference from shop.lock\n"
    );
    change(&project.path("here"));
    let (code, output, errors) = project.kiln("verify shop.toml --out here", &[]);
    let output = without_digests(&output);
    assert_eq!(
        (code, output.lines().collect::<Vec<_>>()),
        (3, expected.to_vec()),
        "{errors}"
    );
    assert!(errors.contains("kiln::verify::differs"), "{errors}");
    assert!(!project.path("cache").exists() && !project.path("out").exists());
}

#[test]
fn verify_reports_each_fault() {
    let replace = |path: &Path, text: &str| {
        fs::remove_file(path).unwrap();
        fs::write(path, text).unwrap();
    };
    check_verify(
        |out| fs::remove_file(out.join("ware/out")).unwrap(),
        &["missing  ware/out"],
    );
    check_verify(
        |out| replace(&out.join("ware/out"), "short"),
        &["differs  ware/out  has 5 bytes, expected 26"],
    );
    check_verify(
        |out| replace(&out.join("pots/b/c/out"), "pot d/c\nwet"),
        &["differs  pots/b/c/out  is b3:, expected b3:"],
    );
    check_verify(
        |out| fs::write(out.join("pots/b/more"), "").unwrap(),
        &["unknown  pots/b/more"],
    );
    check_verify(
        |out| {
            fs::remove_dir_all(out.join("pots")).unwrap();
            replace(&out.join("ware/out"), "short");
            fs::create_dir(out.join("bill/pots")).unwrap();
            fs::write(out.join("bill/pots/.kiln.json"), "").unwrap();
            fs::remove_file(out.join("bill/out")).unwrap();
            std::os::unix::fs::symlink("/dev/zero", out.join("bill/out")).unwrap();
        },
        &[
            "unreadable  bill/out              is no regular file",
            "unknown     bill/pots/.kiln.json",
            "missing     pots/b/c/out",
            "differs     ware/out              has 5 bytes, expected 26",
        ],
    );
}

#[test]
fn hostile_locks_are_rejected() {
    let project = Project::open();
    project.stdout("build shop.toml --lock");
    let lock = project.read("shop.lock");
    let check_rejected = |old: &str, new: &str, expected: &str| {
        assert!(lock.contains(old), "{old}");
        project.write("shop.lock", &lock.replace(old, new));
        for call in [
            "verify shop.toml",
            "build shop.toml --locked",
            "cache gc --lock shop.lock",
        ] {
            let (code, _, errors) = project.kiln(call, &[]);
            assert_eq!(code, 2, "{call}: {errors}");
            assert!(
                errors.contains("kiln::call::lock") && errors.contains(expected),
                "{call}: {expected} in {errors}"
            );
        }
    };
    check_rejected(
        "artifacts.\"b/c/out\"",
        "artifacts.\"../../../etc/passwd\"",
        "line 48",
    );
    check_rejected(
        "[stage.bill.artifacts.out]",
        "[stage.bill.artifacts.\"/etc/passwd\"]",
        "cannot name a part",
    );
    check_rejected(
        "[stage.ware",
        "[stage.\"..\"",
        "cannot name a plan or a stage",
    );
    check_rejected("plan = \"shop\"", "plan = \"../shop\"", "line 4");
    check_rejected(
        "version = 1\nplan",
        "version = 2\nplan",
        "this kiln reads version 1",
    );
    check_rejected("version = 1\nplan", "plan", "missing field `version`");
    check_rejected("sha256 = \"c7", "sha256 = \"C7", "is not a sha256");
    check_rejected("keep = true", "kept = true", "unknown field `kept`");
    check_rejected("plan = \"shop\"", "plan = shop", "line 4");
    check_rejected("output = \"b3:", "output = \"b3:00", "is not a digest");
    project.write("shop.lock", &"#".repeat(64 << 20 | 1));
    let (code, _, errors) = project.kiln("verify shop.toml", &[]);
    assert!(
        code == 2 && errors.contains("the maximum size of a lock"),
        "{errors}"
    );
}

/// A locked build compares each plan with its lock before anything runs, and builds the graph of
/// the smallest model. A complete build takes minutes.
#[test]
#[ignore = "needs a package index"]
fn every_committed_lock_matches_its_plan() {
    let plans = Path::new(env!("CARGO_MANIFEST_DIR")).join("plans");
    let mut locks = 0;
    for entry in fs::read_dir(plans).unwrap() {
        let lock = entry.unwrap().path();
        if lock.extension().is_none_or(|extension| extension != "lock") {
            continue;
        }
        let out = tempfile::tempdir().unwrap();
        let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
        kiln.args(["build", "--locked", "--cache"])
            .arg(crate::support::tools::cache())
            .arg("--out")
            .arg(out.path());
        // The other models have gigabytes.
        let stage = if lock.ends_with("smollm2-135m.lock") {
            "graph"
        } else {
            "text"
        };
        let output = kiln
            .arg(lock.with_extension("toml"))
            .arg(stage)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}: {}",
            lock.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        locks += 1;
    }
    assert!(locks > 0);
}
