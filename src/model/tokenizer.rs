//! Encodes text to tokens and decodes tokens: byte-level BPE, and SentencePiece's BPE, from the
//! `tokenizer.*` metadata of a GGUF.

mod byte_level;
mod sentencepiece;

use serde::{Deserialize, Serialize};
use tokenizers::AddedToken;
use tokenizers::models::bpe::Vocab;

use self::byte_level::{PRE_TOKENIZERS, PreTokenizer};
use crate::base::{Code, Context, Problem, Result};

/// `tokenizer.ggml.model` of byte-level BPE.
const BYTE_LEVEL: &str = "gpt2";
/// That of SentencePiece's BPE.
const SENTENCEPIECE: &str = "llama";

/// `tokenizer.ggml.token_type` of ordinary tokens.
const NORMAL: i64 = 1;
/// That of tokens that are never made by merging: unknown, control and user-defined.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// The texts of tokens that end a text, a turn or a message. A file rarely names all of them;
/// llama.cpp finds the others by their text too (`src/llama-vocab.cpp`). They must be special
/// tokens: the ordinary token `</s>` of Gemma is HTML.
const STOP_TOKENS: [&str; 23] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<turn|>",
    "<|tool_response>",
    "<eos>",
    "</s>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|eos|>",
    "<|EOT|>",
    "<｜end▁of▁sentence｜>",
];

/// The key of the name of a model.
pub const MODEL_NAME: &str = "general.name";

/// Whether a model with this name is a Phi-3: its special tokens take the spaces after them. No key
/// says so; llama.cpp goes by the name, too (`src/llama-vocab.cpp`).
pub fn is_phi3(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.contains("phi-3") || name.contains("phi3")
}

/// The special tokens of a Phi-3 that do not.
const PHI3_KEEPS_SPACES: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];

/// The metadata keys that are read.
#[derive(Deserialize)]
struct Metadata {
    #[serde(rename = "tokenizer.ggml.model")]
    model: String,
    #[serde(rename = "tokenizer.ggml.pre")]
    pre: Option<String>,
    #[serde(rename = "tokenizer.ggml.tokens")]
    tokens: Vec<String>,
    #[serde(rename = "tokenizer.ggml.token_type", default)]
    token_type: Vec<i64>,
    #[serde(rename = "tokenizer.ggml.merges", default)]
    merges: Vec<String>,
    #[serde(rename = "tokenizer.ggml.scores", default)]
    scores: Vec<f32>,
    #[serde(rename = "tokenizer.ggml.add_space_prefix")]
    add_space_prefix: Option<bool>,
    #[serde(rename = "tokenizer.ggml.unknown_token_id")]
    unknown_token_id: Option<u32>,
    #[serde(rename = "tokenizer.ggml.bos_token_id")]
    bos_token_id: Option<u32>,
    #[serde(rename = "tokenizer.ggml.add_bos_token")]
    add_bos_token: Option<bool>,
    #[serde(rename = "tokenizer.ggml.eos_token_id")]
    eos_token_id: Option<u32>,
    #[serde(rename = "tokenizer.ggml.eot_token_id")]
    eot_token_id: Option<u32>,
    #[serde(rename = "tokenizer.ggml.eom_token_id")]
    eom_token_id: Option<u32>,
    #[serde(rename = "tokenizer.chat_template")]
    chat_template: Option<String>,
    /// Of a Phi-3.
    #[serde(rename = "general.name")]
    name: Option<String>,
}

/// A BPE tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos_token: Option<u32>,
    stop_tokens: Vec<u32>,
    chat_template: Option<String>,
}

impl Tokenizer {
    /// Reads `json`: an object of a GGUF's `tokenizer.*` metadata by full key. An error for models
    /// other than `gpt2` and `llama`, and for unknown pre-tokenizers, which would silently yield
    /// other tokens.
    pub fn from_metadata(json: &[u8]) -> Result<Self> {
        let metadata: Metadata = serde_json::from_slice(json)
            .context(Code::TokenizerMetadata, || "read the tokenizer".into())?;
        TokenizerFacts::new(&metadata.model, metadata.pre.as_deref()).check()?;
        let inner = build(&metadata).map_err(|error| unusable(&*error))?;
        let bos_token = match adds_bos(&metadata) {
            true => metadata.bos_token_id,
            false => None,
        };
        Ok(Tokenizer {
            inner,
            bos_token,
            stop_tokens: stop_tokens(&metadata),
            chat_template: metadata.chat_template,
        })
    }

