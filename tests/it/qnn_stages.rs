//! `context-bin` and `dlc`. What needs the vendor's libraries is ignored unless asked for; they are
//! fetched then, or taken from the folder KILN_QNN. Those stages run in child processes, as in a
//! build.

use std::path::Path;
use std::time::Instant;

use crate::support::quantize::Quant;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tools;
use kiln::action::{InputStage, Inputs, Manifest, Part, Stage};
use kiln::base::{Code, Result};
use kiln::execute::{Executor, Local, Watch};
use kiln::store::{BlobStore, Disk};
use kiln::{base, stages};
use serde_json::{Value, json};

/// A cache folder, and stages run over it one after the other.
struct Bench {
    store: Disk,
    tool: Manifest,
    _root: tempfile::TempDir,
}

struct Silent;

impl Watch for Silent {
    fn progress(&self, _: u64, _: u64, _: &str) {}

    fn cancelled(&self) -> bool {
        false
    }
}

type Slots<'a> = &'a [(&'a str, &'a Manifest)];

impl Bench {
    /// Without libraries: expansion only.
    fn new() -> Self {
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Bench {
            store: Disk::open(&root.path().join("cache")).unwrap(),
            tool: Manifest::default(),
            _root: root,
        }
    }

    fn with_libraries() -> Self {
        let mut bench = Bench::new();
        let folder = std::env::var_os("KILN_QNN").map_or_else(tools::qnn, Into::into);
        let beside = folder.with_extension("libs");
        for file in [folder.as_path(), beside.as_path()]
            .into_iter()
            .flat_map(|f| f.read_dir().into_iter().flatten())
        {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if ["libQnnHtp.so", "libQnnIr.so", "libQnnSystem.so"].contains(&name.as_str())
                || name.starts_with("libc++")
                || name.starts_with("libunwind")
            {
                bench.tool.parts.insert(
                    name.parse().unwrap(),
                    bench.part(&std::fs::read(path).unwrap(), json!({})),
                );
            }
        }
        bench
    }

    fn part(&self, bytes: &[u8], facts: Value) -> Part {
        let mut sink = self.store.create().unwrap();
        std::io::Write::write_all(&mut sink, bytes).unwrap();
        Part {
            content: sink.finish().unwrap(),
            facts: facts.into(),
        }
    }

    fn bytes(&self, manifest: &Manifest, name: &str) -> Vec<u8> {
        self.store
            .open(&manifest.part(name).unwrap().content.digest)
            .unwrap()
            .unwrap()
            .to_vec()
    }

    fn inputs(&self, slots: Slots) -> Inputs {
        let slot = |(slot, given): &(&str, &Manifest)| {
            (slot.to_string(), vec![(slot.to_string(), (*given).clone())])
        };
        let tools = [("qnn".to_string(), self.tool.clone())].into();
        Inputs {
            slots: slots.iter().map(slot).collect(),
            tools,
            ..Inputs::default()
        }
    }

    fn run(&self, kind: &str, params: Value, slots: Slots) -> Result<Manifest> {
        let registry = stages::all();
        let stage: &dyn Stage = registry.get(kind).unwrap();
        let local = Local {
            store: &self.store,
            stages: &registry,
            program: env!("CARGO_BIN_EXE_kiln").into(),
        };
        let mut manifest = Manifest::default();
        for order in stage.expand(&params, &self.inputs(slots))? {
            let (name, demand, started) = (order.name.clone(), order.demand, Instant::now());
            let ran = local.run(&order.into_action(stage.spec()), &demand, &Silent)?;
            if let Some(peak) = ran.peak_memory_bytes {
                let [peak, asked] = [peak, demand.memory_bytes].map(base::bytes);
                println!(
                    "{kind} {name:?}: {}, peak {peak} of {asked}",
                    base::duration(started.elapsed())
                );
            }
            for (output, part) in ran.outputs {
                let full = if name.is_empty() {
                    output.to_string()
                } else {
                    format!("{name}/{output}")
                };
                manifest.parts.insert(full.parse().unwrap(), part);
            }
        }
        Ok(manifest)
    }

