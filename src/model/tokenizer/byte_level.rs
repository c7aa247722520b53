//! Byte-level BPE: text is split by regexes, and its bytes are merged in the order of the file.

use tokenizers::SplitDelimiterBehavior;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

use super::{Metadata, vocabulary};

/// The regex of GPT-2: words, contractions, numbers and runs of symbols.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// The regex of Qwen2: contractions in any case, single digits, separate line breaks.
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// The regex of Llama 3: that of Qwen2 with up to three digits.
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// The regex of Qwen3.5: that of Qwen2 with marks as parts of words.
const QWEN35: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}",
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// The regex of GPT-4o, with llama.cpp's notion of case: a word ends before a capital that follows
/// a small letter, and only A to Z and a to z have a case.
const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// The regex of Tekken: that of GPT-4o without contractions, and with single digits.
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// How text is split before merging.
pub(super) struct PreTokenizer {
    /// Its names in `tokenizer.ggml.pre`.
    pub(super) names: &'static [&'static str],
    /// Each regex splits the results of the previous one.
    regexes: &'static [&'static str],
    /// Whether a word that is a token is taken as it is, without merging.
    whole_words: bool,
    /// Whether a file without the key begins every text with the BOS token.
    pub(super) adds_bos: bool,
}

impl PreTokenizer {
    const fn new(names: &'static [&'static str], regexes: &'static [&'static str]) -> Self {
        PreTokenizer {
            names,
            regexes,
            whole_words: false,
            adds_bos: false,
        }
    }

    /// The one of this name.
    pub(super) fn by_name(name: &str) -> Option<&'static Self> {
        let mut all = PRE_TOKENIZERS.iter();
        all.find(|known| known.names.contains(&name))
    }
}

/// The known ones, from llama.cpp, `src/llama-vocab.cpp`.
pub(super) static PRE_TOKENIZERS: [PreTokenizer; 8] = [
    PreTokenizer::new(&["gpt-2"], &[GPT2]),
    PreTokenizer::new(
        &["smollm", "refact", "starcoder", "codeshell", "exaone"],
        &[r"\p{N}", GPT2],
    ),
    PreTokenizer::new(&["qwen2", "deepseek-r1-qwen"], &[QWEN2]),
    PreTokenizer::new(&["qwen35"], &[QWEN35]),
    PreTokenizer::new(&["smaug-bpe", "dbrx"], &[LLAMA3]),
    PreTokenizer {
        whole_words: true,
        adds_bos: true,
        ..PreTokenizer::new(&["llama-bpe", "llama3", "llama-v3"], &[LLAMA3])
    },
    PreTokenizer::new(&["gpt-4o"], &[GPT4O]),
    PreTokenizer {
        whole_words: true,
        adds_bos: true,
        ..PreTokenizer::new(&["tekken"], &[TEKKEN])
    },
];

/// The tokenizer without its special tokens.
pub(super) fn build(metadata: &Metadata) -> tokenizers::Result<tokenizers::Tokenizer> {
    let vocab = vocabulary(metadata);
    let mut merges = vec![];
    for merge in &metadata.merges {
        // The first character may be a space.
        let first = merge.chars().next().map_or(0, char::len_utf8);
        let Some(space) = merge[first..].find(' ') else {
            continue;
        };
        let (left, right) = (&merge[..first + space], &merge[first + space + 1..]);
        // A merge of strings that are not tokens never applies. The crate would index past its
        // buffer on it.
        let is_token = |text: &str| vocab.contains_key(text);
        if is_token(left) && is_token(right) && is_token(&format!("{left}{right}")) {
            merges.push((left.to_string(), right.to_string()));
        }
    }
    let Some(pre) = PreTokenizer::by_name(metadata.pre.as_deref().unwrap_or_default()) else {
        return Err("the pre-tokenizer is not known".into());
    };
    let bpe = BPE::builder().vocab_and_merges(vocab, merges);
    let mut tokenizer = tokenizers::Tokenizer::new(bpe.ignore_merges(pre.whole_words).build()?);
    let mut steps: Vec<PreTokenizerWrapper> = vec![];
    for regex in pre.regexes {
        let pattern = SplitPattern::Regex(regex.to_string());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
        steps.push(split.into());
    }
    steps.push(ByteLevel::new(false, false, false).into());
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    Ok(tokenizer)
}
