//! `reference`: logits of a GGUF on a text.

use crate::support::gguf_file::GgufFile;
use crate::support::quantize::Quant;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::workspace::Folder;
use kiln::action::{Manifest, PartName};
use kiln::base::Result;
use kiln::model::decoder::RopeRows;
use plain_decoder::PlainDecoder;
use serde_json::{Value, json};

mod plain_decoder;

fn reference(folder: &Folder, gguf: &[u8], text: &str, params: Value) -> Result<Manifest> {
    let model = folder.inspect(gguf)?;
    let text = folder.file("eval.txt", text.as_bytes());
    folder.run("reference", params, &[("model", &model), ("text", &text)])
}

fn logits(folder: &Folder, manifest: &Manifest, window: &str) -> Vec<f32> {
    let bytes = folder.bytes(manifest.part(&format!("{window}/logits")).unwrap());
    let logit = |bytes: &[u8; 4]| f32::from_le_bytes(*bytes);
    bytes.as_chunks().0.iter().map(logit).collect()
}

fn json_part(folder: &Folder, manifest: &Manifest, name: &str) -> Value {
    serde_json::from_slice(&folder.bytes(manifest.part(name).unwrap())).unwrap()
}

const TEXT: &str = "the quick brown fox jumps over the lazy dog";

#[test]
fn reference_writes_windows_and_a_greedy_continuation() {
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
    // The text begins with the prompt, so the first greedy token is the top of its last logits.
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
fn any_end_token_ends_the_continuation() {
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
    let unlimited = greedy(&file);
    assert_eq!(unlimited["ended"], false);
    file.set(
        "tokenizer.ggml.eot_token_id",
        unlimited["tokens"][0].as_u64().unwrap() as u32,
    );
    let ended = greedy(&file);
    assert_eq!(
        (&ended["tokens"], &ended["ended"]),
        (&json!([unlimited["tokens"][0]]), &json!(true))
    );
}

#[test]
fn a_byte_order_mark_is_ignored() {
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
fn a_short_text_is_rejected() {
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

/// The tokens of `window` and the logits after them.
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
    let mut worst = 0.0f64;
    for (found, expected) in found.iter().zip(expected) {
        worst = worst.max((f64::from(*found) - expected).abs());
    }
    worst
}

/// With and without biases, with separate and tied heads, with shared and separate key heads, and
/// with several types of matrices. Each model is compared with the rotary layout of its
/// architecture, and with the other layout, whose logits must differ.
#[test]
fn logits_match_a_plain_f64_decoder() {
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
            let mut decoder = PlainDecoder::new(&gguf);
            decoder.facts.rope_rows = right;
            let near = worst(&found, &decoder.logits(&tokens).concat());
            decoder.facts.rope_rows = wrong;
            let far = worst(&found, &decoder.logits(&tokens).concat());
            assert!(
                near < 1e-5 && far > 1e-2,
                "{model:?}, {name}: {near}, with the other RoPE {far}"
            );
        }
    }
}

/// The reference keeps keys and values; the plain decoder runs the complete text.
#[test]
fn greedy_gaps_match_a_plain_f64_decoder() {
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
        let logits = PlainDecoder::new(&gguf).logits(&text);
        for (index, (choice, gap)) in choices.iter().zip(gaps).enumerate() {
            let row = &logits[prompt.len() - 1 + index];
            let chosen = row[*choice as usize];
            let mut second = f64::NEG_INFINITY;
            for (token, logit) in row.iter().enumerate() {
                if token != *choice as usize {
                    second = second.max(*logit);
                }
            }
            let expected = chosen - second;
            assert!(
                (gap - expected).abs() < 1e-5,
                "{model:?}: {gap}, {expected}"
            );
        }
    }
}
