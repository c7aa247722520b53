//! 16-bit activations: from a calibration to pairs in the graph, to tensors of codes on the device.

use std::collections::BTreeMap;

use crate::support::stage_runner::StageRunner;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tools;
use kiln::action::{Blob, Manifest};
use kiln::base::Result;
use kiln::lower::lower;
use kiln::model::onnx::proto::{ModelProto, element};
use kiln::model::onnx::{Builder, Grid};
use kiln::qnn::{DeviceGraph, Encoding};
use serde_json::{Value, json};

fn grids(grids: &[(&str, u32, f32, u32)]) -> BTreeMap<String, Grid> {
    let grid = |(name, bits, scale, zero_point): &(&str, u32, f32, u32)| {
        (
            name.to_string(),
            Grid {
                bits: *bits,
                scale: *scale,
                zero_point: *zero_point,
            },
        )
    };
    grids.iter().map(grid).collect()
}

fn lowered(model: &ModelProto) -> Result<DeviceGraph> {
    lower(model, &|_| Ok(Blob::new(vec![])))
}

/// The device ops of `write`, without their parameters.
fn ops(rounded: &[(&str, u32, f32, u32)], write: impl Fn(&mut Builder)) -> String {
    let mut builder = Builder::rounding(grids(rounded));
    write(&mut builder);
    let text = lowered(&builder.finish("g")).unwrap().to_string();
    let line = |line: &str| line.replace(" [2, 2, 2, 2]", "").replace(" [1]", "");
    text.lines().skip(1).map(|text| line(text) + "\n").collect()
}

#[test]
fn a_pair_is_the_encoding_of_one_tensor() {
    let write = |g: &mut Builder| {
        let x = g.input("x", element::FLOAT, &[2, 2, 2, 2]);
        let two = g.scalar("two", 2.0);
        let y = g.elementwise("Mul", "y", &x, &two);
        let z = g.transpose("z", &y, [0, 1, 3, 2]);
        let w = g.elementwise("Add", "w", &z, &y);
        g.output(&w);
    };
    let all = [
        ("x", 16, 0.5, 0),
        ("y", 16, 0.5, 32768),
        ("w", 16, 1.0, 100),
    ];
    assert_eq!(
        ops(&all, write),
        "input x: q16\noutput w: q16\ny: q16 = ElementWiseMultiply(x, <two.code: q16>)\nz: q16 = \
         Transpose(y, perm=[0, 1, 3, 2])\nw: q16 = ElementWiseAdd(z, y)\n"
    );
    // What reads floats, or gives them, computes on halves; codes are widened once.
    assert_eq!(
        ops(&all[1..2], write),
        "input x: f16\noutput w: f16\ny.exact: f16 = ElementWiseMultiply(x, <two: f16>)\ny: q16 = \
         Quantize(y.exact)\nz: q16 = Transpose(y, perm=[0, 1, 3, 2])\nz.halves: f16 = \
         Dequantize(z)\ny.halves: f16 = Dequantize(y)\nw: f16 = ElementWiseAdd(z.halves, \
         y.halves)\n"
    );
}

#[test]
fn a_cache_of_8_bits_is_converted() {
    let rounded = [("x", 16, 0.5, 9), ("past_key_0_out", 8, 0.5, 128)];
    let text = ops(&rounded, |g| {
        let x = g.input("x", element::FLOAT, &[2, 2, 2, 2]);
        let k = g.transpose("past_key_0_out", &x, [0, 1, 3, 2]);
        g.output(&k);
    });
    assert_eq!(
        text,
        "input x: q16\noutput past_key_0_out: q8\npast_key_0_out.exact: q16 = Transpose(x, \
         perm=[0, 1, 3, 2])\npast_key_0_out: q8 = Convert(past_key_0_out.exact)\n"
    );
}

#[test]
fn offsets_are_the_negative_of_zero_points_and_numbers_have_codes() {
    let mut builder = Builder::rounding(grids(&[("x", 16, 0.25, 7), ("y", 16, 0.5, 0)]));
    let x = builder.input("x", element::FLOAT, &[2]);
    let less = builder.scalar("less", -0.5);
    let y = builder.elementwise("Mul", "y", &x, &less);
    builder.output(&y);
    let graph = lowered(&builder.finish("g")).unwrap();
    let tensor = |name: &str| {
        graph
            .tensors
            .iter()
            .find(|tensor| tensor.name == name)
            .unwrap()
    };
    assert_eq!(
        tensor("x").encoding,
        Encoding::ScaleOffset {
            scale: 0.25,
            offset: -7
        }
    );
    let kiln::qnn::TensorKind::Static(source) = &tensor("less.code").kind else {
        panic!()
    };
    let data = source().unwrap();
    assert_eq!(data.bytes, [0, 0]);
    assert_eq!(
        data.encoding,
        Encoding::ScaleOffset {
            scale: 0.5 / 65535.0,
            offset: -65535
        },
        "-0.5"
    );
}

#[test]
fn wrong_encodings_do_not_reach_the_device() {
    let mut builder = Builder::rounding(grids(&[("x", 16, 0.25, 7), ("y", 16, 0.25, 8)]));
    let x = builder.input("x", element::FLOAT, &[2, 2, 2, 2]);
    let y = builder.reshape("y", &x, &[4, 4]);
    builder.output(&y);
    let problem = lowered(&builder.finish("g")).err().unwrap();
    assert!(
        problem.message.contains("`y.exact` of g only moves data"),
        "{problem}"
    );
}

