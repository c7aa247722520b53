//! Text to tokens and back: byte-level BPE, as the `tokenizer.*` metadata of a GGUF describes it.

use serde::Deserialize;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use crate::base::{Code, Context, Problem, Result};

/// Words, contractions, numbers and runs of symbols; GPT-2's own regex.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Qwen2's: contractions in any case, digits one by one, line ends of their own.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How text is cut before merging, by `tokenizer.ggml.pre`: each regex cuts the pieces of the one
/// before. As in llama.cpp, `src/llama-vocab.cpp`.
const PRE_TOKENIZERS: [(&str, &[&str]); 4] = [
    ("gpt-2", &[GPT2]),
    ("smollm", &[r"\p{N}", GPT2]),
    ("qwen2", &[QWEN2]),
    ("deepseek-r1-qwen", &[QWEN2]),
];

/// `tokenizer.ggml.token_type` of tokens that are never made by merging: control and user-defined.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// How tokens that end a text, a turn or a message are spelled. A file names one of them, rarely
/// all: llama.cpp finds the others by these spellings too (`src/llama-vocab.cpp`). Ordinary tokens
/// spelled so are text (Gemma's `</s>` is HTML).
const ENDS: [&str; 23] = [
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
    #[serde(rename = "tokenizer.ggml.bos_token_id")]
    bos_token_id: Option<u32>,
    #[serde(rename = "tokenizer.ggml.add_bos_token", default)]
    add_bos_token: bool,
    #[serde(rename = "tokenizer.ggml.eos_token_id")]
    eos_token_id: Option<u32>,
    #[serde(rename = "tokenizer.ggml.eot_token_id")]
    eot_token_id: Option<u32>,
    #[serde(rename = "tokenizer.ggml.eom_token_id")]
    eom_token_id: Option<u32>,
    #[serde(rename = "tokenizer.chat_template")]
    chat_template: Option<String>,
}

/// A byte-level BPE tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    first: Option<u32>,
    ends: Vec<u32>,
    chat_template: Option<String>,
}

impl Tokenizer {
    /// Reads `json`: an object of a GGUF's `tokenizer.*` metadata by full key. Refuses models other
    /// than `gpt2` and pre-tokenizers it does not know: they would give other tokens without a
    /// word.
    pub fn from_metadata(json: &[u8]) -> Result<Self> {
        let metadata: Metadata = serde_json::from_slice(json)
            .context(Code::TokenizerMetadata, || "read the tokenizer".into())?;
        if let Some(problem) = unsupported(&metadata.model, metadata.pre.as_deref()) {
            return Err(problem);
        }
        let inner = build(&metadata).map_err(|error| unusable(&*error))?;
        let first = metadata.bos_token_id.filter(|_| metadata.add_bos_token);
        Ok(Tokenizer {
            inner,
            first,
            ends: ends(&metadata),
            chat_template: metadata.chat_template,
        })
    }

    /// The tokens of `text`; special tokens spelled in it are recognised, none is added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|error| unusable(&*error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `tokens`, special ones spelled out.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.inner
            .decode(tokens, false)
            .map_err(|error| unusable(&*error))
    }

    /// The token that this model wants before any text.
    pub fn first(&self) -> Option<u32> {
        self.first
    }

    /// The tokens that end a text, a turn or a message: those that the file names, the text's
    /// first, then those that are spelled so.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// How messages are put into a text, in Jinja.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// This tokenizer as the `tokenizer.json` of Hugging Face's libraries, which Genie reads too.
    /// It adds no token: Genie itself puts the first one before a text.
    pub fn to_json(&self) -> Result<String> {
        self.inner
            .to_string(false)
            .map_err(|error| unusable(&*error))
    }

    /// Reads what [`Tokenizer::to_json`] wrote, or any `tokenizer.json`.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let inner = tokenizers::Tokenizer::from_bytes(json).map_err(|error| unusable(&*error))?;
        Ok(Tokenizer {
            inner,
            first: None,
            ends: vec![],
            chat_template: None,
        })
    }
}

/// As much of a name as a person reads.
fn shortened(name: &str) -> &str {
    &name[..name.floor_char_boundary(100)]
}

