//! The contract of stores, checked with each implementation, and tests of the disk store.

use std::collections::BTreeMap;
use std::fs::{self, DirEntry};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Barrier;

use crate::support::alive::wait_for;
use crate::support::faulty::{Faulty, Store};
use crate::support::results;
use kiln::action::{ActionKey, Content, Outputs, Part, PartName, Window};
use kiln::base::{CanonJson, Code, Digest, hash_bytes};
use kiln::store::{
    ActionCache, ActionResult, BlobStore, CompleteCache, Disk, LocalStore, LockedFolder, Lookup,
    Memory, Note, Notes,
};
use serde_json::json;

fn put(store: &dyn BlobStore, bytes: &[u8]) -> Digest {
    results::put(store, bytes).digest
}

fn key(name: &str) -> ActionKey {
    ActionKey(hash_bytes(name.as_bytes()))
}

/// A result of `action` with one part at the start of `blob`.
fn result(action: &str, blob: Digest) -> ActionResult {
    let content = Content {
        digest: hash_bytes(b"tensor"),
        window: Some(Window { blob, offset: 0 }),
    };
    let part = Part {
        content,
        facts: CanonJson::from(json!({"rows": 3})),
    };
    let outputs: Outputs = BTreeMap::from([(PartName::new("tensors/a").unwrap(), part)]);
    ActionResult {
        action: action.into(),
        outputs,
        took_ms: 7,
        peak_memory_bytes: None,
    }
}

fn blobs_are_named_by_their_bytes(store: &dyn BlobStore) {
    for bytes in [&b""[..], b"clay", &[7; 1_000_000]] {
        let digest = hash_bytes(bytes);
        assert!(store.open(&digest).unwrap().is_none());
        assert!(store.path(&digest).unwrap().is_none());
        assert_eq!(put(store, bytes), digest);
        assert_eq!(put(store, bytes), digest, "writing twice is allowed");
        assert_eq!(&*store.open(&digest).unwrap().unwrap(), bytes);
        assert_eq!(
            fs::read(store.path(&digest).unwrap().unwrap()).unwrap(),
            bytes
        );
    }
    let (present, absent) = (hash_bytes(b"clay"), hash_bytes(b"glaze"));
    assert_eq!(store.missing(&[present, absent]).unwrap(), [absent]);
}

fn a_blob_has_no_name_before_it_is_finished(store: &dyn BlobStore) {
    let mut sink = store.create().unwrap();
    sink.write_all(b"half").unwrap();
    sink.flush().unwrap();
    drop(sink);
    assert_eq!(store.missing(&[hash_bytes(b"half")]).unwrap().len(), 1);
}

fn results_are_returned(store: &dyn ActionCache) {
    assert_eq!(store.get(&key("a")).unwrap(), None);
    let first = result("a", hash_bytes(b"x"));
    store.put(&first).unwrap();
    assert_eq!(store.get(&key("a")).unwrap(), Some(first));
    let second = result("a", hash_bytes(b"y"));
    store.put(&second).unwrap();
    assert_eq!(store.get(&key("a")).unwrap(), Some(second));
    assert_eq!(store.get(&key("b")).unwrap(), None);
}

fn a_hit_needs_its_blobs(actions: &dyn ActionCache, blobs: &dyn BlobStore) {
    let complete = CompleteCache { actions, blobs };
    let blob = hash_bytes(b"the complete file");
    assert_eq!(complete.look_up(&key("w")).unwrap(), Lookup::Miss);
    complete.put(&result("w", blob)).unwrap();
    assert_eq!(
        complete.look_up(&key("w")).unwrap(),
        Lookup::MissingBlob(blob)
    );
    assert_eq!(complete.get(&key("w")).unwrap(), None);
    put(blobs, b"the complete file");
    assert_eq!(
        complete.look_up(&key("w")).unwrap(),
        Lookup::Hit(result("w", blob))
    );
}

