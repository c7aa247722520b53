//! Time, CPU time and peak of memory of the stages that run on kiln's own threads, over SmolLM2 or
//! the file KILN_GGUF, beside a copy of that file that is hashed: `cargo bench --bench stages`.
//! With KILN_LLAMA, a folder with the libraries of some llama.cpp (npm's
//! `@node-llama-cpp/linux-x64` has them), also beside its quantizer. Stages that run in a process
//! of their own have theirs in `kiln cache stats`.

#[allow(dead_code)]
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kiln::action::{Inputs, Manifest, Outputs, Part, PartName};
use kiln::base::{Hasher, bytes};
use kiln::execute::{Executor, Local, Watch};
use kiln::stages;
use kiln::store::{BlobStore, Disk, LocalStore};
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::{Value, json};

const ROUNDS: usize = 3;

struct Silent;

impl Watch for Silent {
    fn progress(&self, _: u64, _: u64, _: &str) {}

    fn cancelled(&self) -> bool {
        false
    }
}

/// What something took.
#[derive(Clone, Copy)]
struct Cost {
    wall: f64,
    cpu: f64,
    own: u64,
    mapped: u64,
}

/// `inspect`, then each way on, each over a cache of its own; the file is in memory before any of
/// it.
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
            // A cache that knows the file only, and has looked at it.
            let cache = tempfile::tempdir_in(folder.path()).expect("a folder");
            let store = Disk::open(cache.path()).expect("a cache");
            let link = cache
                .path()
                .join(original.strip_prefix(first.root()).expect("a blob's place"));
            fs::create_dir_all(link.parent().expect("a shelf")).expect("a shelf");
            fs::hard_link(&original, &link).expect("the same disk");
            drop(store.open(&blob).expect("a good blob"));
            let (made, cost) = measured(|| stage(&store, kind, slot, input.clone(), &params));
            manifest = made;
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
    let (_, halves) = run("dequant", "model", &model, json!({ "type": "f16" }));
    match std::env::var_os("KILN_LLAMA") {
        None => println!(
            "{:<34}not measured: KILN_LLAMA names no llama.cpp",
            "llama.cpp to F16"
        ),
        Some(libraries) => {
            let target = folder.path().join("f16.gguf");
            let costs = best(copy, || quantize(Path::new(&libraries), &path, &target));
            report("llama.cpp to F16", costs);
            let [_, llama] = costs;
            println!(
                "dequant to f16 / llama.cpp: CPU {:.2}, time {:.2}",
                halves.cpu / llama.cpu,
                halves.wall / llama.wall
            );
        }
    }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The least of some rounds of two, side by side, since what a disk and a hypervisor add changes by
/// the minute.
fn best(one: impl Fn() -> Cost, mut other: impl FnMut() -> Cost) -> [Cost; 2] {
    let calm = || {
        // Nothing written before is still on its way; and for some seconds after many files were
        // removed, ext4 is slow to make new ones.
        rustix::fs::sync();
        std::thread::sleep(Duration::from_secs(6));
    };
    let round = |_| {
        calm();
        let one = one();
        calm();
        [one, other()]
    };
    let rounds: Vec<[Cost; 2]> = (0..ROUNDS).map(round).collect();
    [0, 1].map(|which| {
        let least = |of: fn(&Cost) -> f64| {
            rounds
                .iter()
                .map(|pair| of(&pair[which]))
                .fold(f64::INFINITY, f64::min)
        };
        let most = |of: fn(&Cost) -> u64| {
            rounds
                .iter()
                .map(|pair| of(&pair[which]))
                .max()
                .unwrap_or(0)
        };
        let (own, mapped) = (most(|cost| cost.own), most(|cost| cost.mapped));
        Cost {
            wall: least(|cost| cost.wall),
            cpu: least(|cost| cost.cpu),
            own,
            mapped,
        }
    })
}

fn cpu_seconds(who: UsageWho) -> f64 {
    let usage = getrusage(who).expect("what was used");
    [usage.user_time(), usage.system_time()]
        .iter()
        .map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6)
        .sum()
}

fn measured<T>(work: impl FnOnce() -> T) -> (T, Cost) {
    let (done, own) = (AtomicBool::new(false), AtomicU64::new(0));
    // Resets the peak; where that is not allowed, it is the peak of the whole run.
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

/// Copies a file piece by piece, each thread its share, hashed on the way and synced: what no stage
/// can do without.
fn copy_and_hash(path: &Path, folder: &Path) {
    let (size, threads) = (fs::metadata(path).expect("a size").len(), threads() as u64);
    let share = |index: u64| {
        let (mut at, end) = (size * index / threads, size * (index + 1) / threads);
        let source = File::open(path).expect("a file");
        let mut target = tempfile::tempfile_in(folder).expect("a file");
        let (mut hasher, mut piece) = (Hasher::default(), vec![0; 1 << 18]);
        while at < end {
            let length = (end - at).min(piece.len() as u64) as usize;
            source
                .read_exact_at(&mut piece[..length], at)
                .expect("bytes");
            target.write_all(&piece[..length]).expect("room");
            hasher.update(&piece[..length]);
            at += length as u64;
        }
        target.sync_all().expect("a disk");
        hasher.finish()
    };
    std::thread::scope(|scope| {
        (0..threads).for_each(|index| drop(scope.spawn(move || share(index))))
    });
}

/// All orders of a stage, on as many threads as the machine has, as a build runs them.
fn stage(store: &Disk, kind: &str, slot: &str, input: Manifest, params: &Value) -> Manifest {
    let stages = stages::all();
    let inputs = Inputs {
        slots: BTreeMap::from([(slot.into(), vec![("giver".into(), input)])]),
        ..Inputs::default()
    };
    let local = Local {
        store,
        stages: &stages,
        program: "kiln".into(),
    };
    let stage = stages.get(kind).expect("a known stage");
    let mut orders = stage.expand(params, &inputs).expect("orders");
    orders.sort_by_key(|order| {
        let sizes = order
            .inputs
            .values()
            .map(|input| input.content.digest.size_bytes);
        std::cmp::Reverse(sizes.sum::<u64>())
    });
    let (next, manifest) = (AtomicUsize::new(0), Mutex::new(Manifest::default()));
    let keep = |name: &str, outputs: Outputs| {
        let full = |output: &PartName| {
            if name.is_empty() {
                output.to_string()
            } else {
                format!("{name}/{output}")
            }
        };
        let parts = outputs
            .into_iter()
            .map(|(output, part)| (full(&output).parse().expect("a name"), part));
        manifest
            .lock()
            .expect("no thread failed")
            .parts
            .extend(parts);
    };
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| {
                while let Some(order) = orders.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let action = order.clone().into_action(stage.spec());
                    let ran = local
                        .run(&action, &order.demand, &Silent)
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
    // As durable as what a stage leaves behind.
    File::open(target)
        .and_then(|file| file.sync_all())
        .expect("a disk");
    let cpu = cpu_seconds(UsageWho::RUSAGE_CHILDREN) - cpu;
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("what was used");
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
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}
