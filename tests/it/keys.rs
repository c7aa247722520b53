//! Keys and output digests of the deterministic stage kinds. If the output of a stage changes and its
//! version does not, a cache keeps returning the old output.

use crate::support::stage_runner::StageRunner;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tools;
use kiln::action::{Manifest, PartName};
use kiln::base::hash_bytes;
use serde_json::{Value, json};

/// One line per stage: kind, version, parameters, digest of the keys, digest of the output.
const GOLDEN: &str = "";

/// The same for the kinds that use Qualcomm's libraries.
const GOLDEN_WITH_LIBRARIES: &str = "";

/// Runs stages and writes a line for each.
struct Recorder {
    runner: StageRunner,
    lines: String,
}

impl Recorder {
    fn run(&mut self, kind: &str, params: Value, slots: &[(&str, &Manifest)]) -> Manifest {
        let mut keys = String::new();
        for key in self.runner.keys(kind, &params, slots) {
            keys += &format!("{key}\n");
        }
        let manifest = self.runner.run(kind, params.clone(), slots).unwrap();
        let mut output = String::new();
        for (name, part) in &manifest.parts {
            output += &format!("{name} {} {}\n", part.content.digest, part.facts);
        }
        let (keys, output) = (hash_bytes(keys.as_bytes()), hash_bytes(output.as_bytes()));
        let (version, keys, output) = (self.runner.version(kind), keys.short(), output.short());
        self.lines += &format!("{kind} {version} {params} {keys} {output}\n");
        manifest
    }

    fn graph(&mut self, model: &Manifest, scheme: &str) -> [Manifest; 2] {
        let weights = self.run(
            "requant",
            json!({ "scheme": scheme }),
            &[("tensors", model)],
        );
        let params = json!({"prefill": 8, "context": 24});
        let graph = self.run("graph", params, &[("model", model), ("weights", &weights)]);
        [weights, graph]
    }

    #[track_caller]
    fn check(&self, golden: &str) {
        assert!(
            self.lines == golden,
            "a key or an output of these stages has changed; increase the version of each in its \
             SPEC, then write here:\n{}",
            self.lines
        );
    }
}

/// The output of `sensitivity` for two tensors.
fn costs(runner: &StageRunner) -> Manifest {
    let mut manifest = Manifest::default();
    for (tensor, kld) in [("blk.0.ffn_up.weight", 0.02), ("blk.1.ffn_up.weight", 0.01)] {
        let facts = json!({"tensor": tensor, "costs": [
            {"scheme": "native", "bytes": 90, "kld": 0.0},
            {"scheme": "int4-channel", "bytes": 40, "kld": kld},
        ]});
        let name = PartName::new(format!("{tensor}/costs.json")).unwrap();
        manifest.parts.insert(name, runner.part(b"", facts));
    }
    manifest
}

#[test]
fn keys_and_outputs_change_only_with_the_stage_version() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path());
    let file = runner.file(&TinyGguf::qwen2().write());
    let mut recorder = Recorder {
        runner,
        lines: String::new(),
    };
    let model = recorder.run("inspect", json!({}), &[("gguf", &file)]);
    for to in ["f32", "f16", "bf16"] {
        recorder.run("dequant", json!({ "type": to }), &[("model", &model)]);
    }
    for scheme in [
        "f16",
        "int8-block",
        "native",
        "native-safe",
        "int8-channel",
        "lpbq-32",
    ] {
        recorder.graph(&model, scheme);
    }
    let [weights, _] = recorder.graph(&model, "int4-channel");
    let slots = [("model", &model), ("weights", &weights)];
    recorder.run("export-gguf", json!({}), &slots);
    recorder.run("validate", json!({}), &[("weights", &weights)]);
    let costs = costs(&recorder.runner);
    recorder.run(
        "mixed-precision",
        json!({"bytes": 130}),
        &[("sensitivity", &costs)],
    );
    recorder.check(GOLDEN);
}

#[test]
#[ignore = "needs the QNN libraries"]
fn keys_and_outputs_with_libraries_change_only_with_the_stage_version() {
    let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let runner = StageRunner::new(home.path()).tool("qnn", &tools::qnn());
    let file = runner.file(&TinyGguf::qwen2().write());
    let mut recorder = Recorder {
        runner,
        lines: String::new(),
    };
    let model = recorder.run("inspect", json!({}), &[("gguf", &file)]);
    let [_, native] = recorder.graph(&model, "native");
    let params = json!({"soc": "sm8650", "container": true});
    let context = recorder.run("context-bin", params, &[("graph", &native)]);
    recorder.run("dlc", json!({}), &[("context", &context)]);
    let [_, f16] = recorder.graph(&model, "f16");
    let dlc = recorder.run("dlc", json!({}), &[("graph", &f16)]);
    recorder.run("context-bin", json!({"soc": "sm8750"}), &[("dlc", &dlc)]);
    let bundle = [("model", &model), ("context", &context)];
    recorder.run("package", json!({"name": "tiny"}), &bundle);
    recorder.check(GOLDEN_WITH_LIBRARIES);
}
