//! A real plan's results, kept by `kiln cache gc` and brought to another cache; and files that
//! bring what they should not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::fetching::sha256;
use crate::support::peers::said;
use crate::support::tiny_gguf::TinyGguf;
use kiln::base::hash_bytes;
use kiln::store::Disk;
use tar::{Builder, EntryType, Header};

/// A folder with a tiny model and a plan of a dozen parts.
struct Bench {
    root: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
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
        Bench { root }
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

    fn says(&self, cache: &str, call: &str) -> String {
        said(&mut self.kiln(cache, call))
    }

    /// Builds, and yields how many parts were hits and how many ran.
    fn build(&self, cache: &str, set: &str) -> (u64, u64) {
        let text = self.says(
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

    /// Refuses to import what `write` puts into a tar after a good layout; yields what is said.
    fn refuses(&self, exit: i32, code: &str, write: impl FnOnce(&mut Builder<Vec<u8>>)) -> String {
        let mut tar = Builder::new(vec![]);
        add(&mut tar, "layout", EntryType::Regular, b"kiln cache 1\n");
        write(&mut tar);
        self.refuses_file(exit, code, &tar.into_inner().unwrap())
    }

    fn refuses_file(&self, exit: i32, code: &str, bytes: &[u8]) -> String {
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

/// Adds a file, under a name that need not be a decent one.
fn add(tar: &mut Builder<Vec<u8>>, name: &str, kind: EntryType, bytes: &[u8]) {
    let mut header = Header::new_gnu();
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(bytes.len() as u64);
    header.set_cksum();
    tar.append(&header, bytes).unwrap();
}

fn name(room: &str, what: &[u8], ending: &str) -> String {
    let hex = hash_bytes(what).hex();
    format!("{room}/{}/{hex}{ending}", &hex[..2])
}

/// The entry of a result in the cache, changed by `change`, under the name that it has.
fn forged(
    cache: &Path,
    action: &str,
    change: impl Fn(&mut serde_json::Value),
) -> (PathBuf, Vec<u8>) {
    let folders = fs::read_dir(cache.join("actions"))
        .unwrap()
        .flat_map(|shelf| fs::read_dir(shelf.unwrap().path()).unwrap());
    let is_of = |path: &PathBuf| {
        fs::read_to_string(path)
            .unwrap()
            .contains(&format!("\"stage\":\"{action}\""))
    };
    let path = folders
        .map(|entry| entry.unwrap().path())
        .find(is_of)
        .unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let mut body = serde_json::from_str(lines[1]).unwrap();
    change(&mut body);
    let body = body.to_string();
    (
        path,
        format!("{}\n{body}\n{}\n", hash_bytes(body.as_bytes()), lines[2]).into_bytes(),
    )
}

#[test]
fn a_result_that_names_the_wrong_place_is_refused() {
    let bench = Bench::new();
    bench.build("cache", "native");
    let (path, entry) = forged(&bench.path("cache"), "inspect", |body| {
        let parts = body["outputs"].as_object_mut().unwrap();
        let window = parts
            .values_mut()
            .find_map(|part| part["content"].get_mut("window"))
            .unwrap();
        window["offset"] = (window["offset"].as_u64().unwrap() + 32).into();
    });
    let blob = fs::read(bench.path("model.gguf")).unwrap();
    let hex = path.file_stem().unwrap().to_str().unwrap().to_string();
    bench.refuses(3, "kiln::store::window", |tar| {
        add(tar, &name("blobs", &blob, ""), EntryType::Regular, &blob);
        // The model's description is left out: such a result is incomplete, and no better for it.
        for file in fs::read_dir(bench.path("cache/blobs"))
            .unwrap()
            .flat_map(|shelf| fs::read_dir(shelf.unwrap().path()).unwrap())
        {
            let bytes = fs::read(file.unwrap().path()).unwrap();
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
    // In the cache itself it is found, and `--repair` takes it away.
    fs::remove_file(&path).unwrap();
    fs::write(&path, entry).unwrap();
    fs::remove_dir_all(bench.path("cache/notes")).unwrap();
    let output = bench
        .kiln("cache", "build plan.toml --set scheme=f16")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(3) && text.contains("kiln::store::window"),
        "{text}"
    );
    let verify = bench
        .kiln("cache", "cache verify --repair")
        .output()
        .unwrap();
    assert!(
        String::from_utf8(verify.stdout)
            .unwrap()
            .contains("1 damaged, removed")
    );
    assert!(bench.build("cache", "f16").1 > 0);
}

#[test]
fn a_pin_holds_against_what_was_imported() {
    let bench = Bench::new();
    let (_, parts) = bench.build("cache", "native");
    let model = fs::read(bench.path("model.gguf")).unwrap();
    let evil = hash_bytes(b"evil");
    let (path, entry) = forged(&bench.path("cache"), "fetch", |body| {
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
    fs::write(bench.path("evil.tar"), tar.into_inner().unwrap()).unwrap();
    bench.says("other", "cache import evil.tar");
    let plan = bench.says("other", "plan plan.toml");
    assert!(plan.contains("not known to be what is pinned"), "{plan}");
    assert_eq!(bench.build("other", "native"), (0, parts));
    assert!(
        Disk::open(&bench.path("other"))
            .unwrap()
            .verify()
            .unwrap()
            .faults
            .is_empty()
    );
    assert_eq!(fs::read(bench.path("model.gguf")).unwrap(), model);
}

#[test]
fn gc_keeps_the_last_build_and_only_that() {
    let bench = Bench::new();
    let (_, parts) = bench.build("cache", "int8-block");
    let one = bench.says("cache", "cache stats");
    assert!(one.contains("`kiln cache gc` would free 0 B\n"), "{one}");
    bench.build("cache", "native");
    let both = bench.says("cache", "cache stats");
    assert!(!both.contains("would free 0 B"), "{both}");

    let garbage: serde_json::Value =
        serde_json::from_str(&bench.says("cache", "cache gc --json")).unwrap();
    assert_eq!(garbage["stays"], garbage["kept"]);
    assert!(
        garbage["goes"]["results"].as_u64().unwrap() > 0,
        "{garbage}"
    );
    assert_eq!(bench.build("cache", "native"), (parts, 0));
    assert!(bench.build("cache", "int8-block").1 > 0);
}

#[test]
fn an_imported_plan_is_built() {
    let bench = Bench::new();
    let (_, parts) = bench.build("one", "native");
    let says = bench.says("one", "cache export plan.toml one.tar");
    assert!(
        says.contains("written to one.tar") && !says.contains("results are missing"),
        "{says}"
    );
    bench.says("one", "cache export plan.toml again.tar");
    assert!(fs::read(bench.path("one.tar")).unwrap() == fs::read(bench.path("again.tar")).unwrap());

    let put = bench.says("other", "cache import one.tar");
    assert_eq!(
        put,
        says.replace("written to one.tar", "added to the cache")
    );
    assert_eq!(bench.build("other", "native"), (parts, 0));
    bench.says("other", "cache export plan.toml other.tar");
    assert!(fs::read(bench.path("one.tar")).unwrap() == fs::read(bench.path("other.tar")).unwrap());

    let again = bench.says("other", "cache import one.tar");
    assert!(
        again.starts_with("0 results and 0 blobs, 0 B, added to the cache\n"),
        "{again}"
    );
    assert!(again.contains("were already in the cache"), "{again}");
}

#[test]
fn what_is_not_built_is_not_exported() {
    let bench = Bench::new();
    let output = bench
        .kiln("none", "cache export plan.toml x.tar")
        .output()
        .unwrap();
    assert!(output.status.code() == Some(2) && !bench.path("none").exists());
    bench.build("one", "native");
    let says = bench.says("one", "cache export plan.toml part.tar --set scheme=f16");
    assert!(
        says.ends_with("results are missing, which a build will have to make: weights\n"),
        "{says}"
    );
    bench.says("part", "cache import part.tar");
    let (hits, ran) = bench.build("part", "f16");
    assert!(hits >= 2 && ran > 0, "{hits} {ran}");
}

#[test]
fn a_file_cut_anywhere_is_refused_and_leaves_whole_things() {
    let bench = Bench::new();
    bench.build("one", "native");
    bench.says("one", "cache export plan.toml one.tar");
    let whole = fs::read(bench.path("one.tar")).unwrap();
    for length in [
        0,
        100,
        512,
        1000,
        1024,
        1500,
        4096,
        whole.len() / 2 + 7,
        whole.len() / 4 * 3,
    ] {
        fs::write(bench.path("cut.tar"), &whole[..length]).unwrap();
        let output = bench.kiln("cut", "cache import cut.tar").output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.code() == Some(1) && text.contains("kiln::bundle::cut"),
            "{length}: {text}"
        );
        assert_eq!(
            Disk::open(&bench.path("cut"))
                .unwrap()
                .verify()
                .unwrap()
                .faults,
            [],
            "{length}"
        );
    }
    // The end mark is two blocks of zeros.
    fs::write(bench.path("cut.tar"), &whole[..whole.len() - 1024]).unwrap();
    assert!(
        !bench
            .kiln("cut", "cache import cut.tar")
            .output()
            .unwrap()
            .status
            .success()
    );
    bench.says("cut", "cache import one.tar");
    assert_eq!(bench.build("cut", "native").1, 0);
}

#[test]
fn names_cannot_leave_the_cache() {
    let bench = Bench::new();
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
        let text = bench.refuses(1, "kiln::bundle::foreign", |tar| {
            add(tar, name, EntryType::Regular, b"clay")
        });
        assert!(!text.contains('\x1b'), "{text}");
    }
    assert!(!bench.path("escaped").exists() && !Path::new("/tmp/escaped").exists());
    for kind in [
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Directory,
        EntryType::Fifo,
        EntryType::GNUSparse,
    ] {
        bench.refuses(1, "is no regular file", |tar| add(tar, &blob, kind, b""));
    }
    // A long name or a size for the entry after it: the readers of tars disagree on these.
    for kind in [
        EntryType::GNULongName,
        EntryType::XHeader,
        EntryType::XGlobalHeader,
    ] {
        bench.refuses(1, "is no regular file", |tar| {
            add(tar, "layout", kind, b"../../escaped")
        });
    }
}

#[test]
fn bytes_must_be_what_their_names_say() {
    let bench = Bench::new();
    bench.refuses(3, "kiln::bundle::digest", |tar| {
        add(
            tar,
            &name("blobs", b"clay", ""),
            EntryType::Regular,
            b"clap",
        );
    });
    bench.refuses(1, "is no result that kiln wrote", |tar| {
        add(
            tar,
            &name("actions", b"clay", ".json"),
            EntryType::Regular,
            b"{}\n",
        );
    });
    bench.refuses_file(1, "kiln::bundle::io", &[b'x'; 2048]);
    let mut tar = Builder::new(vec![]);
    add(&mut tar, "layout", EntryType::Regular, b"kiln cache 9\n");
    bench.refuses_file(1, "its layout says", &tar.into_inner().unwrap());
    let mut tar = Builder::new(vec![]);
    add(
        &mut tar,
        &name("blobs", b"clay", ""),
        EntryType::Regular,
        b"clay",
    );
    bench.refuses_file(1, "it begins with `blobs/", &tar.into_inner().unwrap());
    bench.refuses_file(1, "it is empty", &[0; 1024]);
}

#[test]
fn a_result_without_its_blobs_is_left_out() {
    let bench = Bench::new();
    bench.build("one", "native");
    bench.says("one", "cache export plan.toml one.tar");
    let mut whole = tar::Archive::new(fs::File::open(bench.path("one.tar")).unwrap());
    let mut cut = Builder::new(vec![]);
    let model = name("blobs", &fs::read(bench.path("model.gguf")).unwrap(), "");
    for entry in whole.entries().unwrap().map(Result::unwrap) {
        if entry.path_bytes() != model.as_bytes() {
            cut.append(&entry.header().clone(), entry).unwrap();
        }
    }
    fs::write(bench.path("cut.tar"), cut.into_inner().unwrap()).unwrap();
    let says = bench.says("other", "cache import cut.tar");
    let (_, out) = says.split_once('\n').unwrap();
    let (out, _) = out
        .split_once(" skipped: the file lacks some of their blobs\n")
        .unwrap();
    let then = bench.says("other", "cache import one.tar");
    assert!(
        then.starts_with(&format!("{out} and 1 blob, ")),
        "{says}{then}"
    );
    assert_eq!(bench.build("other", "native").1, 0);
}
