//! `estimate`: figures of the compiler, their sums over shards, and limits. The figures of the tests
//! that do not need the vendor's libraries are made up.

use std::collections::BTreeMap;

use crate::support::stage_runner::StageRunner;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tools;
use kiln::action::Manifest;
use kiln::artifact::estimate::{Figures, LayerEstimate, ModelEstimate};
use kiln::base::{Code, Problem};
use kiln::stages;
use serde_json::{Value, json};

/// Made-up facts of the part `estimate.json` of one of three shards.
fn facts(part: u32, place: Value) -> Value {
    let graph = |tokens: u32, time_us: u32, spill_bytes: u32| {
        let mut graph = json!({"tokens": tokens, "context": 512, "time_us": time_us * part,
            "time_lower_us": time_us, "time_upper_us": time_us * 2, "cycles": 1, "read_bytes": 1000,
            "fill_bytes": spill_bytes, "spill_bytes": spill_bytes, "write_bytes": 10,
            "ops_without_cost": 2});
        graph["shard"] = json!({"part": part, "of": 3, "first": part - 1, "end": part,
            "place": place});
        graph
    };
    json!({"soc": "qcs9075", "arch": 73,
        "graphs": {"decode": graph(1, 1000, 0), "prefill": graph(128, 5000, 50 * (part / 3))}})
}

/// The output of `estimate` for some of three shards, the last with its head on the CPU.
fn estimate(runner: &StageRunner, parts: &[u32]) -> Manifest {
    let mut manifest = Manifest::default();
    for &part in parts {
        let place = if part == 3 {
            json!({"head": "cpu"})
        } else {
            json!({})
        };
        let name = format!("{part}-of-3/estimate.json").parse().unwrap();
        manifest
            .parts
            .insert(name, runner.part(b"", facts(part, place)));
    }
    manifest
}

fn validate(estimate: &[u32], limits: Value) -> Result<String, Problem> {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path());
    let estimate = self::estimate(&runner, estimate);
    let params = json!({"limits": {"estimate": limits}});
    let report = runner.run("validate", params, &[("estimate", &estimate)])?;
    let sums = &runner.json(&report, "report.json")["estimates"]["estimate"]["sums"];
    println!("{sums}");
    Ok(runner.text(&report, "report.txt"))
}

#[test]
fn the_report_adds_up_the_shards() {
    let limits = json!({"decode_ms": 6.0, "prefill_ms": 30, "spill_bytes": 50});
    let report = validate(&[1, 2, 3], limits).unwrap();
    let expected = "
estimate: an estimate of Qualcomm's compiler for qcs9075 (v73), not a measurement
                                        ms     lower     upper      read      fill     spill   written  no cost
    decode, 1 token                  6.000     3.000     6.000    3.0 kB       0 B       0 B      30 B        6
    prefill, 128 tokens             30.000    15.000    30.000    3.0 kB      50 B      50 B      30 B        6
    not included: the head, which runs on the CPU

Time of one call.";
    assert!(report.contains(expected), "{report}");
    assert!(report.contains("1.6 times too good"), "{report}");
    assert!(report.contains("passed: 0 of 4 limits missed"), "{report}");
}

#[test]
fn each_limit_of_an_estimate_can_be_missed() {
    for (limits, missed) in [
        (json!({"decode_ms": 5.9}), "estimated ms of decode"),
        (json!({"prefill_ms": 29}), "estimated ms of prefill"),
        (
            json!({"spill_bytes": 49}),
            "estimated spill of prefill in bytes",
        ),
    ] {
        let problem = validate(&[1, 2, 3], limits).unwrap_err();
        assert_eq!(problem.code, Code::ValidateMissed);
        let lines = problem.message.lines();
        let missed_lines: Vec<&str> = lines.filter(|line| line.starts_with("MISSED")).collect();
        assert!(
            matches!(&missed_lines[..], [line] if line.contains(missed)),
            "{missed}: {problem}"
        );
    }
}

