//! Time, CPU time and peak memory of the stages that run on kiln's threads, with SmolLM2 or the
//! file KILN_GGUF, compared with copying and hashing that file: `cargo bench --bench stages`. With
//! KILN_LLAMA, a folder with the libraries of llama.cpp (as in npm's `@node-llama-cpp/linux-x64`),
//! they are also compared with its quantizer. `kiln cache stats` shows the figures of stages that
//! run in their own process.

// The modules in `support` belong to several crates.
#![allow(unreachable_pub)]

#[allow(dead_code)]
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kiln::action::{Manifest, Outputs, Part, PartName};
use kiln::base::{Hasher, bytes};
use kiln::execute::{Executor, Local};
use kiln::stages;
use kiln::store::{BlobStore, Disk, LocalStore};
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::{Value, json};
use support::stage_runner::Quiet;
use support::workspace::{inputs, part_name};

const ROUNDS: usize = 3;

/// Measured costs: seconds, and bytes of anonymous and of all memory.
#[derive(Clone, Copy)]
struct Cost {
    wall: f64,
    cpu: f64,
    own: u64,
    mapped: u64,
}

impl Cost {
    const WORST: Cost = Cost {
        wall: f64::INFINITY,
        cpu: f64::INFINITY,
        own: 0,
        mapped: 0,
    };

    /// The smaller times and the larger peaks.
    fn best(self, other: Cost) -> Cost {
        Cost {
            wall: self.wall.min(other.wall),
            cpu: self.cpu.min(other.cpu),
            own: self.own.max(other.own),
            mapped: self.mapped.max(other.mapped),
        }
    }
}

/// Runs `inspect` and the stages that follow it, each with its own cache. The file is in the page
/// cache before.
fn main() {
    let path = std::env::var_os("KILN_GGUF").map_or_else(support::tools::smollm2, PathBuf::from);
    let folder = tempfile::tempdir_in(".").expect("a folder for the caches");
    let first = Disk::open(&folder.path().join("first")).expect("a cache");
    let mut sink = first.create().expect("a blob");
    std::io::copy(&mut File::open(&path).expect("KILN_GGUF"), &mut sink)
        .expect("a copy of KILN_GGUF");
    let part = Part {
        content: sink.finish().expect("a blob"),
        facts: Default::default(),
    };
    let blob = part.content.blob();
    let file = Manifest {
        parts: [(PartName::new("model.gguf").expect("a good name"), part)].into(),
    };

    println!(
        "{}: {}, {} threads",
        path.display(),
        bytes(fs::metadata(&path).expect("a size").len()),
        threads()
    );
    println!(
        "{:<34}{:>9}{:>9}{:>9}{:>9}{:>14}{:>14}",
        "", "time", "CPU", "/ copy's", "/ copy's", "own memory", "with mapped"
    );
    let copy = || measured(|| copy_and_hash(&path, folder.path())).1;
    let original = first.path(&blob).expect("a look").expect("the file's blob");
    let report = |name: &str, [copy, cost]: [Cost; 2]| {
        let Cost {
            wall,
            cpu,
            own,
            mapped,
        } = cost;
        let (ratio, cpu_ratio) = (wall / copy.wall, cpu / copy.cpu);
        println!(
            "{name:<34}{wall:>7.2} s{cpu:>7.2} s{ratio:>9.2}{cpu_ratio:>9.2}{:>14}{:>14}",
            bytes(own),
            bytes(mapped)
        );
    };
    report("copy and hash", best(copy, copy));
    let run = |kind: &str, slot: &str, input: &Manifest, params: Value| {
        let mut manifest = Manifest::default();
        let costs = best(copy, || {
            // A cache with only the file, which is already verified.
            let cache = tempfile::tempdir_in(folder.path()).expect("a folder");
            let store = Disk::open(cache.path()).expect("a cache");
            let link = cache
                .path()
                .join(original.strip_prefix(first.root()).expect("a blob's place"));
            fs::create_dir_all(link.parent().expect("a folder")).expect("a folder");
            fs::hard_link(&original, &link).expect("the same disk");
            drop(store.open(&blob).expect("a good blob"));
            let (output, cost) = measured(|| stage(&store, kind, slot, input.clone(), &params));
            manifest = output;
            cost
        });
        report(&format!("{kind} {params}"), costs);
        (manifest, costs[1])
    };
    let (model, _) = run("inspect", "gguf", &file, json!({}));
    for scheme in ["native", "f16", "int8-block"] {
        run("requant", "tensors", &model, json!({ "scheme": scheme }));
    }
    run("dequant", "model", &model, json!({ "type": "f32" }));
    let (_, to_f16) = run("dequant", "model", &model, json!({ "type": "f16" }));
    match std::env::var_os("KILN_LLAMA") {
        None => println!(
            "{:<34}not measured: KILN_LLAMA is not set",
            "llama.cpp to F16"
        ),
        Some(libraries) => {
            let target = folder.path().join("f16.gguf");
            let costs = best(copy, || quantize(Path::new(&libraries), &path, &target));
            report("llama.cpp to F16", costs);
            let [_, llama] = costs;
            println!(
                "dequant to f16 / llama.cpp: CPU {:.2}, time {:.2}",
                to_f16.cpu / llama.cpu,
                to_f16.wall / llama.wall
            );
        }
    }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The best of some rounds of both works. They alternate, since the speed of a disk and a
/// hypervisor changes by the minute.
fn best(one: impl Fn() -> Cost, mut other: impl FnMut() -> Cost) -> [Cost; 2] {
    let settle = || {
        // Waits for pending writes, and because ext4 creates files slowly for some seconds after
        // many files were removed.
        rustix::fs::sync();
        std::thread::sleep(Duration::from_secs(6));
    };
    let mut costs = [Cost::WORST; 2];
    for _ in 0..ROUNDS {
        settle();
        costs[0] = costs[0].best(one());
        settle();
        costs[1] = costs[1].best(other());
    }
    costs
}

fn cpu_seconds(who: UsageWho) -> f64 {
    let usage = getrusage(who).expect("the usage");
    let mut seconds = 0.0;
    for time in [usage.user_time(), usage.system_time()] {
        seconds += time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    }
    seconds
}

fn measured<T>(work: impl FnOnce() -> T) -> (T, Cost) {
    let (done, own) = (AtomicBool::new(false), AtomicU64::new(0));
    // Resets the peak. If that is not allowed, the peak is that of the complete run.
    let _ = fs::write("/proc/self/clear_refs", "5");
    let (start, cpu) = (Instant::now(), cpu_seconds(UsageWho::RUSAGE_SELF));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                own.fetch_max(status("RssAnon:"), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let result = work();
        let (wall, cpu) = (
            start.elapsed().as_secs_f64(),
            cpu_seconds(UsageWho::RUSAGE_SELF) - cpu,
        );
        done.store(true, Ordering::Relaxed);
        (
            result,
            Cost {
                wall,
                cpu,
                own: own.load(Ordering::Relaxed),
                mapped: status("VmHWM:"),
            },
        )
    })
}