const TEXT: &str = "the quick brown fox jumps over the lazy dog and then the dog jumps over the \
                    quick brown fox again";

/// Calibrates a tiny model, builds it as `graph` says, and scores it in ONNX Runtime and, if the
/// device's libraries are wanted, on the simulator: mean KL divergence and the names in
/// `encodings.json` that are held in codes.
fn tiny(model: &TinyGguf, mut graph: Value, simulate: bool) -> (f64, Option<f64>, Vec<String>) {
    let home = tempfile::tempdir().unwrap();
    let mut road = StageRunner::new(home.path()).tool("ort", &tools::onnxruntime());
    if simulate {
        road = road.tool("qnn", &tools::qnn());
    }
    let model = road.inspect(&model.write());
    let weights = road
        .run("requant", json!({}), &[("tensors", &model)])
        .unwrap();
    let text = road.file(TEXT.as_bytes());
    let size = json!({"prefill": 12, "context": 20});
    let float = road
        .run(
            "graph",
            size.clone(),
            &[("model", &model), ("weights", &weights)],
        )
        .unwrap();
    let slots = [("graph", &float), ("model", &model), ("text", &text)];
    let calibration = road
        .run("calibrate", json!({"windows": 4}), &slots)
        .unwrap();
    let is_u16 = graph.get("activations").is_some();
    graph
        .as_object_mut()
        .unwrap()
        .extend(size.as_object().unwrap().clone());
    let slots = [
        ("model", &model),
        ("weights", &weights),
        ("calibration", &calibration),
    ];
    let graph = road.run("graph", graph, &slots).unwrap();
    let params = json!({"windows": 2, "tokens": 12, "prompt": "the dog", "greedy": 3});
    let reference = road
        .run("reference", params, &[("model", &model), ("text", &text)])
        .unwrap();
    let kld = |slot: &str, candidate: &Manifest| {
        let score = road
            .run(
                "evaluate",
                json!({}),
                &[("reference", &reference), (slot, candidate)],
            )
            .unwrap();
        let report = road
            .run("validate", json!({}), &[("evaluation", &score)])
            .unwrap();
        println!(
            "{slot}\n{}",
            String::from_utf8_lossy(&road.bytes(&report, "report.txt"))
        );
        let report: Value = serde_json::from_slice(&road.bytes(&report, "report.json")).unwrap();
        let candidate = &report["candidates"]["evaluation"];
        assert_eq!(candidate["non_finite"], 0);
        candidate["fidelity"]["kld"].as_f64().unwrap()
    };
    let in_onnx_runtime = kld("graph", &graph);
    let on_simulator = simulate.then(|| {
        let params = json!({"soc": "sm8650", "weight_sharing": false});
        let context = road
            .run("context-bin", params, &[("graph", &graph)])
            .unwrap();
        for (name, _) in context.under("proof") {
            let figures = road.bytes(&context, &format!("proof/{name}"));
            println!("{}", String::from_utf8_lossy(&figures));
        }
        if is_u16 {
            let of_codes = context
                .under("proof")
                .filter(|(name, _)| name.contains("-from-u16/"));
            assert!(of_codes.count() > 0, "layers that read codes are proved");
        }
        kld("context", &context)
    });
    let report: BTreeMap<String, Value> =
        serde_json::from_slice(&road.bytes(&graph, "encodings.json")).unwrap();
    let coded = report
        .into_iter()
        .filter(|(_, chosen)| chosen.get("scale").is_some())
        .map(|(name, _)| name);
    (in_onnx_runtime, on_simulator, coded.collect())
}

#[test]
#[ignore = "needs ONNX Runtime and the QNN libraries"]
fn u16_is_true_in_onnx_runtime_and_on_the_simulator() {
    // Without a limit, all that can be held in codes is.
    let params = json!({"activations": "u16", "kv": "u16", "sqnr_db": 0.0});
    let (in_onnx_runtime, on_simulator, coded) = tiny(&TinyGguf::qwen2(), params, true);
    assert!(
        coded.iter().any(|name| name == "blk.0.scores.masked"),
        "{coded:?}"
    );
    assert!(
        coded.iter().any(|name| name == "blk.1.gate_up"),
        "{coded:?}"
    );
    assert!(in_onnx_runtime < 1e-5, "{in_onnx_runtime}");
    assert!(on_simulator.unwrap() < 1e-4, "{on_simulator:?}");
}

#[test]
#[ignore = "needs ONNX Runtime and the QNN libraries"]
fn a_cache_of_8_bits_is_true_enough() {
    let params = json!({"activations": "u16", "kv": "u8"});
    let (in_onnx_runtime, on_simulator, coded) = tiny(&TinyGguf::llama(), params, true);
    assert!(
        coded.iter().any(|name| name == "past_key_1_in"),
        "{coded:?}"
    );
    assert!(in_onnx_runtime < 1e-3, "{in_onnx_runtime}");
    assert!(on_simulator.unwrap() < 1e-3, "{on_simulator:?}");
}

#[test]
#[ignore = "needs ONNX Runtime and the QNN libraries"]
fn a_cache_of_codes_beside_halves() {
    let (in_onnx_runtime, on_simulator, coded) =
        tiny(&TinyGguf::llama(), json!({"kv": "u16"}), true);
    assert!(
        coded.iter().all(|name| name.starts_with("past_")),
        "{coded:?}"
    );
    assert!(in_onnx_runtime < 1e-6, "{in_onnx_runtime}");
    assert!(on_simulator.unwrap() < 1e-4, "{on_simulator:?}");
}