    /// The tokens of `text`. Special tokens in it are recognised, none is added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        match self.inner.encode_fast(text, false) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => Err(unusable(&*error)),
        }
    }

    /// The tokens of a prompt: those of `text`, after the BOS token if the model requires one and
    /// `text` does not begin with it.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let mut tokens = self.encode(text)?;
        if let Some(bos) = self.bos_token
            && tokens.first() != Some(&bos)
        {
            tokens.insert(0, bos);
        }
        Ok(tokens)
    }

    /// `text` without the BOS token that it begins with, for a runtime that puts this token before
    /// every prompt. All of it if the model requires none.
    pub fn without_bos<'a>(&self, text: &'a str) -> Result<&'a str> {
        match self.bos_token {
            Some(bos) => Ok(text.strip_prefix(&self.decode(&[bos])?).unwrap_or(text)),
            None => Ok(text),
        }
    }

    /// The text of `tokens`, including special ones.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        let text = self.inner.decode(tokens, false);
        text.map_err(|error| unusable(&*error))
    }

    /// The token that the model requires before any text.
    pub fn bos_token(&self) -> Option<u32> {
        self.bos_token
    }

    /// The tokens that end a text, a turn or a message: first those that the file names, beginning
    /// with the end of a text, then those that are recognised by their text.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stop_tokens
    }

    /// The Jinja template that formats messages.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// This tokenizer as the `tokenizer.json` of Hugging Face's libraries, which Genie reads too.
    /// It adds no BOS token, because Genie does.
    pub fn to_json(&self) -> Result<String> {
        let json = self.inner.to_string(false);
        json.map_err(|error| unusable(&*error))
    }

    /// Reads what [`Tokenizer::to_json`] wrote, or any `tokenizer.json`.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let inner = tokenizers::Tokenizer::from_bytes(json).map_err(|error| unusable(&*error))?;
        Ok(Tokenizer {
            inner,
            bos_token: None,
            stop_tokens: vec![],
            chat_template: None,
        })
    }
}

/// The first 100 bytes of a name, for messages.
fn shortened(name: &str) -> &str {
    &name[..name.floor_char_boundary(100)]
}

/// The kind of a tokenizer: the facts of `tokenizer.json`. Names are cut after 100 bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TokenizerFacts {
    /// `tokenizer.ggml.model`; `None` if the file has no tokenizer.
    model: Option<String>,
    /// `tokenizer.ggml.pre`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pre: Option<String>,
}

impl TokenizerFacts {
    /// The facts of a tokenizer with these names.
    pub fn new(model: &str, pre: Option<&str>) -> Self {
        TokenizerFacts {
            model: Some(shortened(model).into()),
            pre: pre.map(|pre| shortened(pre).into()),
        }
    }

    /// Refuses a tokenizer that kiln cannot use.
    pub fn check(&self) -> Result<()> {
        let without = "leave out the stages `reference` and `package`: nothing else needs text";
        let Some(model) = &self.model else {
            let problem = Problem::new(Code::TokenizerNone, "the file has no tokenizer");
            return Err(problem.help(
                "leave out the stages `reference` and `package`, or take a GGUF of the whole model",
            ));
        };
        if model == SENTENCEPIECE {
            return Ok(());
        }
        if model != BYTE_LEVEL {
            let message = format!(
                "the tokenizer is `{}`, neither byte-level BPE (`gpt2`) nor SentencePiece's BPE \
                 (`llama`)",
                model.escape_debug()
            );
            return Err(Problem::new(Code::TokenizerModel, message).help(
                "validate a model with such a tokenizer, or leave out its `reference` and \
                 `package` stages",
            ));
        }
        let pre = self.pre.as_deref().unwrap_or_default();
        if PreTokenizer::by_name(pre).is_some() {
            return Ok(());
        }
        let names: Vec<&str> = PRE_TOKENIZERS
            .iter()
            .flat_map(|known| known.names)
            .copied()
            .collect();
        let known = names.join(", ");
        if !pre.is_empty() {
            let message = format!(
                "the pre-tokenizer `{}` is not known; known are {known}",
                pre.escape_debug()
            );
            return Err(Problem::new(Code::TokenizerPre, message).help(without));
        }
        let what = if self.pre.is_some() {
            "empty"
        } else {
            "missing"
        };
        let message = format!(
            "`tokenizer.ggml.pre` is {what}, which names the pre-tokenizer; none is assumed, known \
             are {known}"
        );
        Err(Problem::new(Code::TokenizerPre, message).help(format!(
            "make the GGUF again with a present convert_hf_to_gguf.py, or add the key, if you know \
             it: `gguf-new-metadata --pre-tokenizer NAME OLD.gguf NEW.gguf`; or {without}"
        )))
    }
}

