//! `reference`: a GGUF and a text in, the model's own logits out.

use std::collections::HashMap;

use crate::support::gguf_file::GgufFile;
use crate::support::quantize::Quant;
use crate::support::textbook::Textbook;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::workspace::Folder;
use candle_core::{DType, Device, Tensor};
use candle_nn::{Activation, VarBuilder};
use candle_transformers::models::qwen2;
use kiln::action::{Inputs, Manifest, PartName};
use kiln::base::Result;
use kiln::model::facts::RopeRows;
use serde_json::{Value, json};

fn inputs(slots: &[(&str, &Manifest)]) -> Inputs {
    let slots = slots.iter().map(|(slot, manifest)| {
        (
            slot.to_string(),
            vec![("given".into(), (*manifest).clone())],
        )
    });
    Inputs {
        slots: slots.collect(),
        ..Inputs::default()
    }
}

fn file(folder: &Folder, name: &str, bytes: &[u8]) -> Manifest {
    Manifest {
        parts: [(
            PartName::new(name).unwrap(),
            folder.part(bytes, Value::Null),
        )]
        .into(),
    }
}

fn reference(folder: &Folder, gguf: &[u8], text: &str, params: Value) -> Result<Manifest> {
    let stages = kiln::stages::all();
    let gguf = file(folder, "model.gguf", gguf);
    let model = folder.run_stage(
        stages.get("inspect").unwrap(),
        json!({}),
        &inputs(&[("gguf", &gguf)]),
    )?;
    let text = file(folder, "eval.txt", text.as_bytes());
    folder.run_stage(
        stages.get("reference").unwrap(),
        params,
        &inputs(&[("model", &model), ("text", &text)]),
    )
}

fn logits(folder: &Folder, manifest: &Manifest, window: &str) -> Vec<f32> {
    let bytes = folder.bytes(manifest.part(&format!("{window}/logits")).unwrap());
    bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect()
}

fn json_part(folder: &Folder, manifest: &Manifest, name: &str) -> Value {
    serde_json::from_slice(&folder.bytes(manifest.part(name).unwrap())).unwrap()
}

const TEXT: &str = "the quick brown fox jumps over the lazy dog";

#[test]
fn windows_and_a_continuation() {
    let home = tempfile::tempdir().unwrap();
    let folder = Folder::new(home.path());
    let params = json!({"windows": 2, "tokens": 8, "prompt": "the", "greedy": 3});
    let manifest = reference(&folder, &TinyGguf::qwen2().write(), TEXT, params).unwrap();
    let names: Vec<&str> = manifest.parts.keys().map(PartName::as_str).collect();
    let expected = [
        "greedy.json",
        "model.json",
        "window-000/logits",
        "window-000/tokens.json",
        "window-001/logits",
        "window-001/tokens.json",
    ];
    assert_eq!(names, expected);
    let model = &manifest.part("model.json").unwrap().facts;
    let vocab = model.get("vocab").unwrap().as_u64().unwrap() as usize;
    assert_eq!(logits(&folder, &manifest, "window-001").len(), 8 * vocab);
    let greedy = json_part(&folder, &manifest, "greedy.json");
    assert_eq!(greedy["tokens"].as_array().unwrap().len(), 3);
    // The first choice is the top of the logits after the prompt: the text begins with it.
    let first = json_part(&folder, &manifest, "window-000/tokens.json");
    let prompt = greedy["prompt"].as_array().unwrap().len();
    assert_eq!(
        first.as_array().unwrap()[..prompt],
        greedy["prompt"].as_array().unwrap()[..]
    );
    let row = &logits(&folder, &manifest, "window-000")[(prompt - 1) * vocab..prompt * vocab];
    assert_eq!(
        kiln::model::fidelity::top(row).unwrap(),
        greedy["tokens"][0].as_u64().unwrap() as u32
    );
}

#[test]
fn an_answer_ends_with_any_token_that_ends_one() {
    let home = tempfile::tempdir().unwrap();
    let folder = Folder::new(home.path());
    let params = json!({"windows": 1, "tokens": 8, "prompt": "the", "greedy": 3});
    let greedy = |file: &GgufFile| {
        json_part(
            &folder,
            &reference(&folder, &file.write(), TEXT, params.clone()).unwrap(),
            "greedy.json",
        )
    };
    let mut file = TinyGguf::qwen2().file();
    let whole = greedy(&file);
    assert_eq!(whole["ended"], false);
    file.set(
        "tokenizer.ggml.eot_token_id",
        whole["tokens"][0].as_u64().unwrap() as u32,
    );
    let ended = greedy(&file);
    assert_eq!(
        (&ended["tokens"], &ended["ended"]),
        (&json!([whole["tokens"][0]]), &json!(true))
    );
}

#[test]
fn a_byte_order_mark_is_no_text() {
    let home = tempfile::tempdir().unwrap();
    let folder = Folder::new(home.path());
    let tokens = |text: &str| {
        let manifest = reference(
            &folder,
            &TinyGguf::llama().write(),
            text,
            json!({"windows": 2, "tokens": 8}),
        )
        .unwrap();
        json_part(&folder, &manifest, "window-000/tokens.json")
    };
    assert_eq!(tokens(&format!("\u{feff}{TEXT}")), tokens(TEXT));
}

#[test]
fn a_short_text_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let problem = reference(
        &Folder::new(home.path()),
        &TinyGguf::llama().write(),
        "a",
        json!({}),
    )
    .unwrap_err();
    assert!(
        problem.message.ends_with("too few for 8 windows of 128"),
        "{problem}"
    );
}