/// Copies, hashes and syncs a file, each thread a part of it: a lower bound for every stage.
fn copy_and_hash(path: &Path, folder: &Path) {
    let (size, threads) = (fs::metadata(path).expect("a size").len(), threads() as u64);
    let share = |index: u64| {
        let (mut at, end) = (size * index / threads, size * (index + 1) / threads);
        let source = File::open(path).expect("a file");
        let mut target = tempfile::tempfile_in(folder).expect("a file");
        let (mut hasher, mut buffer) = (Hasher::default(), vec![0; 1 << 18]);
        while at < end {
            let length = (end - at).min(buffer.len() as u64) as usize;
            source
                .read_exact_at(&mut buffer[..length], at)
                .expect("bytes");
            target.write_all(&buffer[..length]).expect("space");
            hasher.update(&buffer[..length]);
            at += length as u64;
        }
        target.sync_all().expect("a disk");
        hasher.finish()
    };
    std::thread::scope(|scope| {
        for index in 0..threads {
            scope.spawn(move || share(index));
        }
    });
}

/// Runs all orders of a stage on all threads of the machine, like a build.
fn stage(store: &Disk, kind: &str, slot: &str, input: Manifest, params: &Value) -> Manifest {
    let stages = stages::all();
    let inputs = inputs(&[(slot, &input)]);
    let local = Local {
        store,
        stages: &stages,
        program: "kiln".into(),
    };
    let stage = stages.get(kind).expect("a known stage");
    let mut orders = stage.expand(params, &inputs).expect("orders");
    orders.sort_by_key(|order| {
        let inputs = order.inputs.values();
        let size: u64 = inputs.map(|input| input.content.digest.size_bytes).sum();
        std::cmp::Reverse(size)
    });
    let (next, manifest) = (AtomicUsize::new(0), Mutex::new(Manifest::default()));
    let keep = |name: &str, outputs: Outputs| {
        let mut manifest = manifest.lock().expect("no thread failed");
        for (output, part) in outputs {
            manifest.parts.insert(part_name(name, &output), part);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| {
                while let Some(order) = orders.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let action = order.clone().into_action(stage.spec());
                    let ran = local
                        .run(&action, &order.demand, &Quiet)
                        .expect("a success");
                    keep(&order.name, ran.outputs);
                }
            });
        }
    });
    manifest.into_inner().expect("no thread failed")
}

fn quantize(libraries: &Path, source: &Path, target: &Path) -> Cost {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/support/quantize.py");
    let (start, cpu) = (Instant::now(), cpu_seconds(UsageWho::RUSAGE_CHILDREN));
    let mut command = Command::new("python3");
    command
        .arg(script)
        .args([libraries, source, target])
        .stderr(Stdio::null())
        .stdout(Stdio::null());
    assert!(command.status().expect("a Python").success());
    // As durable as the output of a stage.
    let file = File::open(target).expect("a file");
    file.sync_all().expect("a disk");
    let cpu = cpu_seconds(UsageWho::RUSAGE_CHILDREN) - cpu;
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("the usage");
    Cost {
        wall: start.elapsed().as_secs_f64(),
        cpu,
        own: 0,
        mapped: usage.max_rss() as u64 * 1024,
    }
}

/// A line of `/proc/self/status`, in bytes.
fn status(field: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let Some((_, value)) = text.split_once(field) else {
        return 0;
    };
    let kilobytes = value.split_whitespace().next().unwrap_or("0");
    kilobytes.parse::<u64>().unwrap_or(0) * 1024
}
