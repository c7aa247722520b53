//! `kiln cache gc` on caches of a few words: which results and blobs stay.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::support::alive::wait_until;
use kiln::action::{ActionKey, Part, PartName};
use kiln::base::{CanonJson, Digest, hash_bytes};
use kiln::store::{ActionCache, ActionResult, BlobStore, Disk};

/// Three results that share blobs, one from a time to come, and a blob that none names.
const POTTERY: &str = "
jar  40d  clay glaze
cup  20d  clay slip
bowl 1d   slip
lamp -9d  oil
-         shard
";

fn put(store: &Disk, blob: &str) -> Digest {
    let mut sink = store.create().unwrap();
    sink.write_all(blob.as_bytes()).unwrap();
    sink.finish().unwrap().digest
}

fn key(result: &str) -> ActionKey {
    ActionKey(hash_bytes(result.as_bytes()))
}

fn file(cache: &Path, room: &str, what: &str, ending: &str) -> PathBuf {
    let hex = hash_bytes(what.as_bytes()).hex();
    cache.join(room).join(&hex[..2]).join(hex + ending)
}

fn set_age(path: &Path, days: i64) {
    let age = Duration::from_secs(days.unsigned_abs() * 86_400);
    let now = SystemTime::now();
    File::open(path)
        .unwrap()
        .set_modified(if days < 0 { now + age } else { now - age })
        .unwrap();
}

/// A cache as the lines of `text` say: a result, its age, its blobs.
fn cache(text: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let store = Disk::open(folder.path()).unwrap();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let mut words = line.split_whitespace();
        let result = words.next().unwrap();
        if result == "-" {
            words.for_each(|blob| _ = put(&store, blob));
            continue;
        }
        let age = words
            .next()
            .unwrap()
            .strip_suffix('d')
            .unwrap()
            .parse()
            .unwrap();
        let part = |blob| {
            let content = put(&store, blob).into();
            (
                PartName::new(blob).unwrap(),
                Part {
                    content,
                    facts: CanonJson::default(),
                },
            )
        };
        let outputs = words.map(part).collect();
        store
            .put(&ActionResult {
                action: result.into(),
                outputs,
                took_ms: 1,
                peak_memory_bytes: None,
            })
            .unwrap();
        set_age(&file(folder.path(), "actions", result, ".json"), age);
    }
    folder
}

