//! `kiln cache export`, `import` and `gc` with the results of a real plan, and imports of invalid
//! files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::fetching::sha256;
use crate::support::peers::stdout_of;
use crate::support::results::{changed_result, find_result};
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tree::files;
use kiln::base::hash_bytes;
use kiln::store::Disk;
use tar::{Builder, EntryType, Header};

/// A folder with a tiny model and a plan of a dozen parts.
struct Project {
    root: tempfile::TempDir,
}

impl Project {
    fn new() -> Project {
        let root = tempfile::tempdir().unwrap();
        let model = TinyGguf::llama().write();
        fs::write(root.path().join("model.gguf"), &model).unwrap();
        let plan = format!(
            "[plan]\nname = 'tiny'\n[vars]\nscheme = 'native'\n[stage.source]\nkind = \
             'fetch'\nurl = 'file:model.gguf'\nsha256 = '{}'\n[stage.model]\nkind = \
             'inspect'\ngguf = 'source'\n[stage.weights]\nkind = 'requant'\ntensors = \
             'model'\nscheme = '${{scheme}}'\n",
            sha256(&model)
        );
        fs::write(root.path().join("plan.toml"), plan).unwrap();
        Project { root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn kiln(&self, cache: &str, call: &str) -> Command {
        let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
        kiln.current_dir(&self.root)
            .args(call.split(' '))
            .args(["--cache", cache]);
        kiln
    }

    fn stdout(&self, cache: &str, call: &str) -> String {
        stdout_of(&mut self.kiln(cache, call))
    }

    /// Builds; returns the numbers of hits and of parts that ran.
    fn build(&self, cache: &str, set: &str) -> (u64, u64) {
        let text = self.stdout(
            cache,
            &format!("build plan.toml --json --out out-{cache} --set scheme={set}"),
        );
        let mut events = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let finished = events.find(|event| event["event"] == "finished").unwrap();
        (
            finished["hits"].as_u64().unwrap(),
            finished["ran"].as_u64().unwrap(),
        )
    }

    /// Imports a tar with a valid layout and what `write` adds, which must fail. Returns the
    /// message.
    fn import_fails(
        &self,
        exit: i32,
        code: &str,
        write: impl FnOnce(&mut Builder<Vec<u8>>),
    ) -> String {
        let mut tar = Builder::new(vec![]);
        add(&mut tar, "layout", EntryType::Regular, b"kiln cache 1\n");
        write(&mut tar);
        self.import_of_file_fails(exit, code, &tar.into_inner().unwrap())
    }

    fn import_of_file_fails(&self, exit: i32, code: &str, bytes: &[u8]) -> String {
        fs::write(self.path("hostile.tar"), bytes).unwrap();
        let output = self
            .kiln("victim", "cache import hostile.tar")
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.code() == Some(exit) && text.contains(code),
            "{code}: {text}"
        );
        let verified = Disk::open(&self.path("victim")).unwrap().verify().unwrap();
        assert!(
            verified.faults.is_empty() && verified.actions == 0,
            "{verified:?}"
        );
        text
    }
}

/// Adds a file whose name may be invalid.
fn add(tar: &mut Builder<Vec<u8>>, name: &str, kind: EntryType, bytes: &[u8]) {
    let mut header = Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(bytes.len() as u64);
    header.set_cksum();
    tar.append(&header, bytes).unwrap();
}

/// The name in a cache of a blob or result.
fn name(folder: &str, content: &[u8], ending: &str) -> String {
    let hex = hash_bytes(content).hex();
    format!("{folder}/{}/{hex}{ending}", &hex[..2])
}

/// The path of a result of `stage` in the cache, and its bytes with a changed body.
fn forged(
    cache: &Path,
    stage: &str,
    change: impl Fn(&mut serde_json::Value),
) -> (PathBuf, Vec<u8>) {
    let (path, text) = find_result(cache, stage);
    (path, changed_result(&text, change))
}

#[test]
fn a_result_with_a_wrong_window_is_rejected() {
    let project = Project::new();
    project.build("cache", "native");
    let (path, entry) = forged(&project.path("cache"), "inspect", |body| {
        let parts = body["outputs"].as_object_mut().unwrap();
        let window = parts
            .values_mut()
            .find_map(|part| part["content"].get_mut("window"))
            .unwrap();
        window["offset"] = (window["offset"].as_u64().unwrap() + 32).into();
    });
    let blob = fs::read(project.path("model.gguf")).unwrap();
    let hex = path.file_stem().unwrap().to_str().unwrap().to_string();
    project.import_fails(3, "kiln::store::window", |tar| {
        add(tar, &name("blobs", &blob, ""), EntryType::Regular, &blob);
        for bytes in files(&project.path("cache/blobs")).into_values() {
            if bytes != blob {
                add(tar, &name("blobs", &bytes, ""), EntryType::Regular, &bytes);
            }
        }
        add(
            tar,
            &format!("actions/{}/{hex}.json", &hex[..2]),
            EntryType::Regular,
            &entry,
        );
    });
    // In the cache itself it is detected, and `--repair` removes it.
    fs::remove_file(&path).unwrap();
    fs::write(&path, entry).unwrap();
    fs::remove_dir_all(project.path("cache/notes")).unwrap();
    let output = project
        .kiln("cache", "build plan.toml --set scheme=f16")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(3) && text.contains("kiln::store::window"),
        "{text}"
    );
    let verify = project
        .kiln("cache", "cache verify --repair")
        .output()
        .unwrap();
    assert!(
        String::from_utf8(verify.stdout)
            .unwrap()
            .contains("1 damaged, removed")
    );
    assert!(project.build("cache", "f16").1 > 0);
}

