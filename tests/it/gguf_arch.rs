//! The model facts of a GGUF: supported models, and files that are rejected.

use crate::support::gguf_file::{GgufFile, Value};
use crate::support::quantize::Quant;
use crate::support::tiny_gguf::TinyGguf;
use kiln::model::decoder::arch::{model_facts, model_warnings};
use kiln::model::decoder::{ModelFacts, RopeRows};
use kiln::model::gguf::Gguf;
use kiln::model::summary::Summary;

fn facts(file: &GgufFile) -> kiln::base::Result<ModelFacts> {
    model_facts(&Gguf::parse(&file.write()).unwrap())
}

#[track_caller]
fn check_rejected(file: &GgufFile, expected: &[&str]) {
    let problem = facts(file)
        .expect_err("the file should be rejected")
        .to_string();
    for expected in expected {
        assert!(
            problem.contains(expected),
            "expected {expected:?} in {problem}"
        );
    }
}

#[track_caller]
fn check_key_rejected(key: &str, value: impl Into<Value>, expected: &str) {
    let mut file = TinyGguf::llama().file();
    file.set(key, value);
    check_rejected(&file, &[expected]);
}

#[test]
fn llama_metadata_is_read() {
    let facts = facts(&TinyGguf::llama().file()).unwrap();
    let expected = ModelFacts {
        architecture: "llama".into(),
        block_count: 2,
        hidden: 64,
        ffn: 128,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        vocab: 288,
        context_length: 512,
        rms_epsilon: 1e-5,
        rope_freq_base: 10000.0,
        rope_rows: RopeRows::Interleaved,
        qkv_bias: false,
        tied_embeddings: true,
        structure: None,
    };
    assert_eq!(facts, expected);
}

#[test]
fn optional_metadata_is_read() {
    let qwen = facts(&TinyGguf::qwen2().file()).unwrap();
    assert!(qwen.qkv_bias && !qwen.tied_embeddings && qwen.rope_rows == RopeRows::HalfSplit);
    let biased = facts(&TinyGguf::llama().bias(true).tied(false).file()).unwrap();
    assert!(biased.qkv_bias && !biased.tied_embeddings);

    let mut file = TinyGguf::llama().file();
    file.set("llama.attention.head_count", Value::I32s(vec![4, 4]));
    file.set("llama.attention.key_length", 16);
    file.set("llama.attention.value_length", 16);
    file.set("llama.rope.dimension_count", 16);
    file.set("llama.rope.scaling.type", "none");
    file.set("llama.attention.sliding_window", 0);
    file.set("llama.vocab_size", 288);
    assert_eq!(facts(&file).unwrap().heads, 4);

    let mut file = TinyGguf::llama().heads(4, 4).file();
    file.keys
        .retain(|(key, _)| key != "llama.attention.head_count_kv" && key != "llama.rope.freq_base");
    let defaults = facts(&file).unwrap();
    assert_eq!((defaults.kv_heads, defaults.rope_freq_base), (4, 10000.0));
}

#[test]
fn unknown_architectures_are_rejected() {
    let mut file = TinyGguf::llama().file();
    file.set("general.architecture", "mamba\u{7}");
    let problem = facts(&file).unwrap_err();
    assert_eq!(
        problem.message,
        r"architecture `mamba\u{7}` is not supported"
    );
    assert_eq!(
        problem.help.unwrap(),
        "kiln supports gemma2, gemma3, granite, llama, olmo2, phi3, qwen2, qwen3, smollm3"
    );
    file.keys.clear();
    check_rejected(&file, &["metadata key `general.architecture` is missing"]);
}

