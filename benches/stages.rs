//! Time and peak of memory of the stages that run on kiln's own threads, over SmolLM2 or the file KILN_GGUF:
//! `cargo bench --bench stages`. Those that run in a process of their own have theirs in `kiln cache stats`.

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kiln::action::{Inputs, Manifest, Part, PartName};
use kiln::execute::{Executor, Local, Watch};
use kiln::stages;
use kiln::store::{BlobStore, Disk};
use serde_json::{Value, json};

struct Silent;

impl Watch for Silent {
    fn progress(&self, _: u64, _: u64, _: &str) {}

    fn cancelled(&self) -> bool {
        false
    }
}

/// `inspect`, then each way on, over a cache of its own: order by order, each on all threads.
fn main() {
    let path = std::env::var_os("KILN_GGUF").map_or_else(support::tools::smollm2, PathBuf::from);
    let folder = tempfile::tempdir_in(".").expect("a folder for the cache");
    let store = Disk::open(folder.path()).expect("a cache");
    let mut sink = store.create().expect("a blob");
    std::io::copy(&mut fs::File::open(&path).expect("KILN_GGUF"), &mut sink).expect("a copy of KILN_GGUF");
    let part = Part { content: sink.finish().expect("a blob"), facts: Default::default() };
    let file = Manifest { parts: [(PartName::new("model.gguf").expect("a good name"), part)].into() };

    println!("{}: {}", path.display(), kiln::base::bytes(fs::metadata(&path).expect("a size").len()));
    println!("{:<22}{:>8}{:>10}{:>14}{:>14}", "stage", "parts", "time", "own memory", "with mapped");
    let model = stage(&store, "inspect", "gguf", file, json!({}));
    for scheme in ["native", "f16", "int8-block"] {
        stage(&store, "requant", "tensors", model.clone(), json!({ "scheme": scheme }));
    }
    stage(&store, "dequant", "model", model, json!({}));
}

fn stage(store: &Disk, kind: &str, slot: &str, input: Manifest, params: Value) -> Manifest {
    let stages = stages::all();
    let inputs = Inputs { slots: BTreeMap::from([(slot.into(), vec![("giver".into(), input)])]), ..Inputs::default() };
    let local = Local { store, stages: &stages, program: "kiln".into() };
    let stage = stages.get(kind).expect("a known stage");
    let mut manifest = Manifest::default();
    let (done, own) = (AtomicBool::new(false), AtomicU64::new(0));
    // Resets the peak; where that is not allowed, it is the peak of the whole run.
    let _ = fs::write("/proc/self/clear_refs", "5");
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                own.fetch_max(status("RssAnon:"), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        for order in stage.expand(&params, &inputs).expect("orders") {
            let (name, demand) = (order.name.clone(), order.demand);
            let ran = local.run(&order.into_action(stage.spec()), &demand, &Silent).expect("a success");
            let full =
                |output: &PartName| if name.is_empty() { output.to_string() } else { format!("{name}/{output}") };
            let parts = ran.outputs.into_iter().map(|(output, part)| (full(&output).parse().expect("a name"), part));
            manifest.parts.extend(parts);
        }
        done.store(true, Ordering::Relaxed);
    });
    let scheme = params.get("scheme").and_then(Value::as_str).unwrap_or_default();
    let [own, with_mapped] = [own.into_inner(), status("VmHWM:")].map(kiln::base::bytes);
    let took = kiln::base::duration(start.elapsed());
    println!("{:<22}{:>8}{took:>10}{own:>14}{with_mapped:>14}", format!("{kind} {scheme}"), manifest.parts.len());
    manifest
}

/// A line of `/proc/self/status`, in bytes.
fn status(field: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0) * 1024
}
