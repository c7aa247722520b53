//! 16-bit activations: from a calibration to quantize-dequantize pairs in the graph, and to
//! quantized tensors on the device.

use std::collections::BTreeMap;
use std::path::Path;

use crate::support::quantize::Quant;
use crate::support::stage_runner::{StageRunner, TEXT};
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tools;
use kiln::action::{Blob, Manifest};
use kiln::base::Result;
use kiln::lower::lower;
use kiln::model::onnx::proto::{ModelProto, element};
use kiln::model::onnx::{Builder, Function, Grid, float};
use kiln::qnn::{DeviceGraph, Encoding, TensorKind};
use serde_json::{Value, json};

fn grids(grids: &[(&str, u32, f32, u32)]) -> BTreeMap<String, Grid> {
    let mut map = BTreeMap::new();
    for &(name, bits, scale, zero_point) in grids {
        let grid = Grid {
            bits,
            scale,
            zero_point,
        };
        map.insert(name.to_string(), grid);
    }
    map
}

fn lowered(model: &ModelProto) -> Result<DeviceGraph> {
    lower(model, &|_| Ok(Blob::new(vec![])))
}

/// The device ops of the graph that `write` builds, without shapes.
fn ops(rounded: &[(&str, u32, f32, u32)], write: impl Fn(&mut Builder)) -> String {
    let mut builder = Builder::rounding(grids(rounded));
    write(&mut builder);
    let text = lowered(&builder.finish("g")).unwrap().to_string();
    let (_, ops) = text.split_once('\n').unwrap();
    ops.replace(" [2, 2, 2, 2]", "").replace(" [1]", "")
}

#[test]
fn a_quantize_dequantize_pair_becomes_a_tensor_encoding() {
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
    // Ops with a float input or output compute in f16; a quantized value is dequantized once.
    assert_eq!(
        ops(&all[1..2], write),
        "input x: f16\noutput w: f16\ny.exact: f16 = ElementWiseMultiply(x, <two: f16>)\ny: q16 = \
         Quantize(y.exact)\nz: q16 = Transpose(y, perm=[0, 1, 3, 2])\nz.halves: f16 = \
         Dequantize(z)\ny.halves: f16 = Dequantize(y)\nw: f16 = ElementWiseAdd(z.halves, \
         y.halves)\n"
    );
}

#[test]
fn a_norm_computes_on_codes_with_a_gamma_in_codes_of_its_own() {
    let write = |g: &mut Builder| {
        let x = g.input("x", element::FLOAT, &[2, 2, 2, 64]);
        let gamma = g.constant("norm/values", &[64], &[-1.0, 3.0].repeat(32));
        let attributes = vec![float("epsilon", 0.5)];
        let y = g.call(
            Function::RmsNorm,
            "y",
            &[&x, &gamma],
            attributes,
            x.dims.clone(),
        );
        g.output(&y);
    };
    let both = [("x", 16, 0.5, 0), ("y", 16, 0.5, 32768)];
    assert_eq!(
        ops(&both, write).replace(" [2, 2, 2, 64]", ""),
        "input x: q16\noutput y: q16\ny: q16 = RmsNorm(x, <norm: q16 [64]>, epsilon=0.5, \
         axes=[3])\n"
    );
    assert_eq!(
        ops(&both[..1], write).replace(" [2, 2, 2, 64]", ""),
        "input x: q16\noutput y: f16\nx.halves: f16 = Dequantize(x)\ny: f16 = RmsNorm(x.halves, \
         <norm: f16 [64]>, epsilon=0.5, axes=[3])\n"
    );

    let mut builder = Builder::rounding(grids(&both));
    write(&mut builder);
    let graph = lowered(&builder.finish("g")).unwrap();
    let gamma = graph.tensors.iter().find(|tensor| tensor.name == "norm");
    let TensorKind::Static(source) = &gamma.unwrap().kind else {
        panic!()
    };
    let data = source().unwrap();
    assert_eq!(data.bytes, [0, 0, 255, 255].repeat(32));
    let encoding = Encoding::ScaleOffset {
        scale: 4.0 / 65535.0,
        offset: -16384,
    };
    assert_eq!(data.encoding, encoding);
}

