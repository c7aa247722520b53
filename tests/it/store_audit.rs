//! `kiln cache stats` and `kiln cache verify`, on a cache with a few results.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use assert_cmd::Command;
use kiln::action::{Part, PartName};
use kiln::base::{CanonJson, hash_bytes};
use kiln::store::{ActionCache, ActionResult, BlobStore, Disk};
use rustix::process::{Pid, Signal, kill_process};

/// A cache where `fetch` gave `clay` on a thread, and `requant` in a process gave `clay` and
/// `glaze`.
fn cache() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let store = Disk::open(folder.path()).unwrap();
    for (stage, blobs, peak) in [
        ("fetch", &["clay"][..], None),
        ("requant", &["clay", "glaze"], Some(7000)),
    ] {
        let part = |blob: &&str| {
            let mut sink = store.create().unwrap();
            sink.write_all(blob.as_bytes()).unwrap();
            (
                PartName::new(*blob).unwrap(),
                Part {
                    content: sink.finish().unwrap(),
                    facts: CanonJson::default(),
                },
            )
        };
        let action = format!(r#"{{"stage":"{stage}"}}"#);
        let outputs = blobs.iter().map(part).collect();
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
fn stats_count_by_stage_and_a_shared_blob_once() {
    let cache = cache();
    let expected = "\
stage           results     output  peak memory
fetch                 1        4 B            -
requant               1        9 B       7.0 kB

2 blobs, 9 B
the last builds need 0 B; `kiln cache gc` would free 9 B
";
    check(cache.path(), "stats", 0, expected);
    let json = r#"{"blob_bytes":9,"blobs":2,"garbage_bytes":9,"kept_bytes":0,"partial_bytes":0,"stages":{"fetch":{"actions":1,"output_bytes":4,"peak_memory_bytes":null},"requant":{"actions":1,"output_bytes":9,"peak_memory_bytes":7000}}}"#;
    check(cache.path(), "stats --json", 0, &format!("{json}\n"));
}

fn file(cache: &Path, room: &str, what: &[u8], ending: &str) -> PathBuf {
    let hex = hash_bytes(what).hex();
    cache.join(room).join(&hex[..2]).join(hex + ending)
}

#[test]
fn verify_names_what_is_damaged_and_repair_removes_it() {
    let cache = cache();
    check(
        cache.path(),
        "verify",
        0,
        "2 blobs and 2 results: none damaged\n",
    );

    let blob = file(cache.path(), "blobs", b"clay", "");
    fs::set_permissions(&blob, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&blob, "clap").unwrap();
    let entry = file(cache.path(), "actions", br#"{"stage":"fetch"}"#, ".json");
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
    // The other result named the damaged blob.
    check(
        cache.path(),
        "verify",
        0,
        "1 blob and 0 results: none damaged\n",
    );
}

#[test]
fn an_interruption_ends_verify_within_a_large_blob() {
    let cache = cache();
    let blob = file(cache.path(), "blobs", b"large", "");
    fs::create_dir_all(blob.parent().unwrap()).unwrap();
    // Sparse: it takes no space, but minutes to read.
    fs::File::create(&blob).unwrap().set_len(1 << 40).unwrap();
    let mut kiln = std::process::Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args(["cache", "verify", "--cache"])
        .arg(cache.path())
        .spawn()
        .unwrap();
    sleep(Duration::from_millis(500));
    assert!(kiln.try_wait().unwrap().is_none());
    let begun = Instant::now();
    kill_process(Pid::from_child(&kiln), Signal::INT).unwrap();
    let status = kiln.wait().unwrap();
    assert!(
        status.signal() == Some(Signal::INT.as_raw()) && begun.elapsed() < Duration::from_secs(5),
        "{status} after {:?}",
        begun.elapsed()
    );
}

#[test]
fn a_cache_that_is_not_there_is_not_made() {
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
