//! Tokens of kiln, of llama.cpp with the same GGUF, and of Hugging Face's `tokenizers` with the
//! `tokenizer.json` that kiln writes.

use std::collections::BTreeSet;
use std::path::Path;

use crate::support::gguf_file::{GgufFile, Value};
use crate::support::peers;
use crate::support::quantize::Quant;
use crate::support::tiny_gguf::{Random, TinyGguf, byte_characters};
use crate::support::tools;
use crate::support::workspace::Folder;
use kiln::model::gguf::Gguf;
use kiln::model::summary::TokenizerKeys;
use kiln::model::tokenizer::Tokenizer;
use serde_json::{Value as Json, json};

/// The `tokenizer.*` metadata of a GGUF, as `inspect` writes it.
fn metadata(folder: &Folder, gguf: &[u8]) -> Json {
    let model = folder.inspect(gguf).unwrap();
    serde_json::from_slice(&folder.bytes(model.part("tokenizer.json").unwrap())).unwrap()
}

/// A tiny model with the vocabulary of `metadata` and the pre-tokenizer `pre`.
fn with_vocabulary(metadata: &Json, pre: &str) -> Vec<u8> {
    let strings =
        |key: &str| -> Vec<String> { serde_json::from_value(metadata[key].clone()).unwrap() };
    let tokens = strings("tokenizer.ggml.tokens");
    let kinds: Vec<i32> =
        serde_json::from_value(metadata["tokenizer.ggml.token_type"].clone()).unwrap();
    let mut file: GgufFile = TinyGguf::llama()
        .tensor_type("token_embd.weight", Quant::Q8_0)
        .file();
    let embedding = file
        .tensors
        .iter_mut()
        .find(|tensor| tensor.name == "token_embd.weight")
        .unwrap();
    (embedding.dims, embedding.data) = (
        vec![64, tokens.len() as u64],
        vec![0; tokens.len() * 2 * 34],
    );
    file.set("tokenizer.ggml.pre", pre);
    file.set("tokenizer.ggml.tokens", Value::Strings(tokens));
    file.set(
        "tokenizer.ggml.merges",
        Value::Strings(strings("tokenizer.ggml.merges")),
    );
    file.set("tokenizer.ggml.token_type", Value::I32s(kinds));
    file.write()
}

/// Difficult texts, and random ones from all planes of Unicode.
fn difficult_texts() -> Vec<String> {
    let mut texts: Vec<String> = [
        "",
        " ",
        "a",
        "\n",
        "  two  spaces   three    ",
        "tabs\t\t and\r\nlines\n\n\n end \n \n",
        "0123456789 12 345 6789 ½ ²³ ٣٤٥ Ⅷ 一二三",
        "I'm you're we'LL THEY'VE he'd o'clock 'S 's '' '",
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|><|im_start|><|im_end|> <|im_end|>x<|im_end|",
        "<|endoftext|>a <|endoftext|>\n<|im_start",
        "naïve Ünïcödé e\u{301} ﬀ ß ẞ İı ſ",
        "русский текст 中文字符 日本語のテキスト 한국어 עברית العربية हिन्दी ไทย",
        "👩‍👩‍👧‍👦🏳️‍🌈 🇫🇷 \u{1F600}\u{FE0F} ☃ ♞",
        "\u{a0}\u{2003}\u{3000}\u{200b}\u{feff}\u{85} \u{2028}\u{2029}x",
        "\0\u{1}\u{7f}\u{ad}\u{fffd}\u{e000}\u{10ffff}",
        "!?#$%&'()*+,-./:;<=>@[\\]^_`{|}~ --- ... ''' \"\"\" ///",
        "CamelCaseWords HTMLParser's ABCdEF'Re naïveÜber ÉCOLE'S path/to//x /// \r\n/a",
        "fn main() {\n\tprintln!(\"{}\", 1_000.5e-3);\n}\n",
        "http://example.org/a?b=c&d=%20 a.b@c.de C:\\x",
    ]
    .map(String::from)
    .into();
    texts.push("x".repeat(3000));
    texts.push(" ".repeat(1000) + "y");
    texts.push("ab\n".repeat(500));
    let mut random = Random::of("odd", 7);
    for index in 0..400 {
        let top = [0x80, 0x250, 0x3000, 0x11_0000][index % 4];
        let char =
            |random: &mut Random| char::from_u32((random.bits() % top) as u32).unwrap_or(' ');
        texts.push((0..60).map(|_| char(&mut random)).collect());
    }
    texts
}

/// Special tokens of Phi-3, most of which take the spaces after them.
const SPACES_AFTER_SPECIAL_TOKENS: &str =
    "<|user|>\n  Hi <|end|>\n<|assistant|>\n\t<|endoftext|> \n<s>  a</s>  \n b <unk> c<|end|>  ";

/// Removes the characters with a byte that has no token. All three tokenizers drop such a byte, but
/// Hugging Face and kiln merge tokens across the gap and llama.cpp does not.
fn without_unknown_bytes(texts: Vec<String>, metadata: &Json) -> Vec<String> {
    let mut tokens = BTreeSet::new();
    for token in metadata["tokenizer.ggml.tokens"].as_array().unwrap() {
        tokens.insert(token.as_str().unwrap().to_string());
    }
    let has_token: Vec<bool> = byte_characters()
        .iter()
        .map(|character| tokens.contains(&character.to_string()))
        .collect();
    let is_complete = |c: &char| {
        let mut bytes = c.to_string().into_bytes().into_iter();
        bytes.all(|byte| has_token[usize::from(byte)])
    };
    let keep = |text: &String| text.chars().filter(is_complete).collect();
    texts.iter().map(keep).collect()
}

