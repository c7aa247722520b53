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

/// The tokenizer without its special tokens.
pub(super) fn build(metadata: &Metadata) -> tokenizers::Result<tokenizers::Tokenizer> {
    let vocab = vocabulary(metadata);
    let mut bpe = BPE::builder()
        .vocab_and_merges(vocab, merges(metadata))
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
fn merges(metadata: &Metadata) -> Vec<(String, String)> {
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
    merges
}
