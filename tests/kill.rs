//! What a real build survives: `kill -9` at any moment, and damage to its cache.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use kiln::base::hash_bytes;
use kiln::store::Disk;
use rustix::pipe::fcntl_setpipe_size;
use support::fetching::sha256;
use support::tiny_gguf::TinyGguf;
use support::tree::files;

const ROUNDS: usize = 20;
/// A few dozen events: the least that the kernel grants.
const PIPE_BYTES: usize = 4096;
const TEXT: &str = "clay is shaped, dried, fired and glazed, and then it is fired again";

/// A plan over a tiny model; each round builds it with a cache of its own.
struct Bench {
    root: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let root = tempfile::tempdir().unwrap();
        let model = TinyGguf::llama().write();
        fs::write(root.path().join("model.gguf"), &model).unwrap();
        fs::write(root.path().join("text.txt"), TEXT).unwrap();
        let plan = format!(
            r#"
[plan]
name = "tiny"
[stage.source]
kind = "fetch"
url = "file:model.gguf"
sha256 = "{}"
[stage.text]
kind = "fetch"
url = "file:text.txt"
sha256 = "{}"
[stage.model]
kind = "inspect"
gguf = "source"
keep = true
[stage.weights]
kind = "requant"
tensors = "model"
[stage.rounded]
kind = "requant"
tensors = "model"
scheme = "int8-block"
[stage.plain]
kind = "dequant"
model = "model"
[stage.reference]
kind = "reference"
model = "model"
text = "text"
windows = 2
tokens = 8
"#,
            sha256(&model),
            sha256(TEXT.as_bytes())
        );
        fs::write(root.path().join("tiny.toml"), plan).unwrap();
        Bench { root }
    }

    fn folder(&self, round: &str) -> PathBuf {
        self.root.path().join(round)
    }

    fn build(&self, round: &str) -> Command {
        let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
        let folder = self.folder(round);
        kiln.args(["build", "--json", "--jobs", "2"]).arg(self.root.path().join("tiny.toml"));
        kiln.arg("--cache").arg(folder.join("cache")).arg("--out").arg(folder.join("out"));
        kiln
    }

    /// Builds to the end and yields every event.
    fn events(&self, round: &str) -> Vec<serde_json::Value> {
        let output = self.build(round).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Builds to the end; yields the numbers of hits and of parts that ran.
    fn build_to_the_end(&self, round: &str) -> (u64, u64) {
        let finished = self.events(round).into_iter().find(|event| event["event"] == "finished").unwrap();
        (finished["hits"].as_u64().unwrap(), finished["ran"].as_u64().unwrap())
    }

    /// Begins a build and kills it once it has told `events` events; yields whether that struck it alive.
    fn kill_after(&self, events: usize, round: &str) -> bool {
        let mut kiln = self.build(round).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let stdout = kiln.stdout.take().unwrap();
        // Nobody reads on after that many: the full pipe holds the build until it is struck.
        fcntl_setpipe_size(&stdout, PIPE_BYTES).unwrap();
        let mut lines = BufReader::with_capacity(64, stdout).lines();
        lines.by_ref().take(events).for_each(|line| drop(line.unwrap()));
        // Wherever it is by now.
        sleep(Duration::from_micros(events as u64 * 997 % 3000));
        kiln.kill().unwrap();
        !kiln.wait().unwrap().success()
    }

    /// What was written out: for each stage, its files and their bytes.
    fn written(&self, round: &str) -> BTreeMap<String, BTreeMap<PathBuf, Vec<u8>>> {
        let out = self.folder(round).join("out");
        let Ok(entries) = fs::read_dir(&out) else { return BTreeMap::new() };
        let folders = entries.map(|entry| entry.unwrap()).filter(|entry| entry.file_type().unwrap().is_dir());
        let name = |entry: &fs::DirEntry| entry.file_name().into_string().unwrap();
        folders
            .filter(|entry| !name(entry).starts_with(".kiln-tmp-"))
            .map(|entry| (name(&entry), files(&entry.path())))
            .collect()
    }
}