/// Why a tokenizer of the `model` and pre-tokenizer `pre` that a GGUF names cannot be used, if so:
/// it would give other tokens without a word. Both are known from the header alone.
pub fn unsupported(model: &str, pre: Option<&str>) -> Option<Problem> {
    if model != "gpt2" {
        let message = format!(
            "the tokenizer is `{}`, not byte-level BPE (`gpt2`)",
            shortened(model).escape_debug()
        );
        return Some(Problem::new(Code::TokenizerModel, message).help(
            "validate a model with a byte-level BPE tokenizer, or leave out its `reference` and \
             `package` stages",
        ));
    }
    if PRE_TOKENIZERS.iter().any(|(known, _)| Some(*known) == pre) {
        return None;
    }
    let known: Vec<&str> = PRE_TOKENIZERS.iter().map(|(known, _)| *known).collect();
    let known = known.join(", ");
    let without = "leave out the stages `reference` and `package`: nothing else needs text";
    let (message, help) = match pre.unwrap_or_default() {
        "" => {
            let what = if pre.is_some() { "empty" } else { "missing" };
            let message = format!(
                "`tokenizer.ggml.pre` is {what}, which names the pre-tokenizer; none is assumed, \
                 known are {known}"
            );
            let help = format!(
                "make the GGUF again with a present convert_hf_to_gguf.py, or add the key, if you \
                 know it: `gguf-new-metadata --pre-tokenizer NAME OLD.gguf NEW.gguf`; or {without}"
            );
            (message, help)
        }
        pre => {
            let pre = shortened(pre).escape_debug();
            let message = format!("the pre-tokenizer `{pre}` is not known; known are {known}");
            (message, without.into())
        }
    };
    Some(Problem::new(Code::TokenizerPre, message).help(help))
}

fn build(metadata: &Metadata) -> tokenizers::Result<tokenizers::Tokenizer> {
    let vocab: tokenizers::models::bpe::Vocab = metadata.tokens.iter().cloned().zip(0..).collect();
    // A merge whose parts or product are no tokens can give none; the crate would index past its
    // buffer on it.
    let merges = metadata.merges.iter().filter_map(|merge| {
        let (left, right) = merge.split_once(' ')?;
        let known = [left, right, &format!("{left}{right}")]
            .iter()
            .all(|token| vocab.contains_key(*token));
        known.then(|| (left.to_string(), right.to_string()))
    });
    let merges: Vec<_> = merges.collect();
    let mut tokenizer =
        tokenizers::Tokenizer::new(BPE::builder().vocab_and_merges(vocab, merges).build()?);
    let pre = metadata.pre.as_deref().unwrap_or_default();
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer(pre)?));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let added = special(metadata)
        .map(|(_, token, kind)| AddedToken::from(token, kind == CONTROL).normalized(false));
    tokenizer.add_special_tokens(added)?;
    Ok(tokenizer)
}

/// The tokens that are never made by merging: id, spelling and type.
fn special(metadata: &Metadata) -> impl Iterator<Item = (u32, &String, i64)> {
    let tokens = (0..)
        .zip(&metadata.tokens)
        .zip(&metadata.token_type)
        .map(|((id, token), kind)| (id, token, *kind));
    tokens.filter(|(_, _, kind)| [CONTROL, USER_DEFINED].contains(kind))
}

/// See [`Tokenizer::ends`].
fn ends(metadata: &Metadata) -> Vec<u32> {
    let named = [
        metadata.eos_token_id,
        metadata.eot_token_id,
        metadata.eom_token_id,
    ]
    .into_iter()
    .flatten();
    let spelled = special(metadata)
        .filter(|(_, token, _)| ENDS.contains(&token.as_str()))
        .map(|(id, _, _)| id);
    let mut ends = vec![];
    for id in named.chain(spelled) {
        if !ends.contains(&id) {
            ends.push(id);
        }
    }
    ends
}

