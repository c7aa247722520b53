//! A decoder cut into shards: what each takes and gives, what a tweak touches, and that the chip
//! computes the same.

use std::collections::BTreeMap;

use crate::support::stage_runner::StageRunner;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tools;
use kiln::action::{Inputs, Manifest};
use kiln::base::Code;
use kiln::model::onnx::{Checked, decode};
use kiln::stages;
use serde_json::{Value, json};

const TEXT: &str = "the quick brown fox jumps over the lazy dog and then the dog jumps over the \
                    quick brown fox again";

fn road(home: &tempfile::TempDir) -> StageRunner {
    StageRunner::new(home.path())
}

fn cut(shards: Value) -> Value {
    json!({"prefill": 16, "context": 32, "shards": shards})
}

/// What the graphs called `file` take and give, but for what all of them take.
fn ends(road: &StageRunner, graph: &Manifest, file: &str) -> String {
    let model = decode(&road.bytes(graph, file)).unwrap();
    let checked = Checked::new(&model).unwrap();
    let shared = ["attention_mask", "position_ids_cos", "position_ids_sin"];
    let inputs = checked.graph.input.iter().map(|value| value.name.as_str());
    let inputs: Vec<&str> = inputs.filter(|name| !shared.contains(name)).collect();
    let outputs: Vec<&str> = checked
        .graph
        .output
        .iter()
        .map(|value| value.name.as_str())
        .collect();
    format!(
        "{}: {} -> {}",
        checked.graph.name,
        inputs.join(" "),
        outputs.join(" ")
    )
}

#[test]
fn a_shard_gives_what_the_next_one_takes() {
    let home = tempfile::tempdir().unwrap();
    let road = road(&home);
    let (_, graph) = road.model(
        &TinyGguf::qwen2().layers(3).write(),
        "native",
        cut(json!(2)),
    );
    let files: Vec<&str> = graph
        .parts
        .keys()
        .map(|name| name.as_str())
        .filter(|name| name.ends_with(".onnx"))
        .collect();
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
            ends(&road, &graph, &format!("{role}-1-of-2.onnx")),
            expected
        );
        let expected = format!(
            "{graph_name}_2_of_2: blk.1.residual{} -> logits{}",
            caches(&[2], "in"),
            caches(&[2], "out")
        );
        assert_eq!(
            ends(&road, &graph, &format!("{role}-2-of-2.onnx")),
            expected
        );
    }
}

#[test]
fn the_whole_is_not_changed_by_being_cut() {
    let home = tempfile::tempdir().unwrap();
    let road = road(&home);
    let gguf = TinyGguf::qwen2().layers(3).write();
    let [whole, cut] =
        [json!(1), json!(3)].map(|shards| road.model(&gguf, "native", cut(shards)).1);
    for (name, part) in &whole.parts {
        assert_eq!(cut.parts.get(name), Some(part), "{name}");
    }
}

#[test]
fn shards_that_cannot_be_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let road = road(&home);
    let model = road.inspect(&TinyGguf::llama().layers(2).write());
    let weights = road
        .run("requant", json!({}), &[("tensors", &model)])
        .unwrap();
    let refused = |params| {
        road.run("graph", params, &[("model", &model), ("weights", &weights)])
            .unwrap_err()
    };
    let problem = refused(cut(json!(3)));
    assert_eq!(
        (problem.code.as_str(), problem.message.as_str()),
        ("kiln::shards::count", "2 layers make no 3 shards")
    );
    let mut params = cut(json!("auto"));
    params["shard_memory"] = json!("1MB");
    assert_eq!(refused(params).code, Code::GraphShards);
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
fn as_few_shards_as_fit_the_memory() {
    let home = tempfile::tempdir().unwrap();
    let road = road(&home);
    // 12 million weights in each of four layers.
    let gguf = TinyGguf::llama().layers(4).widths(1024, 4096).write();
    let count = |memory: &str| {
        let params =
            json!({"prefill": 16, "context": 32, "shards": "auto", "shard_memory": memory});
        let (_, graph) = road.model(&gguf, "f16", params);
        graph
            .parts
            .keys()
            .filter(|name| name.as_str().starts_with("prefill-"))
            .count()
    };
    assert_eq!(["8GB", "1700MB", "1GB"].map(count), [0, 2, 4]);
}