/// The processes that work on a cache below `folder`.
fn working_on(folder: &Path) -> Vec<PathBuf> {
    let is_ours = |process: &PathBuf| {
        let call = fs::read(process.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&call).contains(&*folder.to_string_lossy())
    };
    let processes = fs::read_dir("/proc").unwrap().map(|process| process.unwrap().path());
    processes.filter(|process| process.join("cmdline").exists() && is_ours(process)).collect()
}

/// The signal that ends a child takes a moment to arrive.
fn wait_for_the_end_of(processes: &[PathBuf]) {
    let begin = Instant::now();
    while processes.iter().any(|process| !fs::read(process.join("cmdline")).unwrap_or_default().is_empty()) {
        assert!(begin.elapsed() < Duration::from_secs(10), "left behind: {processes:?}");
        sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_killed_build_leaves_nothing_half_and_nothing_to_do_twice() {
    let bench = Bench::new();
    let told = bench.events("whole").len();
    let expected = bench.written("whole");
    assert_eq!(expected.keys().collect::<Vec<_>>(), ["model", "plain", "reference", "rounded", "weights"]);
    let (parts, ran) = bench.build_to_the_end("whole");
    assert_eq!(ran, 0);

    let (mut killed, mut saved) = (0, 0);
    for round in 0..ROUNDS {
        let name = round.to_string();
        killed += usize::from(bench.kill_after(told * round / ROUNDS, &name));

        wait_for_the_end_of(&working_on(&bench.folder(&name)));
        for (stage, files) in bench.written(&name) {
            assert_eq!(files, expected[&stage], "round {round}: `{stage}` is there, so it must be whole");
        }
        let store = Disk::open(&bench.folder(&name).join("cache")).unwrap();
        let verified = store.verify().unwrap();
        assert_eq!(verified.faults, [], "round {round}");
        drop(store);

        let (hits, ran) = bench.build_to_the_end(&name);
        assert_eq!(hits + ran, parts, "round {round}");
        // At least: two parts of this plan may share an action.
        assert!(hits >= verified.actions as u64, "round {round}: what was complete does not run again");
        assert_eq!(bench.written(&name), expected, "round {round}");
        let left_behind = fs::read_dir(bench.folder(&name).join("cache/tmp")).unwrap().count();
        assert_eq!(left_behind, 0, "round {round}");
        saved += hits;
    }
    assert!(
        killed >= ROUNDS / 2 && saved > 0,
        "the kills must strike during builds: {killed} did, {saved} parts were saved"
    );
}

fn blob(cache: &Path, bytes: &[u8]) -> PathBuf {
    let hex = hash_bytes(bytes).hex();
    cache.join("blobs").join(&hex[..2]).join(hex)
}

#[test]
fn a_flipped_bit_in_the_cache_is_named_and_then_mended() {
    let bench = Bench::new();
    bench.build_to_the_end("whole");
    let expected = bench.written("whole");
    let cache = bench.folder("whole").join("cache");

    // A tensor must be made again, from a model that is damaged.
    let (_, codes) = expected["weights"].iter().find(|(name, _)| name.ends_with("codes")).unwrap();
    fs::remove_file(blob(&cache, codes)).unwrap();
    let mut model = fs::read(bench.root.path().join("model.gguf")).unwrap();
    let source = blob(&cache, &model);
    model[5000] ^= 1;
    fs::remove_file(&source).unwrap();
    fs::write(&source, model).unwrap();

    let output = bench.build("whole").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("kiln::store::corrupt") && text.contains(source.to_str().unwrap()), "{text}");
    assert_eq!(bench.written("whole"), expected, "what was written out before is not touched");

    let (_, ran) = bench.build_to_the_end("whole");
    assert_eq!(ran, 2, "the source, and the tensor");
    assert_eq!(bench.written("whole"), expected);
}
