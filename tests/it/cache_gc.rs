//! `kiln cache gc` on small caches: which results and blobs remain.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::support::alive::wait_until;
use crate::support::results::{entry_path, put};
use kiln::action::{ActionKey, Outputs, Part, PartName};
use kiln::base::{CanonJson, hash_bytes};
use kiln::store::{ActionCache, ActionResult, Disk};

/// Results with their ages and blobs: three share blobs, one is from the future, and one blob
/// belongs to no result.
const RESULTS: &str = "
jar  40d  clay glaze
cup  20d  clay slip
bowl 1d   slip
lamp -9d  oil
-         shard
";

fn key(result: &str) -> ActionKey {
    ActionKey(hash_bytes(result.as_bytes()))
}

fn set_age(path: &Path, days: i64) {
    let age = Duration::from_secs(days.unsigned_abs() * 86_400);
    let now = SystemTime::now();
    File::open(path)
        .unwrap()
        .set_modified(if days < 0 { now + age } else { now - age })
        .unwrap();
}

/// A cache with the results in `text`; each line has a result, its age and its blobs.
fn cache(text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let store = Disk::open(folder.path()).unwrap();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let mut words = line.split_whitespace();
        let result = words.next().unwrap();
        if result == "-" {
            for blob in words {
                put(&store, blob.as_bytes());
            }
            continue;
        }
        let age = words.next().unwrap().strip_suffix('d').unwrap();
        let age = age.parse().unwrap();
        let mut outputs = Outputs::new();
        for blob in words {
            let part = Part {
                content: put(&store, blob.as_bytes()),
                facts: CanonJson::default(),
            };
            outputs.insert(PartName::new(blob).unwrap(), part);
        }
        store
            .put(&ActionResult {
                action: result.into(),
                outputs,
                took_ms: 1,
                peak_memory_bytes: None,
            })
            .unwrap();
        set_age(
            &entry_path(folder.path(), "actions", result.as_bytes(), ".json"),
            age,
        );
    }
    folder
}

fn lock(results: &[&str]) -> tempfile::NamedTempFile {
    let mut lock = tempfile::NamedTempFile::new().unwrap();
    let digest = hash_bytes(b"");
    writeln!(
        lock,
        "version = 1\nplan = 'test'\ndigest = '{digest}'\n[stage.a]\nkind = 'throw'\nversion = \
         1"
    )
    .unwrap();
    writeln!(
        lock,
        "params = '{digest}'\nkeep = false\noutput = '{digest}'\n[stage.a.actions]"
    )
    .unwrap();
    for result in results {
        writeln!(lock, "{result} = '{}'", key(result)).unwrap();
    }
    lock
}

fn gc(cache: &Path, call: &str) -> (i32, String, String) {
    let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
    let output = kiln
        .args(["cache", "gc", "--cache"])
        .arg(cache)
        .args(call.split_whitespace())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// The results and blobs of `text` that the cache still has.
fn remaining(cache: &Path, text: &str) -> String {
    let (mut results, mut blobs) = (vec![], vec![]);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        results.extend(words.next());
        blobs.extend(words);
    }
    results.retain(|result| entry_path(cache, "actions", result.as_bytes(), ".json").exists());
    blobs.retain(|blob| entry_path(cache, "blobs", blob.as_bytes(), "").exists());
    blobs.sort();
    blobs.dedup();
    format!("{}: {}", results.join(" "), blobs.join(" "))
}

/// Runs gc on RESULTS, with `kept` in a lock.
fn check(call: &str, kept: &[&str], output: &str, remains: &str) {
    let cache = cache(RESULTS);
    let lock = lock(kept);
    let lock = if kept.is_empty() {
        String::new()
    } else {
        format!(" --lock {}", lock.path().display())
    };
    let all = remaining(cache.path(), RESULTS);

    let (code, dry_run, errors) = gc(cache.path(), &format!("{call}{lock} --dry-run"));
    assert_eq!(
        (code, remaining(cache.path(), RESULTS)),
        (0, all),
        "a dry run removes nothing: {errors}"
    );
    let (code, text, errors) = gc(cache.path(), &format!("{call}{lock}"));
    assert_eq!((code, text.as_str()), (0, output), "{errors}");
    assert_eq!(remaining(cache.path(), RESULTS), remains, "{call}");
    assert_eq!(dry_run.replace("would remove", "removed     "), text);
}

#[test]
fn without_a_limit_only_kept_results_remain() {
    check(
        "",
        &[],
        "removed       4 results, 5 blobs, 21 B\nremaining     0 results, 0 blobs, 0 B\nneeded        0 results, 0 blobs, 0 B, by last builds and lock files\n",
        ": ",
    );
    check(
        "",
        &["cup"],
        "removed       3 results, 3 blobs, 13 B\nremaining     1 result, 2 blobs, 8 B\nneeded        1 result, 2 blobs, 8 B, by last builds and lock files\n",
        "cup: clay slip",
    );
}

