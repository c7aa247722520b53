//! Embedding and head on the CPU: that chip and CPU together compute what the whole graph does.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::support::peers::{python, said};
use crate::support::place::{both, names, placed};
use crate::support::stage_runner::StageRunner;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tools;
use kiln::action::Manifest;
use kiln::base::Code;
use serde_json::{Value, json};

const TEXT: &str = "the quick brown fox jumps over the lazy dog and then the dog jumps over the \
                    quick brown fox again";

/// Writes the ONNX files of `graph` and their weights into `folder`.
fn write_out(road: &StageRunner, graph: &Manifest, folder: &Path) {
    for name in names(graph) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, road.bytes(graph, name)).unwrap();
    }
}

#[test]
#[ignore = "needs a package index"]
fn the_pieces_in_a_row_compute_the_whole() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/peers/run_pieces.py");
    for (gguf, place, shards) in [
        (TinyGguf::qwen2().write(), both(), 1),
        (TinyGguf::llama().write(), both(), 2),
        (TinyGguf::llama().write(), json!({"embedding": "cpu"}), 2),
        (TinyGguf::qwen2().write(), json!({"head": "cpu"}), 1),
    ] {
        let mut params = placed(place, shards);
        // The rows are held times a power of two.
        params["residual_exponent"] = json!(3);
        let (_, graph) = road.model(&gguf, "native", params);
        let out = tempfile::tempdir().unwrap();
        write_out(&road, &graph, out.path());
        println!("{}", said(python().arg(script).arg(out.path())));
    }
}

/// A road with what the chip and the CPU need, and the reference of a model on it.
fn simulated(home: &tempfile::TempDir, gguf: &[u8]) -> (StageRunner, Manifest, Manifest) {
    let road = StageRunner::new(home.path())
        .tool("qnn", &tools::qnn())
        .tool("ort", &tools::onnxruntime());
    let model = road.inspect(gguf);
    let params = json!({"windows": 2, "tokens": 12, "prompt": "the dog", "greedy": 5});
    let reference = road
        .run(
            "reference",
            params,
            &[("model", &model), ("text", &road.file(TEXT.as_bytes()))],
        )
        .unwrap();
    (road, model, reference)
}

fn compiled(road: &StageRunner, graph: &Manifest) -> Manifest {
    road.run(
        "context-bin",
        json!({"soc": "sm8650", "weight_sharing": false}),
        &[("graph", graph)],
    )
    .unwrap()
}

fn binary_bytes(context: &Manifest) -> u64 {
    let binaries = context
        .parts
        .iter()
        .filter(|(name, _)| name.as_str().ends_with("model.bin"));
    binaries
        .map(|(_, part)| part.content.digest.size_bytes)
        .sum()
}

#[test]
#[ignore = "needs the QNN libraries and ONNX Runtime"]
fn chip_and_cpu_compute_the_whole_together() {
    let home = tempfile::tempdir().unwrap();
    let (road, model, reference) = simulated(&home, &TinyGguf::qwen2().layers(3).write());
    let whole = compiled(&road, &road.graph(&model, "native", placed(json!({}), 1)));
    for (place, shards) in [
        (both(), 1),
        (json!({"embedding": "cpu"}), 2),
        (json!({"head": "cpu"}), 3),
    ] {
        let graph = road.graph(&model, "native", placed(place, shards));
        let context = compiled(&road, &graph);
        println!(
            "{} bytes of {}",
            binary_bytes(&context),
            binary_bytes(&whole)
        );
        assert!(shards > 1 || binary_bytes(&context) < binary_bytes(&whole));
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

        let slots = [
            ("reference", &reference),
            ("graph", &graph),
            ("context", &context),
        ];
        let layers = road.run("evaluate-layers", json!({}), &slots).unwrap();
        let layers: Value = serde_json::from_slice(&road.bytes(&layers, "layers.json")).unwrap();
        println!("{layers}");
        for value in layers["shards"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|shard| shard["values"].as_object().unwrap())
        {
            assert!(
                value.1["sqnr_db"].as_f64().is_none_or(|db| db > 50.0),
                "{value:?}"
            );
        }

        let bundle = road
            .run(
                "package",
                json!({}),
                &[("model", &model), ("context", &context)],
            )
            .unwrap();
        assert_eq!(
            names(&bundle)
                .iter()
                .filter(|name| name.starts_with("cpu/"))
                .count(),
            context.under("cpu").count()
        );
        let slots = [("bundle", &bundle), ("reference", &reference)];
        assert_eq!(
            road.run("generate", json!({}), &slots).unwrap_err().code,
            Code::PackagePlace
        );
        // Nothing is sent to a device that could not run it.
        let measure = |device: Value| road.run("measure", device, &[("bundle", &bundle)]);
        assert_eq!(
            measure(json!({"device": "adb:R5CT1"})).unwrap_err().code,
            Code::PackagePlace
        );
        assert!(measure(json!({})).is_ok());
    }
}