fn lock(results: &[&str]) -> tempfile::NamedTempFile {
    let mut lock = tempfile::NamedTempFile::new().unwrap();
    let digest = hash_bytes(b"");
    writeln!(
        lock,
        "version = 1\nplan = 'pottery'\ndigest = '{digest}'\n[stage.a]\nkind = 'throw'\nversion = \
         1"
    )
    .unwrap();
    writeln!(
        lock,
        "params = '{digest}'\nkeep = false\ngives = '{digest}'\n[stage.a.actions]"
    )
    .unwrap();
    results
        .iter()
        .for_each(|result| writeln!(lock, "{result} = '{}'", key(result)).unwrap());
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

/// Which words of `text` the cache still has: results, then blobs.
fn left(cache: &Path, text: &str) -> String {
    let lines = || {
        text.lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .filter(|line| !line.is_empty())
    };
    let results = lines()
        .map(|line| line[0])
        .filter(|result| file(cache, "actions", result, ".json").exists());
    let mut blobs: Vec<&str> = lines().flat_map(|line| line[1..].to_vec()).collect();
    blobs.retain(|blob| file(cache, "blobs", blob, "").exists());
    blobs.sort();
    blobs.dedup();
    format!(
        "{}: {}",
        results.collect::<Vec<_>>().join(" "),
        blobs.join(" ")
    )
}

/// Collects the garbage of POTTERY with `kept` in a lock.
fn check(call: &str, kept: &[&str], says: &str, leaves: &str) {
    let cache = cache(POTTERY);
    let lock = lock(kept);
    let lock = if kept.is_empty() {
        String::new()
    } else {
        format!(" --lock {}", lock.path().display())
    };
    let all = left(cache.path(), POTTERY);

    let (code, would, errors) = gc(cache.path(), &format!("{call}{lock} --dry-run"));
    assert_eq!(
        (code, left(cache.path(), POTTERY)),
        (0, all),
        "a dry run removes nothing: {errors}"
    );
    let (code, text, errors) = gc(cache.path(), &format!("{call}{lock}"));
    assert_eq!((code, text.as_str()), (0, says), "{errors}");
    assert_eq!(left(cache.path(), POTTERY), leaves, "{call}");
    assert_eq!(would.replace("would remove", "removed     "), text);
}

#[test]
fn without_a_limit_only_what_is_kept_stays() {
    check(
        "",
        &[],
        "removed       4 results, 5 blobs, 21 B\n\
         remaining     0 results, 0 blobs, 0 B\n\
         needed        0 results, 0 blobs, 0 B, by last builds and lock files\n",
        ": ",
    );
    check(
        "",
        &["cup"],
        "removed       3 results, 3 blobs, 13 B\n\
         remaining     1 result, 2 blobs, 8 B\n\
         needed        1 result, 2 blobs, 8 B, by last builds and lock files\n",
        "cup: clay slip",
    );
}

#[test]
fn what_is_old_goes_and_a_time_to_come_is_new() {
    check(
        "--max-age 30d",
        &[],
        "removed       1 result, 2 blobs, 10 B\n\
         remaining     3 results, 3 blobs, 11 B\n\
         needed        0 results, 0 blobs, 0 B, by last builds and lock files\n",
        "cup bowl lamp: clay oil slip",
    );
    check(
        "--max-age 0s",
        &["jar"],
        "removed       2 results, 2 blobs, 9 B\n\
         remaining     2 results, 3 blobs, 12 B\n\
         needed        1 result, 2 blobs, 9 B, by last builds and lock files\n",
        "jar lamp: clay glaze oil",
    );
}

#[test]
fn the_oldest_go_until_the_rest_is_small_enough() {
    check(
        "--max-size 15B",
        &[],
        "removed       1 result, 2 blobs, 10 B\n\
         remaining     3 results, 3 blobs, 11 B\n\
         needed        0 results, 0 blobs, 0 B, by last builds and lock files\n",
        "cup bowl lamp: clay oil slip",
    );
    check(
        "--max-size 16B",
        &[],
        "removed       0 results, 1 blob, 5 B\n\
         remaining     4 results, 4 blobs, 16 B\n\
         needed        0 results, 0 blobs, 0 B, by last builds and lock files\n",
        "jar cup bowl lamp: clay glaze oil slip",
    );
    check(
        "--max-size 5B",
        &["jar"],
        "removed       3 results, 3 blobs, 12 B\n\
         remaining     1 result, 2 blobs, 9 B\n\
         needed        1 result, 2 blobs, 9 B, by last builds and lock files\n\
         --max-size is exceeded by 4 B: the rest is needed\n",
        "jar: clay glaze",
    );
}

#[test]
fn half_finished_downloads_grow_old_too() {
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
        fs::write(folder.join("half"), "ha").unwrap();
        set_age(&folder.join("half"), days);
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
fn nothing_goes_while_another_kiln_is_at_work() {
    let cache = cache(POTTERY);
    let all = left(cache.path(), POTTERY);
    let other = Disk::open(cache.path()).unwrap();
    let (code, _, errors) = gc(cache.path(), "");
    assert!(
        code == 1 && errors.contains("kiln::store::in_use"),
        "{errors}"
    );
    assert_eq!(gc(cache.path(), "--dry-run").0, 0);
    assert_eq!(left(cache.path(), POTTERY), all);
    drop(other);
    wait_until("the cache should be free", || gc(cache.path(), "").0 == 0);
    assert_eq!(left(cache.path(), POTTERY), ": ");
}

#[test]
fn what_keeps_must_be_understood() {
    let cache = cache(POTTERY);
    let all = left(cache.path(), POTTERY);
    let refuses = |call: &str, expected: i32, code: &str| {
        let (exit, _, errors) = gc(cache.path(), call);
        assert!(
            exit == expected && errors.contains(code),
            "{call}: {errors}"
        );
        assert_eq!(left(cache.path(), POTTERY), all);
    };
    let plan = concat!(
        "--lock ",
        env!("CARGO_MANIFEST_DIR"),
        "/plans/smollm2-135m.toml"
    );
    refuses(plan, 2, "kiln::call::lock");
    refuses("--lock /nowhere.lock", 2, "kiln::call::lock");
    refuses("--max-age 3weeks", 2, "expected a number with d");
    fs::create_dir_all(cache.path().join("last")).unwrap();
    fs::write(cache.path().join("last/plan.json"), "garbled").unwrap();
    refuses("", 1, "kiln::engine::record");
}
