//! Embedding and head on the CPU: NPU and CPU together compute the same as the full graph.

use std::fs;

use crate::support::peers::{python, stdout_of};
use crate::support::place::{both, placed};
use crate::support::stage_runner::{StageRunner, TEXT};
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tools;
use kiln::action::Manifest;
use kiln::base::Code;
use serde_json::{Value, json};

#[test]
#[ignore = "needs a package index"]
fn split_graphs_compute_the_same_as_the_full_graph() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/peers/run_split.py");
    for (gguf, place, shards) in [
        (TinyGguf::qwen2().write(), both(), 1),
        (TinyGguf::llama().write(), both(), 2),
        (TinyGguf::llama().write(), json!({"embedding": "cpu"}), 2),
        (TinyGguf::qwen2().write(), json!({"head": "cpu"}), 1),
    ] {
        let mut params = placed(place, shards);
        // The rows are scaled by a power of two.
        params["residual_exponent"] = json!(3);
        let (_, graph) = runner.model(&gguf, "native", params);
        let out = tempfile::tempdir().unwrap();
        runner.write_to(&graph, out.path());
        println!("{}", stdout_of(python().arg(script).arg(out.path())));
    }
}

/// A runner with the tools for NPU and CPU, the model, and its reference.
fn prepare(home: &tempfile::TempDir, gguf: &[u8]) -> (StageRunner, Manifest, Manifest) {
    let runner = StageRunner::new(home.path())
        .tool("qnn", &tools::qnn())
        .tool("ort", &tools::onnxruntime());
    let model = runner.inspect(gguf);
    let params = json!({"windows": 2, "tokens": 12, "prompt": "the dog", "greedy": 5});
    let reference = runner.reference(&model, params);
    (runner, model, reference)
}

fn compile(runner: &StageRunner, graph: &Manifest) -> Manifest {
    runner
        .run(
            "context-bin",
            json!({"soc": "sm8650", "weight_sharing": false}),
            &[("graph", graph)],
        )
        .unwrap()
}

fn binary_bytes(context: &Manifest) -> u64 {
    let mut bytes = 0;
    for (name, part) in &context.parts {
        if name.as_str().ends_with("model.bin") {
            bytes += part.content.digest.size_bytes;
        }
    }
    bytes
}

#[test]
#[ignore = "needs the QNN libraries and ONNX Runtime"]
fn npu_and_cpu_together_match_the_reference() {
    let home = tempfile::tempdir().unwrap();
    let (runner, model, reference) = prepare(&home, &TinyGguf::qwen2().layers(3).write());
    let full = compile(
        &runner,
        &runner.graph(&model, "native", placed(json!({}), 1)),
    );
    for (place, shards) in [
        (both(), 1),
        (json!({"embedding": "cpu"}), 2),
        (json!({"head": "cpu"}), 3),
    ] {
        let graph = runner.graph(&model, "native", placed(place, shards));
        let context = compile(&runner, &graph);
        println!(
            "{} bytes of {}",
            binary_bytes(&context),
            binary_bytes(&full)
        );
        assert!(shards > 1 || binary_bytes(&context) < binary_bytes(&full));
        let score = runner.evaluate(&reference, "context", &context);
        let limits =
            json!({"limits": {"evaluation": {"ppl_ratio": 1e-2, "kld": 1e-4, "greedy": 5}}});
        let report = runner
            .run("validate", limits, &[("evaluation", &score)])
            .unwrap();
        println!("{}", runner.text(&report, "report.txt"));

        let slots = [
            ("reference", &reference),
            ("graph", &graph),
            ("context", &context),
        ];
        let layers = runner.run("evaluate-layers", json!({}), &slots).unwrap();
        let layers: Value = runner.json(&layers, "layers.json");
        println!("{layers}");
        for shard in layers["shards"].as_array().unwrap() {
            for (name, value) in shard["values"].as_object().unwrap() {
                let db = value["sqnr_db"].as_f64().unwrap_or(f64::INFINITY);
                assert!(db > 50.0, "{name}: {value}");
            }
        }

        let bundle = runner
            .run(
                "package",
                json!({}),
                &[("model", &model), ("context", &context)],
            )
            .unwrap();
        assert_eq!(bundle.under("cpu").count(), context.under("cpu").count());
        let slots = [("bundle", &bundle), ("reference", &reference)];
        assert_eq!(
            runner.run("generate", json!({}), &slots).unwrap_err().code,
            Code::PackagePlace
        );
        // A bundle that the device cannot run is not sent.
        let measure = |device: Value| runner.run("measure", device, &[("bundle", &bundle)]);
        assert_eq!(
            measure(json!({"device": "adb:R5CT1"})).unwrap_err().code,
            Code::PackagePlace
        );
        assert!(measure(json!({})).is_ok());
    }
}

