//! `kiln cache stats` and `kiln cache verify`, on a cache with a few results.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::results::{entry_path, put};
use assert_cmd::Command;
use kiln::action::{Outputs, Part, PartName};
use kiln::base::{CanonJson, hash_bytes};
use kiln::store::{ActionCache, ActionResult, Disk};
use rustix::process::{Pid, Signal, kill_process};

/// A cache with two results: `fetch`, run on a thread, with `clay`, and `requant`, run in a
/// process, with `clay` and `glaze`.
fn cache() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let store = Disk::open(folder.path()).unwrap();
    for (stage, blobs, peak) in [
        ("fetch", &["clay"][..], None),
        ("requant", &["clay", "glaze"], Some(7000)),
    ] {
        let mut outputs = Outputs::new();
        for blob in blobs {
            let part = Part {
                content: put(&store, blob.as_bytes()),
                facts: CanonJson::default(),
            };
            outputs.insert(PartName::new(*blob).unwrap(), part);
        }
        let action = format!(r#"{{"stage":"{stage}"}}"#);
        store
            .put(&ActionResult {
                action,
                outputs,
                took_ms: 1,
                peak_memory_bytes: peak,
            })
            .unwrap();
    }
    folder
}

fn check(cache: &Path, call: &str, code: i32, expected: &str) {
    let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
    let output = kiln
        .args(["cache", "--cache"])
        .arg(cache)
        .args(call.split(' '))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap().replace(
        &cache.canonicalize().unwrap().display().to_string(),
        "CACHE",
    );
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        (text.as_str(), output.status.code()),
        (expected, Some(code)),
        "{errors}"
    );
}

#[test]
fn stats_count_a_shared_blob_once() {
    let cache = cache();
    let expected = "\
stage           results     output  peak memory
fetch                 1        4 B            -
requant               1        9 B       7.0 kB

2 blobs, 9 B
the last builds need 0 B; `kiln cache gc` would free 9 B
";
    check(cache.path(), "stats", 0, expected);
    let json = serde_json::json!({
        "blob_bytes": 9, "blobs": 2, "garbage_bytes": 9, "kept_bytes": 0, "partial_bytes": 0,
        "stages": {
            "fetch": {"actions": 1, "output_bytes": 4, "peak_memory_bytes": null},
            "requant": {"actions": 1, "output_bytes": 9, "peak_memory_bytes": 7000},
        },
    });
    check(cache.path(), "stats --json", 0, &format!("{json}\n"));
}

#[test]
fn verify_reports_damage_and_repair_removes_it() {
    let cache = cache();
    check(
        cache.path(),
        "verify",
        0,
        "2 blobs and 2 results: none damaged\n",
    );

    let blob = entry_path(cache.path(), "blobs", b"clay", "");
    fs::set_permissions(&blob, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&blob, "clap").unwrap();
    let entry = entry_path(cache.path(), "actions", br#"{"stage":"fetch"}"#, ".json");
    fs::write(&entry, "").unwrap();

    let name = |path: &Path| {
        format!(
            "CACHE/{}",
            path.strip_prefix(cache.path()).unwrap().display()
        )
    };
    let faults = format!(
        "{}: its bytes hash to {}\n{}: not a result that kiln wrote\n2 blobs and 2 results: 2 \
         damaged",
        name(&blob),
        hash_bytes(b"clap"),
        name(&entry)
    );
    check(
        cache.path(),
        "verify",
        3,
        &format!("{faults}; `kiln cache verify --repair` removes them\n"),
    );
    check(
        cache.path(),
        "verify --repair",
        0,
        &format!("{faults}, removed\n"),
    );
    // The other result used the damaged blob.
    check(
        cache.path(),
        "verify",
        0,
        "1 blob and 0 results: none damaged\n",
    );
}

#[test]
fn verify_can_be_interrupted_within_a_large_blob() {
    let cache = cache();
    let blob = entry_path(cache.path(), "blobs", b"large", "");
    fs::create_dir_all(blob.parent().unwrap()).unwrap();
    // A sparse file: it needs no space, but reading it takes minutes.
    fs::File::create(&blob).unwrap().set_len(1 << 40).unwrap();
    let mut kiln = std::process::Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args(["cache", "verify", "--cache"])
        .arg(cache.path())
        .spawn()
        .unwrap();
    sleep(Duration::from_millis(500));
    assert!(kiln.try_wait().unwrap().is_none());
    let start = Instant::now();
    kill_process(Pid::from_child(&kiln), Signal::INT).unwrap();
    let status = kiln.wait().unwrap();
    assert!(
        status.signal() == Some(Signal::INT.as_raw()) && start.elapsed() < Duration::from_secs(5),
        "{status} after {:?}",
        start.elapsed()
    );
}

#[test]
fn stats_do_not_create_a_cache() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("cahce");
    let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
    let output = kiln
        .args(["cache", "stats", "--cache"])
        .arg(&missing)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("kiln::call::no_cache")
    );
    assert!(!missing.exists());
}