/// Whether every text begins with the BOS token.
fn adds_bos(metadata: &Metadata) -> bool {
    let by_default = || match metadata.model.as_str() {
        SENTENCEPIECE => true,
        _ => {
            let pre = PreTokenizer::by_name(metadata.pre.as_deref().unwrap_or_default());
            pre.is_some_and(|pre| pre.adds_bos)
        }
    };
    metadata.add_bos_token.unwrap_or_else(by_default)
}

fn build(metadata: &Metadata) -> tokenizers::Result<tokenizers::Tokenizer> {
    let mut tokenizer = match metadata.model.as_str() {
        SENTENCEPIECE => sentencepiece::build(metadata)?,
        _ => byte_level::build(metadata)?,
    };
    let takes_spaces = metadata.name.as_deref().is_some_and(is_phi3);
    let mut added = vec![];
    for token in special_tokens(metadata) {
        let is_control = token.kind != USER_DEFINED;
        let takes_spaces = takes_spaces && !PHI3_KEEPS_SPACES.contains(&token.text);
        let token = AddedToken::from(token.text, is_control);
        added.push(token.normalized(false).rstrip(takes_spaces));
    }
    tokenizer.add_special_tokens(added)?;
    Ok(tokenizer)
}

/// The tokens by text.
fn vocabulary(metadata: &Metadata) -> Vocab {
    let mut vocab = Vocab::default();
    for (id, token) in (0..).zip(&metadata.tokens) {
        vocab.insert(token.clone(), id);
    }
    vocab
}

/// A token that is never made by merging.
struct SpecialToken<'a> {
    id: u32,
    text: &'a str,
    kind: i64,
}

fn special_tokens(metadata: &Metadata) -> Vec<SpecialToken<'_>> {
    let mut special = vec![];
    for (id, (text, kind)) in (0..).zip(metadata.tokens.iter().zip(&metadata.token_type)) {
        let kind = *kind;
        if matches!(kind, UNKNOWN | CONTROL | USER_DEFINED) {
            special.push(SpecialToken { id, text, kind });
        }
    }
    special
}