/// libGenie looks the rows up itself, and says what the reference says.
#[test]
#[ignore = "needs the QNN libraries"]
fn genie_looks_rows_up() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path()).tool("qnn", &tools::qnn());
    let model = road.inspect(&TinyGguf::qwen2().seed(60).write());
    let params = json!({"windows": 1, "tokens": 8, "prompt": "<|im_start|>the dog and the fox\n is é", "greedy": 6});
    let reference = road
        .run(
            "reference",
            params,
            &[("model", &model), ("text", &road.file(TEXT.as_bytes()))],
        )
        .unwrap();
    // The rows are held times a power of two.
    let params = json!({"prefill": 16, "context": 256, "place": {"embedding": "cpu"}, "residual_exponent": 2});
    let context = compiled(&road, &road.graph(&model, "native", params));
    let params = json!({"name": "tiny", "embedding_table": true});
    let bundle = road
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
    let logged = road
        .run(
            "generate",
            json!({}),
            &[("bundle", &bundle), ("reference", &reference)],
        )
        .unwrap();
    let said: Value = serde_json::from_slice(&road.bytes(&logged, "generation.json")).unwrap();
    println!("{said}");
    assert_eq!(said["tokens"], json!([48, 95, 48, 95, 142, 61]));
}

#[test]
#[ignore = "needs the QNN libraries and ONNX Runtime"]
fn a_wrong_row_on_the_cpu_is_missed() {
    let home = tempfile::tempdir().unwrap();
    let (road, model, reference) = simulated(&home, &TinyGguf::qwen2().write());
    let mut context = compiled(&road, &road.graph(&model, "native", placed(both(), 1)));
    let score = |context: &Manifest| {
        road.run(
            "evaluate",
            json!({}),
            &[("reference", &reference), ("context", context)],
        )
    };
    let limits = json!({"limits": {"evaluation": {"ppl_ratio": 1e-2, "kld": 1e-4}}});
    road.run(
        "validate",
        limits.clone(),
        &[("evaluation", &score(&context).unwrap())],
    )
    .unwrap();
    road.spoil(&mut context, "cpu/weights/output.weight/scales", |bytes| {
        bytes[1] ^= 0x80
    });
    let problem = road
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

/// What passes between them is in codes where the layers compute on codes.
#[test]
#[ignore = "needs the QNN libraries and ONNX Runtime"]
fn codes_pass_between_chip_and_cpu() {
    let home = tempfile::tempdir().unwrap();
    let (road, model, reference) = simulated(&home, &TinyGguf::qwen2().write());
    let weights = road
        .run(
            "requant",
            json!({"scheme": "int8-channel"}),
            &[("tensors", &model)],
        )
        .unwrap();
    let weighed = [("model", &model), ("weights", &weights)];
    let float = road.run("graph", placed(json!({}), 1), &weighed).unwrap();
    let text = road.file(TEXT.repeat(8).as_bytes());
    let calibration = json!({"windows": 2});
    let calibration = road
        .run(
            "calibrate",
            calibration,
            &[("model", &model), ("graph", &float), ("text", &text)],
        )
        .unwrap();
    let slots = [weighed[0], weighed[1], ("calibration", &calibration)];
    let mut params = placed(both(), 1);
    params["activations"] = json!("u16");
    params["kv"] = json!("u16");
    let context = compiled(&road, &road.run("graph", params, &slots).unwrap());
    let info: Value = serde_json::from_slice(&road.bytes(&context, "1-of-1/info.json")).unwrap();
    let types = |ends: &str| -> BTreeMap<String, String> {
        let tensor = |tensor: &Value| {
            Some((
                tensor["name"].as_str()?.into(),
                tensor["type"].as_str()?.into(),
            ))
        };
        info["graphs"][0][ends]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(tensor)
            .collect()
    };
    // Rows join the residual stream, which stays float.
    assert_eq!(
        (
            &*types("inputs")["inputs_embeds"],
            &*types("outputs")["output_norm"]
        ),
        ("f16", "ufixed16")
    );
    let score = road
        .run(
            "evaluate",
            json!({}),
            &[("reference", &reference), ("context", &context)],
        )
        .unwrap();
    let limits = json!({"limits": {"evaluation": {"ppl_ratio": 2e-2, "kld": 1e-2}}});
    let report = road
        .run("validate", limits, &[("evaluation", &score)])
        .unwrap();
    println!(
        "{}",
        String::from_utf8_lossy(&road.bytes(&report, "report.txt"))
    );
}

/// SmolLM2-135M-Instruct: `cargo test --release --test it place_simulated::big_ -- --ignored
/// --nocapture`.
#[test]
#[ignore = "needs the QNN libraries, ONNX Runtime, SmolLM2 and minutes"]
fn big_smollm2_between_chip_and_cpu() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path())
        .tool("qnn", &tools::qnn())
        .tool("ort", &tools::onnxruntime());
    let model = road.inspect(&fs::read(tools::smollm2()).unwrap());
    let text = road.file(include_bytes!("../../plans/data/eval.txt"));
    let prompt = "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n";
    let params = json!({"windows": 1, "tokens": 64, "prompt": prompt, "greedy": 8});
    let reference = road
        .run("reference", params, &[("model", &model), ("text", &text)])
        .unwrap();
    let graph = |place| {
        road.graph(
            &model,
            "native",
            json!({"prefill": 64, "context": 192, "place": place}),
        )
    };
    let [whole, rows_only, between] = [json!({}), json!({"embedding": "cpu"}), both()]
        .map(|place| compiled(&road, &graph(place)));
    println!(
        "{} bytes, {} without the embedding",
        binary_bytes(&whole),
        binary_bytes(&rows_only)
    );
    println!(
        "{} bytes without embedding and head",
        binary_bytes(&between)
    );
    let score = road
        .run(
            "evaluate",
            json!({}),
            &[("reference", &reference), ("context", &between)],
        )
        .unwrap();
    let limits = json!({"limits": {"evaluation": {"ppl_ratio": 1e-2, "kld": 1e-3, "same_top": 0.98, "greedy": 8}}});
    let report = road
        .run("validate", limits, &[("evaluation", &score)])
        .unwrap();
    println!(
        "{}",
        String::from_utf8_lossy(&road.bytes(&report, "report.txt"))
    );

    let params = json!({"name": "smollm2", "embedding_table": true});
    let bundle = road
        .run(
            "package",
            params,
            &[("model", &model), ("context", &rows_only)],
        )
        .unwrap();
    let logged = road
        .run(
            "generate",
            json!({}),
            &[("bundle", &bundle), ("reference", &reference)],
        )
        .unwrap();
    let said: Value = serde_json::from_slice(&road.bytes(&logged, "generation.json")).unwrap();
    println!("{said}");
    assert_eq!(said["tokens"], said["expected"]);
}
