//! SentencePiece's BPE: tokens with scores, of which the best is merged first, and bytes for what has
//! no token.
//!
//! Kudo and Richardson, *SentencePiece* (2018). `llm_tokenizer_spm` of llama.cpp merges by score; the
//! crate `tokenizers` merges by rank. So every way to make a token of two others becomes a merge, and
//! the ranks follow from the scores.

use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::utils::Sequence as Normalizers;
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace};

use super::{Metadata, NORMAL, USER_DEFINED, vocabulary};

/// The character that stands for a space.
const SPACE: &str = "▁";

/// Most bytes of a token: finding its parts takes the square of them. Real ones have at most 100.
const MAX_TOKEN_BYTES: usize = 512;

/// The tokenizer without its special tokens.
pub(super) fn build(metadata: &Metadata) -> tokenizers::Result<tokenizers::Tokenizer> {
    let vocab = vocabulary(metadata);
    let mut bpe = BPE::builder()
        .vocab_and_merges(vocab, merges(metadata)?)
        .byte_fallback(true)
        .fuse_unk(true);
    if let Some(id) = metadata.unknown_token_id
        && let Some(token) = metadata.tokens.get(id as usize)
    {
        bpe = bpe.unk_token(token.clone());
    }
    let mut tokenizer = tokenizers::Tokenizer::new(bpe.build()?);

    let has_prefix = metadata.add_space_prefix.unwrap_or(true);
    let mut normalizers: Vec<NormalizerWrapper> = vec![];
    if has_prefix {
        normalizers.push(Prepend::new(SPACE.into()).into());
    }
    normalizers.push(Replace::new(" ", SPACE)?.into());
    tokenizer.with_normalizer(Some(Normalizers::new(normalizers)))?;

    let mut decoders: Vec<DecoderWrapper> = vec![
        Replace::new(SPACE, " ")?.into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
    ];
    if has_prefix {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    tokenizer.with_decoder(Some(Decoders::new(decoders)));
    Ok(tokenizer)
}

/// A pair of tokens that make another one.
struct Merge<'a> {
    score: f32,
    /// The ids of the whole, of the left and of the right token.
    ids: [u32; 3],
    left: &'a str,
    right: &'a str,
}

/// Every pair of tokens that make another one: first those with the best score, among equals that of
/// the lowest id.
fn merges(metadata: &Metadata) -> tokenizers::Result<Vec<(String, String)>> {
    let kind = |id: usize| metadata.token_type.get(id).copied().unwrap_or(NORMAL);
    let mut parts = std::collections::HashMap::new();
    for (id, token) in metadata.tokens.iter().enumerate() {
        if matches!(kind(id), NORMAL | USER_DEFINED) {
            parts.insert(token.as_str(), id as u32);
        }
    }
    let mut all = vec![];
    for (id, token) in metadata.tokens.iter().enumerate() {
        if kind(id) != NORMAL {
            continue;
        }
        if token.len() > MAX_TOKEN_BYTES {
            let bytes = token.len();
            return Err(
                format!("token {id} has {bytes} bytes, more than {MAX_TOKEN_BYTES}").into(),
            );
        }
        for (cut, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(cut);
            if let (Some(first), Some(second)) = (parts.get(left), parts.get(right)) {
                all.push(Merge {
                    score: metadata.scores.get(id).copied().unwrap_or(0.0),
                    ids: [id as u32, *first, *second],
                    left,
                    right,
                });
            }
        }
    }
    all.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.ids.cmp(&b.ids)));
    let mut merges = Vec::with_capacity(all.len());
    for Merge { left, right, .. } in all {
        merges.push((left.to_string(), right.to_string()));
    }
    Ok(merges)
}

#[cfg(test)]
mod tests {
    use crate::base::Result;
    use crate::model::tokenizer::Tokenizer;
    use serde_json::json;

    fn tokenizer(tokens: &[&str]) -> Result<Tokenizer> {
        let scores: Vec<f32> = (0..tokens.len()).map(|id| -(id as f32)).collect();
        let metadata = json!({
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": vec![1; tokens.len()],
            "tokenizer.ggml.scores": scores,
        });
        Tokenizer::from_metadata(&serde_json::to_vec(&metadata).unwrap())
    }

    #[test]
    fn the_best_score_is_merged_first() {
        let tokens = ["bc", "ab", "▁", "a", "b", "c"];
        let encode = |text| tokenizer(&tokens).unwrap().encode(text).unwrap();
        assert_eq!(encode("abc"), [2, 3, 0]);
        assert_eq!(encode("ab a"), [2, 1, 2, 3]);
        let decoded = tokenizer(&tokens).unwrap().decode(&[2, 3, 0]);
        assert_eq!(decoded.unwrap(), "abc");
    }

    #[test]
    fn a_token_of_unbounded_length_is_refused() {
        let long = "a".repeat(super::MAX_TOKEN_BYTES + 1);
        let problem = tokenizer(&["a", &long]).err().unwrap();
        assert_eq!(problem.causes, ["token 1 has 513 bytes, more than 512"]);
        assert!(tokenizer(&["a", &long[1..]]).is_ok());
    }
}