#[test]
fn a_sample_has_no_sum_and_no_limit() {
    let report = validate(&[1, 3], json!({})).unwrap();
    for line in [
        "    decode, layer 0                  1.000     1.000",
        "    prefill, layer 2                15.000     5.000",
        "    decode: 2 of 3 shards, so there is no sum",
    ] {
        assert!(report.contains(line), "{line} in {report}");
    }
    for limit in ["decode_ms", "prefill_ms", "spill_bytes"] {
        let problem = validate(&[1, 3], json!({ limit: 1000 })).unwrap_err();
        assert_eq!(problem.code, Code::ValidateEstimate);
        assert!(problem.message.contains(limit), "{problem}");
    }
}

#[test]
fn an_estimate_without_shards_is_a_problem() {
    let problem = validate(&[], json!({})).unwrap_err();
    assert_eq!(problem.code, Code::ValidateEstimate);
}

#[test]
fn chips_without_estimates_are_rejected() {
    let registry = stages::all();
    let check = |params: Value| registry.get("estimate").unwrap().check(&params, &[]);
    for soc in ["qcs9075", "sa8797p", "soc-114"] {
        assert_eq!(check(json!({ "soc": soc })).unwrap(), ["qnn"]);
    }
    let problems = check(json!({"soc": "sm8650"})).unwrap_err();
    assert_eq!(
        problems[0].problem.message,
        "expected `qcs9075`, `sa8797p` or `soc-114`, found `sm8650`"
    );
}

#[test]
fn layers_need_the_decode_graph() {
    let registry = stages::all();
    let check = |params: Value| registry.get("estimate").unwrap().check(&params, &[]);
    assert!(check(json!({"layers": true})).is_ok());
    assert!(check(json!({"layers": true, "graphs": ["decode"]})).is_ok());
    let problems = check(json!({"layers": true, "graphs": ["prefill"]})).unwrap_err();
    assert_eq!(
        problems[0].problem.message,
        "`layers` are those of the decode graph, which is not among `graphs`"
    );
}

#[test]
fn each_shard_is_estimated_with_its_own_weights() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path());
    let model = runner.inspect(&TinyGguf::llama().layers(4).write());
    let graph = |shards: u32| {
        let params = json!({"prefill": 16, "context": 32, "shards": shards});
        runner.graph(&model, "native", params)
    };
    let names = |shards: u32, params: Value| -> Vec<String> {
        let orders = runner.orders("estimate", &graph(shards), &params);
        orders.into_iter().map(|order| order.name).collect()
    };
    assert_eq!(names(1, json!({})), [""]);
    assert_eq!(names(4, json!({"sample": 2})), ["1-of-4", "4-of-4"]);

    let orders = runner.orders("estimate", &graph(4), &json!({"graphs": ["decode"]}));
    assert_eq!(orders.len(), 4);
    let inputs: Vec<&String> = orders[1].inputs.keys().collect();
    assert!(inputs.contains(&&"decode.onnx".to_string()));
    for input in &inputs[1..] {
        assert!(input.starts_with("weights/blk.1."), "{input}");
    }
    assert!(orders[1].demand.memory_bytes > 512 << 20);

    let with_layers = runner.orders("estimate", &graph(4), &json!({"layers": true}));
    assert!(with_layers[1].demand.memory_bytes > orders[1].demand.memory_bytes);
    // The key of an order without layers is what it was before there were layers.
    assert_eq!(orders[1].params.get("layers"), None);
}

/// The figures of each part `estimate.json`, by role.
fn figures(runner: &StageRunner, estimate: &Manifest, role: &str) -> BTreeMap<String, Figures> {
    let mut figures = BTreeMap::new();
    for name in estimate.parts.keys() {
        if name.as_str().ends_with("estimate.json") {
            let graph = &runner.json(estimate, name.as_str())["graphs"][role];
            println!("{name} {role} {graph}");
            let graph = serde_json::from_value(graph.clone()).unwrap();
            figures.insert(name.to_string(), graph);
        }
    }
    figures
}

