//! A decoder in shards: inputs and outputs of each shard, what a changed weight recompiles, and the
//! results on the simulator.

use std::collections::BTreeMap;

use crate::support::stage_runner::StageRunner;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tools;
use kiln::action::Manifest;
use kiln::base::Code;
use kiln::model::onnx::proto::ValueInfoProto;
use kiln::model::onnx::{Checked, decode};
use kiln::stages;
use serde_json::{Value, json};

/// Parameters of a graph in shards.
fn sharded(shards: Value) -> Value {
    json!({"prefill": 16, "context": 32, "shards": shards})
}

/// The inputs and outputs of a graph, except the inputs that all graphs have.
fn signature(runner: &StageRunner, graph: &Manifest, file: &str) -> String {
    let model = decode(&runner.bytes(graph, file)).unwrap();
    let checked = Checked::new(&model).unwrap();
    let graph = checked.graph;
    let names = |values: &[ValueInfoProto]| -> Vec<String> {
        values.iter().map(|value| value.name.clone()).collect()
    };
    let common = ["attention_mask", "position_ids_cos", "position_ids_sin"];
    let mut inputs = names(&graph.input);
    inputs.retain(|name| !common.contains(&name.as_str()));
    let (inputs, outputs) = (inputs.join(" "), names(&graph.output).join(" "));
    format!("{}: {inputs} -> {outputs}", graph.name)
}

#[test]
fn outputs_of_each_shard_are_inputs_of_the_next() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path());
    let (_, graph) = runner.model(
        &TinyGguf::qwen2().layers(3).write(),
        "native",
        sharded(json!(2)),
    );
    let mut files: Vec<&str> = graph.parts.keys().map(|name| name.as_str()).collect();
    files.retain(|name| name.ends_with(".onnx"));
    assert_eq!(
        files,
        [
            "decode-1-of-2.onnx",
            "decode-2-of-2.onnx",
            "decode.onnx",
            "prefill-1-of-2.onnx",
            "prefill-2-of-2.onnx",
            "prefill.onnx"
        ]
    );
    let caches = |layers: &[u32], end: &str| -> String {
        layers
            .iter()
            .map(|layer| format!(" past_key_{layer}_{end} past_value_{layer}_{end}"))
            .collect()
    };
    for (role, graph_name) in [
        ("prefill", "prompt_ar16_cl32"),
        ("decode", "token_ar1_cl32"),
    ] {
        let expected = format!(
            "{graph_name}_1_of_2: input_ids{} -> blk.1.residual{}",
            caches(&[0, 1], "in"),
            caches(&[0, 1], "out")
        );
        assert_eq!(
            signature(&runner, &graph, &format!("{role}-1-of-2.onnx")),
            expected
        );
        let expected = format!(
            "{graph_name}_2_of_2: blk.1.residual{} -> logits{}",
            caches(&[2], "in"),
            caches(&[2], "out")
        );
        assert_eq!(
            signature(&runner, &graph, &format!("{role}-2-of-2.onnx")),
            expected
        );
    }
}

#[test]
fn sharding_does_not_change_the_full_graphs() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path());
    let gguf = TinyGguf::qwen2().layers(3).write();
    let [full, in_shards] =
        [json!(1), json!(3)].map(|shards| runner.model(&gguf, "native", sharded(shards)).1);
    for (name, part) in &full.parts {
        assert_eq!(in_shards.parts.get(name), Some(part), "{name}");
    }
}

#[test]
fn invalid_shard_parameters_are_rejected() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path());
    let model = runner.inspect(&TinyGguf::llama().layers(2).write());
    let weights = runner
        .run("requant", json!({}), &[("tensors", &model)])
        .unwrap();
    let problem = |params| {
        runner
            .run("graph", params, &[("model", &model), ("weights", &weights)])
            .unwrap_err()
    };
    let count = problem(sharded(json!(3)));
    assert_eq!(
        (count.code.as_str(), count.message.as_str()),
        ("kiln::shards::count", "2 layers make no 3 shards")
    );
    let mut params = sharded(json!("auto"));
    params["shard_memory"] = json!("1MB");
    assert_eq!(problem(params).code, Code::GraphShards);
    let checked = stages::all()
        .get("graph")
        .unwrap()
        .check(&json!({"shards": 0, "shard_memory": "5 PB"}), &[])
        .unwrap_err();
    let paths: Vec<&str> = checked
        .iter()
        .map(|problem| problem.path.as_str())
        .collect();
    assert_eq!(paths, ["shards", "shard_memory", "shard_memory"]);
}

