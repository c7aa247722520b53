//! A model in several files, as `llama-gguf-split` and gguf-py write it: the metadata of each file
//! have its number and the number of files.

use std::collections::HashMap;

use super::{Head, Metadata, TensorInfo, Value, quoted};
use crate::base::{Code, Problem, Result};

/// Most files of a model: their names have five digits.
pub const MAX_FILES: usize = 99_999;

/// The names of all files of the model that the file `name` belongs to, by its name:
/// `NAME-00002-of-00003.gguf` is one of three. A name of another form is the only file.
pub fn files_of(name: &str) -> Vec<String> {
    let Some((stem, count)) = parse_name(name) else {
        return vec![name.into()];
    };
    let mut files = vec![];
    for number in 1..=count {
        files.push(format!("{stem}-{number:05}-of-{count:05}.gguf"));
    }
    files
}

/// The stem and the number of files: `NAME` and 3 for `NAME-00002-of-00003.gguf`.
fn parse_name(name: &str) -> Option<(&str, u32)> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    if number.len() != 5 || count.len() != 5 {
        return None;
    }
    let number: u32 = number.parse().ok()?;
    let count: u32 = count.parse().ok()?;
    if number < 1 || number > count {
        return None;
    }
    Some((stem, count))
}

/// Whether a key only describes how a model is split.
pub(super) fn is_split_key(key: &str) -> bool {
    key.starts_with("split.")
}

/// The number of a file, from 0, and the number of files; `None` if it is the only one.
fn part_number(metadata: &Metadata) -> Result<Option<(u32, u32)>> {
    match metadata.get::<u32>("split.count")?.unwrap_or(0) {
        0 | 1 => Ok(None),
        count => Ok(Some((metadata.require("split.no")?, count))),
    }
}

/// Checks that the files are all files of one model, each once and in order.
pub(super) fn check(heads: &[Head]) -> Result<()> {
    let mut places = vec![];
    for head in heads {
        places.push(part_number(&head.metadata)?);
    }
    if let [None] = places.as_slice() {
        return Ok(());
    }
    let mut numbers: Vec<u32> = vec![];
    let mut total = 0;
    for (index, place) in places.into_iter().enumerate() {
        let file = index + 1;
        let Some((number, count)) = place else {
            return Err(invalid(format!(
                "file {file} is a model of its own, no part of a split one"
            )));
        };
        if index == 0 {
            total = count;
        }
        if count != total {
            return Err(invalid(format!(
                "file {file} is one of {count} parts, file 1 is one of {total}: they are of \
                 different models"
            )));
        }
        if number >= count {
            let part = u64::from(number) + 1;
            return Err(invalid(format!("file {file} is part {part} of {count}")));
        }
        if let Some(before) = numbers.iter().position(|&other| other == number) {
            return Err(invalid(format!(
                "files {} and {file} are both part {} of {count}",
                before + 1,
                number + 1
            )));
        }
        numbers.push(number);
    }
    check_order(&numbers, total)?;
    check_same_model(heads)
}

/// Checks that `numbers` are 0 to `count - 1`, in order.
fn check_order(numbers: &[u32], count: u32) -> Result<()> {
    for expected in 0..count {
        if !numbers.contains(&expected) {
            let mut found = vec![];
            for number in numbers.iter().take(8) {
                found.push((number + 1).to_string());
            }
            if numbers.len() > found.len() {
                found.push("...".into());
            }
            return Err(invalid(format!(
                "part {} of {count} is missing; found: {}",
                u64::from(expected) + 1,
                found.join(", ")
            )));
        }
    }
    for (index, &number) in numbers.iter().enumerate() {
        if index != number as usize {
            return Err(invalid(format!(
                "file {} is part {} of {count}: the parts are out of order",
                index + 1,
                number + 1
            )));
        }
    }
    Ok(())
}

/// Checks that the metadata of later files agree with the first file.
fn check_same_model(heads: &[Head]) -> Result<()> {
    let Some((first, others)) = heads.split_first() else {
        return Ok(());
    };
    for (index, head) in others.iter().enumerate() {
        if head.reader.order() != first.reader.order() {
            return Err(invalid(format!(
                "file {} has another byte order than file 1",
                index + 2
            )));
        }
        for &(key, value) in head.metadata.pairs() {
            if matches!(key, "split.no" | "general.alignment") {
                continue;
            }
            if let Some(expected) = first.metadata.get::<Value>(key)?
                && expected != value
            {
                return Err(invalid(format!(
                    "{} is {value} in file {}, but not in file 1: they are of different models",
                    quoted(key),
                    index + 2
                )));
            }
        }
    }
    Ok(())
}

/// Checks that no two files have the same tensor, and that the number of tensors is as announced.
pub(super) fn check_tensors(heads: &[Head], tensors: &[TensorInfo]) -> Result<()> {
    let mut files: HashMap<&str, usize> = HashMap::with_capacity(tensors.len());
    for tensor in tensors {
        if let Some(file) = files.insert(tensor.name, tensor.file) {
            return Err(invalid(format!(
                "tensor {} is in files {} and {}: they are of different models",
                quoted(tensor.name),
                file + 1,
                tensor.file + 1
            )));
        }
    }
    for head in heads {
        if let Some(announced) = head.metadata.get::<u32>("split.tensors.count")?
            && announced as usize != tensors.len()
        {
            return Err(invalid(format!(
                "the files hold {} tensors, `split.tensors.count` is {announced}: they are of \
                 different models",
                tensors.len()
            )));
        }
    }
    Ok(())
}

fn invalid(message: String) -> Problem {
    Problem::new(Code::ModelGgufSplit, message).help(
        "give all parts of one model in order: in a plan `gguf = [\"part1\", \"part2\"]`, to \
         `kiln inspect` any one of files that are called NAME-00001-of-00002.gguf; or join them: \
         llama-gguf-split --merge FIRST-PART OUTPUT",
    )
}