fn pre_tokenizer(name: &str) -> tokenizers::Result<PreTokenizerWrapper> {
    let (_, regexes) = PRE_TOKENIZERS
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or("the pre-tokenizer is not known")?;
    let isolated = SplitDelimiterBehavior::Isolated;
    let split = |regex: &&str| {
        Split::new(SplitPattern::Regex((*regex).into()), isolated, false).map(Into::into)
    };
    let mut steps = regexes
        .iter()
        .map(split)
        .collect::<tokenizers::Result<Vec<PreTokenizerWrapper>>>()?;
    steps.push(ByteLevel::new(false, false, false).into());
    Ok(Sequence::new(steps).into())
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
        tokens.extend(["Ġ", "Ċ", "Ġa", "ab", "Ġab", "11", "<|end|>"].map(String::from));
        let mut kinds = vec![1; tokens.len()];
        kinds[tokens.len() - 1] = 3;
        let merges = ["Ġ a", "a b", "Ġa b", "1 1", "Ċ zz", "zz Ġ"];
        serde_json::to_vec(&json!({
            "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.bos_token_id": 7, "tokenizer.ggml.add_bos_token": true,
        }))
        .unwrap()
    }

    /// The pieces of `text`, parted by `|`.
    fn check(pre: &str, text: &str, expected: &str) {
        let tokenizer = Tokenizer::from_metadata(&metadata(pre)).unwrap();
        let tokens = tokenizer.encode(text).unwrap();
        let pieces: Vec<String> = tokens
            .iter()
            .map(|token| tokenizer.decode(&[*token]).unwrap())
            .collect();
        assert_eq!(pieces.join("|"), expected);
        assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
    }

    #[test]
    fn merges_follow_the_cuts() {
        check("gpt-2", "ab ab 11", "ab| ab| |11");
        check("smollm", "ab ab 11", "ab| ab| |1|1");
        check("qwen2", "ab ab 11", "ab| ab| |1|1");
    }

    #[test]
    fn special_tokens_are_one() {
        check("gpt-2", "ab<|end|>\nab", "ab|<|end|>|\n|ab");
    }

    #[test]
    fn the_json_says_the_same() {
        for (pre, _) in PRE_TOKENIZERS {
            let tokenizer = Tokenizer::from_metadata(&metadata(pre)).unwrap();
            let json = tokenizer.to_json().unwrap();
            let again = Tokenizer::from_json(json.as_bytes()).unwrap();
            assert_eq!(again.to_json().unwrap(), json);
            let text = "ab ab 11<|end|>\n  ab";
            assert_eq!(again.encode(text).unwrap(), tokenizer.encode(text).unwrap());
        }
        assert_eq!(
            Tokenizer::from_json(b"{}").err().unwrap().code,
            Code::TokenizerUnusable
        );
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let problem = Tokenizer::from_metadata(&metadata("tekken")).err().unwrap();
        assert!(
            problem.to_string().contains("`tekken` is not known"),
            "{problem}"
        );
        for (key, expected) in [
            ("", "`tokenizer.ggml.pre` is missing"),
            (
                r#""tokenizer.ggml.pre": "", "#,
                "`tokenizer.ggml.pre` is empty",
            ),
        ] {
            let json =
                format!(r#"{{"tokenizer.ggml.model": "gpt2", {key}"tokenizer.ggml.tokens": []}}"#);
            let problem = Tokenizer::from_metadata(json.as_bytes()).err().unwrap();
            assert!(
                problem.message.contains(expected) && problem.message.contains("qwen2"),
                "{problem}"
            );
        }
        let llama = br#"{"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": []}"#;
        assert_eq!(
            Tokenizer::from_metadata(llama).err().unwrap().code,
            Code::TokenizerModel
        );
    }

    #[test]
    fn all_tokens_that_end_an_answer_are_found() {
        let check = |spelled: &[(&str, i64)], named: &[(&str, u32)], expected: &[u32]| {
            let (tokens, kinds): (Vec<_>, Vec<_>) = spelled.iter().copied().unzip();
            let mut metadata = json!({
                "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.tokens": tokens,
                "tokenizer.ggml.token_type": kinds,
            });
            for (key, id) in named {
                metadata[format!("tokenizer.ggml.{key}_token_id")] = json!(id);
            }
            let tokenizer =
                Tokenizer::from_metadata(&serde_json::to_vec(&metadata).unwrap()).unwrap();
            assert_eq!(tokenizer.ends(), expected, "{spelled:?} {named:?}");
        };
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
        // What a page of HTML is made of ends nothing, unless the file says so; what a user defined
        // does.
        check(&[("</s>", 1), ("<|end|>", 4), ("c", -1)], &[], &[1]);
        check(
            &[("</s>", 1), ("<|end|>", 4), ("c", -1)],
            &[("eos", 0)],
            &[0, 1],
        );
    }

    #[test]
    fn the_first_token_is_only_given_where_the_file_wants_it() {
        assert_eq!(
            Tokenizer::from_metadata(&metadata("gpt-2"))
                .unwrap()
                .first(),
            Some(7)
        );
        let without = br#"{"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.bos_token_id": 0}"#;
        assert_eq!(Tokenizer::from_metadata(without).unwrap().first(), None);
    }
}