    fn onnx(&self, gguf: &[u8], scheme: &str, graph: Value) -> Manifest {
        let file = Manifest {
            parts: [("model.gguf".parse().unwrap(), self.part(gguf, json!({})))].into(),
        };
        let model = self.run("inspect", json!({}), &[("gguf", &file)]).unwrap();
        let weights = self
            .run("requant", json!({"scheme": scheme}), &[("tensors", &model)])
            .unwrap();
        self.run("graph", graph, &[("model", &model), ("weights", &weights)])
            .unwrap()
    }
}

fn tiny() -> Vec<u8> {
    TinyGguf::llama()
        .tensor_type("token_embd.weight", Quant::Q8_0)
        .write()
}

fn small() -> Value {
    json!({"prefill": 6, "context": 16})
}

fn names(manifest: &Manifest) -> Vec<&str> {
    manifest.parts.keys().map(|name| name.as_str()).collect()
}

fn digests(manifest: &Manifest) -> Vec<String> {
    manifest
        .parts
        .iter()
        .map(|(name, part)| format!("{name} {}", part.content.digest))
        .collect()
}

#[track_caller]
fn wrong(kind: &str, params: Value, slots: &[&str], expected: &str) {
    let given = |slot: &&str| InputStage {
        slot: slot.to_string(),
        stage: slot.to_string(),
        artifact: "",
    };
    let given: Vec<InputStage> = slots.iter().map(given).collect();
    let problems = stages::all()
        .get(kind)
        .unwrap()
        .check(&params, &given)
        .unwrap_err();
    let text: Vec<String> = problems
        .iter()
        .map(|p| {
            format!(
                "{}: {} ({})",
                p.path,
                p.problem,
                p.problem.help.as_deref().unwrap_or("")
            )
        })
        .collect();
    assert_eq!(text.join("\n"), expected);
}

#[test]
fn mistakes_in_a_plan_are_named() {
    let either = ": a context binary is made of either a `graph` or a `dlc` (give one of them)";
    wrong("context-bin", json!({"soc": "sm8650"}), &[], either);
    wrong(
        "context-bin",
        json!({"soc": "sm8650"}),
        &["graph", "dlc"],
        either,
    );
    wrong(
        "context-bin",
        json!({"soc": "sm8560", "graphs": ["prefill", "prefill"], "optimization": 4}),
        &["graph"],
        "graphs/1: \"prefill\" is in the list twice ()\noptimization: expected an integer from 1 to \
         3, found 4 (Optimization level of the compiler.)\nsoc: expected `sm8450`, `sm8550`, `sm8650`, \
         `sm8750` or `sm8850`, found `sm8560` (did you mean `sm8650`?)",
    );
    wrong(
        "dlc",
        json!({}),
        &[],
        ": a DLC is made of either a `graph` or a `context` (give one of them)",
    );
}

#[test]
fn a_dlc_is_refused_what_it_cannot_hold() {
    let bench = Bench::new();
    let onnx = bench.onnx(&tiny(), "native", small());
    let problem = bench
        .run("dlc", json!({}), &[("graph", &onnx)])
        .unwrap_err();
    assert_eq!(problem.code, Code::DlcEncoding);
    assert!(
        problem
            .message
            .contains("`blk.0.attn_k.weight` and 14 other tensors"),
        "{problem}"
    );

    let binary = Manifest {
        parts: [("model.bin".parse().unwrap(), bench.part(b"", json!({})))].into(),
    };
    assert_eq!(
        bench
            .run("dlc", json!({}), &[("context", &binary)])
            .unwrap_err()
            .code,
        Code::DlcNoContainer
    );
}

#[test]
fn a_missing_library_is_named() {
    let bench = Bench::new();
    let onnx = bench.onnx(&tiny(), "f16", small());
    for kind in ["dlc", "context-bin"] {
        let params = if kind == "dlc" {
            json!({})
        } else {
            json!({"soc": "sm8650"})
        };
        assert_eq!(
            bench
                .run(kind, params, &[("graph", &onnx)])
                .unwrap_err()
                .code,
            Code::ToolFileMissing
        );
    }
}