#[test]
fn auto_uses_the_fewest_shards_that_fit_the_memory() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path());
    // 12 million weights in each of four layers.
    let gguf = TinyGguf::llama().layers(4).widths(1024, 4096).write();
    let count = |memory: &str| {
        let params =
            json!({"prefill": 16, "context": 32, "shards": "auto", "shard_memory": memory});
        let (_, graph) = runner.model(&gguf, "f16", params);
        let files = graph.parts.keys();
        files
            .filter(|name| name.as_str().starts_with("prefill-"))
            .count()
    };
    assert_eq!(["8GB", "1700MB", "1GB"].map(count), [0, 2, 4]);
}

/// The keys of the orders of a `context-bin`, by name.
fn order_keys(runner: &StageRunner, graph: &Manifest) -> BTreeMap<String, String> {
    let registry = stages::all();
    let spec = registry.get("context-bin").unwrap().spec();
    let mut keys = BTreeMap::new();
    for order in runner.context_orders(graph, &json!({"soc": "sm8650"})) {
        let name = order.name.clone();
        keys.insert(name, order.into_action(spec).key().to_string());
    }
    keys
}

#[test]
fn changing_one_weight_recompiles_one_shard() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path());
    let model = runner.inspect(&TinyGguf::llama().layers(4).write());
    let graph = |schemes: Value| {
        let weights = runner
            .run("requant", schemes, &[("tensors", &model)])
            .unwrap();
        runner
            .run(
                "graph",
                sharded(json!(4)),
                &[("model", &model), ("weights", &weights)],
            )
            .unwrap()
    };
    let before = order_keys(&runner, &graph(json!({})));
    let after = order_keys(
        &runner,
        &graph(json!({"override": [{"match": "blk.2.ffn_up.weight", "scheme": "f16"}]})),
    );
    let compiled: Vec<&String> = before.keys().filter(|name| name.contains("-of-")).collect();
    assert_eq!(compiled, ["1-of-4", "2-of-4", "3-of-4", "4-of-4"]);
    let mut changed: Vec<&String> = after.keys().collect();
    changed.retain(|name| before.get(*name) != after.get(*name));
    assert_eq!(
        changed,
        ["", "3-of-4", "proof/f16"],
        "the quantization report, the shard, and the proof of the new encoding"
    );
}

#[test]
fn a_missing_binary_is_reported() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path());
    let model = runner.inspect(&TinyGguf::llama().write());
    let parts = ["2-of-2/model.bin", "model.json"]
        .map(|name| (name.parse().unwrap(), runner.part(b"", Value::Null)));
    for context in [
        Manifest {
            parts: parts.into(),
        },
        model,
    ] {
        let slots = [("reference", &Manifest::default()), ("context", &context)];
        let problem = runner.run("evaluate", json!({}), &slots).unwrap_err();
        assert_eq!(problem.code, Code::PartMissing, "{problem}");
    }
}

/// One and three shards on the simulator, compared with the reference, and the container of each
/// shard.
#[test]
#[ignore = "needs the QNN libraries"]
fn shards_match_the_reference_on_the_simulator() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path()).tool("qnn", &tools::qnn());
    let model = runner.inspect(&TinyGguf::qwen2().layers(3).write());
    let params = json!({"windows": 2, "tokens": 12, "prompt": "the dog", "greedy": 5});
    let reference = runner.reference(&model, params);
    for shards in [1, 3] {
        let graph = runner.graph(&model, "native", sharded(json!(shards)));
        let params = json!({"soc": "sm8650", "weight_sharing": false, "container": true});
        let context = runner
            .run("context-bin", params, &[("graph", &graph)])
            .unwrap();
        let score = runner.evaluate(&reference, "context", &context);
        let limits =
            json!({"limits": {"evaluation": {"ppl_ratio": 1e-2, "kld": 1e-4, "greedy": 5}}});
        let report = runner
            .run("validate", limits, &[("evaluation", &score)])
            .unwrap();
        println!("{}", runner.text(&report, "report.txt"));
        let dlc = runner
            .run("dlc", json!({}), &[("context", &context)])
            .unwrap();
        let files = dlc.parts.keys();
        let containers = files.filter(|name| name.as_str().ends_with("model.dlc"));
        assert_eq!(containers.count(), shards);
    }
}
