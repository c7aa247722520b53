//! `reference`: a GGUF and a text in, the model's own logits out.

use std::process::Stdio;

use crate::support::gguf_file::GgufFile;
use crate::support::peers::{python, said};
use crate::support::quantize::Quant;
use crate::support::textbook::Textbook;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::workspace::Folder;
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

/// The logits after the tokens of `window`, and these tokens.
fn window(folder: &Folder, manifest: &Manifest, window: &str) -> (Vec<u32>, Vec<f32>) {
    let tokens = json_part(folder, manifest, &format!("{window}/tokens.json"));
    (
        serde_json::from_value(tokens).unwrap(),
        logits(folder, manifest, window),
    )
}

/// The largest difference between two lists of logits.
fn worst(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let differences = found
        .iter()
        .zip(expected)
        .map(|(found, expected)| (f64::from(*found) - expected).abs());
    differences.fold(0.0, f64::max)
}

/// Biases and none, a head of its own and the embedding, shared key heads and one for each head,
/// matrices of several types; each with the rotary layout of its architecture, and with the other,
/// which must be far away.
#[test]
fn the_reference_computes_what_the_textbook_computes() {
    let (interleaved, half_split) = (RopeRows::Interleaved, RopeRows::HalfSplit);
    for (model, right, wrong) in [
        (TinyGguf::llama(), interleaved, half_split),
        (TinyGguf::llama().tied(false), interleaved, half_split),
        (TinyGguf::llama().heads(4, 4), interleaved, half_split),
        (TinyGguf::qwen2(), half_split, interleaved),
        (TinyGguf::qwen2().tied(true), half_split, interleaved),
        (TinyGguf::llama().bias(true), interleaved, half_split),
        (
            TinyGguf::qwen2().matrices(Quant::Q8_0).heads(4, 1),
            half_split,
            interleaved,
        ),
    ] {
        let gguf = model.write();
        let home = tempfile::tempdir().unwrap();
        let folder = Folder::new(home.path());
        let params = json!({"windows": 2, "tokens": 9});
        let manifest = reference(&folder, &gguf, TEXT, params).unwrap();
        for name in ["window-000", "window-001"] {
            let (tokens, found) = window(&folder, &manifest, name);
            let mut textbook = Textbook::new(&gguf);
            textbook.facts.rope_rows = right;
            let near = worst(&found, &textbook.logits(&tokens).concat());
            textbook.facts.rope_rows = wrong;
            let far = worst(&found, &textbook.logits(&tokens).concat());
            assert!(
                near < 1e-5 && far > 1e-2,
                "{model:?}, {name}: {near}, with the other RoPE {far}"
            );
        }
    }
}

/// A continuation keeps keys and values of what came before; the textbook runs the whole text.
#[test]
fn a_continuation_is_the_textbook_s() {
    for model in [TinyGguf::llama(), TinyGguf::qwen2().heads(4, 1)] {
        let gguf = model.write();
        let home = tempfile::tempdir().unwrap();
        let folder = Folder::new(home.path());
        let params = json!({"windows": 1, "tokens": 8, "prompt": "the quick", "greedy": 6});
        let manifest = reference(&folder, &gguf, TEXT, params).unwrap();
        let greedy = json_part(&folder, &manifest, "greedy.json");
        let read =
            |name: &str| -> Vec<u32> { serde_json::from_value(greedy[name].clone()).unwrap() };
        let (prompt, choices) = (read("prompt"), read("tokens"));
        let gaps: Vec<f64> = serde_json::from_value(greedy["gaps"].clone()).unwrap();
        assert_eq!(gaps.len(), choices.len());
        let text = [&prompt[..], &choices[..]].concat();
        let logits = Textbook::new(&gguf).logits(&text);
        for (index, (choice, gap)) in choices.iter().zip(gaps).enumerate() {
            let row = &logits[prompt.len() - 1 + index];
            let chosen = row[*choice as usize];
            let others = row.iter().enumerate();
            let second = others
                .filter(|(token, _)| *token != *choice as usize)
                .map(|(_, logit)| *logit)
                .fold(f64::NEG_INFINITY, f64::max);
            let expected = chosen - second;
            assert!(
                (gap - expected).abs() < 1e-5,
                "{model:?}: {gap}, {expected}"
            );
        }
    }
}

/// The reference and llama.cpp are two programs by different authors: what both compute is the
/// model. llama.cpp keeps keys and values in f16, which is all of the tolerance.
#[test]
#[ignore = "needs Python packages"]
fn llama_cpp_computes_what_the_reference_computes() {
    let script =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/peers/llama_cpp.py");
    for model in [
        TinyGguf::llama(),
        TinyGguf::llama().tied(false),
        TinyGguf::qwen2(),
        TinyGguf::qwen2().tied(true).heads(4, 1),
    ] {
        let shown = format!("{model:?}");
        let gguf = model.matrices(Quant::F32).write();
        let home = tempfile::tempdir().unwrap();
        let folder = Folder::new(home.path());
        let manifest = reference(&folder, &gguf, TEXT, json!({"windows": 1, "tokens": 12}));
        let (tokens, found) = window(&folder, &manifest.unwrap(), "window-000");
        let path = home.path().join("model.gguf");
        std::fs::write(&path, &gguf).unwrap();
        let logits = said(
            python()
                .arg(&script)
                .args(["--logits", path.to_str().unwrap()])
                .args(tokens.iter().map(u32::to_string))
                .stderr(Stdio::null()),
        );
        let logits: Vec<f64> = logits
            .split_whitespace()
            .map(|logit| logit.parse().unwrap())
            .collect();
        let largest = logits.iter().copied().map(f64::abs).fold(0.0, f64::max);
        let apart = worst(&found, &logits) / largest;
        assert!(apart < 2e-3, "{shown}: {apart}");
    }
}
