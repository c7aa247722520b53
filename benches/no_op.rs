//! A build with nothing to do, beside what no engine can do without: reading every result and looking for every
//! blob: `cargo bench --bench no_op`.

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use kiln::store::ActionResult;
use support::fetching::sha256;
use support::peers::said;
use support::tiny_gguf::TinyGguf;

const ROUNDS: usize = 21;

fn main() {
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    println!("{:>8}{:>12}{:>12}{:>12}{:>10}{:>14}", "parts", "kiln", "of it start", "the least", "ratio", "us a part");
    for layers in [2, 30, 200] {
        measure(&home.path().join(layers.to_string()), layers);
    }
}

fn measure(home: &Path, layers: usize) {
    fs::create_dir_all(home).expect("a folder");
    let model = TinyGguf::llama().layers(layers).write();
    fs::write(home.join("model.gguf"), &model).expect("a model");
    let plan = format!(
        r#"
        [plan]
        name = "no-op"
        [stage]
        source = {{ kind = "fetch", url = "file:model.gguf", sha256 = "{}" }}
        model = {{ kind = "inspect", gguf = "source" }}
        weights = {{ kind = "requant", tensors = "model" }}
        halves = {{ kind = "requant", tensors = "model", scheme = "f16" }}
        graph = {{ kind = "graph", model = "model", weights = "weights" }}
        graph-f16 = {{ kind = "graph", model = "model", weights = "halves" }}
        "#,
        sha256(&model)
    );
    fs::write(home.join("plan.toml"), plan).expect("a plan");
    let kiln = |args: &[&str]| said(Command::new(env!("CARGO_BIN_EXE_kiln")).args(args).current_dir(home));
    kiln(&["build", "plan.toml"]);
    let answer = kiln(&["build", "plan.toml"]);
    let parts: f64 = answer.split(' ').find_map(|word| word.parse().ok()).expect("nothing to do: N parts");

    let build = median(|| drop(kiln(&["build", "plan.toml"])));
    let start = median(|| drop(kiln(&["--version"])));
    let least = median(|| look(&home.join("cache")));
    let (ratio, each) = (build / (start + least), (build - start) / parts * 1e6);
    let ms = |seconds: f64| format!("{:.1} ms", seconds * 1e3);
    println!("{parts:>8}{:>12}{:>12}{:>12}{ratio:>10.2}{each:>14.1}", ms(build), ms(start), ms(least));
}

/// Reads every result, and looks for the blobs that it names.
fn look(cache: &Path) {
    for folder in fs::read_dir(cache.join("actions")).expect("results") {
        for entry in fs::read_dir(folder.expect("a folder").path()).expect("results") {
            let text = fs::read_to_string(entry.expect("a result").path()).expect("a result");
            let body = text.lines().nth(1).expect("three lines");
            let result: ActionResult = serde_json::from_str(body).expect("a result");
            for part in result.outputs.values() {
                let hex = part.content.blob().hex();
                black_box(fs::metadata(cache.join("blobs").join(&hex[..2]).join(hex)).expect("a blob"));
            }
        }
    }
}

fn median(mut work: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}