#[test]
fn an_imported_result_cannot_bypass_a_pin() {
    let project = Project::new();
    let (_, parts) = project.build("cache", "native");
    let model = fs::read(project.path("model.gguf")).unwrap();
    let evil = hash_bytes(b"evil");
    let (path, entry) = forged(&project.path("cache"), "fetch", |body| {
        body["outputs"]["model.gguf"]["content"]["digest"] = evil.to_string().into();
    });
    let hex = path.file_stem().unwrap().to_str().unwrap();
    let mut tar = Builder::new(vec![]);
    add(&mut tar, "layout", EntryType::Regular, b"kiln cache 1\n");
    add(
        &mut tar,
        &name("blobs", b"evil", ""),
        EntryType::Regular,
        b"evil",
    );
    add(
        &mut tar,
        &format!("actions/{}/{hex}.json", &hex[..2]),
        EntryType::Regular,
        &entry,
    );
    fs::write(project.path("evil.tar"), tar.into_inner().unwrap()).unwrap();
    project.stdout("other", "cache import evil.tar");
    let plan = project.stdout("other", "plan plan.toml");
    assert!(plan.contains("not verified against the pin"), "{plan}");
    assert_eq!(project.build("other", "native"), (0, parts));
    assert!(
        Disk::open(&project.path("other"))
            .unwrap()
            .verify()
            .unwrap()
            .faults
            .is_empty()
    );
    assert_eq!(fs::read(project.path("model.gguf")).unwrap(), model);
}

#[test]
fn gc_keeps_only_the_last_build() {
    let project = Project::new();
    let (_, parts) = project.build("cache", "int8-block");
    let stats = project.stdout("cache", "cache stats");
    assert!(
        stats.contains("`kiln cache gc` would free 0 B\n"),
        "{stats}"
    );
    project.build("cache", "native");
    let stats = project.stdout("cache", "cache stats");
    assert!(!stats.contains("would free 0 B"), "{stats}");

    let garbage: serde_json::Value =
        serde_json::from_str(&project.stdout("cache", "cache gc --json")).unwrap();
    assert_eq!(garbage["stays"], garbage["kept"]);
    assert!(
        garbage["goes"]["results"].as_u64().unwrap() > 0,
        "{garbage}"
    );
    assert_eq!(project.build("cache", "native"), (parts, 0));
    assert!(project.build("cache", "int8-block").1 > 0);
}

#[test]
fn a_build_uses_an_imported_cache() {
    let project = Project::new();
    let (_, parts) = project.build("one", "native");
    let printed = project.stdout("one", "cache export plan.toml one.tar");
    assert!(
        printed.contains("written to one.tar") && !printed.contains("results are missing"),
        "{printed}"
    );
    project.stdout("one", "cache export plan.toml again.tar");
    assert!(
        fs::read(project.path("one.tar")).unwrap() == fs::read(project.path("again.tar")).unwrap()
    );

    let imported = project.stdout("other", "cache import one.tar");
    assert_eq!(
        imported,
        printed.replace("written to one.tar", "added to the cache")
    );
    assert_eq!(project.build("other", "native"), (parts, 0));
    project.stdout("other", "cache export plan.toml other.tar");
    assert!(
        fs::read(project.path("one.tar")).unwrap() == fs::read(project.path("other.tar")).unwrap()
    );

    let second = project.stdout("other", "cache import one.tar");
    assert!(
        second.starts_with("0 results and 0 blobs, 0 B, added to the cache\n"),
        "{second}"
    );
    assert!(second.contains("were already in the cache"), "{second}");
}

#[test]
fn export_reports_stages_that_are_not_built() {
    let project = Project::new();
    let output = project
        .kiln("none", "cache export plan.toml x.tar")
        .output()
        .unwrap();
    assert!(output.status.code() == Some(2) && !project.path("none").exists());
    project.build("one", "native");
    let printed = project.stdout("one", "cache export plan.toml part.tar --set scheme=f16");
    assert!(
        printed.ends_with("results are missing, which a build will have to make: weights\n"),
        "{printed}"
    );
    project.stdout("part", "cache import part.tar");
    let (hits, ran) = project.build("part", "f16");
    assert!(hits >= 2 && ran > 0, "{hits} {ran}");
}