fn notes_are_returned(notes: &dyn Notes) {
    let subject = hash_bytes(b"a subject");
    assert_eq!(notes.read(&subject).unwrap(), None);
    for text in ["clay", "", "glaze\nand slip"] {
        notes.write(&subject, text).unwrap();
        let note = Note {
            digest: hash_bytes(text.as_bytes()),
            text: text.into(),
        };
        assert_eq!(notes.read(&subject).unwrap(), Some(note));
    }
}

/// Checks a store, and the same store in a wrapper.
fn check_contract<S: BlobStore + ActionCache + Notes>(make: impl Fn() -> S) {
    check_store(&make());
    check_store(&Faulty::without_fault(&make()));
}

fn check_store(store: &dyn Store) {
    blobs_are_named_by_their_bytes(store);
    a_blob_has_no_name_before_it_is_finished(store);
    results_are_returned(store);
    a_hit_needs_its_blobs(store, store);
    notes_are_returned(store);
}

#[test]
fn memory_store_satisfies_the_contract() {
    check_contract(Memory::default);
}

#[test]
fn disk_store_satisfies_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let count = std::cell::Cell::new(0);
    check_contract(|| {
        count.set(count.get() + 1);
        Disk::open(&folder.path().join(count.get().to_string())).unwrap()
    });
}

#[test]
fn entries_are_visible_through_another_handle() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (
        Disk::open(folder.path()).unwrap(),
        Disk::open(folder.path()).unwrap(),
    );
    let digest = put(&one, b"clay");
    one.put(&result("a", digest)).unwrap();
    assert_eq!(&*two.open(&digest).unwrap().unwrap(), b"clay");
    assert_eq!(two.get(&key("a")).unwrap(), Some(result("a", digest)));
    let mode = fs::metadata(one.path(&digest).unwrap().unwrap())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o444, "blobs are read-only");
}

#[test]
fn a_new_cache_can_be_opened_concurrently() {
    for _ in 0..100 {
        let folder = tempfile::tempdir().unwrap();
        let start = Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    start.wait();
                    drop(Disk::open(folder.path()).unwrap());
                });
            }
        });
        assert_eq!(names(&folder.path().join("tmp")), [""; 0]);
    }
}

#[test]
fn concurrent_writers_of_the_same_blobs_succeed() {
    let folder = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let store = Disk::open(folder.path()).unwrap();
                for i in 0..50u8 {
                    let digest = put(&store, &[i; 5000]);
                    assert_eq!(&*store.open(&digest).unwrap().unwrap(), [i; 5000]);
                    store.put(&result(&i.to_string(), digest)).unwrap();
                    assert!(store.get(&key(&i.to_string())).unwrap().is_some());
                }
            });
        }
    });
    assert_eq!(
        names(&folder.path().join("tmp")),
        [""; 0],
        "nothing stays in tmp"
    );
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let name = |entry: io::Result<DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    entries.map(name).collect()
}

/// Changes the file of a blob in place.
fn tamper(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
}

fn blob_path(root: &Path, digest: &Digest) -> PathBuf {
    root.join("blobs")
        .join(&digest.hex()[..2])
        .join(digest.hex())
}

#[test]
fn a_corrupt_blob_is_never_returned() {
    let folder = tempfile::tempdir().unwrap();
    let writer = Disk::open(folder.path()).unwrap();
    for by_path in [true, false] {
        // A handle that has not read the blob, and the one that wrote it.
        for store in [&Disk::open(folder.path()).unwrap(), &writer] {
            let digest = put(&writer, b"clay");
            tamper(&blob_path(folder.path(), &digest), |bytes| bytes[1] ^= 4);
            let problem = match by_path {
                true => store.path(&digest).err().unwrap(),
                false => store.open(&digest).err().unwrap(),
            };
            assert_eq!(problem.code, Code::StoreCorrupt);
            assert!(problem.message.contains(&digest.to_string()), "{problem}");
            assert_eq!(
                store.missing(&[digest]).unwrap(),
                [digest],
                "so that its action runs again"
            );
            put(&writer, b"clay");
            assert_eq!(&*store.open(&digest).unwrap().unwrap(), b"clay");
        }
    }
}