/// The largest difference between the reference's logits and the textbook's, whose RoPE pairs the
/// rows as `rope` says.
fn worst(gguf: &[u8], rope: RopeRows) -> f64 {
    let home = tempfile::tempdir().unwrap();
    let folder = Folder::new(home.path());
    let manifest = reference(&folder, gguf, TEXT, json!({"windows": 1, "tokens": 12})).unwrap();
    let tokens: Vec<u32> =
        serde_json::from_value(json_part(&folder, &manifest, "window-000/tokens.json")).unwrap();
    let mut textbook = Textbook::new(gguf);
    textbook.facts.rope_rows = rope;
    let expected = textbook.logits(&tokens).concat();
    let found = logits(&folder, &manifest, "window-000");
    assert_eq!(found.len(), expected.len());
    found
        .iter()
        .zip(expected)
        .map(|(found, expected)| (f64::from(*found) - expected).abs())
        .fold(0.0, f64::max)
}

#[test]
fn the_reference_says_what_the_textbook_says() {
    let q8 = TinyGguf::qwen2().matrices(Quant::Q8_0).heads(4, 1);
    for (gguf, right, wrong) in [
        (
            TinyGguf::llama(),
            RopeRows::Interleaved,
            RopeRows::HalfSplit,
        ),
        (
            TinyGguf::llama().tied(false),
            RopeRows::Interleaved,
            RopeRows::HalfSplit,
        ),
        (
            TinyGguf::qwen2(),
            RopeRows::HalfSplit,
            RopeRows::Interleaved,
        ),
        (q8, RopeRows::HalfSplit, RopeRows::Interleaved),
    ] {
        let (near, far) = (worst(&gguf.write(), right), worst(&gguf.write(), wrong));
        assert!(
            near < 1e-4 && far > 1e-2,
            "{gguf:?}: {near}, with the other RoPE {far}"
        );
    }
}

/// candle's own Qwen2, with the weights of `gguf`; the logits after each of `tokens`.
fn candles(gguf: &[u8], tokens: &[u32]) -> Vec<f32> {
    let Textbook { facts, weights } = Textbook::new(gguf);
    let size = |size: u32| size as usize;
    let (hidden, positions) = (size(facts.hidden), tokens.len());
    let config = qwen2::Config {
        vocab_size: size(facts.vocab),
        hidden_size: hidden,
        intermediate_size: size(facts.ffn),
        num_hidden_layers: size(facts.block_count),
        num_attention_heads: size(facts.heads),
        num_key_value_heads: size(facts.kv_heads),
        max_position_embeddings: positions,
        sliding_window: positions,
        max_window_layers: 0,
        tie_word_embeddings: facts.tied_embeddings,
        rope_theta: f64::from(facts.rope_freq_base),
        rms_norm_eps: f64::from(facts.rms_epsilon),
        use_sliding_window: false,
        hidden_act: Activation::Silu,
    };
    let named = |(name, values): (String, Vec<f64>)| {
        let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
        let columns = match name.rsplit('.').nth(1).unwrap() {
            "ffn_down" => size(facts.ffn),
            _ if values.len() <= size(facts.ffn).max(hidden) => values.len(),
            _ => hidden,
        };
        let shape = if columns == values.len() {
            vec![columns]
        } else {
            vec![values.len() / columns, columns]
        };
        let name = [
            ("blk.", "model.layers."),
            ("attn_norm", "input_layernorm"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_", "mlp."),
            ("mlp.gate", "mlp.gate_proj"),
            ("mlp.up", "mlp.up_proj"),
            ("mlp.down", "mlp.down_proj"),
            ("token_embd", "model.embed_tokens"),
            ("output_norm", "model.norm"),
        ]
        .iter()
        .fold(name, |name, (ours, theirs)| name.replace(ours, theirs));
        (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
    };
    let weights: HashMap<String, Tensor> = weights.into_iter().map(named).collect();
    let head = weights[if facts.tied_embeddings {
        "model.embed_tokens.weight"
    } else {
        "output.weight"
    }]
    .clone();
    let variables = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
    let ids = Tensor::new(tokens, &Device::Cpu)
        .unwrap()
        .unsqueeze(0)
        .unwrap();
    let state = qwen2::Model::new(&config, variables)
        .unwrap()
        .forward(&ids, 0, None)
        .unwrap();
    let logits = state
        .squeeze(0)
        .unwrap()
        .matmul(&head.t().unwrap())
        .unwrap();
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn the_reference_says_what_candles_own_model_says() {
    for gguf in [
        TinyGguf::qwen2(),
        TinyGguf::qwen2()
            .tied(false)
            .matrices(Quant::Q8_0)
            .heads(4, 1),
    ] {
        let home = tempfile::tempdir().unwrap();
        let (folder, gguf) = (Folder::new(home.path()), gguf.write());
        let manifest = reference(&folder, &gguf, TEXT, json!({"windows": 2, "tokens": 9})).unwrap();
        for window in ["window-000", "window-001"] {
            let tokens = json_part(&folder, &manifest, &format!("{window}/tokens.json"));
            let tokens: Vec<u32> = serde_json::from_value(tokens).unwrap();
            let expected = candles(&gguf, &tokens);
            let found = logits(&folder, &manifest, window);
            assert_eq!(found.len(), expected.len());
            let worst = found
                .iter()
                .zip(expected)
                .map(|(found, expected)| (found - expected).abs());
            let worst = worst.fold(0.0, f32::max);
            assert!(worst < 1e-5, "{window}: {worst}");
        }
    }
}