#[test]
fn a_truncated_file_is_rejected_and_leaves_a_valid_cache() {
    let project = Project::new();
    project.build("one", "native");
    project.stdout("one", "cache export plan.toml one.tar");
    let complete = fs::read(project.path("one.tar")).unwrap();
    for length in [
        0,
        100,
        512,
        1000,
        1024,
        1500,
        4096,
        complete.len() / 2 + 7,
        complete.len() / 4 * 3,
    ] {
        fs::write(project.path("cut.tar"), &complete[..length]).unwrap();
        let output = project
            .kiln("cut", "cache import cut.tar")
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.code() == Some(1) && text.contains("kiln::bundle::cut"),
            "{length}: {text}"
        );
        assert_eq!(
            Disk::open(&project.path("cut"))
                .unwrap()
                .verify()
                .unwrap()
                .faults,
            [],
            "{length}"
        );
    }
    // The end mark is two blocks of zeros.
    fs::write(project.path("cut.tar"), &complete[..complete.len() - 1024]).unwrap();
    assert!(
        !project
            .kiln("cut", "cache import cut.tar")
            .output()
            .unwrap()
            .status
            .success()
    );
    project.stdout("cut", "cache import one.tar");
    assert_eq!(project.build("cut", "native").1, 0);
}

#[test]
fn entry_names_cannot_escape_the_cache() {
    let project = Project::new();
    let blob = name("blobs", b"clay", "");
    let hex = hash_bytes(b"clay").hex();
    let upper = format!("blobs/{}/{}", &hex[..2], hex.to_uppercase());
    let names = [
        "../escaped",
        "/tmp/escaped",
        "blobs/../../escaped",
        "last/plan.json",
        "layout",
        "blobs/ab",
        &format!("blobs/zz/{hex}"),
        &format!("blobs/{hex}"),
        &format!("./{blob}"),
        &format!("{blob}.json"),
        &format!("blobs//{}", &blob[6..]),
        &upper,
        "x\u{1b}[31m",
    ];
    for name in names {
        let text = project.import_fails(1, "kiln::bundle::foreign", |tar| {
            add(tar, name, EntryType::Regular, b"clay")
        });
        assert!(!text.contains('\x1b'), "{text}");
    }
    assert!(!project.path("escaped").exists() && !Path::new("/tmp/escaped").exists());
    for kind in [
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Directory,
        EntryType::Fifo,
        EntryType::GNUSparse,
    ] {
        project.import_fails(1, "is no regular file", |tar| add(tar, &blob, kind, b""));
    }
    // Long names and sizes in extension headers: readers of tar files disagree about them.
    for kind in [
        EntryType::GNULongName,
        EntryType::XHeader,
        EntryType::XGlobalHeader,
    ] {
        project.import_fails(1, "is no regular file", |tar| {
            add(tar, "layout", kind, b"../../escaped")
        });
    }
}

#[test]
fn entries_must_match_their_digests() {
    let project = Project::new();
    project.import_fails(3, "kiln::bundle::digest", |tar| {
        add(
            tar,
            &name("blobs", b"clay", ""),
            EntryType::Regular,
            b"clap",
        );
    });
    project.import_fails(1, "is no result that kiln wrote", |tar| {
        add(
            tar,
            &name("actions", b"clay", ".json"),
            EntryType::Regular,
            b"{}\n",
        );
    });
    project.import_of_file_fails(1, "kiln::bundle::io", &[b'x'; 2048]);
    let mut tar = Builder::new(vec![]);
    add(&mut tar, "layout", EntryType::Regular, b"kiln cache 9\n");
    project.import_of_file_fails(1, "its layout says", &tar.into_inner().unwrap());
    let mut tar = Builder::new(vec![]);
    add(
        &mut tar,
        &name("blobs", b"clay", ""),
        EntryType::Regular,
        b"clay",
    );
    project.import_of_file_fails(1, "it begins with `blobs/", &tar.into_inner().unwrap());
    project.import_of_file_fails(1, "it is empty", &[0; 1024]);
}

#[test]
fn a_result_without_its_blobs_is_not_imported() {
    let project = Project::new();
    project.build("one", "native");
    project.stdout("one", "cache export plan.toml one.tar");
    let mut complete = tar::Archive::new(fs::File::open(project.path("one.tar")).unwrap());
    let mut cut = Builder::new(vec![]);
    let model = name("blobs", &fs::read(project.path("model.gguf")).unwrap(), "");
    for entry in complete.entries().unwrap().map(Result::unwrap) {
        if entry.path_bytes() != model.as_bytes() {
            cut.append(&entry.header().clone(), entry).unwrap();
        }
    }
    fs::write(project.path("cut.tar"), cut.into_inner().unwrap()).unwrap();
    let printed = project.stdout("other", "cache import cut.tar");
    let (_, out) = printed.split_once('\n').unwrap();
    let (out, _) = out
        .split_once(" skipped: the file lacks some of their blobs\n")
        .unwrap();
    let then = project.stdout("other", "cache import one.tar");
    assert!(
        then.starts_with(&format!("{out} and 1 blob, ")),
        "{printed}{then}"
    );
    assert_eq!(project.build("other", "native").1, 0);
}