#[test]
fn writing_a_blob_again_repairs_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = Disk::open(folder.path()).unwrap();
    let digest = put(&store, b"clay");
    tamper(&blob_path(folder.path(), &digest), |bytes| bytes[0] ^= 1);
    put(&store, b"clay");
    assert_eq!(&*store.open(&digest).unwrap().unwrap(), b"clay");
}

#[test]
fn a_truncated_blob_counts_as_missing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Disk::open(folder.path()).unwrap();
    let digest = put(&store, b"clay");
    tamper(&blob_path(folder.path(), &digest), |bytes| {
        bytes.truncate(2)
    });
    assert_eq!(store.missing(&[digest]).unwrap(), [digest]);
    assert_eq!(
        store.open(&digest).map(|_| ()).unwrap_err().code,
        Code::StoreCorrupt
    );
}

#[test]
fn any_damage_to_a_result_makes_it_absent() {
    let folder = tempfile::tempdir().unwrap();
    let store = Disk::open(folder.path()).unwrap();
    let hex = key("a").0.hex();
    let path = folder
        .path()
        .join("actions")
        .join(&hex[..2])
        .join(hex + ".json");
    store.put(&result("a", hash_bytes(b"x"))).unwrap();
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&path, &bad).unwrap();
        assert_eq!(
            store.get(&key("a")).unwrap(),
            None,
            "flipped a bit of byte {at}"
        );
        fs::write(&path, &good[..at]).unwrap();
        assert_eq!(
            store.get(&key("a")).unwrap(),
            None,
            "truncated to {at} bytes"
        );
    }
    fs::write(&path, &good).unwrap();
    assert!(store.get(&key("a")).unwrap().is_some());
}

#[test]
fn temporary_files_of_dead_processes_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let living = Disk::open(folder.path()).unwrap();
    let scratch = living.scratch().unwrap();
    let tmp = folder.path().join("tmp");
    fs::create_dir_all(tmp.join("kiln-4711/scratch")).unwrap();
    fs::write(tmp.join("kiln-4711/half a blob"), "ha").unwrap();
    fs::create_dir_all(tmp.join("a thesis")).unwrap();
    let other = Disk::open(folder.path()).unwrap();
    assert!(
        tmp.join("kiln-4711").exists(),
        "a handle that only reads removes nothing"
    );
    put(&other, b"clay");
    assert!(scratch.path().exists());
    assert!(!tmp.join("kiln-4711").exists());
    assert!(
        tmp.join("a thesis").exists(),
        "kiln does not use such a name"
    );
}

#[test]
fn a_partial_folder_is_locked_and_persists() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (
        Disk::open(folder.path()).unwrap(),
        Disk::open(folder.path()).unwrap(),
    );
    let partial: LockedFolder = one
        .partial(&hash_bytes(b"https://host/file"))
        .unwrap()
        .unwrap();
    fs::write(partial.path().join("download"), "first half").unwrap();
    assert!(
        two.partial(&hash_bytes(b"https://host/file"))
            .unwrap()
            .is_none()
    );
    drop(partial);
    let partial = wait_for("the folder should be unlocked", || {
        two.partial(&hash_bytes(b"https://host/file")).unwrap()
    });
    assert_eq!(
        fs::read_to_string(partial.path().join("download")).unwrap(),
        "first half"
    );
    partial.remove().unwrap();
    assert_eq!(names(&folder.path().join("partial")), [""; 0]);
}

