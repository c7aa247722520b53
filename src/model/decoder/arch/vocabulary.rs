//! The tokenizer's tables against the rows of the embedding: a token id must never reach beyond
//! them.

use super::{refuse_all, shortened};
use crate::base::{Code, Result};
use crate::model::gguf::{Array, Metadata, ValueType, quoted};

/// Arrays with one element a token, and its types: files have integers of every width.
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

/// The ids that something reads. Those of padding and masks are often of tokens that the embedding
/// never got.
const IDS: [&str; 4] = [
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
];

/// How the keys of all ids begin and end.
const ID_KEYS: (&str, &str) = ("tokenizer.ggml.", "_token_id");

/// The ids that nothing reads and that the vocabulary has no token for, a line each.
pub fn unused_ids(metadata: &Metadata, vocab: u32) -> Vec<String> {
    let mut lines = vec![];
    for (key, value) in metadata.iter() {
        let is_unused =
            key.starts_with(ID_KEYS.0) && key.ends_with(ID_KEYS.1) && !IDS.contains(&key);
        let Some(id) = value.integer().filter(|_| is_unused) else {
            continue;
        };
        if !(0..i128::from(vocab)).contains(&id) {
            let key = quoted(key);
            lines.push(format!(
                "{key} is {id}, beyond a vocabulary of {vocab}: kiln does not use it"
            ));
        }
    }
    shortened(lines)
}

/// Checks whatever tokenizer metadata there are. A file may have none; what wants text then refuses
/// it.
pub fn check(metadata: &Metadata, vocab: u32) -> Result<()> {
    let mut wrong = vec![];
    let mut check_array =
        |key: &str, elements: &[ValueType], len: Option<u32>| match metadata.get::<Array>(key) {
            Err(problem) => wrong.push(problem.to_string()),
            Ok(Some(array))
                if !elements.contains(&array.element)
                    || len.is_some_and(|len| array.len != len as usize) =>
            {
                let expected = len.map_or(String::new(), |len| format!("{len} "));
                let element = elements.first().map_or(String::new(), ValueType::to_string);
                wrong.push(format!(
                    "`{key}`: expected array of {expected}{element}, found {array:?}"
                ));
            }
            Ok(_) => {}
        };
    PER_TOKEN
        .iter()
        .for_each(|(key, elements)| check_array(key, elements, Some(vocab)));
    check_array("tokenizer.ggml.merges", &[ValueType::Str], None);
    for key in IDS {
        match metadata.get::<u32>(key) {
            Ok(Some(id)) if id >= vocab => {
                wrong.push(format!("`{key}` is {id}, beyond a vocabulary of {vocab}"))
            }
            Ok(_) => {}
            Err(problem) => wrong.push(problem.to_string()),
        }
    }
    refuse_all(
        Code::ModelVocabulary,
        "the tokenizer does not fit the embedding",
        wrong,
    )
}