/// libGenie looks up the rows itself and generates the tokens of the reference.
#[test]
#[ignore = "needs the QNN libraries"]
fn genie_uses_the_embedding_table() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path()).tool("qnn", &tools::qnn());
    let model = runner.inspect(&TinyGguf::qwen2().seed(60).write());
    let prompt = "<|im_start|>the dog and the fox\n is é";
    let params = json!({"windows": 1, "tokens": 8, "prompt": prompt, "greedy": 6});
    let reference = runner.reference(&model, params);
    // The rows are scaled by a power of two.
    let place = json!({"embedding": "cpu"});
    let params = json!({"prefill": 16, "context": 256, "place": place, "residual_exponent": 2});
    let context = compile(&runner, &runner.graph(&model, "native", params));
    let params = json!({"name": "tiny", "embedding_table": true});
    let bundle = runner
        .run(
            "package",
            params,
            &[("model", &model), ("context", &context)],
        )
        .unwrap();
    assert_eq!(
        bundle
            .part("tiny_embedding.bin")
            .unwrap()
            .content
            .digest
            .size_bytes,
        288 * 64 * 4
    );
    let answer = runner
        .run(
            "generate",
            json!({}),
            &[("bundle", &bundle), ("reference", &reference)],
        )
        .unwrap();
    let generation: Value = runner.json(&answer, "generation.json");
    println!("{generation}");
    assert_eq!(generation["tokens"], json!([48, 95, 48, 95, 142, 61]));
}

#[test]
#[ignore = "needs the QNN libraries and ONNX Runtime"]
fn a_corrupt_cpu_weight_fails_validation() {
    let home = tempfile::tempdir().unwrap();
    let (runner, model, reference) = prepare(&home, &TinyGguf::qwen2().write());
    let mut context = compile(&runner, &runner.graph(&model, "native", placed(both(), 1)));
    let score = |context: &Manifest| {
        runner.run(
            "evaluate",
            json!({}),
            &[("reference", &reference), ("context", context)],
        )
    };
    let limits = json!({"limits": {"evaluation": {"ppl_ratio": 1e-2, "kld": 1e-4}}});
    runner
        .run(
            "validate",
            limits.clone(),
            &[("evaluation", &score(&context).unwrap())],
        )
        .unwrap();
    runner.change_bytes(&mut context, "cpu/weights/output.weight/scales", |bytes| {
        bytes[1] ^= 0x80
    });
    let problem = runner
        .run(
            "validate",
            limits,
            &[("evaluation", &score(&context).unwrap())],
        )
        .unwrap_err();
    assert!(
        problem
            .message
            .contains("MISSED evaluation       mean KL divergence"),
        "{problem}"
    );
}

