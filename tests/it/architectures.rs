//! Every architecture: the reference against llama.cpp, graphs against the reference, and exported
//! files against their sources.

use std::process::Stdio;

use crate::support::gguf_file::{GgufFile, Value as Field};
use crate::support::peers::{python, stdout_of};
use crate::support::quantize::Quant;
use crate::support::stage_runner::StageRunner;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tools;
use kiln::action::Manifest;
use serde_json::{Value, json};

/// The context with which `llama_cpp.py` opens a model.
const LLAMA_CPP_CONTEXT: u32 = 256;

/// The largest difference from llama.cpp. It looks GELU up in a table of f16.
fn allowed(architecture: &str) -> f64 {
    if architecture.starts_with("gemma") {
        5e-3
    } else {
        1e-5
    }
}

/// The tokens of the first window of the text, and the reference's logits after each of them.
fn reference(file: &[u8]) -> (Vec<u32>, Vec<f64>) {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path());
    let model = runner.inspect(file);
    reference_of(&runner, &model)
}

/// The same of a `model`.
fn reference_of(runner: &StageRunner, model: &Manifest) -> (Vec<u32>, Vec<f64>) {
    let params = json!({"windows": 1, "tokens": 12, "context": LLAMA_CPP_CONTEXT});
    let logits = runner.reference(model, params);
    let tokens = runner.json(&logits, "window-000/tokens.json");
    let bytes = runner.bytes(&logits, "window-000/logits");
    let mut values = vec![];
    for bytes in bytes.as_chunks().0 {
        values.push(f64::from(f32::from_le_bytes(*bytes)));
    }
    (serde_json::from_value(tokens).unwrap(), values)
}

/// llama.cpp's logits after each of `tokens`.
fn llama_cpp(file: &[u8], tokens: &[u32]) -> Vec<f64> {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("model.gguf");
    std::fs::write(&path, file).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/peers/llama_cpp.py");
    let mut program = python();
    program.args([script, "--logits", path.to_str().unwrap()]);
    program.args(tokens.iter().map(u32::to_string));
    let text = stdout_of(program.stderr(Stdio::null()));
    text.split_whitespace()
        .map(|logit| logit.parse().unwrap())
        .collect()
}

/// The largest difference of two lists of logits, relative to the largest logit.
fn difference(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let (mut worst, mut largest) = (0.0f64, 0.0f64);
    for (found, expected) in found.iter().zip(expected) {
        worst = worst.max((found - expected).abs());
        largest = largest.max(expected.abs());
    }
    worst / largest
}