#[test]
#[ignore = "needs the QNN libraries"]
fn native_blocks_become_a_context_binary_and_its_container() {
    let bench = Bench::with_libraries();
    let onnx = bench.onnx(&tiny(), "native", small());
    let params = json!({"soc": "sm8650", "container": true});
    let context = bench
        .run("context-bin", params.clone(), &[("graph", &onnx)])
        .unwrap();
    let proofs = [
        "float-block-4x32-offset",
        "float-block-8x32",
        "lookup-float-block-8x32",
    ]
    .map(|name| format!("proof/{name}/figures.json"));
    assert_eq!(
        names(&context),
        [
            &[
                "container",
                "info.json",
                "quantization.json",
                "model.bin",
                "model.json"
            ][..],
            &proofs.each_ref().map(|s| s.as_str())
        ]
        .concat()
    );
    println!(
        "{}",
        String::from_utf8_lossy(&bench.bytes(&context, "info.json"))
    );
    println!(
        "{}",
        String::from_utf8_lossy(&bench.bytes(&context, &proofs[0]))
    );
    let again = bench
        .run("context-bin", params, &[("graph", &onnx)])
        .unwrap();
    assert_eq!(digests(&context), digests(&again));

    let container = bench
        .run("dlc", json!({}), &[("context", &context)])
        .unwrap();
    assert_eq!(
        container.part("model.dlc").unwrap(),
        context.part("container").unwrap()
    );
}

#[test]
#[ignore = "needs the QNN libraries"]
fn halves_go_through_a_dlc() {
    let bench = Bench::with_libraries();
    let onnx = bench.onnx(&tiny(), "f16", small());
    let dlc = bench.run("dlc", json!({}), &[("graph", &onnx)]).unwrap();
    assert_eq!(
        names(&dlc),
        [
            "decode.dlc",
            "quantization.json",
            "model.json",
            "prefill.dlc"
        ]
    );
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(
        digests(&dlc),
        digests(&bench.run("dlc", json!({}), &[("graph", &onnx)]).unwrap())
    );
    let context = bench
        .run("context-bin", json!({"soc": "sm8750"}), &[("dlc", &dlc)])
        .unwrap();
    for proof in ["proof/f16/figures.json", "proof/lookup-f16/figures.json"] {
        assert!(names(&context).contains(&proof), "{proof}");
    }
    let again = bench
        .run("context-bin", json!({"soc": "sm8750"}), &[("dlc", &dlc)])
        .unwrap();
    assert_eq!(digests(&context), digests(&again));
}

/// The real model, by both roads: `KILN_GGUF=... cargo test --release --test it qnn_stages::big_ --
/// --ignored --nocapture`.
#[test]
#[ignore = "needs the QNN libraries, SmolLM2 and minutes"]
fn big_smollm2_takes_both_roads() {
    let bench = Bench::with_libraries();
    let gguf = std::fs::read(std::env::var_os("KILN_GGUF").map_or_else(tools::smollm2, Into::into))
        .unwrap();
    let graph = || json!({"prefill": 128, "context": 512});
    let onnx = bench.onnx(&gguf, "native", graph());
    let keep = |name: &str, manifest: &Manifest| {
        let size = manifest
            .parts
            .values()
            .map(|part| part.content.digest.size_bytes)
            .max()
            .unwrap_or(0);
        println!(
            "{name}: {}\n{}",
            base::bytes(size),
            digests(manifest).join("\n")
        );
    };
    let params = json!({"soc": "sm8650", "container": true});
    let first = bench
        .run("context-bin", params.clone(), &[("graph", &onnx)])
        .unwrap();
    keep("native", &first);
    let second = bench
        .run("context-bin", params, &[("graph", &onnx)])
        .unwrap();
    assert_eq!(digests(&first), digests(&second));
    let onnx = bench.onnx(&gguf, "f16", graph());
    let dlc = bench.run("dlc", json!({}), &[("graph", &onnx)]).unwrap();
    keep("dlc", &dlc);
    let params = json!({"soc": "sm8650", "weight_sharing": false});
    keep(
        "f16",
        &bench.run("context-bin", params, &[("dlc", &dlc)]).unwrap(),
    );
    if let Some(folder) = std::env::var_os("KEEP") {
        std::fs::write(
            Path::new(&folder).join("native.bin"),
            bench.bytes(&first, "model.bin"),
        )
        .unwrap();
    }
}
