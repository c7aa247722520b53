//! Keys and output digests of the deterministic stage kinds. If the output of a stage changes and its
//! version does not, a cache keeps returning the old output.

use crate::support::stage_runner::StageRunner;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tools;
use kiln::action::{Manifest, PartName};
use kiln::base::hash_bytes;
use serde_json::{Value, json};

/// One line per stage: kind, version, parameters, digest of the keys, digest of the output.
const GOLDEN: &str = r#"inspect 4 {} b3:de20b230ff95 b3:9e302cf72d6e
dequant 2 {"type":"f32"} b3:36ad50133b36 b3:f70435de3057
dequant 2 {"type":"f16"} b3:5effc2c8c229 b3:a3d8ccc8d3b2
dequant 2 {"type":"bf16"} b3:3fa7bb95d6a9 b3:27d7b02cba08
rotate 1 {} b3:800d4649610e b3:9fbb842967f1
requant 4 {"scheme":"f16"} b3:a7994319f33b b3:eb4819bd8f03
graph 11 {"context":24,"prefill":8} b3:f70f33d096a7 b3:4b14e9b4514c
requant 4 {"scheme":"int8-block"} b3:3e6dd4cfbcfe b3:11daf00c395e
graph 11 {"context":24,"prefill":8} b3:2791cf98cdc4 b3:47b02fbf5192
requant 4 {"scheme":"native"} b3:732f9cfde6d1 b3:d919957b6dce
graph 11 {"context":24,"prefill":8} b3:52268327fb2f b3:beb47a37edde
requant 4 {"scheme":"native-safe"} b3:7db0042cdcfb b3:9d448f59634f
graph 11 {"context":24,"prefill":8} b3:6b3065b1acaf b3:6ba87acc77ba
requant 4 {"scheme":"int8-channel"} b3:a7702f00d97a b3:2cc20ef16e38
graph 11 {"context":24,"prefill":8} b3:83d44ca4536d b3:48489789b37c
requant 4 {"scheme":"lpbq-32"} b3:6446407647c2 b3:56811e7b3f94
graph 11 {"context":24,"prefill":8} b3:c372774f3c37 b3:37c11f6066f5
requant 4 {"scheme":"int4-channel"} b3:f2562522c4d5 b3:9c91fa8e0119
graph 11 {"context":24,"prefill":8} b3:2420418bf115 b3:02bcd4ef0a2e
export-gguf 1 {} b3:37fe172d1886 b3:e262a0d20d72
validate 5 {} b3:e9ae83abf0cd b3:bc9882df7b59
mixed-precision 3 {"bytes":130} b3:eb000934c1d1 b3:bfe24a1a0309
"#;

/// The same for the kinds that use Qualcomm's libraries.
const GOLDEN_WITH_LIBRARIES: &str = r#"inspect 4 {} b3:de20b230ff95 b3:9e302cf72d6e
requant 4 {"scheme":"native"} b3:732f9cfde6d1 b3:d919957b6dce
graph 11 {"context":24,"prefill":8} b3:52268327fb2f b3:beb47a37edde
context-bin 7 {"container":true,"soc":"sm8650"} b3:714ebfe17eae b3:b1006beb074a
dlc 4 {} b3:498a0ae21ae5 b3:b7fb6c1b87ab
estimate 2 {} b3:9d6287da50eb b3:f3ffebed1f94
requant 4 {"scheme":"f16"} b3:a7994319f33b b3:eb4819bd8f03
graph 11 {"context":24,"prefill":8} b3:f70f33d096a7 b3:4b14e9b4514c
dlc 4 {} b3:cb7d5b7588b2 b3:65f1fd3ed388
context-bin 7 {"soc":"sm8750"} b3:d6fc58c69616 b3:3ccfb4877ca0
package 6 {"name":"tiny"} b3:fc50a8ebbcbe b3:0e6966b330a2
"#;

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
    recorder.run("rotate", json!({}), &[("model", &model)]);
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
    recorder.run("estimate", json!({}), &[("graph", &native)]);
    let [_, f16] = recorder.graph(&model, "f16");
    let dlc = recorder.run("dlc", json!({}), &[("graph", &f16)]);
    recorder.run("context-bin", json!({"soc": "sm8750"}), &[("dlc", &dlc)]);
    let bundle = [("model", &model), ("context", &context)];
    recorder.run("package", json!({"name": "tiny"}), &bundle);
    recorder.check(GOLDEN_WITH_LIBRARIES);
}