/// With quantized activations, the values between NPU and CPU are quantized too.
#[test]
#[ignore = "needs the QNN libraries and ONNX Runtime"]
fn quantized_values_pass_between_npu_and_cpu() {
    let home = tempfile::tempdir().unwrap();
    let (runner, model, reference) = prepare(&home, &TinyGguf::qwen2().write());
    let weights = runner
        .run(
            "requant",
            json!({"scheme": "int8-channel"}),
            &[("tensors", &model)],
        )
        .unwrap();
    let model_slots = [("model", &model), ("weights", &weights)];
    let float = runner
        .run("graph", placed(json!({}), 1), &model_slots)
        .unwrap();
    let text = runner.file(TEXT.repeat(8).as_bytes());
    let calibration = json!({"windows": 2});
    let calibration = runner
        .run(
            "calibrate",
            calibration,
            &[("model", &model), ("graph", &float), ("text", &text)],
        )
        .unwrap();
    let slots = [
        model_slots[0],
        model_slots[1],
        ("calibration", &calibration),
    ];
    let mut params = placed(both(), 1);
    params["activations"] = json!("u16");
    params["kv"] = json!("u16");
    params["prefill"] = json!(20);
    let context = compile(&runner, &runner.run("graph", params, &slots).unwrap());
    let info: Value = runner.json(&context, "1-of-1/info.json");
    let type_of = |list: &str, name: &str| {
        let mut tensors = info["graphs"][0][list].as_array().unwrap().iter();
        tensors.find(|tensor| tensor["name"] == name).unwrap()["type"].clone()
    };
    // Rows are added to the residual stream, which stays f16.
    assert_eq!(type_of("inputs", "inputs_embeds"), "f16");
    assert_eq!(type_of("outputs", "output_norm"), "ufixed16");
    let score = runner.evaluate(&reference, "context", &context);
    let limits = json!({"limits": {"evaluation": {"ppl_ratio": 2e-2, "kld": 1e-2}}});
    let report = runner
        .run("validate", limits, &[("evaluation", &score)])
        .unwrap();
    println!("{}", runner.text(&report, "report.txt"));
}

/// SmolLM2-135M-Instruct: `cargo test --release --test it place_simulated::big_ -- --ignored
/// --nocapture`.
#[test]
#[ignore = "needs the QNN libraries, ONNX Runtime, SmolLM2 and minutes"]
fn big_smollm2_on_npu_and_cpu() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path())
        .tool("qnn", &tools::qnn())
        .tool("ort", &tools::onnxruntime());
    let model = runner.inspect(&fs::read(tools::smollm2()).unwrap());
    let text = runner.file(include_bytes!("../../plans/data/eval.txt"));
    let prompt = "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n";
    let params = json!({"windows": 1, "tokens": 64, "prompt": prompt, "greedy": 8});
    let reference = runner
        .run("reference", params, &[("model", &model), ("text", &text)])
        .unwrap();
    let graph = |place| {
        runner.graph(
            &model,
            "native",
            json!({"prefill": 64, "context": 192, "place": place}),
        )
    };
    let [full, rows_only, between] = [json!({}), json!({"embedding": "cpu"}), both()]
        .map(|place| compile(&runner, &graph(place)));
    println!(
        "{} bytes, {} without the embedding",
        binary_bytes(&full),
        binary_bytes(&rows_only)
    );
    println!(
        "{} bytes without embedding and head",
        binary_bytes(&between)
    );
    let score = runner.evaluate(&reference, "context", &between);
    let limits = json!({"ppl_ratio": 1e-2, "kld": 1e-3, "same_top": 0.98, "greedy": 8});
    let limits = json!({"limits": {"evaluation": limits}});
    let report = runner
        .run("validate", limits, &[("evaluation", &score)])
        .unwrap();
    println!("{}", runner.text(&report, "report.txt"));

    let params = json!({"name": "smollm2", "embedding_table": true});
    let bundle = runner
        .run(
            "package",
            params,
            &[("model", &model), ("context", &rows_only)],
        )
        .unwrap();
    let answer = runner
        .run(
            "generate",
            json!({}),
            &[("bundle", &bundle), ("reference", &reference)],
        )
        .unwrap();
    let generation: Value = runner.json(&answer, "generation.json");
    println!("{generation}");
    assert_eq!(generation["tokens"], generation["expected"]);
}
