//! The tokenizer's tables against the rows of the embedding: a token id must never reach beyond them.

use super::refuse_all;
use crate::base::Result;
use crate::model::gguf::{Array, Metadata, ValueType};

/// Arrays with one element a token, and its type.
const PER_TOKEN: [(&str, ValueType); 3] = [
    ("tokenizer.ggml.tokens", ValueType::Str),
    ("tokenizer.ggml.token_type", ValueType::I32),
    ("tokenizer.ggml.scores", ValueType::F32),
];

/// Checks whatever tokenizer metadata there are. A file may have none; what wants text then refuses it.
pub fn check(metadata: &Metadata, vocab: u32) -> Result<()> {
    let mut wrong = vec![];
    let mut check_array = |key: &str, element: ValueType, len: Option<u32>| match metadata.get::<Array>(key) {
        Err(problem) => wrong.push(problem.to_string()),
        Ok(Some(array)) if array.element != element || len.is_some_and(|len| array.len != len as usize) => {
            let expected = len.map_or(String::new(), |len| format!("{len} "));
            wrong.push(format!("`{key}`: expected array of {expected}{element}, found {array:?}"));
        }
        Ok(_) => {}
    };
    PER_TOKEN.iter().for_each(|(key, element)| check_array(key, *element, Some(vocab)));
    check_array("tokenizer.ggml.merges", ValueType::Str, None);
    for (key, _) in metadata.iter().filter(|(key, _)| key.starts_with("tokenizer.ggml.") && key.ends_with("_token_id"))
    {
        match metadata.get::<u32>(key) {
            Ok(Some(id)) if id >= vocab => wrong.push(format!("`{key}` is {id}, beyond a vocabulary of {vocab}")),
            Ok(_) => {}
            Err(problem) => wrong.push(problem.to_string()),
        }
    }
    refuse_all("kiln::model::vocabulary", "the tokenizer does not fit the embedding", wrong)
}