#[test]
fn inconsistent_numbers_are_rejected() {
    check_key_rejected(
        "llama.block_count",
        513,
        "513 layers; at most 512 are allowed",
    );
    check_key_rejected("llama.block_count", u32::MAX, "at most 512 are allowed");
    check_key_rejected("llama.embedding_length", 0, "`embedding_length` is 0");
    check_key_rejected(
        "llama.attention.head_count",
        5,
        "hidden 64 is no multiple of 5 heads",
    );
    check_key_rejected(
        "llama.attention.head_count",
        64,
        "head width 1; RoPE needs an even one",
    );
    check_key_rejected(
        "llama.attention.head_count",
        Value::I32s(vec![4, 2]),
        "the same integer for every layer",
    );
    check_key_rejected("llama.attention.head_count", "four", "found string four");
    check_key_rejected(
        "llama.attention.head_count_kv",
        3,
        "4 query heads cannot share 3 heads",
    );
    check_key_rejected(
        "llama.attention.head_count_kv",
        0,
        "4 query heads cannot share 0 heads",
    );
    check_key_rejected(
        "llama.attention.value_length",
        8,
        "`attention.value_length` is 8, but heads are 16 wide",
    );
    check_key_rejected(
        "llama.rope.dimension_count",
        8,
        "`rope.dimension_count` is 8, but heads are 16 wide",
    );
    check_key_rejected(
        "llama.attention.layer_norm_rms_epsilon",
        f32::NAN,
        "expected a finite f32, found f32 NaN",
    );
    check_key_rejected("llama.rope.freq_base", -1.0, "the base of RoPE is -1");
    check_key_rejected(
        "llama.vocab_size",
        289,
        "`vocab_size` is 289, but the embedding has 288 rows",
    );
}

#[test]
fn unsupported_features_are_rejected() {
    check_key_rejected(
        "llama.rope.scaling.type",
        "dynamic",
        "RoPE scaling dynamic is not supported",
    );
    check_key_rejected(
        "llama.rope.scaling.type",
        "longrope",
        "RoPE scaling longrope with these tensors `rope_*` is not supported",
    );
    check_key_rejected(
        "llama.rope.scaling.factor",
        -4.0,
        "the factor of RoPE's scaling is -4",
    );
    check_key_rejected("llama.attention.sliding_window", 4096, "a sliding window");
    check_key_rejected("llama.expert_count", 8, "a mixture of experts");
    check_key_rejected("llama.attention.causal", Value::Bool(0), "not causal");
    check_key_rejected(
        "llama.attention.scale",
        0.1,
        "an attention scale of its own",
    );
}

#[test]
fn divisors_of_rotary_frequencies_are_positive_numbers() {
    for (kind, bytes, expected) in [
        (0, vec![0; 32], "numbers that are not above zero"),
        (1, vec![0; 16], "has 8 numbers of type F16"),
    ] {
        let mut file = TinyGguf::llama().file();
        file.tensor("rope_freqs.weight", &[8], kind, bytes);
        check_rejected(&file, &[expected]);
    }
}

#[test]
fn all_metadata_problems_are_reported_at_once() {
    let mut file = TinyGguf::llama().file();
    file.keys
        .retain(|(key, _)| key != "llama.feed_forward_length");
    file.set("llama.context_length", Value::I32(-5));
    file.set("llama.expert_count", 8);
    check_rejected(
        &file,
        &[
            "`llama.feed_forward_length` is missing",
            "found i32 -5",
            "a mixture of experts",
        ],
    );
}

#[test]
fn all_tensor_problems_are_reported_at_once() {
    let mut file = TinyGguf::qwen2().file();
    file.tensors
        .retain(|tensor| tensor.name != "blk.1.attn_k.bias");
    let up = file
        .tensors
        .iter_mut()
        .find(|tensor| tensor.name == "blk.0.ffn_up.weight")
        .unwrap();
    up.dims.reverse();
    file.tensor("blk.0.attn_output.bias", &[64], 0, vec![0; 256]);
    let ones = [1.0f32; 7].iter().flat_map(|one| one.to_le_bytes());
    file.tensor("rope_freqs.weight", &[7], 0, ones.collect());
    check_rejected(
        &file,
        &[
            "`blk.1.attn_k.bias`: expected shape [32], not there",
            "`blk.0.ffn_up.weight`: expected shape [128, 64], found [64, 128]",
            "`blk.0.attn_output.bias`: no tensor of a `qwen2` model",
            "`rope_freqs.weight`: expected shape [8], found [7]",
        ],
    );
}