#[test]
#[ignore = "needs the QNN libraries"]
fn a_tiny_model_is_estimated_for_each_chip() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path()).tool("qnn", &tools::qnn());
    let model = runner.inspect(&TinyGguf::qwen2().layers(2).write());
    let graph = runner.graph(&model, "native", json!({"prefill": 16, "context": 32}));
    for soc in ["qcs9075", "sa8797p", "soc-114"] {
        let estimate = || {
            let params = json!({ "soc": soc });
            runner
                .run("estimate", params, &[("graph", &graph)])
                .unwrap()
        };
        let first = estimate();
        let text = runner.text(&first, "estimate.txt");
        println!("{text}");
        assert!(text.starts_with(&format!("an estimate of Qualcomm's compiler for {soc} (v")));
        for role in ["decode", "prefill"] {
            let figures = figures(&runner, &first, role)["estimate.json"];
            assert!(figures.time_us > 0 && figures.read_bytes > 0, "{figures:?}");
            assert!(figures.time_lower_us <= figures.time_us);
            assert!(figures.time_us <= figures.time_upper_us);
        }
        assert_eq!(first, estimate(), "the same bytes and facts");
    }
}

#[test]
#[ignore = "needs the QNN libraries"]
fn the_sum_of_the_shards_is_reported() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path()).tool("qnn", &tools::qnn());
    let model = runner.inspect(&TinyGguf::qwen2().layers(3).write());
    let params = json!({"prefill": 16, "context": 32, "shards": 3, "place": {"embedding": "cpu"}});
    let graph = runner.graph(&model, "native", params);
    let run = || {
        let params = json!({"details": true});
        runner
            .run("estimate", params, &[("graph", &graph)])
            .unwrap()
    };
    let estimate = run();
    println!("{}", runner.text(&estimate, "1-of-3/estimate.txt"));
    assert_eq!(estimate, run(), "the same bytes and facts");

    let sums = ModelEstimate::read(&estimate).unwrap().sums;
    let report = runner
        .run("validate", json!({}), &[("estimate", &estimate)])
        .unwrap();
    let text = runner.text(&report, "report.txt");
    println!("{text}");
    assert!(text.contains("not included: the embedding"), "{text}");
    let reported = &runner.json(&report, "report.json")["estimates"]["estimate"]["sums"];
    for role in ["decode", "prefill"] {
        let shards = figures(&runner, &estimate, role);
        assert_eq!(shards.len(), 3);
        let (mut time_us, mut read_bytes, mut ops) = (0, 0, 0);
        for (name, figures) in shards {
            time_us += figures.time_us;
            read_bytes += figures.read_bytes;
            ops += figures.ops_without_cost;
            let names = &runner.json(&estimate, &name)["graphs"][role]["names"];
            let count = names.as_array().map_or(0, Vec::len);
            assert_eq!(count as u64, figures.ops_without_cost, "{names}");
        }
        let sum = sums[role];
        assert_eq!(
            (sum.time_us, sum.read_bytes, sum.ops_without_cost),
            (time_us, read_bytes, ops)
        );
        assert_eq!(reported[role], json!(sum));
    }
}

/// The layers of all shards.
fn layers(estimate: &Manifest) -> BTreeMap<String, LayerEstimate> {
    let model = ModelEstimate::read(estimate).unwrap();
    let mut layers = BTreeMap::new();
    for (tensor, layer) in model.layers() {
        layers.insert(tensor.to_string(), layer.clone());
    }
    layers
}

/// Whether two times differ by less than 2 %: the clock is that of a graph of some 90 us, which the
/// compiler states in whole microseconds.
fn is_close(a: &LayerEstimate, b: &LayerEstimate) -> bool {
    (a.time_us - b.time_us).abs() <= 0.02 * a.time_us
}

