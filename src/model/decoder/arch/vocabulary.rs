//! Compares the tokenizer's tables with the rows of the embedding: every token id must have a row.

use super::{refuse_all, shortened};
use crate::base::{Code, Result};
use crate::model::gguf::{Array, Metadata, ValueType, quoted};

/// Arrays with one element per token, and the allowed types: files have integers of every width.
const PER_TOKEN: [(&str, &[ValueType]); 3] = [
    ("tokenizer.ggml.tokens", &[ValueType::Str]),
    ("tokenizer.ggml.token_type", &INTEGERS),
    ("tokenizer.ggml.scores", &[ValueType::F32]),
];
const INTEGERS: [ValueType; 8] = [
    ValueType::I32,
    ValueType::U32,
    ValueType::I64,
    ValueType::U64,
    ValueType::I16,
    ValueType::U16,
    ValueType::I8,
    ValueType::U8,
];

/// The ids that kiln uses. Those of padding and masks are often ids of tokens without a row in the
/// embedding.
const IDS: [&str; 4] = [
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
];

/// Prefix and suffix of the keys of all ids.
const ID_KEYS: (&str, &str) = ("tokenizer.ggml.", "_token_id");

/// Lists the ids that kiln does not use and that are beyond the vocabulary.
pub(super) fn unused_ids(metadata: &Metadata, vocab: u32) -> Vec<String> {
    let mut lines = vec![];
    for (key, value) in metadata.iter() {
        let is_id = key.starts_with(ID_KEYS.0) && key.ends_with(ID_KEYS.1);
        if is_id
            && !IDS.contains(&key)
            && let Some(id) = value.integer()
            && !(0..i128::from(vocab)).contains(&id)
        {
            let key = quoted(key);
            lines.push(format!(
                "{key} is {id}, beyond a vocabulary of {vocab}: kiln does not use it"
            ));
        }
    }
    shortened(lines)
}

/// Checks the tokenizer metadata that the file has. It may have none; stages that need text then
/// report it.
pub(super) fn check(metadata: &Metadata, vocab: u32) -> Result<()> {
    let mut errors = vec![];
    for (key, elements) in PER_TOKEN {
        check_array(metadata, key, elements, Some(vocab), &mut errors);
    }
    let merges = "tokenizer.ggml.merges";
    check_array(metadata, merges, &[ValueType::Str], None, &mut errors);
    for key in IDS {
        match metadata.get::<u32>(key) {
            Ok(Some(id)) if id >= vocab => {
                errors.push(format!("`{key}` is {id}, beyond a vocabulary of {vocab}"))
            }
            Ok(_) => {}
            Err(problem) => errors.push(problem.to_string()),
        }
    }
    refuse_all(
        Code::ModelVocabulary,
        "the tokenizer does not fit the embedding",
        errors,
    )
}

/// Checks that the array `key`, if the file has it, has one of the types `elements` and `len`
/// elements.
fn check_array(
    metadata: &Metadata,
    key: &str,
    elements: &[ValueType],
    len: Option<u32>,
    errors: &mut Vec<String>,
) {
    let array = match metadata.get::<Array>(key) {
        Ok(Some(array)) => array,
        Ok(None) => return,
        Err(problem) => {
            errors.push(problem.to_string());
            return;
        }
    };
    let element = elements[0];
    let is_type = elements.contains(&array.element);
    match len {
        Some(len) if !is_type || array.len != len as usize => errors.push(format!(
            "`{key}`: expected array of {len} {element}, found {array:?}"
        )),
        None if !is_type => errors.push(format!(
            "`{key}`: expected array of {element}, found {array:?}"
        )),
        _ => {}
    }
}
