//! Reproducible builds of the DeepSeek plan with a model from a fake hub, with interruptions. Only
//! the pinned digest and the sizes are changed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::fetching::sha256;
use crate::support::peers::stdout_of;
use crate::support::processes::{kill, processes_using};
use crate::support::quantize::Quant;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tree::files;
use hub::Hub;

mod hub;

/// Variables that make the plan small.
const SMALL: [&str; 7] = [
    "prefill=16",
    "context=48",
    "shards=2",
    "windows=2",
    "tokens=16",
    "prompt=clay",
    "greedy=3",
];

/// The path of the model on the hub.
const PATH: &str = "/bartowski/DeepSeek-R1-Distill-Qwen-1.5B-GGUF/resolve/main/\
                    DeepSeek-R1-Distill-Qwen-1.5B-Q4_0.gguf";

/// A folder with all inputs of the build except the model.
struct PlanFolder(PathBuf);

impl PlanFolder {
    fn new(folder: &Path) -> Self {
        let plans = Path::new(env!("CARGO_MANIFEST_DIR")).join("plans");
        for file in [
            "deepseek-qwen-1.5b.toml",
            "lib/bundle.toml",
            "data/eval.txt",
        ] {
            let copy = folder.join("plans").join(file);
            fs::create_dir_all(copy.parent().unwrap()).unwrap();
            fs::copy(plans.join(file), copy).unwrap();
        }
        PlanFolder(fs::canonicalize(folder).unwrap())
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

    /// All written files.
    fn written(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        files(&self.0.join("out/deepseek-qwen-1.5b"))
    }

    /// The size of the largest partial download.
    fn downloaded(&self) -> u64 {
        let mut largest = 0;
        for folder in fs::read_dir(self.0.join("cache/partial"))
            .into_iter()
            .flatten()
        {
            for file in fs::read_dir(folder.unwrap().path()).into_iter().flatten() {
                // The download may be complete and the file gone.
                if let Ok(metadata) = file.unwrap().metadata() {
                    largest = largest.max(metadata.len());
                }
            }
        }
        largest
    }

    /// The running child processes of builds in this folder.
    fn compilers(&self) -> Vec<PathBuf> {
        let mut processes = processes_using(&self.0);
        processes.retain(|process| {
            let command_line = fs::read(process.join("cmdline")).unwrap_or_default();
            command_line.split(|byte| *byte == 0).nth(1) == Some(b"work")
        });
        processes
    }
}

#[test]
#[ignore = "needs a package index"]
fn output_does_not_depend_on_directory_or_threads() {
    // Q4_0, Q4_1 and Q6_K, and large biases of keys, like the real model.
    let model = TinyGguf::qwen2()
        .large_biases()
        .widths(256, 256)
        .tensor_type("output.weight", Quant::Q6_K)
        .tensor_type("blk.0.ffn_down.weight", Quant::Q4_1)
        .write();
    let (size, pin) = (model.len(), sha256(&model));
    let root = tempfile::tempdir().unwrap();
    let build = |name: &str, jobs: &str| {
        let (folder, hub) = (
            PlanFolder::new(&root.path().join(name)),
            Hub::of(model.clone()),
        );
        stdout_of(
            folder
                .kiln(&hub, &pin, &["--jobs", jobs])
                .args(SMALL.iter().flat_map(|set| ["--set", set])),
        );
        assert_eq!(hub.paths().first().map(String::as_str), Some(PATH));
        let broken = [0, size / 3];
        assert_eq!(
            hub.starts(),
            [&broken[..], &[size / 3 + (size - size / 3) / 3]].concat(),
            "broken downloads are resumed"
        );
        folder.written()
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
    for (name, bytes) in &one {
        assert!(*bytes == other[name], "{} differs", name.display());
    }
}

/// Waits for a condition; the build must not end before it is true.
fn wait_for(what: &str, build: &mut std::process::Child, mut is_true: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_true() {
        assert!(
            build.try_wait().unwrap().is_none(),
            "the build ended before: {what}"
        );
        sleep(Duration::from_millis(5));
    }
    println!("{what} after {:.1} s", start.elapsed().as_secs_f64());
}

/// The bundle at full size: `KILN_GGUF=deepseek.gguf cargo test --release --test it reproduce::big_
/// -- --ignored --nocapture`. The download, a compilation and a complete build are killed. Then the
/// build is repeated in another folder with one thread.
#[test]
#[ignore = "needs a package index, the full-size file and minutes"]
fn big_bundle_is_reproducible_despite_interruptions() {
    let model = fs::read(std::env::var_os("KILN_GGUF").expect("KILN_GGUF names the file")).unwrap();
    let (size, pin) = (model.len(), sha256(&model));
    let hub = Hub::of(model);
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let folder = PlanFolder::new(&root.path().join("one"));
    let start = || {
        let mut kiln = folder.kiln(&hub, &pin, &["bundle"]);
        kiln.stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let text = |output: &Output| {
        String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
    };

    let mut build = start();
    wait_for("half of the download", &mut build, || {
        folder.downloaded() > size as u64 / 2
    });
    build.kill().unwrap();
    build.wait().unwrap();

    let mut build = start();
    wait_for("compilations", &mut build, || {
        !folder.compilers().is_empty() && folder.0.join("cache/tmp").exists()
    });
    sleep(Duration::from_secs(60));
    kill(&folder.compilers()[0]);
    let output = build.wait_with_output().unwrap();
    assert!(
        !output.status.success() && text(&output).contains("signal"),
        "{}",
        text(&output)
    );

    let mut build = start();
    wait_for("compilations", &mut build, || {
        !folder.compilers().is_empty()
    });
    sleep(Duration::from_secs(30));
    for process in processes_using(&folder.0) {
        kill(&process);
    }
    assert!(!build.wait().unwrap().success());

    let begun = Instant::now();
    let output = start().wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    println!(
        "{}\nto the end in {:.0} s",
        text(&output),
        begun.elapsed().as_secs_f64()
    );
    println!("requests from bytes {:?} of {size}", hub.starts());
    for start in &hub.starts()[2..] {
        assert!(*start > size / 3, "no byte is fetched twice");
    }
    let one = folder.written();
    drop(fs::remove_dir_all(folder.0.join("cache")));
    let mut bytes = 0;
    for (name, content) in &one {
        if name.starts_with("bundle") {
            bytes += content.len();
        }
    }
    println!("the bundle has {bytes} bytes");
    assert!((1_200_000_000..1_500_000_000).contains(&bytes));

    let other = PlanFolder::new(&root.path().join("another/and/deeper"));
    let begun = Instant::now();
    stdout_of(&mut other.kiln(&hub, &pin, &["bundle", "--jobs", "1"]));
    println!(
        "again with one thread in {:.0} s",
        begun.elapsed().as_secs_f64()
    );
    let other = other.written();
    assert!(one.keys().eq(other.keys()));
    for (name, bytes) in &one {
        assert!(*bytes == other[name], "{} differs", name.display());
    }
}