/// Checks that kiln, llama.cpp and Hugging Face return the same tokens. Returns their number.
#[track_caller]
fn check(folder: &Path, gguf: &[u8], metadata: &Json, texts: &[String]) -> usize {
    let tokenizer = Tokenizer::from_metadata(&serde_json::to_vec(metadata).unwrap()).unwrap();
    let [model, json, list] =
        ["model.gguf", "tokenizer.json", "texts.json"].map(|name| folder.join(name));
    std::fs::write(&model, gguf).unwrap();
    std::fs::write(&json, tokenizer.to_json().unwrap()).unwrap();
    std::fs::write(&list, serde_json::to_vec(texts).unwrap()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/peers/both_tokenizers.py");
    let output = peers::stdout_of(peers::python().arg(script).args([model, json, list]));
    let ids: Vec<[Vec<u32>; 2]> = serde_json::from_str(output.lines().last().unwrap()).unwrap();
    assert_eq!(ids.len(), texts.len());
    let mut tokens = 0;
    let mut wrong = vec![];
    for (text, [llama, hugging_face]) in texts.iter().zip(ids) {
        let own = tokenizer.encode(text).unwrap();
        assert_eq!(own, hugging_face, "Hugging Face on {text:?}");
        if own != llama {
            wrong.push(format!("{text:?}\n  own   {own:?}\n  llama {llama:?}"));
        }
        tokens += own.len();
    }
    assert!(
        wrong.is_empty(),
        "{} of {} texts: {}",
        wrong.len(),
        texts.len(),
        wrong[..wrong.len().min(12)].join("\n")
    );
    tokens
}

#[test]
#[ignore = "needs Python packages and SmolLM2"]
fn tokens_match_llama_cpp_and_hugging_face() {
    let root = tempfile::tempdir().unwrap();
    let folder = Folder::new(root.path());
    let gguf = std::fs::read(tools::smollm2()).unwrap();
    let mut metadata = metadata(&folder, &gguf);
    let mut texts = difficult_texts();
    texts.push(include_str!("../../plans/data/eval.txt").into());
    let texts = without_unknown_bytes(texts, &metadata);
    let tokens = check(root.path(), &gguf, &metadata, &texts);
    println!("smollm: {tokens} tokens of {} texts", texts.len());
    for pre in ["gpt-2", "qwen2", "deepseek-r1-qwen"] {
        metadata["tokenizer.ggml.pre"] = json!(pre);
        let tokens = check(
            root.path(),
            &with_vocabulary(&metadata, pre),
            &metadata,
            &texts,
        );
        println!("{pre}: {tokens} tokens of {} texts", texts.len());
    }
}

#[test]
#[ignore = "needs Python packages and the source of llama-cpp-python"]
fn tokens_of_real_vocabularies_match() {
    let root = tempfile::tempdir().unwrap();
    for name in [
        "gpt-2",
        "llama-bpe",
        "llama-spm",
        "phi-3",
        "qwen2",
        "qwen35",
        "refact",
        "starcoder",
    ] {
        let file = tools::vocabularies().join(format!("ggml-vocab-{name}.gguf"));
        let bytes = std::fs::read(file).unwrap();
        let gguf = Gguf::parse(&bytes).unwrap();
        let metadata = serde_json::to_value(TokenizerKeys(&gguf.metadata)).unwrap();
        let mut texts = difficult_texts();
        texts.push(include_str!("../../plans/data/eval.txt").into());
        if ["llama-spm", "phi-3"].contains(&name) {
            texts.push(SPACES_AFTER_SPECIAL_TOKENS.into());
        } else {
            texts = without_unknown_bytes(texts, &metadata);
        }
        let tokens = check(root.path(), &bytes, &metadata, &texts);
        println!("{name}: {tokens} tokens of {} texts", texts.len());
    }
}

/// Of these pre-tokenizers no vocabulary is at hand, so they split for that of Llama 3.
#[test]
#[ignore = "needs Python packages and the source of llama-cpp-python"]
fn tokens_of_other_pre_tokenizers_match() {
    let root = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(tools::vocabularies().join("ggml-vocab-llama-bpe.gguf")).unwrap();
    let gguf = Gguf::parse(&bytes).unwrap();
    let mut metadata = serde_json::to_value(TokenizerKeys(&gguf.metadata)).unwrap();
    let mut texts = difficult_texts();
    texts.push(include_str!("../../plans/data/eval.txt").into());
    let texts = without_unknown_bytes(texts, &metadata);
    let mut counts = BTreeSet::new();
    for pre in ["smaug-bpe", "gpt-4o", "tekken"] {
        metadata["tokenizer.ggml.pre"] = json!(pre);
        let gguf = with_vocabulary(&metadata, pre);
        counts.insert(check(root.path(), &gguf, &metadata, &texts));
    }
    assert_eq!(counts.len(), 3, "{counts:?}");
}
