//! Publishing a manifest to a folder: the folder is complete, matches the manifest, and is not
//! written again if it already does.

use std::fs;
use std::path::PathBuf;

use crate::support::results::put;
use crate::support::tree::files;
use kiln::action::{Content, Manifest, Part, PartName, Window};
use kiln::base::{CanonJson, Code, hash_bytes};
use kiln::store::{BlobStore, Disk, Links, Space, publish};

struct Output {
    root: tempfile::TempDir,
    store: Disk,
    folder: PathBuf,
}

impl Output {
    fn new() -> Output {
        let root = tempfile::tempdir().unwrap();
        let store = Disk::open(&root.path().join("cache")).unwrap();
        let folder = root.path().join("out/plan/stage");
        Output {
            root,
            store,
            folder,
        }
    }

    /// A manifest from `NAME=TEXT` words, each a blob in the store.
    fn manifest(&self, words: &str) -> Manifest {
        let mut manifest = Manifest::default();
        for word in words.split(' ') {
            let (name, text) = word.split_once('=').unwrap();
            let part = Part {
                content: put(&self.store, text.as_bytes()),
                facts: CanonJson::default(),
            };
            manifest.parts.insert(PartName::new(name).unwrap(), part);
        }
        manifest
    }

    fn publish(&self, manifest: &Manifest) -> bool {
        publish(&self.store, manifest, &self.folder, Links::Reflink)
            .unwrap()
            .is_some()
    }

    /// The folder as `NAME=TEXT` words.
    fn found(&self) -> String {
        assert!(self.folder.join(".kiln.json").exists());
        let mut words = vec![];
        for (name, bytes) in files(&self.folder) {
            let text = String::from_utf8(bytes).unwrap();
            words.push(format!("{}={text}", name.display()));
        }
        words.join(" ")
    }

    fn siblings(&self) -> Vec<String> {
        let mut names = vec![];
        for entry in fs::read_dir(self.folder.parent().unwrap()).unwrap() {
            names.push(entry.unwrap().file_name().into_string().unwrap());
        }
        names
    }
}

#[test]
fn publishing_twice_writes_once() {
    let output = Output::new();
    let manifest = output.manifest("a=1 weights/b/codes=22 weights/b/scales=");
    assert!(output.publish(&manifest));
    assert_eq!(output.found(), "a=1 weights/b/codes=22 weights/b/scales=");
    assert!(!output.publish(&manifest), "it exists already");
    assert_eq!(output.siblings(), ["stage"]);
}

#[test]
fn a_new_manifest_replaces_the_folder() {
    let output = Output::new();
    output.publish(&output.manifest("a=1 b=2"));
    for words in ["a=1 b=3", "a=1", "c=1"] {
        assert!(output.publish(&output.manifest(words)));
        assert_eq!(output.found(), words);
        assert_eq!(output.siblings(), ["stage"]);
    }
}