#[test]
fn long_problem_lists_are_truncated() {
    let mut file = TinyGguf::llama().layers(4).file();
    file.tensors.clear();
    check_rejected(&file, &["`token_embd.weight`", "and 18 more"]);
}

#[test]
fn tokenizer_metadata_is_checked() {
    let types = |len| Value::I32s(vec![1; len]);
    check_key_rejected(
        "tokenizer.ggml.token_type",
        types(287),
        "expected array of 288 i32, found array of 287 i32",
    );
    check_key_rejected(
        "tokenizer.ggml.token_type",
        Value::F32s(vec![1.0; 288]),
        "found array of 288 f32",
    );
    check_key_rejected(
        "tokenizer.ggml.scores",
        types(288),
        "expected array of 288 f32, found array of 288 i32",
    );
    check_key_rejected(
        "tokenizer.ggml.tokens",
        Value::Strings(vec!["a".into()]),
        "found array of 1 string",
    );
    check_key_rejected(
        "tokenizer.ggml.merges",
        types(3),
        "expected array of string, found array of 3 i32",
    );
    check_key_rejected(
        "tokenizer.ggml.bos_token_id",
        288,
        "is 288, beyond a vocabulary of 288",
    );
    check_key_rejected(
        "tokenizer.ggml.eos_token_id",
        Value::I32(-1),
        "found i32 -1",
    );
    for (key, id) in [("padding", 288), ("unknown", u32::MAX), ("mask", 300)] {
        let mut file = TinyGguf::qwen2().file();
        file.set(&format!("tokenizer.ggml.{key}_token_id"), id);
        assert!(facts(&file).is_ok(), "the id of {key} is not used");
        let bytes = file.write();
        let gguf = Gguf::parse(&bytes).unwrap();
        let warnings = model_warnings(&gguf, &model_facts(&gguf).unwrap());
        let expected = format!(
            "`tokenizer.ggml.{key}_token_id` is {id}, beyond a vocabulary of 288: kiln does not \
             use it"
        );
        assert_eq!(warnings, [expected]);
    }
    let bytes = TinyGguf::qwen2().write();
    let gguf = Gguf::parse(&bytes).unwrap();
    assert_eq!(model_warnings(&gguf, &model_facts(&gguf).unwrap()), [""; 0]);

    let mut file = TinyGguf::llama().file();
    file.keys.retain(|(key, _)| !key.starts_with("tokenizer."));
    assert!(facts(&file).is_ok(), "a file may have no tokenizer");
}

#[test]
fn the_summary_has_the_expected_format() {
    let bytes = TinyGguf::llama()
        .layers(1)
        .tensor_type("blk.0.ffn_down.weight", Quant::Q8_0)
        .write();
    let gguf = Gguf::parse(&bytes).unwrap();
    let facts = model_facts(&gguf).unwrap();
    let text = Summary {
        gguf: &gguf,
        model: Some(&facts),
    }
    .to_string();
    let start = "\
Tiny
GGUF version 3, 11 tensors, 55488 weights

model
  architecture  llama
  layers        1
  hidden        64
  feed-forward  128
  attention     4 heads of 16 over 2 of keys and values
  vocabulary    288
  head          the embedding
  biases        none
  context       512
  RoPE          base 10000, rows interleaved
  RMSNorm       epsilon 1e-5

types      tensors       weights       size
  Q4_1           7         47104    29.4 kB
  Q8_0           1          8192     8.7 kB
  F32            3           192      768 B

metadata
  general.architecture  llama
  general.name  Tiny
";
    assert_eq!(&text[..start.len()], start, "{text}");
    assert!(
        text.contains("  tokenizer.ggml.tokens  array of 288 string\n"),
        "{text}"
    );
}