/// Two estimates of layers, and an assignment of schemes by them. The costs in accuracy are made
/// up.
#[test]
#[ignore = "needs the QNN libraries"]
fn the_time_of_each_linear_layer_is_estimated() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path()).tool("qnn", &tools::qnn());
    let model = runner.inspect(&TinyGguf::qwen2().layers(2).write());
    let estimate = |scheme: &str, shards: u32, layers: bool| {
        let params = json!({"prefill": 16, "context": 32, "shards": shards});
        let graph = runner.graph(&model, scheme, params);
        let params = json!({"graphs": ["decode"], "layers": layers});
        runner
            .run("estimate", params, &[("graph", &graph)])
            .unwrap()
    };
    let native = estimate("native", 2, true);
    assert_eq!(
        native,
        estimate("native", 2, true),
        "the same bytes and facts"
    );
    let without = ModelEstimate::read(&estimate("native", 2, false)).unwrap();
    let with = ModelEstimate::read(&native).unwrap();
    assert_eq!(with.sums, without.sums, "layers do not change the graph");
    assert!(without.layers().is_empty());
    println!("{with}");
    let text = runner.text(&native, "1-of-2/estimate.txt");
    assert!(
        text.contains("\nlinear layers of decode: estimates of each layer alone"),
        "{text}"
    );
    assert!(!without.to_string().contains("linear layers"));

    let found = layers(&native);
    let mut expected = vec!["output.weight".to_string()];
    for layer in 0..2 {
        for kind in [
            "attn_q",
            "attn_k",
            "attn_v",
            "attn_output",
            "ffn_gate",
            "ffn_up",
            "ffn_down",
        ] {
            expected.push(format!("blk.{layer}.{kind}.weight"));
        }
    }
    expected.sort();
    let names: Vec<&String> = found.keys().collect();
    assert_eq!(names, expected.iter().collect::<Vec<_>>());
    for (tensor, layer) in &found {
        assert_eq!(layer.scheme.as_deref(), Some("native"));
        assert!(
            layer.time_us > 0.0 && layer.shape.tokens == 1,
            "{tensor} {layer:?}"
        );
        for (other, same) in &found {
            let is_same = layer.shape == same.shape;
            assert!(!is_same || is_close(layer, same), "{tensor} {other}");
        }
        let has_bias = ["attn_q", "attn_k", "attn_v"]
            .iter()
            .any(|kind| tensor.contains(kind));
        assert_eq!(layer.shape.bias, has_bias, "{tensor}");
    }
    // A model in one piece has the same layers.
    let whole = layers(&estimate("native", 1, true));
    assert_eq!(whole.len(), found.len());
    for (tensor, layer) in &whole {
        let same = &found[tensor];
        assert!(
            layer.shape == same.shape && is_close(layer, same),
            "{layer:?} {same:?}"
        );
    }

    let f16 = estimate("f16", 2, true);
    let f16_layers = layers(&f16);
    let mut costs = Manifest::default();
    for (tensor, layer) in &found {
        let other = &f16_layers[tensor];
        assert_eq!(other.scheme.as_deref(), Some("f16"));
        assert_ne!(other.shape.weight, layer.shape.weight);
        let facts = json!({"tensor": tensor, "costs": [
            {"scheme": "native", "bytes": 2, "kld": 1e-3}, {"scheme": "f16", "bytes": 1, "kld": 0.0},
        ]});
        let name = format!("{tensor}/costs.json").parse().unwrap();
        costs.parts.insert(name, runner.part(b"", facts));
    }
    let slots = [
        ("sensitivity", &costs),
        ("estimates", &native),
        ("estimates", &f16),
    ];
    let params = json!({"decode_ms": 1000});
    let choice = runner.run("mixed-precision", params, &slots).unwrap();
    println!("{}", runner.text(&choice, "overrides.toml"));
    println!("{}", runner.text(&choice, "front.txt"));
    let facts = choice.part("overrides.toml").unwrap().facts.value().clone();
    // All layers are in f16: the time is that of the other graph.
    let expected_us = ModelEstimate::read(&f16).unwrap().sums["decode"].time_us as f64;
    assert!(
        (facts["decode_us"].as_f64().unwrap() - expected_us).abs() < 0.01,
        "{facts}, expected {expected_us}"
    );
    assert_eq!(facts["kld"], 0.0);
}
