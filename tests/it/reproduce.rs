//! DeepSeek's own plan as it is, to the very end, over a model that a hub hands out: the same bytes
//! each time, whatever broke. Only the pinned digest and the sizes are another model's.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::fetching::sha256;
use crate::support::hub::Hub;
use crate::support::peers::said;
use crate::support::processes::{kill, working_on};
use crate::support::quantize::Quant;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tree::files;

/// What it takes to make the plan small.
const SMALL: [&str; 7] = [
    "prefill=16",
    "context=48",
    "shards=2",
    "windows=2",
    "tokens=16",
    "prompt=clay",
    "greedy=3",
];

/// Where the plan says that the model is.
const PATH: &str = "/bartowski/DeepSeek-R1-Distill-Qwen-1.5B-GGUF/resolve/main/\
                    DeepSeek-R1-Distill-Qwen-1.5B-Q4_0.gguf";

/// A folder with all that the build reads but the model.
struct Room(PathBuf);

impl Room {
    fn new(folder: &Path) -> Self {
        let plans = Path::new(env!("CARGO_MANIFEST_DIR")).join("plans");
        for file in ["deepseek-qwen-1.5b.toml", "lib/qwen2.toml", "data/eval.txt"] {
            let copy = folder.join("plans").join(file);
            fs::create_dir_all(copy.parent().unwrap()).unwrap();
            fs::copy(plans.join(file), copy).unwrap();
        }
        Room(fs::canonicalize(folder).unwrap())
    }

    fn kiln(&self, hub: &Hub, pin: &str, more: &[&str]) -> Command {
        let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
        kiln.current_dir(&self.0).env("HF_ENDPOINT", hub.endpoint());
        kiln.args([
            "build",
            "plans/deepseek-qwen-1.5b.toml",
            "--set",
            &format!("sha256={pin}"),
        ]);
        kiln.arg("--cache").arg(self.0.join("cache")).args(more);
        kiln
    }

    /// What was written, receipt and all.
    fn written(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        files(&self.0.join("out/deepseek-qwen-1.5b"))
    }

    /// Bytes of the longest download that is not done.
    fn loaded(&self) -> u64 {
        let folders = fs::read_dir(self.0.join("cache/partial"))
            .into_iter()
            .flatten();
        let files =
            folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).into_iter().flatten());
        files
            .filter_map(|file| Some(file.ok()?.metadata().ok()?.len()))
            .max()
            .unwrap_or(0)
    }

    /// The kiln processes at work here that compile.
    fn compilers(&self) -> Vec<PathBuf> {
        let is_child = |process: &PathBuf| {
            fs::read(process.join("cmdline"))
                .unwrap_or_default()
                .split(|byte| *byte == 0)
                .nth(1)
                == Some(b"work")
        };
        working_on(&self.0).into_iter().filter(is_child).collect()
    }
}

#[test]
#[ignore = "needs a package index"]
fn directory_and_threads_leave_no_trace() {
    // Q4_0, Q4_1 and Q6_K, and large biases of keys, as the model itself has them.
    let model = TinyGguf::qwen2()
        .large_biases()
        .widths(256, 256)
        .tensor_type("output.weight", Quant::Q6_K)
        .tensor_type("blk.0.ffn_down.weight", Quant::Q4_1)
        .write();
    let (size, pin) = (model.len(), sha256(&model));
    let root = tempfile::tempdir().unwrap();
    let build = |folder: &str, jobs: &str| {
        let (room, hub) = (Room::new(&root.path().join(folder)), Hub::of(model.clone()));
        said(
            room.kiln(&hub, &pin, &["--jobs", jobs])
                .args(SMALL.iter().flat_map(|set| ["--set", set])),
        );
        assert_eq!(hub.paths().first().map(String::as_str), Some(PATH));
        let broken = [0, size / 3];
        assert_eq!(
            hub.starts(),
            [&broken[..], &[size / 3 + (size - size / 3) / 3]].concat(),
            "goes on where it broke"
        );
        room.written()
    };
    let one = build("one", "1");
    let other = build("another/and/deeper", "2");
    for kept in [
        "bundle/deepseek-qwen-1.5b_part_2_of_2.bin",
        "container/2-of-2/model.dlc",
        "graph/decode.onnx",
        "report/report.json",
        "receipt.json",
    ] {
        assert!(one.contains_key(Path::new(kept)), "{kept}");
    }
    assert!(one.keys().eq(other.keys()));
    let differ: Vec<&PathBuf> = one
        .keys()
        .filter(|name| one[*name] != other[*name])
        .collect();
    assert!(differ.is_empty(), "differ: {differ:?}");
}