/// Models with each scaling of RoPE.
fn scaled() -> Vec<TinyGguf> {
    let yarn = |keys: &[(&'static str, Field)]| {
        let mut all: Vec<(&'static str, Field)> = vec![
            ("rope.scaling.type", "yarn".into()),
            ("rope.scaling.factor", 4.0.into()),
        ];
        all.extend(keys.iter().cloned());
        TinyGguf::llama().keys(&all)
    };
    vec![
        TinyGguf::llama().divisors("rope_freqs", &[1.0, 1.0, 1.25, 2.0, 4.0, 8.0, 8.0, 8.0]),
        TinyGguf::llama().keys(&[
            ("rope.scaling.type", "linear".into()),
            ("rope.scaling.factor", 2.5.into()),
        ]),
        TinyGguf::llama().keys(&[("rope.scaling.attn_factor", 1.25.into())]),
        yarn(&[("rope.scaling.original_context_length", 64.into())]),
        yarn(&[
            ("rope.scaling.original_context_length", 16.into()),
            ("rope.scaling.attn_factor", 0.75.into()),
        ]),
    ]
}

/// Files that differ from [`TinyGguf::all`] in one part, and what they are.
fn changed() -> Vec<(&'static str, GgufFile, GgufFile)> {
    let changes: [(TinyGguf, &[(&'static str, Field)]); 4] = [
        (
            TinyGguf::granite(),
            &[
                ("granite.embedding_scale", 12.5.into()),
                ("granite.attention.scale", 0.25.into()),
                ("granite.residual_scale", 0.25.into()),
                ("granite.logit_scale", 4.0.into()),
                ("granite.attention.layer_norm_rms_epsilon", 0.1.into()),
                ("granite.rope.scaling.finetuned", Field::Bool(0)),
            ],
        ),
        (
            TinyGguf::phi3(),
            &[
                ("phi3.rope.scaling.attn_factor", 1.0.into()),
                ("phi3.rope.scaling.original_context_length", 512.into()),
            ],
        ),
        (
            TinyGguf::gemma2(),
            &[
                ("gemma2.attn_logit_softcapping", 50.0.into()),
                ("gemma2.final_logit_softcapping", 30.0.into()),
                ("gemma2.attention.sliding_window", 6.into()),
                ("gemma2.rope.freq_base", 1000.0.into()),
            ],
        ),
        (
            TinyGguf::gemma3(),
            &[
                ("gemma3.attention.sliding_window", 6.into()),
                ("gemma3.attention.sliding_window_pattern", 2.into()),
                ("gemma3.rope.freq_base", 100.0.into()),
                ("gemma3.rope.freq_base_swa", 100.0.into()),
                ("gemma3.rope.scaling.factor", 1.0.into()),
                ("gemma3.final_logit_softcapping", 1.5.into()),
            ],
        ),
    ];
    let mut all = vec![];
    for (model, keys) in changes {
        let file = model.matrices(Quant::F32).file();
        for (key, value) in keys {
            let mut other = file.clone();
            other.set(key, value.clone());
            all.push((*key, file.clone(), other));
        }
    }
    for model in scaled() {
        let models = [TinyGguf::llama(), model];
        let [file, other] = models.map(|model| model.matrices(Quant::F32).file());
        all.push(("scaled RoPE", file, other));
    }
    all
}

#[test]
#[ignore = "needs Python packages"]
fn the_reference_computes_the_logits_of_llama_cpp() {
    let mut models = TinyGguf::all();
    models.extend(scaled());
    models.push(TinyGguf::llama().tied(false));
    models.push(TinyGguf::qwen2().tied(true).heads(4, 1));
    for model in models {
        let shown = format!("{model:?}");
        let allowed = allowed(model.architecture());
        let file = model.matrices(Quant::F32).write();
        let (tokens, found) = reference(&file);
        let error = difference(&found, &llama_cpp(&file, &tokens));
        assert!(error < allowed, "{shown}: {error}");
    }
}

#[test]
#[ignore = "needs Python packages"]
fn a_changed_part_changes_the_logits_as_in_llama_cpp() {
    for (what, file, other) in changed() {
        let (tokens, found) = reference(&other.write());
        let near = difference(&found, &llama_cpp(&other.write(), &tokens));
        let far = difference(&found, &llama_cpp(&file.write(), &tokens));
        assert!(
            near < allowed(what) && far > 2.0 * near && far > 1e-3,
            "{what}: {near}, {far}"
        );
    }
}

/// Evaluates the graphs of `model` in ONNX Runtime.
fn check_graphs(model: &TinyGguf, params: Value) {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path()).tool("ort", &tools::onnxruntime());
    let mut graph_params = json!({"prefill": 16, "context": 32});
    for (name, value) in params.as_object().unwrap() {
        graph_params[name] = value.clone();
    }
    let (description, graph) = runner.model(&model.write(), "native", graph_params.clone());
    let mut params = json!({"windows": 3, "tokens": 12, "prompt": "the dog", "greedy": 5});
    params["context"] = graph_params["context"].clone();
    let reference = runner.reference(&description, params.clone());
    let score = runner.evaluate(&reference, "graph", &graph);
    let limits = json!({"ppl_ratio": 1e-5, "kld": 1e-9, "same_top": 0.99, "greedy": 5});
    let limits = json!({"limits": {"evaluation": limits}});
    let report = runner.run("validate", limits, &[("evaluation", &score)]);
    if let Err(problem) = report {
        panic!("{model:?} {params}: {}", problem.message);
    }
}

#[test]
#[ignore = "needs ONNX Runtime"]
fn graphs_compute_what_the_reference_computes() {
    for model in scaled() {
        check_graphs(&model, json!({}));
    }
    // The short factors of LongRoPE.
    check_graphs(&TinyGguf::phi3(), json!({"prefill": 12, "context": 16}));
    for model in TinyGguf::all() {
        check_graphs(&model, json!({}));
        check_graphs(&model, json!({"residual_exponent": 3, "ffn_exponent": 2}));
        check_graphs(&model, json!({"shards": 2}));
    }
}

/// Windows shorter, as long as and longer than a prefill, with and without past tokens.
#[test]
#[ignore = "needs ONNX Runtime"]
fn graphs_slide_windows() {
    for model in [TinyGguf::gemma2(), TinyGguf::gemma3()] {
        let model = model.keys(&[("attention.sliding_window", 5.into())]);
        for (prefill, context) in [(16, 32), (5, 32), (4, 32), (1, 32), (12, 13)] {
            check_graphs(&model, json!({"prefill": prefill, "context": context}));
        }
        check_graphs(&model, json!({"prefill": 3, "shards": 2}));
        let shortest = model.keys(&[("attention.sliding_window", 1.into())]);
        check_graphs(&shortest, json!({"prefill": 3}));
    }
}

#[test]
fn the_summary_names_what_differs() {
    let mut found = vec![];
    for model in [TinyGguf::all(), scaled()].concat() {
        let home = tempfile::tempdir().unwrap();
        let runner = StageRunner::new(home.path());
        let description = runner.inspect(&model.write());
        let summary = runner.text(&description, "summary.txt");
        let lines = summary
            .lines()
            .filter_map(|line| line.trim().strip_prefix("in addition"));
        found.extend(lines.map(|line| line.trim().to_string()));
    }
    assert_eq!(
        found,
        [
            "the embedding times 8",
            "RMSNorm before and after each branch",
            "a sliding window of 32 tokens in 1 of 2 layers",
            "the activation GELU (tanh)",
            "scores capped at 0.75",
            "logits capped at 1.5",
            "the embedding times 8",
            "RMSNorm before and after each branch",
            "RMSNorm of each head of queries and keys",
            "RoPE with the base 10000 in 6 of 7 layers",
            "a sliding window of 32 tokens in 6 of 7 layers",
            "the activation GELU (tanh)",
            "RoPE with the base 1000000 in 1 of 7 layers",
            "RoPE with frequencies divided by 8 in 1 of 7 layers",
            "the embedding times 12",
            "scores times 0.2",
            "branches times 0.375",
            "logits times 0.33333334",
            "RMSNorm after each branch instead of before",
            "RMSNorm of queries and keys over all heads",
            "RoPE of 12 of the 16 columns of a head",
            "RoPE with frequencies divided by `rope_factors_short.weight`, in contexts above 16 by \
             `rope_factors_long.weight`, cosines and sines times 1.25",
            "RMSNorm of each head of queries and keys",
            "no RoPE in 1 of 4 layers",
            "RoPE with frequencies divided by `rope_freqs.weight`, up to 8",
            "RoPE with frequencies divided by 2.5",
            "RoPE, cosines and sines times 1.25",
            "RoPE with YaRN: factor 4 for contexts of 64, cosines and sines times 1.1386294",
            "RoPE with YaRN: factor 4 for contexts of 16, cosines and sines times 0.8539721",
        ]
    );
}

#[test]
fn an_exported_file_is_its_source() {
    for model in [TinyGguf::all(), scaled()].concat() {
        let home = tempfile::tempdir().unwrap();
        let runner = StageRunner::new(home.path());
        let file = model.write();
        let description = runner.inspect(&file);
        assert!(exported(&runner, &description) == file, "{model:?}");
    }
}

fn exported(runner: &StageRunner, model: &Manifest) -> Vec<u8> {
    let weights = runner.run("requant", json!({}), &[("tensors", model)]);
    let slots = [("model", model), ("weights", &weights.unwrap())];
    let exported = runner.run("export-gguf", json!({}), &slots).unwrap();
    runner.bytes(&exported, "model.gguf")
}

/// Of widths 64 and 96, so with an odd factor of 1 and 3.
fn rotatable() -> Vec<TinyGguf> {
    let mut models = vec![TinyGguf::llama().widths(96, 160), TinyGguf::qwen2()];
    for model in TinyGguf::all() {
        if !["gemma2", "gemma3", "olmo2"].contains(&model.architecture()) {
            models.push(model);
        }
    }
    models
}

#[test]
fn a_rotated_model_computes_the_same_logits() {
    for model in rotatable() {
        let home = tempfile::tempdir().unwrap();
        let runner = StageRunner::new(home.path());
        let source = runner.inspect(&model.write());
        let rotate = |params| runner.run("rotate", params, &[("model", &source)]).unwrap();
        let (tokens, expected) = reference_of(&runner, &source);
        for (number, allowed) in [("f32", 1e-5), ("f16", 3e-3)] {
            let rotated = rotate(json!({"type": number}));
            assert_eq!(rotated, rotate(json!({"type": number})));
            let (same, found) = reference_of(&runner, &rotated);
            assert_eq!(same, tokens);
            let error = difference(&found, &expected);
            assert!(error < allowed, "{model:?} {number}: {error}");
            let name = "tensors/blk.0.attn_q.weight";
            assert!(runner.bytes(&rotated, name) != runner.bytes(&source, name));
        }
    }
}

#[test]
fn models_with_norms_after_the_branches_are_not_rotated() {
    for model in [TinyGguf::olmo2(), TinyGguf::gemma3()] {
        let home = tempfile::tempdir().unwrap();
        let runner = StageRunner::new(home.path());
        let source = runner.inspect(&model.write());
        let problem = runner.run("rotate", json!({}), &[("model", &source)]);
        let message = problem.unwrap_err().message;
        assert!(
            message.starts_with("a rotation does not support RMSNorm"),
            "{message}"
        );
    }
}

#[test]
#[ignore = "needs Python packages"]
fn llama_cpp_computes_the_same_logits_of_a_rotated_model() {
    for model in rotatable() {
        if model.architecture() == "phi3" {
            // llama.cpp reads its fused matrices only.
            continue;
        }
        let home = tempfile::tempdir().unwrap();
        let runner = StageRunner::new(home.path());
        let file = model.clone().matrices(Quant::F32).write();
        let source = runner.inspect(&file);
        let params = json!({"type": "f32"});
        let rotated = runner.run("rotate", params, &[("model", &source)]).unwrap();
        let tokens: Vec<u32> = (0..12).map(|index| index * 17 % 280).collect();
        let rotated = llama_cpp(&exported(&runner, &rotated), &tokens);
        let error = difference(&rotated, &llama_cpp(&file, &tokens));
        assert!(error < 1e-5, "{model:?}: {error}");
    }
}