#[test]
fn an_unsupported_layout_version_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    drop(Disk::open(folder.path()).unwrap());
    fs::write(folder.path().join("layout"), "kiln cache 99\n").unwrap();
    let problem = Disk::open(folder.path()).err().unwrap();
    assert_eq!(problem.code, Code::StoreLayout);
    assert!(problem.message.contains("99"), "{problem}");
}

#[test]
fn an_invalid_layout_file_is_rejected_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    for damaged in [
        "",
        "kiln cache",
        "kiln cache 0\n",
        "kiln cache +1\n",
        "kiln cache q\n",
        "\u{fffd}",
    ] {
        fs::write(folder.path().join("layout"), damaged).unwrap();
        let problem = Disk::open(folder.path()).err().unwrap();
        assert_eq!(problem.code, Code::StoreLayout);
        assert_eq!(
            fs::read_to_string(folder.path().join("layout")).unwrap(),
            damaged
        );
        assert_eq!(names(folder.path()), ["layout"]);
    }
}

#[test]
fn only_an_empty_folder_becomes_a_cache() {
    let root = tempfile::tempdir().unwrap();
    for (name, is_accepted) in [
        ("README.md", true),
        (".gitignore", true),
        ("notes", false),
        ("thesis.tex", false),
    ] {
        let folder = root.path().join(name.replace('.', "-"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), "mine").unwrap();
        let opened = Disk::open(&folder);
        assert_eq!(opened.is_ok(), is_accepted, "{name}");
        if let Err(problem) = opened {
            assert_eq!(problem.code, Code::StoreForeign);
            assert!(problem.message.contains(name), "{problem}");
            assert_eq!(names(&folder), [name]);
        }
    }
    drop(Disk::open(&root.path().join("missing/and/deep")).unwrap());
}

#[test]
fn a_cache_can_be_created_concurrently() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("cache");
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| put(&Disk::open(&folder).unwrap(), b"clay"));
        }
    });
}

#[test]
fn symlinks_inside_a_cache_are_rejected() {
    let root = tempfile::tempdir().unwrap();
    let hex = hash_bytes(b"thesis").hex();
    let prefix = &hex[..2];
    let thesis = root.path().join("victim").join(prefix).join(&hex);
    fs::create_dir_all(thesis.parent().unwrap()).unwrap();
    fs::write(&thesis, "thesis").unwrap();
    for part in ["blobs", "actions", "notes", "partial", "tmp", "last"] {
        let folder = root.path().join(format!("cache of {part}"));
        drop(Disk::open(&folder).unwrap());
        let _ = fs::remove_dir(folder.join(part));
        std::os::unix::fs::symlink("../victim", folder.join(part)).unwrap();
        let problem = Disk::open(&folder).err().unwrap();
        assert_eq!(problem.code, Code::StoreForeign, "{part}");
    }
    // Links inside these folders are rejected too.
    for inside in [
        format!("blobs/{prefix}"),
        format!("actions/{prefix}"),
        format!("partial/{hex}"),
        "tmp/kiln-1".into(),
    ] {
        let folder = root
            .path()
            .join(format!("cache with {}", inside.replace('/', "-")));
        drop(Disk::open(&folder).unwrap());
        std::os::unix::fs::symlink(format!("../../victim/{prefix}"), folder.join(&inside)).unwrap();
        assert_eq!(
            Disk::open(&folder).err().unwrap().code,
            Code::StoreForeign,
            "{inside}"
        );
    }
    assert!(thesis.exists());
}

#[test]
fn reading_creates_no_temporary_folder() {
    let folder = tempfile::tempdir().unwrap();
    put(&Disk::open(folder.path()).unwrap(), b"clay");
    let reader = Disk::open(folder.path()).unwrap();
    assert!(reader.open(&hash_bytes(b"clay")).unwrap().is_some());
    assert_eq!(names(&folder.path().join("tmp")), [""; 0]);
    put(&reader, b"glaze");
    assert_eq!(names(&folder.path().join("tmp")).len(), 1);
}