/// See [`Tokenizer::stop_tokens`].
fn stop_tokens(metadata: &Metadata) -> Vec<u32> {
    let mut candidates = vec![];
    candidates.extend(metadata.eos_token_id);
    candidates.extend(metadata.eot_token_id);
    candidates.extend(metadata.eom_token_id);
    for token in special_tokens(metadata) {
        if STOP_TOKENS.contains(&token.text) {
            candidates.push(token.id);
        }
    }
    let mut ids = vec![];
    for id in candidates {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

fn unusable(error: &(dyn std::error::Error + Send + Sync + 'static)) -> Problem {
    Problem::new(
        Code::TokenizerUnusable,
        "the file's tokenizer cannot be used",
    )
    .because(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn metadata(pre: &str) -> Vec<u8> {
        let mut tokens: Vec<String> = ('!'..='~').map(String::from).collect();
        for token in ["Ġ", "Ċ", "Ġa", "ab", "Ġab", "11", "<|end|>"] {
            tokens.push(token.to_string());
        }
        let mut kinds = vec![1; tokens.len()];
        kinds[tokens.len() - 1] = 3;
        let merges = ["Ġ a", "a b", "Ġa b", "1 1", "Ċ zz", "zz Ġ"];
        serde_json::to_vec(&json!({
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": kinds,
            "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.bos_token_id": 7,
            "tokenizer.ggml.add_bos_token": true,
        }))
        .unwrap()
    }

    /// `expected`: the tokens of `text`, separated by `|`.
    fn check(pre: &str, text: &str, expected: &str) {
        let tokenizer = Tokenizer::from_metadata(&metadata(pre)).unwrap();
        let tokens = tokenizer.encode(text).unwrap();
        let mut texts = vec![];
        for token in &tokens {
            texts.push(tokenizer.decode(&[*token]).unwrap());
        }
        assert_eq!(texts.join("|"), expected);
        assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
    }

    #[test]
    fn merges_do_not_cross_splits() {
        check("gpt-2", "ab ab 11", "ab| ab| |11");
        check("smollm", "ab ab 11", "ab| ab| |1|1");
        check("qwen2", "ab ab 11", "ab| ab| |1|1");
    }

    #[test]
    fn special_tokens_are_not_split() {
        check("gpt-2", "ab<|end|>\nab", "ab|<|end|>|\n|ab");
    }

    #[test]
    fn the_json_form_encodes_the_same() {
        for pre in PRE_TOKENIZERS.iter().flat_map(|known| known.names) {
            let tokenizer = Tokenizer::from_metadata(&metadata(pre)).unwrap();
            let json = tokenizer.to_json().unwrap();
            let copy = Tokenizer::from_json(json.as_bytes()).unwrap();
            assert_eq!(copy.to_json().unwrap(), json);
            let text = "ab ab 11<|end|>\n  ab";
            assert_eq!(copy.encode(text).unwrap(), tokenizer.encode(text).unwrap());
        }
        let problem = Tokenizer::from_json(b"{}").err().unwrap();
        assert_eq!(problem.code, Code::TokenizerUnusable);
    }

    #[test]
    fn unsupported_tokenizers_are_refused() {
        fn problem(json: &[u8]) -> Problem {
            Tokenizer::from_metadata(json).err().unwrap()
        }
        let unknown = problem(&metadata("bloom")).to_string();
        assert!(unknown.contains("`bloom` is not known"), "{unknown}");
        for (key, expected) in [
            ("", "`tokenizer.ggml.pre` is missing"),
            (
                r#""tokenizer.ggml.pre": "", "#,
                "`tokenizer.ggml.pre` is empty",
            ),
        ] {
            let json =
                format!(r#"{{"tokenizer.ggml.model": "gpt2", {key}"tokenizer.ggml.tokens": []}}"#);
            let message = problem(json.as_bytes()).message;
            assert!(message.contains(expected), "{message}");
            assert!(message.contains("qwen2"), "{message}");
        }
        let other = br#"{"tokenizer.ggml.model": "rwkv", "tokenizer.ggml.tokens": []}"#;
        assert_eq!(problem(other).code, Code::TokenizerModel);
    }

    #[test]
    fn all_stop_tokens_are_found() {
        fn check(vocab: &[(&str, i64)], named: &[(&str, u32)], expected: &[u32]) {
            let (tokens, kinds): (Vec<_>, Vec<_>) = vocab.iter().copied().unzip();
            let mut metadata = json!({
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.pre": "qwen2",
                "tokenizer.ggml.tokens": tokens,
                "tokenizer.ggml.token_type": kinds,
            });
            for (key, id) in named {
                metadata[format!("tokenizer.ggml.{key}_token_id")] = json!(id);
            }
            let json = serde_json::to_vec(&metadata).unwrap();
            let tokenizer = Tokenizer::from_metadata(&json).unwrap();
            assert_eq!(tokenizer.stop_tokens(), expected, "{vocab:?} {named:?}");
        }
        let qwen = [
            ("a", 1),
            ("<|endoftext|>", 3),
            ("<|im_start|>", 3),
            ("<|im_end|>", 3),
        ];
        check(&qwen, &[("eos", 3)], &[3, 1]);
        check(&qwen, &[("eos", 1)], &[1, 3]);
        check(&qwen, &[], &[1, 3]);
        let llama = [
            ("<|end_of_text|>", 3),
            ("<|eom_id|>", 3),
            ("<|eot_id|>", 3),
            ("b", 1),
        ];
        check(&llama, &[("eos", 2), ("eot", 2), ("eom", 1)], &[2, 1, 0]);
        // An ordinary token is a stop token only if the file names it; a user-defined one is.
        let html = [("</s>", 1), ("<|end|>", 4), ("c", -1)];
        check(&html, &[], &[1]);
        check(&html, &[("eos", 0)], &[0, 1]);
    }

    #[test]
    fn the_bos_token_depends_on_add_bos_token() {
        let tokenizer = Tokenizer::from_metadata(&metadata("gpt-2")).unwrap();
        assert_eq!(tokenizer.bos_token(), Some(7));
        assert_eq!(tokenizer.encode_prompt("a").unwrap(), [7, 64]);
        assert_eq!(tokenizer.encode_prompt("(a").unwrap(), [7, 64]);
        let without = br#"{"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.bos_token_id": 0}"#;
        let tokenizer = Tokenizer::from_metadata(without).unwrap();
        assert_eq!(tokenizer.bos_token(), None);
    }
}
