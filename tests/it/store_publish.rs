//! What is written out is whole, is what the manifest says, and is left alone when it already is.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use kiln::action::{Content, Manifest, Part, PartName, Window};
use kiln::base::{CanonJson, Code, hash_bytes};
use kiln::store::{BlobStore, Disk, Links, Space, publish};

struct Bench {
    root: tempfile::TempDir,
    store: Disk,
    folder: PathBuf,
}

impl Bench {
    fn new() -> Bench {
        let root = tempfile::tempdir().unwrap();
        let store = Disk::open(&root.path().join("cache")).unwrap();
        let folder = root.path().join("out/plan/stage");
        Bench {
            root,
            store,
            folder,
        }
    }

    /// A manifest of `NAME=TEXT` words, each a blob in the store.
    fn manifest(&self, words: &str) -> Manifest {
        let part = |word: &str| {
            let (name, text) = word.split_once('=').unwrap();
            let mut sink = self.store.create().unwrap();
            sink.write_all(text.as_bytes()).unwrap();
            (
                PartName::new(name).unwrap(),
                Part {
                    content: sink.finish().unwrap(),
                    facts: CanonJson::default(),
                },
            )
        };
        Manifest {
            parts: words.split(' ').map(part).collect(),
        }
    }

    fn publish(&self, manifest: &Manifest) -> bool {
        publish(&self.store, manifest, &self.folder, Links::Reflink)
            .unwrap()
            .is_some()
    }

