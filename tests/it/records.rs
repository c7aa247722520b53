//! Receipts, sums, locks and provenance, from outside.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use crate::support::fetching::sha256;
use crate::support::test_program::{PLAN, Project, VERSION, plain};
use crate::support::tree::files;
use serde_json::Value;

#[test]
fn a_lock_reads_well() {
    let shop = Project::open();
    assert_eq!(
        shop.done("build shop.toml --lock").lines().last(),
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
    let lock = plain(&shop.read("shop.lock"));
    assert!(lock.starts_with(expected), "{lock}");
    let inode = fs::metadata(shop.path("shop.lock")).unwrap().ino();
    assert!(
        shop.done("build shop.toml --lock")
            .ends_with("lock file unchanged: shop.lock\n")
    );
    assert_eq!(
        fs::metadata(shop.path("shop.lock")).unwrap().ino(),
        inode,
        "an equal lock is left alone"
    );
    // `gc --lock` reads it.
    let kept = shop.done("cache gc --lock shop.lock --max-size 0");
    assert!(kept.contains("remaining     6 results"), "{kept}");
}

#[test]
fn neither_folder_nor_jobs_nor_spelling_are_in_a_lock() {
    let lock = |text: &str, call: &str| {
        let shop = Project::open();
        fs::create_dir_all(shop.path("deep/er")).unwrap();
        for file in ["oven.so", "clay.txt"] {
            fs::copy(shop.path(file), shop.path("deep/er").join(file)).unwrap();
        }
        shop.write("deep/er/shop.toml", text);
        shop.done(&format!("build deep/er/shop.toml --lock --out here {call}"));
        let papers = ["deep/er/shop.lock", "here/receipt.json", "here/SHA256SUMS"]
            .map(|paper| shop.read(paper));
        assert!(
            papers
                .iter()
                .all(|paper| !paper.contains(shop.path("").to_str().unwrap()))
        );
        papers
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

/// Locks the shop, changes it, and holds a build to the lock.
fn check(change: impl Fn(&Project), call: &str, environment: &[(&str, &str)], expected: &str) {
    let shop = Project::open();
    shop.done("build shop.toml --lock");
    let written = files(&shop.path("out"));
    assert!(
        shop.done("build shop.toml --locked")
            .starts_with("nothing to do")
    );
    change(&shop);
    let (code, said, errors) = shop.kiln(&format!("build shop.toml --locked {call}"), environment);
    let said: String = plain(&said)
        .lines()
        .map(|line| {
            format!(
                "{}\n",
                line.split_whitespace().collect::<Vec<_>>().join(" ")
            )
        })
        .collect();
    assert_eq!((code, said.as_str()), (3, expected), "{errors}");
    assert!(errors.contains("kiln::lock::differs"), "{errors}");
    assert_eq!(files(&shop.path("out")), written, "nothing is written out");
}

#[test]
fn a_change_of_the_plan_is_known_before_anything_runs() {
    let plan = |old: &'static str, new: &'static str| {
        move |shop: &Project| shop.write("shop.toml", &PLAN.replace(old, new))
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
fn a_cause_is_told_apart_from_what_follows_from_it() {
    check(
        |_| {},
        "",
        &[(VERSION, "2")],
        "stage cause what\npots kiln version of make: 1 -> 2\nware kiln version of make: 1 -> \
         2\nbill kiln version of make: 1 -> 2\n",
    );
    check(
        |shop| shop.write("oven.so", "cold"),
        "",
        &[],
        "stage cause what\ntools.oven input a local file: HERE/oven.so\ndigest: \"b3:\" \
         -> \"b3:\"\nware tool oven/oven.so: b3: -> b3:\n",
    );
    check(
        |shop| shop.write("clay.txt", "dry"),
        "",
        &[],
        "stage cause what\nclay input a local file: HERE/clay.txt\ndigest: \"b3:\" -> \
         \"b3:\"\npots input follows from clay\nb/c/out: b3: -> b3:\nware input follows from \
         pots\nout: b3: -> b3:\n",
    );
    // Of a part of the plan.
    check(
        |shop| shop.write("clay.txt", "dry"),
        "clay",
        &[],
        "stage cause what\nclay input a local file: HERE/clay.txt\ndigest: \"b3:\" -> \
         \"b3:\"\n",
    );
}

#[test]
fn the_same_action_with_other_bytes_is_called_that() {
    let shop = Project::open();
    shop.write(
        "shop.toml",
        &PLAN.replace("text = \"ware\"", "random = true"),
    );
    shop.done("build shop.toml --lock");
    let (code, said, _) = shop.kiln("build shop.toml --locked --cache elsewhere --json", &[]);
    assert_eq!(code, 3);
    let line = said
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
fn what_cannot_be_held_is_refused() {
    let shop = Project::open();
    for (call, code) in [
        ("build shop.toml --locked", "kiln::call::no_lock"),
        ("verify shop.toml", "kiln::call::no_lock"),
        ("build shop.toml ware --lock", "kiln::call::lock_of_part"),
        ("build shop.toml --lock --locked", "cannot be used with"),
    ] {
        let (exit, _, errors) = shop.kiln(call, &[]);
        assert!(exit == 2 && errors.contains(code), "{call}: {errors}");
    }
    assert!(!shop.path("out").exists());
}

#[test]
fn the_sums_are_those_of_the_files() {
    let shop = Project::open();
    shop.done("build shop.toml");
    let out = shop.path("out/shop");
    let expected: String = ["bill/out", "pots/b/c/out", "ware/out"]
        .map(|path| format!("{}  {path}\n", sha256(&fs::read(out.join(path)).unwrap())))
        .concat();
    assert_eq!(shop.read("out/shop/SHA256SUMS"), expected);
    // Where there is such a program.
    if let Ok(output) = Command::new("sha256sum")
        .args(["--strict", "-c", "SHA256SUMS"])
        .current_dir(&out)
        .output()
    {
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
}

#[test]
fn papers_are_written_when_they_are_not_there() {
    let shop = Project::open();
    shop.done("build shop.toml");
    let written = files(&shop.path("out"));
    let rebuild = |says: &str| {
        let said = shop.done("build shop.toml");
        assert!(said.contains(says), "{said}");
        assert_eq!(files(&shop.path("out")), written);
    };
    rebuild("nothing to do");
    shop.write("out/shop/receipt.json", "{}");
    rebuild("written to");
    fs::remove_file(shop.path("out/shop/SHA256SUMS")).unwrap();
    rebuild("written to");
    // Notes may be lost.
    fs::remove_dir_all(shop.path("cache/notes")).unwrap();
    rebuild("nothing to do");
    // A build of a part has a receipt of that part; then that of the whole is another again.
    assert!(shop.done("build shop.toml bill").contains("written to"));
    assert_eq!(shop.read("out/shop/SHA256SUMS").lines().count(), 1);
    rebuild("written to");
}

/// What <https://slsa.dev/spec/v1.0/provenance> asks for.
#[test]
fn provenance_is_a_statement_about_the_files() {
    let shop = Project::open();
    shop.done("build shop.toml --provenance --set text=jar");
    let text = shop.read("out/shop/provenance.json");
    let statement: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(statement["predicateType"], "https://slsa.dev/provenance/v1");
    let build = &statement["predicate"]["buildDefinition"];
    assert_eq!(build["buildType"], "urn:kiln:build-plan:1");
    assert_eq!(
        (
            &build["externalParameters"]["plan"],
            &build["externalParameters"]["set"]["text"]
        ),
        (&"shop".into(), &"jar".into())
    );
    assert!(
        statement["predicate"]["runDetails"]["builder"]["id"]
            .as_str()
            .unwrap()
            .contains("kiln")
    );
    assert!(
        statement["predicate"]["runDetails"]
            .get("metadata")
            .is_none(),
        "a time that nobody gave"
    );

    let mut subjects = BTreeMap::new();
    for subject in statement["subject"].as_array().unwrap() {
        subjects.insert(
            subject["name"].as_str().unwrap().to_string(),
            subject["digest"].clone(),
        );
    }
    let artifacts = files(&shop.path("out/shop"))
        .into_iter()
        .filter(|(path, _)| path.components().count() > 1);
    for (path, bytes) in artifacts {
        let digest = subjects.remove(path.to_str().unwrap()).unwrap();
        assert_eq!(digest["sha256"], sha256(&bytes));
        assert_eq!(digest["blake3"], kiln::base::hash_bytes(&bytes).hex());
    }
    assert!(subjects.is_empty(), "{subjects:?}");
    let dependency = |name: &str| {
        let all = build["resolvedDependencies"].as_array().unwrap();
        all.iter()
            .find(|one| one["name"] == name)
            .cloned()
            .unwrap_or_else(|| panic!("no {name} in {all:?}"))
    };
    assert_eq!(
        (
            &dependency("clay")["uri"],
            &dependency("clay")["digest"]["sha256"]
        ),
        (&"file:clay.txt".into(), &sha256(b"wet").into())
    );
    assert_eq!(
        dependency("oven/oven.so")["digest"]["sha256"],
        sha256(b"hot")
    );

    let other = Project::open();
    other.done("build shop.toml --provenance --set text=jar");
    assert_eq!(other.read("out/shop/provenance.json"), text);
    let (_, said, _) = other.kiln(
        "build shop.toml --provenance --set text=jar",
        &[("SOURCE_DATE_EPOCH", "951782400")],
    );
    assert!(said.contains("written to"), "{said}");
    assert!(
        other
            .read("out/shop/provenance.json")
            .contains("\"finishedOn\": \"2000-02-29T00:00:00Z\"")
    );
    let (code, _, errors) = other.kiln(
        "build shop.toml --provenance",
        &[("SOURCE_DATE_EPOCH", "today")],
    );
    assert!(
        code == 2 && errors.contains("kiln::call::source_date_epoch"),
        "{errors}"
    );
}

#[test]
fn what_is_made_again_is_the_same_or_kept_beside() {
    let shop = Project::open();
    let said = shop.done("build shop.toml --check");
    assert!(
        said.ends_with("checked: 4 parts ran twice with the same bytes\n"),
        "{said}"
    );
    assert!(!shop.path("out/shop/differs").exists());

    shop.write(
        "shop.toml",
        &PLAN.replace("text = \"${text}\"", "text = \"${text}\"\nrandom = true"),
    );
    let (code, said, errors) = shop.kiln("build shop.toml --check", &[]);
    let table: Vec<String> = plain(&said)
        .lines()
        .rev()
        .take(2)
        .map(String::from)
        .collect();
    assert!(
        code == 3 && table[0].starts_with("pots/b/c  out") && table[1].starts_with("pots/a    out"),
        "{said}"
    );
    assert!(
        errors.contains("2 of 4 parts had other bytes in the second run"),
        "{errors}"
    );
    assert!(errors.contains("once more, to compare"), "{errors}");
    let copy = |which: &str| shop.read(&format!("out/shop/differs/pots/b/c/{which}/out"));
    assert_eq!(copy("first"), shop.read("out/shop/pots/b/c/out"));
    assert!(copy("again").starts_with("pot b/c\nwet") && copy("again") != copy("first"));

    // What follows is checked with the same inputs, and what is not asked for is not checked.
    let said = shop.done("build shop.toml ware --check");
    assert!(
        said.ends_with("checked: 1 part ran twice with the same bytes\n"),
        "{said}"
    );
    assert!(
        shop.done("build shop.toml --cache cache clay --check")
            .contains("checked: 1 part ran twice")
    );
    let (code, said, _) = shop.kiln("build shop.toml --check --json", &[]);
    let line: Value = serde_json::from_str(said.lines().rev().nth(1).unwrap()).unwrap();
    assert_eq!(
        (
            code,
            &line["checked"],
            line["differs"].as_array().unwrap().len()
        ),
        (3, &4.into(), 2)
    );
}

/// Changes what was written out, and verifies it.
fn faults(change: impl Fn(&Path), expected: &[&str]) {
    let shop = Project::open();
    shop.done("build shop.toml --lock --out here");
    fs::remove_dir_all(shop.path("cache")).unwrap();
    fs::remove_file(shop.path("shop.toml")).unwrap();
    assert_eq!(
        shop.done("verify shop.toml --out here"),
        "3 files, 120.0 kB: no difference from shop.lock\n"
    );
    change(&shop.path("here"));
    let (code, said, errors) = shop.kiln("verify shop.toml --out here", &[]);
    let said = plain(&said);
    assert_eq!(
        (code, said.lines().collect::<Vec<_>>()),
        (3, expected.to_vec()),
        "{errors}"
    );
    assert!(errors.contains("kiln::verify::differs"), "{errors}");
    assert!(!shop.path("cache").exists() && !shop.path("out").exists());
}

#[test]
fn each_fault_of_a_file_is_named() {
    let replace = |path: &Path, text: &str| {
        fs::remove_file(path).unwrap();
        fs::write(path, text).unwrap();
    };
    faults(
        |out| fs::remove_file(out.join("ware/out")).unwrap(),
        &["missing  ware/out"],
    );
    faults(
        |out| replace(&out.join("ware/out"), "short"),
        &["differs  ware/out  has 5 bytes, expected 26"],
    );
    faults(
        |out| replace(&out.join("pots/b/c/out"), "pot d/c\nwet"),
        &["differs  pots/b/c/out  is b3:, expected b3:"],
    );
    faults(
        |out| fs::write(out.join("pots/b/more"), "").unwrap(),
        &["unknown  pots/b/more"],
    );
    faults(
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
fn a_lock_is_read_as_if_an_enemy_had_written_it() {
    let shop = Project::open();
    shop.done("build shop.toml --lock");
    let lock = shop.read("shop.lock");
    let refused = |old: &str, new: &str, says: &str| {
        assert!(lock.contains(old), "{old}");
        shop.write("shop.lock", &lock.replace(old, new));
        for call in [
            "verify shop.toml",
            "build shop.toml --locked",
            "cache gc --lock shop.lock",
        ] {
            let (code, _, errors) = shop.kiln(call, &[]);
            assert_eq!(code, 2, "{call}: {errors}");
            assert!(
                errors.contains("kiln::call::lock") && errors.contains(says),
                "{call}: {says} in {errors}"
            );
        }
    };
    refused(
        "artifacts.\"b/c/out\"",
        "artifacts.\"../../../etc/passwd\"",
        "line 48",
    );
    refused(
        "[stage.bill.artifacts.out]",
        "[stage.bill.artifacts.\"/etc/passwd\"]",
        "cannot name a part",
    );
    refused(
        "[stage.ware",
        "[stage.\"..\"",
        "cannot name a plan or a stage",
    );
    refused("plan = \"shop\"", "plan = \"../shop\"", "line 4");
    refused(
        "version = 1\nplan",
        "version = 2\nplan",
        "this kiln knows 1",
    );
    refused("version = 1\nplan", "plan", "missing field `version`");
    refused("sha256 = \"c7", "sha256 = \"C7", "is not a sha256");
    refused("keep = true", "kept = true", "unknown field `kept`");
    refused("plan = \"shop\"", "plan = shop", "line 4");
    refused("output = \"b3:", "output = \"b3:00", "is not a digest");
    shop.write("shop.lock", &"#".repeat(64 << 20 | 1));
    let (code, _, errors) = shop.kiln("verify shop.toml", &[]);
    assert!(
        code == 2 && errors.contains("which no lock has"),
        "{errors}"
    );
}

/// What a lock says of a plan is held against it before anything runs; what the smallest model's
/// graph comes to, afterwards. The rest takes minutes.
#[test]
#[ignore = "needs a package index"]
fn every_committed_lock_is_of_its_plan() {
    let plans = Path::new(env!("CARGO_MANIFEST_DIR")).join("plans");
    let mut held = 0;
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
        held += 1;
    }
    assert!(held > 0);
}