#[test]
fn modified_files_are_written_again() {
    let output = Output::new();
    let manifest = output.manifest("a=1 b=2");
    output.publish(&manifest);
    let a = output.folder.join("a");
    let changes: [(&str, &dyn Fn()); 4] = [
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
    for (name, change) in changes {
        change();
        assert!(output.publish(&manifest), "{name}");
        assert_eq!(output.found(), "a=1 b=2", "{name}");
    }
    assert_eq!(
        &*output.store.open(&hash_bytes(b"1")).unwrap().unwrap(),
        b"1",
        "the cache is not changed"
    );
}

#[test]
fn a_window_becomes_a_file() {
    let output = Output::new();
    let source = output.manifest("x=0123456789");
    let window = Some(Window {
        blob: source.part("x").unwrap().content.digest,
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
    output.publish(&Manifest {
        parts: [(PartName::new("w").unwrap(), part)].into(),
    });
    assert_eq!(output.found(), "w=345");
}

#[test]
fn a_failure_keeps_the_old_folder() {
    let output = Output::new();
    output.publish(&output.manifest("a=1"));
    let mut next = output.manifest("a=2 b=3");
    let gone = Part {
        content: hash_bytes(b"never put").into(),
        facts: CanonJson::default(),
    };
    next.parts.insert(PartName::new("c").unwrap(), gone);
    let problem = publish(&output.store, &next, &output.folder, Links::Reflink).unwrap_err();
    assert_eq!(problem.code, Code::StoreGone);
    assert_eq!(output.found(), "a=1");
    assert_eq!(output.siblings(), ["stage"]);
}

#[test]
fn a_foreign_folder_is_not_touched() {
    let output = Output::new();
    fs::create_dir_all(&output.folder).unwrap();
    output.publish(&output.manifest("a=1"));
    fs::remove_file(output.folder.join(".kiln.json")).unwrap();
    let problem = publish(
        &output.store,
        &output.manifest("a=2"),
        &output.folder,
        Links::Reflink,
    )
    .unwrap_err();
    assert_eq!(problem.code, Code::PublishForeign);
    assert_eq!(fs::read_to_string(output.folder.join("a")).unwrap(), "1");
}

#[test]
fn temporary_folders_of_killed_writers_are_removed() {
    let output = Output::new();
    let leftover = output.root.path().join("out/plan/.kiln-tmp-4711-0/weights");
    fs::create_dir_all(leftover).unwrap();
    output.publish(&output.manifest("a=1"));
    assert_eq!(output.siblings(), ["stage"]);
}

#[test]
fn concurrent_writers_leave_one_complete_folder() {
    let output = Output::new();
    let manifests = [
        output.manifest("a=1 b=1 c=1"),
        output.manifest("a=2 b=2 c=2"),
    ];
    std::thread::scope(|scope| {
        for manifest in &manifests {
            scope.spawn(|| {
                for _ in 0..20 {
                    output.publish(manifest);
                }
            });
        }
    });
    let found = output.found();
    assert!(
        ["a=1 b=1 c=1", "a=2 b=2 c=2"].contains(&found.as_str()),
        "{found}"
    );
}

#[test]
fn a_symlink_in_place_of_the_folder_is_not_followed() {
    let output = Output::new();
    let other = output.folder.with_file_name("other");
    publish(
        &output.store,
        &output.manifest("a=1"),
        &other,
        Links::Reflink,
    )
    .unwrap();
    std::os::unix::fs::symlink(&other, &output.folder).unwrap();
    let problem = publish(
        &output.store,
        &output.manifest("a=2"),
        &output.folder,
        Links::Reflink,
    )
    .unwrap_err();
    assert_eq!(problem.code, Code::PublishForeign);
    assert_eq!(std::fs::read(other.join("a")).unwrap(), b"1");
    // A parent folder may be a link.
    let above = output.root.path().join("link");
    std::os::unix::fs::symlink(other.parent().unwrap(), &above).unwrap();
    for words in ["a=1", "a=2", "b=3"] {
        publish(
            &output.store,
            &output.manifest(words),
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
fn hard_links_use_no_space_and_are_kept() {
    let output = Output::new();
    let manifest = output.manifest("a=1 b=1 c=22");
    let publish_to = |folder: &str| {
        publish(
            &output.store,
            &manifest,
            &output.folder.join(folder),
            Links::Hard,
        )
        .unwrap()
    };
    assert_eq!(
        publish_to("one"),
        Some(Space {
            shared_bytes: 4,
            copied_bytes: 0
        })
    );
    // Every new link to a blob changes the ctime of all links.
    assert_eq!(publish_to("two").unwrap().copied_bytes, 0);
    assert_eq!((publish_to("one"), publish_to("two")), (None, None));
    assert_eq!(fs::read(output.folder.join("two/c")).unwrap(), b"22");
    fs::remove_file(output.folder.join("one/a")).unwrap();
    assert!(
        publish_to("one").is_some(),
        "what is missing is linked again"
    );
    assert!(output.store.verify().unwrap().faults.is_empty());
}