/// Waits for `happened`; the build must not end before.
fn wait_for(what: &str, build: &mut std::process::Child, mut happened: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !happened() {
        assert!(
            build.try_wait().unwrap().is_none(),
            "the build ended before: {what}"
        );
        sleep(Duration::from_millis(5));
    }
    println!("{what} after {:.1} s", begun.elapsed().as_secs_f64());
}

/// `KILN_GGUF=deepseek.gguf cargo test --release --test it reproduce::big_ -- --ignored --nocapture`:
/// the bundle at full size. The download, a compilation and the whole build are killed on the way;
/// then all of it again elsewhere with one thread.
#[test]
#[ignore = "needs a package index, the full-size file and minutes"]
fn big_a_bundle_through_thick_and_thin() {
    let model = fs::read(std::env::var_os("KILN_GGUF").expect("KILN_GGUF names the file")).unwrap();
    let (size, pin) = (model.len(), sha256(&model));
    let hub = Hub::of(model);
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let room = Room::new(&root.path().join("one"));
    let start = || {
        let mut kiln = room.kiln(&hub, &pin, &["bundle"]);
        kiln.stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let text = |output: &Output| {
        String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
    };

    let mut build = start();
    wait_for("a half of the download", &mut build, || {
        room.loaded() > size as u64 / 2
    });
    build.kill().unwrap();
    build.wait().unwrap();

    let mut build = start();
    wait_for("compilations", &mut build, || {
        !room.compilers().is_empty() && room.0.join("cache/tmp").exists()
    });
    sleep(Duration::from_secs(60));
    kill(&room.compilers()[0]);
    let output = build.wait_with_output().unwrap();
    assert!(
        !output.status.success() && text(&output).contains("signal"),
        "{}",
        text(&output)
    );

    let mut build = start();
    wait_for("compilations", &mut build, || !room.compilers().is_empty());
    sleep(Duration::from_secs(30));
    working_on(&room.0).iter().for_each(|process| kill(process));
    assert!(!build.wait().unwrap().success());

    let begun = Instant::now();
    let output = start().wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    println!(
        "{}\nto the end in {:.0} s",
        text(&output),
        begun.elapsed().as_secs_f64()
    );
    println!("asked from bytes {:?} of {size}", hub.starts());
    assert!(
        hub.starts()[2..].iter().all(|start| *start > size / 3),
        "no byte was fetched twice"
    );
    let one = room.written();
    drop(fs::remove_dir_all(room.0.join("cache")));
    let bytes: usize = one
        .iter()
        .filter(|(name, _)| name.starts_with("bundle"))
        .map(|(_, bytes)| bytes.len())
        .sum();
    println!("the bundle has {bytes} bytes");
    assert!((1_200_000_000..1_500_000_000).contains(&bytes));

    let other = Room::new(&root.path().join("another/and/deeper"));
    let begun = Instant::now();
    said(&mut other.kiln(&hub, &pin, &["bundle", "--jobs", "1"]));
    println!(
        "again with one thread in {:.0} s",
        begun.elapsed().as_secs_f64()
    );
    let other = other.written();
    assert!(one.keys().eq(other.keys()));
    let differ: Vec<&PathBuf> = one
        .keys()
        .filter(|name| one[*name] != other[*name])
        .collect();
    assert!(differ.is_empty(), "differ: {differ:?}");
}