/// The orders of a `context-bin` by name, as far as their keys can tell them apart.
fn orders(graph: &Manifest, tool: &Manifest) -> BTreeMap<String, String> {
    let registry = stages::all();
    let stage = registry.get("context-bin").unwrap();
    let slots = [(
        "graph".to_string(),
        vec![("graph".to_string(), graph.clone())],
    )]
    .into();
    let inputs = Inputs {
        slots,
        tools: [("qnn".to_string(), tool.clone())].into(),
        ..Inputs::default()
    };
    let orders = stage.expand(&json!({"soc": "sm8650"}), &inputs).unwrap();
    orders
        .into_iter()
        .map(|order| {
            (
                order.name.clone(),
                order.into_action(stage.spec()).key().to_string(),
            )
        })
        .collect()
}

#[test]
fn a_tweak_compiles_one_shard_again() {
    let home = tempfile::tempdir().unwrap();
    let road = road(&home);
    let model = road.inspect(&TinyGguf::llama().layers(4).write());
    let graph = |schemes: Value| {
        let weights = road
            .run("requant", schemes, &[("tensors", &model)])
            .unwrap();
        road.run(
            "graph",
            cut(json!(4)),
            &[("model", &model), ("weights", &weights)],
        )
        .unwrap()
    };
    let library = road.part(b"a library", Value::Null);
    let files =
        ["libQnnHtp.so", "libQnnSystem.so"].map(|name| (name.parse().unwrap(), library.clone()));
    let tool = Manifest {
        parts: files.into(),
    };
    let before = orders(&graph(json!({})), &tool);
    let after = orders(
        &graph(json!({"override": [{"match": "blk.2.ffn_up.weight", "scheme": "f16"}]})),
        &tool,
    );
    let compiled: Vec<&String> = before.keys().filter(|name| name.contains("-of-")).collect();
    assert_eq!(compiled, ["1-of-4", "2-of-4", "3-of-4", "4-of-4"]);
    let anew: Vec<&String> = after
        .iter()
        .filter(|(name, key)| before.get(*name) != Some(*key))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(
        anew,
        ["", "3-of-4", "proof/f16"],
        "the quantization report, the shard, and the proof of the new encoding"
    );
}

#[test]
fn a_binary_that_is_missing_is_named() {
    let home = tempfile::tempdir().unwrap();
    let road = road(&home);
    let model = road.inspect(&TinyGguf::llama().write());
    let parts = ["2-of-2/model.bin", "model.json"]
        .map(|name| (name.parse().unwrap(), road.part(b"", Value::Null)));
    for context in [
        Manifest {
            parts: parts.into(),
        },
        model,
    ] {
        let slots = [("reference", &Manifest::default()), ("context", &context)];
        let problem = road.run("evaluate", json!({}), &slots).unwrap_err();
        assert_eq!(problem.code, Code::PartMissing, "{problem}");
    }
}

/// Both ways on the simulator, against the reference; and the container of each shard.
#[test]
#[ignore = "needs the QNN libraries"]
fn the_chip_computes_the_same_in_shards() {
    let home = tempfile::tempdir().unwrap();
    let road = road(&home).tool("qnn", &tools::qnn());
    let model = road.inspect(&TinyGguf::qwen2().layers(3).write());
    let params = json!({"windows": 2, "tokens": 12, "prompt": "the dog", "greedy": 5});
    let reference = road
        .run(
            "reference",
            params,
            &[("model", &model), ("text", &road.file(TEXT.as_bytes()))],
        )
        .unwrap();
    for shards in [1, 3] {
        let graph = road.graph(&model, "native", cut(json!(shards)));
        let params = json!({"soc": "sm8650", "weight_sharing": false, "container": true});
        let context = road
            .run("context-bin", params, &[("graph", &graph)])
            .unwrap();
        let score = road
            .run(
                "evaluate",
                json!({}),
                &[("reference", &reference), ("context", &context)],
            )
            .unwrap();
        let limits =
            json!({"limits": {"evaluation": {"ppl_ratio": 1e-2, "kld": 1e-4, "greedy": 5}}});
        let report = road
            .run("validate", limits, &[("evaluation", &score)])
            .unwrap();
        println!(
            "{}",
            String::from_utf8_lossy(&road.bytes(&report, "report.txt"))
        );
        let dlc = road
            .run("dlc", json!({}), &[("context", &context)])
            .unwrap();
        let count = dlc
            .parts
            .keys()
            .filter(|name| name.as_str().ends_with("model.dlc"))
            .count();
        assert_eq!(count, shards);
    }
}