#[test]
fn old_results_are_removed_and_future_times_count_as_new() {
    check(
        "--max-age 30d",
        &[],
        "removed       1 result, 2 blobs, 10 B\nremaining     3 results, 3 blobs, 11 B\nneeded        0 results, 0 blobs, 0 B, by last builds and lock files\n",
        "cup bowl lamp: clay oil slip",
    );
    check(
        "--max-age 0s",
        &["jar"],
        "removed       2 results, 2 blobs, 9 B\nremaining     2 results, 3 blobs, 12 B\nneeded        1 result, 2 blobs, 9 B, by last builds and lock files\n",
        "jar lamp: clay glaze oil",
    );
}

#[test]
fn the_oldest_results_are_removed_until_the_size_limit_is_met() {
    check(
        "--max-size 15B",
        &[],
        "removed       1 result, 2 blobs, 10 B\nremaining     3 results, 3 blobs, 11 B\nneeded        0 results, 0 blobs, 0 B, by last builds and lock files\n",
        "cup bowl lamp: clay oil slip",
    );
    check(
        "--max-size 16B",
        &[],
        "removed       0 results, 1 blob, 5 B\nremaining     4 results, 4 blobs, 16 B\nneeded        0 results, 0 blobs, 0 B, by last builds and lock files\n",
        "jar cup bowl lamp: clay glaze oil slip",
    );
    check(
        "--max-size 5B",
        &["jar"],
        "removed       3 results, 3 blobs, 12 B\nremaining     1 result, 2 blobs, 9 B\nneeded        1 result, 2 blobs, 9 B, by last builds and lock files\n\
         --max-size is exceeded by 4 B: the rest is needed\n",
        "jar: clay glaze",
    );
}

#[test]
fn old_partial_downloads_are_removed() {
    let cache = cache("");
    let partial = |name: &str| {
        cache
            .path()
            .join("partial")
            .join(hash_bytes(name.as_bytes()).hex())
    };
    for (name, days) in [("old", 9), ("new", 2)] {
        let folder = partial(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("download"), "ha").unwrap();
        set_age(&folder.join("download"), days);
        set_age(&folder, 9);
    }
    let (_, text, _) = gc(cache.path(), "--max-size 0");
    assert!(!text.contains("half-finished"), "{text}");
    let (_, json, _) = gc(cache.path(), "--max-age 3d --json");
    let none = r#"{"blobs":0,"bytes":0,"results":0}"#;
    let expected = format!(
        r#"{{"dry_run":false,"goes":{none},"kept":{none},"over_bytes":0,"partial_bytes":2,"stays":{none}}}"#
    );
    assert_eq!(json.trim_end(), expected);
    assert!(partial("new").exists() && !partial("old").exists());
}

#[test]
fn gc_is_refused_while_another_process_uses_the_cache() {
    let cache = cache(RESULTS);
    let all = remaining(cache.path(), RESULTS);
    let other = Disk::open(cache.path()).unwrap();
    let (code, _, errors) = gc(cache.path(), "");
    assert!(
        code == 1 && errors.contains("kiln::store::in_use"),
        "{errors}"
    );
    assert_eq!(gc(cache.path(), "--dry-run").0, 0);
    assert_eq!(remaining(cache.path(), RESULTS), all);
    drop(other);
    wait_until("the cache should be free", || gc(cache.path(), "").0 == 0);
    assert_eq!(remaining(cache.path(), RESULTS), ": ");
}

#[test]
fn unreadable_locks_and_records_stop_gc() {
    let cache = cache(RESULTS);
    let all = remaining(cache.path(), RESULTS);
    let check_refused = |call: &str, expected: i32, code: &str| {
        let (exit, _, errors) = gc(cache.path(), call);
        assert!(
            exit == expected && errors.contains(code),
            "{call}: {errors}"
        );
        assert_eq!(remaining(cache.path(), RESULTS), all);
    };
    let plan = concat!(
        "--lock ",
        env!("CARGO_MANIFEST_DIR"),
        "/plans/smollm2-135m.toml"
    );
    check_refused(plan, 2, "kiln::call::lock");
    check_refused("--lock /nowhere.lock", 2, "kiln::call::lock");
    check_refused("--max-age 3weeks", 2, "expected a number with d");
    fs::create_dir_all(cache.path().join("last")).unwrap();
    fs::write(cache.path().join("last/plan.json"), "garbled").unwrap();
    check_refused("", 1, "kiln::engine::record");
}