    /// The folder as `NAME=TEXT` words.
    fn found(&self) -> String {
        let mut words = BTreeMap::new();
        collect(&self.folder, &self.folder, &mut words);
        words.remove(".kiln.json").unwrap();
        words
            .iter()
            .map(|(name, text)| format!("{name}={text}"))
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn siblings(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.parent().unwrap()).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

fn collect(root: &Path, folder: &Path, words: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, words);
        } else {
            let name = path
                .strip_prefix(root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            words.insert(name, fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn a_manifest_becomes_a_folder_once() {
    let bench = Bench::new();
    let manifest = bench.manifest("a=1 weights/b/codes=22 weights/b/scales=");
    assert!(bench.publish(&manifest));
    assert_eq!(bench.found(), "a=1 weights/b/codes=22 weights/b/scales=");
    assert!(!bench.publish(&manifest), "it is there already");
    assert_eq!(bench.siblings(), ["stage"]);
}

#[test]
fn another_manifest_replaces_it_as_a_whole() {
    let bench = Bench::new();
    bench.publish(&bench.manifest("a=1 b=2"));
    for words in ["a=1 b=3", "a=1", "c=1"] {
        assert!(bench.publish(&bench.manifest(words)));
        assert_eq!(bench.found(), words);
        assert_eq!(bench.siblings(), ["stage"]);
    }
}

#[test]
fn what_was_touched_is_written_again() {
    let bench = Bench::new();
    let manifest = bench.manifest("a=1 b=2");
    bench.publish(&manifest);
    let a = bench.folder.join("a");
    let mischief: [(&str, &dyn Fn()); 4] = [
        ("edited", &|| fs::write(&a, "7").unwrap()),
        ("removed", &|| fs::remove_file(&a).unwrap()),
        ("replaced by a link", &|| {
            fs::remove_file(&a).unwrap();
            std::os::unix::fs::symlink("b", &a).unwrap();
        }),
        ("edited, with its time set back", &|| {
            let modified = fs::metadata(&a).unwrap().modified().unwrap();
            fs::write(&a, "7").unwrap();
            fs::File::options()
                .write(true)
                .open(&a)
                .unwrap()
                .set_modified(modified)
                .unwrap();
        }),
    ];
    for (name, act) in mischief {
        act();
        assert!(bench.publish(&manifest), "{name}");
        assert_eq!(bench.found(), "a=1 b=2", "{name}");
    }
    assert_eq!(
        &*bench.store.open(&hash_bytes(b"1")).unwrap().unwrap(),
        b"1",
        "the cache is not what was edited"
    );
}

#[test]
fn a_window_becomes_a_file_of_its_own() {
    let bench = Bench::new();
    let whole = bench.manifest("x=0123456789");
    let window = Some(Window {
        blob: whole.part("x").unwrap().content.digest,
        offset: 3,
    });
    let content = Content {
        digest: hash_bytes(b"345"),
        window,
    };
    let part = Part {
        content,
        facts: CanonJson::default(),
    };
    bench.publish(&Manifest {
        parts: [(PartName::new("w").unwrap(), part)].into(),
    });
    assert_eq!(bench.found(), "w=345");
}

#[test]
fn a_failure_leaves_what_was_there() {
    let bench = Bench::new();
    bench.publish(&bench.manifest("a=1"));
    let mut next = bench.manifest("a=2 b=3");
    let gone = Part {
        content: hash_bytes(b"never put").into(),
        facts: CanonJson::default(),
    };
    next.parts.insert(PartName::new("c").unwrap(), gone);
    let problem = publish(&bench.store, &next, &bench.folder, Links::Reflink).unwrap_err();
    assert_eq!(problem.code, Code::StoreGone);
    assert_eq!(bench.found(), "a=1");
    assert_eq!(bench.siblings(), ["stage"]);
}

#[test]
fn a_folder_that_kiln_did_not_write_is_not_touched() {
    let bench = Bench::new();
    fs::create_dir_all(&bench.folder).unwrap();
    bench.publish(&bench.manifest("a=1"));
    fs::remove_file(bench.folder.join(".kiln.json")).unwrap();
    let problem = publish(
        &bench.store,
        &bench.manifest("a=2"),
        &bench.folder,
        Links::Reflink,
    )
    .unwrap_err();
    assert_eq!(problem.code, Code::PublishForeign);
    assert_eq!(fs::read_to_string(bench.folder.join("a")).unwrap(), "1");
}

#[test]
fn leftovers_of_a_killed_writer_are_swept() {
    let bench = Bench::new();
    let leftover = bench.root.path().join("out/plan/.kiln-tmp-4711-0/weights");
    fs::create_dir_all(leftover).unwrap();
    bench.publish(&bench.manifest("a=1"));
    assert_eq!(bench.siblings(), ["stage"]);
}

#[test]
fn two_writers_at_once_leave_one_whole_folder() {
    let bench = Bench::new();
    let manifests = [bench.manifest("a=1 b=1 c=1"), bench.manifest("a=2 b=2 c=2")];
    std::thread::scope(|scope| {
        for manifest in &manifests {
            scope.spawn(|| (0..20).for_each(|_| _ = bench.publish(manifest)));
        }
    });
    let found = bench.found();
    assert!(
        ["a=1 b=1 c=1", "a=2 b=2 c=2"].contains(&found.as_str()),
        "{found}"
    );
}

#[test]
fn a_link_in_place_of_a_folder_is_not_followed() {
    let bench = Bench::new();
    let other = bench.folder.with_file_name("other");
    publish(&bench.store, &bench.manifest("a=1"), &other, Links::Reflink).unwrap();
    std::os::unix::fs::symlink(&other, &bench.folder).unwrap();
    let problem = publish(
        &bench.store,
        &bench.manifest("a=2"),
        &bench.folder,
        Links::Reflink,
    )
    .unwrap_err();
    assert_eq!(problem.code, Code::PublishForeign);
    assert_eq!(std::fs::read(other.join("a")).unwrap(), b"1");
    // A folder above may lie elsewhere.
    let above = bench.root.path().join("link");
    std::os::unix::fs::symlink(other.parent().unwrap(), &above).unwrap();
    for words in ["a=1", "a=2", "b=3"] {
        publish(
            &bench.store,
            &bench.manifest(words),
            &above.join("new"),
            Links::Reflink,
        )
        .unwrap();
    }
    assert_eq!(
        std::fs::read(other.with_file_name("new").join("b")).unwrap(),
        b"3"
    );
}

#[test]
fn hard_links_take_no_space_and_stay_as_they_are() {
    let bench = Bench::new();
    let manifest = bench.manifest("a=1 b=1 c=22");
    let publish = |folder: &str| {
        publish(
            &bench.store,
            &manifest,
            &bench.folder.join(folder),
            Links::Hard,
        )
        .unwrap()
    };
    assert_eq!(
        publish("one"),
        Some(Space {
            shared_bytes: 4,
            copied_bytes: 0
        })
    );
    // Every further link to a blob changes the time of the last change of all of them.
    assert_eq!(publish("two").map(|space| space.copied_bytes), Some(0));
    assert_eq!((publish("one"), publish("two")), (None, None));
    assert_eq!(fs::read(bench.folder.join("two/c")).unwrap(), b"22");
    fs::remove_file(bench.folder.join("one/a")).unwrap();
    assert!(publish("one").is_some(), "what is missing is linked again");
    assert!(bench.store.verify().unwrap().faults.is_empty());
}