#[test]
fn an_8_bit_kv_cache_is_converted() {
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
fn offsets_are_negated_zero_points_and_scalars_are_quantized() {
    let mut builder = Builder::rounding(grids(&[("x", 16, 0.25, 7), ("y", 16, 0.5, 0)]));
    let x = builder.input("x", element::FLOAT, &[2]);
    let less = builder.scalar("less", -0.5);
    let y = builder.elementwise("Mul", "y", &x, &less);
    builder.output(&y);
    let graph = lowered(&builder.finish("g")).unwrap();
    let tensor = |name: &str| {
        let mut tensors = graph.tensors.iter();
        tensors.find(|tensor| tensor.name == name).unwrap()
    };
    assert_eq!(
        tensor("x").encoding,
        Encoding::ScaleOffset {
            scale: 0.25,
            offset: -7
        }
    );
    let TensorKind::Static(source) = &tensor("less.code").kind else {
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
fn inconsistent_encodings_are_rejected() {
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

/// The result of [`tiny`].
struct Tiny {
    /// The mean KL divergence in ONNX Runtime.
    onnx_runtime: f64,
    /// The same on the simulator.
    simulator: f64,
    /// The names in `encodings.json` that are quantized.
    quantized: Vec<String>,
    /// The uses of weights that were proved.
    proved: Vec<String>,
}

impl Tiny {
    fn is_quantized(&self, name: &str) -> bool {
        self.quantized.iter().any(|found| found == name)
    }

    /// Whether a layer in f16 that reads codes was proved.
    fn proves_layers_from_u16(&self) -> bool {
        self.proved.iter().any(|name| name.ends_with("-from-u16"))
    }
}

/// Calibrates a tiny model, builds its graph with the parameters `graph` and the layers in `scheme`,
/// and evaluates it in ONNX Runtime and on the simulator.
fn tiny(model: &TinyGguf, scheme: &str, graph: Value) -> Tiny {
    tiny_on("sm8650", model, ("blk.*", scheme), graph)
}

/// The same on the simulator of `soc`, with the matrices that match a pattern in a scheme.
fn tiny_on(soc: &str, model: &TinyGguf, weights: (&str, &str), graph: Value) -> Tiny {
    tiny_by(&tools::qnn(), soc, model, weights, graph)
}

/// The same with the libraries of QNN in a folder.
fn tiny_by(
    qnn: &Path,
    soc: &str,
    model: &TinyGguf,
    (matrices, scheme): (&str, &str),
    mut graph: Value,
) -> Tiny {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path())
        .tool("ort", &tools::onnxruntime())
        .tool("qnn", qnn);
    let model = runner.inspect(&model.write());
    let layers = json!({"override": [{"match": matrices, "scheme": scheme}]});
    let weights = runner
        .run("requant", layers, &[("tensors", &model)])
        .unwrap();
    let text = runner.file(TEXT.as_bytes());
    // Calibration and candidate have the same keys.
    let mut size = json!({"prefill": 12, "context": 20});
    if let Some(key_centre) = graph.get("key_centre") {
        size["key_centre"] = key_centre.clone();
    }
    let float = runner
        .run(
            "graph",
            size.clone(),
            &[("model", &model), ("weights", &weights)],
        )
        .unwrap();
    let slots = [("graph", &float), ("model", &model), ("text", &text)];
    let calibration = runner
        .run("calibrate", json!({"windows": 4}), &slots)
        .unwrap();
    for (key, value) in size.as_object().unwrap() {
        let graph = graph.as_object_mut().unwrap();
        graph.entry(key).or_insert(value.clone());
    }
    let slots = [
        ("model", &model),
        ("weights", &weights),
        ("calibration", &calibration),
    ];
    let graph = runner.run("graph", graph, &slots).unwrap();
    let params = json!({"windows": 2, "tokens": 12, "prompt": "the dog", "greedy": 3});
    let reference = runner
        .run("reference", params, &[("model", &model), ("text", &text)])
        .unwrap();
    let kld = |slot: &str, candidate: &Manifest| {
        let score = runner.evaluate(&reference, slot, candidate);
        let report = runner
            .run("validate", json!({}), &[("evaluation", &score)])
            .unwrap();
        println!("{slot}\n{}", runner.text(&report, "report.txt"));
        let report: Value = runner.json(&report, "report.json");
        let candidate = &report["candidates"]["evaluation"];
        assert_eq!(candidate["non_finite"], 0);
        candidate["fidelity"]["kld"].as_f64().unwrap()
    };
    let onnx_runtime = kld("graph", &graph);
    let params = json!({"soc": soc, "weight_sharing": false});
    let context = runner
        .run("context-bin", params, &[("graph", &graph)])
        .unwrap();
    let mut proved = vec![];
    for (name, _) in context.under("proof") {
        let figures = runner.bytes(&context, &format!("proof/{name}"));
        println!("{}", String::from_utf8_lossy(&figures));
        proved.extend(name.split('/').next().map(String::from));
    }
    let report = runner.json(&graph, "encodings.json");
    let mut quantized = vec![];
    for (name, choice) in report.as_object().unwrap() {
        if choice.get("scale").is_some() {
            quantized.push(name.clone());
        }
    }
    Tiny {
        onnx_runtime,
        simulator: kld("context", &context),
        quantized,
        proved,
    }
}

/// Checks that the simulator computes what ONNX Runtime does.
#[track_caller]
fn check_agreement(case: &str, tiny: &Tiny) {
    let (expected, found) = (tiny.onnx_runtime, tiny.simulator);
    println!("{case}: {expected:e} in ONNX Runtime, {found:e} on the simulator");
    assert!(
        (found - expected).abs() < 0.02 * expected + 1e-4,
        "{case}: {expected:e} in ONNX Runtime, {found:e} on the simulator"
    );
}

/// Without a limit, everything that can be quantized is quantized.
fn all_u16() -> Value {
    json!({"activations": "u16", "kv": "u16", "sqnr_db": 0.0})
}

#[test]
#[ignore = "needs ONNX Runtime and the QNN libraries"]
fn u16_activations_are_accurate_in_onnx_runtime_and_the_simulator() {
    let tiny = tiny(&TinyGguf::qwen2(), "native", all_u16());
    assert!(
        tiny.is_quantized("blk.0.scores.masked"),
        "{:?}",
        tiny.quantized
    );
    assert!(tiny.is_quantized("blk.1.gate_up"), "{:?}", tiny.quantized);
    assert!(tiny.proves_layers_from_u16(), "{:?}", tiny.proved);
    assert!(tiny.onnx_runtime < 1e-5, "{}", tiny.onnx_runtime);
    assert!(tiny.simulator < 1e-4, "{}", tiny.simulator);
}

#[test]
#[ignore = "needs ONNX Runtime and the QNN libraries"]
fn layers_with_a_scale_for_each_row_multiply_codes() {
    let models = [TinyGguf::qwen2(), TinyGguf::llama()];
    for (scheme, proof, model) in [
        ("int8-channel", "channel-8-u16", &models[0]),
        ("int4-channel", "channel-4-u16", &models[1]),
        ("lpbq-16", "lpbq-16-u16", &models[1]),
        ("lpbq-32", "lpbq-32-u16", &models[0]),
    ] {
        let tiny = tiny(model, scheme, all_u16());
        let proved = &tiny.proved;
        assert!(proved.iter().any(|name| name == proof), "{proved:?}");
        let mut others = proved.iter().filter(|name| *name != proof);
        assert!(
            !others.any(|name| name.starts_with("channel-")),
            "{proved:?}"
        );
        assert!(tiny.is_quantized("blk.1.gate_up"), "{:?}", tiny.quantized);
        // Both have the error of the rounded weights.
        check_agreement(scheme, &tiny);
    }
}

/// The weights are exact; what is left is the error of the activations.
#[test]
#[ignore = "needs ONNX Runtime and the QNN libraries"]
fn layers_over_shifted_blocks_are_exact_and_multiply_codes() {
    let u16_layers = ["channel-8-u16", "lpbq-32-u16"];
    let f16_layers = ["channel-8", "float-block-4x32"];
    for (model, graph, layers, limit) in [
        (TinyGguf::qwen2(), all_u16(), u16_layers, 1e-5),
        (TinyGguf::llama(), json!({"kv": "u16"}), f16_layers, 1e-6),
    ] {
        let model = model.matrices(Quant::Q4_0).shifted();
        let tiny = tiny(&model, "lpbq-32-shifted", graph);
        for proof in layers {
            let mut proved = tiny.proved.iter();
            assert!(
                proved.any(|name| name == proof),
                "{proof}: {:?}",
                tiny.proved
            );
        }
        assert!(tiny.onnx_runtime < limit, "{}", tiny.onnx_runtime);
        check_agreement(layers[1], &tiny);
    }
}

/// Everything is in codes, also on a chip that has nothing else.
#[test]
#[ignore = "needs ONNX Runtime and the QNN libraries"]
fn graphs_without_floats_run_on_chips_with_and_without_fp16() {
    for model in [TinyGguf::qwen2(), TinyGguf::llama()] {
        for (soc, kv) in [("sm8635", "u8"), ("sm8635", "u16"), ("sm8650", "u8")] {
            let params = json!({
                "activations": "u16", "kv": kv, "float": "never", "key_centre": "none",
            });
            let tiny = tiny_on(soc, &model, ("*", "int8-channel"), params);
            assert_eq!(tiny.proved, ["channel-8-u16", "lookup-u16"]);
            for name in ["token_embd.rows", "blk.1.residual", "output_norm", "logits"] {
                assert!(tiny.is_quantized(name), "{name}: {:?}", tiny.quantized);
            }
            check_agreement(&format!("{soc} {kv}"), &tiny);
        }
    }
}

/// The same for every architecture, also with embedding and head on the CPU.
#[test]
#[ignore = "needs ONNX Runtime and the QNN libraries"]
fn every_architecture_runs_without_floats() {
    for model in TinyGguf::all() {
        for (place, matrices) in [("npu", "*"), ("cpu", "blk.*")] {
            let params = json!({
                "activations": "u16", "kv": "u8", "float": "never", "key_centre": "none",
                "place": {"embedding": place, "head": place},
            });
            let tiny = tiny_on("sm8635", &model, (matrices, "int8-channel"), params);
            let case = format!("{} {place}", model.architecture());
            assert!(tiny.onnx_runtime < 1e-3, "{case}: {}", tiny.onnx_runtime);
            check_agreement(&case, &tiny);
        }
    }
}

/// What `context-bin` refuses in a plan, the library refuses, too. One architecture later it does
/// not.
#[test]
#[ignore = "needs ONNX Runtime and the QNN libraries"]
fn caches_of_16_bits_need_v73() {
    let run = |soc: &'static str| {
        std::panic::catch_unwind(|| {
            let params = json!({
                "activations": "u16", "kv": "u16", "float": "never", "key_centre": "none",
            });
            tiny_on(soc, &TinyGguf::llama(), ("*", "int8-channel"), params)
        })
    };
    assert!(run("sm8450").is_err());
    check_agreement("sm8550", &run("sm8550").unwrap());
}

/// RmsNorm in codes, too, has a beta in the releases that require one.
#[test]
#[ignore = "needs ONNX Runtime and the QNN libraries"]
fn older_releases_run_without_floats() {
    for qnn in tools::older_qnn() {
        let params = json!({
            "activations": "u16", "kv": "u8", "float": "never", "key_centre": "none",
        });
        let weights = ("*", "int8-channel");
        let tiny = tiny_by(&qnn, "sm8635", &TinyGguf::qwen2(), weights, params);
        check_agreement(&qnn.display().to_string(), &tiny);
    }
}

/// The grids of the masks of windows do not come from the calibration, in which nothing is past.
#[test]
#[ignore = "needs ONNX Runtime and the QNN libraries"]
fn windows_slide_in_codes() {
    let model = TinyGguf::gemma3().keys(&[("attention.sliding_window", 5.into())]);
    for (soc, kv, prefill) in [("sm8635", "u8", 4), ("sm8650", "u16", 6)] {
        let params = json!({
            "activations": "u16", "kv": kv, "float": "never", "key_centre": "none",
            "prefill": prefill, "context": 24,
        });
        let tiny = tiny_on(soc, &model, ("*", "int8-channel"), params);
        assert!(tiny.onnx_runtime < 1e-3, "{}", tiny.onnx_runtime);
        check_agreement(&format!("{soc} {prefill}"), &tiny);
    }
}

/// Shards pass the residual stream on in codes, and the CPU's rows of the embedding are rounded.
#[test]
#[ignore = "needs ONNX Runtime and the QNN libraries"]
fn shards_without_floats_run_with_embedding_and_head_on_the_cpu() {
    for (model, shards, scheme, proof) in [
        (TinyGguf::llama(), 2, "lpbq-32", "lpbq-32-u16"),
        (TinyGguf::qwen2(), 1, "int8-channel", "channel-8-u16"),
    ] {
        let params = json!({
            "activations": "u16", "kv": "u8", "float": "never", "key_centre": "none",
            "shards": shards, "place": {"embedding": "cpu", "head": "cpu"},
        });
        let tiny = tiny_on("sm8635", &model, ("blk.*", scheme), params);
        assert_eq!(tiny.proved, [proof]);
        check_agreement(proof, &tiny);
    }
}

#[test]
#[ignore = "needs ONNX Runtime and the QNN libraries"]
fn an_8_bit_kv_cache_is_accurate() {
    let params = json!({"activations": "u16", "kv": "u8"});
    let tiny = tiny(&TinyGguf::llama(), "native", params);
    assert!(tiny.is_quantized("past_key_1_in"), "{:?}", tiny.quantized);
    assert!(tiny.proves_layers_from_u16(), "{:?}", tiny.proved);
    assert!(tiny.onnx_runtime < 1e-3, "{}", tiny.onnx_runtime);
    assert!(tiny.simulator < 1e-3, "{}", tiny.simulator);
}

#[test]
#[ignore = "needs ONNX Runtime and the QNN libraries"]
fn a_16_bit_kv_cache_works_with_f16_activations() {
    let tiny = tiny(&TinyGguf::llama(), "native", json!({"kv": "u16"}));
    let mut quantized = tiny.quantized.iter();
    assert!(
        quantized.all(|name| name.starts_with("past_")),
        "{:?}",
        tiny.quantized
    );
    assert!(tiny.onnx_runtime < 1e-6, "{}", tiny.onnx_runtime);
    assert!(tiny.simulator < 1e-4, "{}", tiny.simulator);
}
