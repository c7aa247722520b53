//! A model in several files, as `llama-gguf-split` and gguf-py write it: each says which of how
//! many it is.

use std::collections::HashMap;

use super::{Head, Metadata, TensorInfo, quoted};
use crate::base::{Code, Problem, Result};

/// Most files of a model: their names have five digits.
pub const MAX_FILES: usize = 99_999;

/// The names of all files of the model that the file `name` belongs to, by its name:
/// `NAME-00002-of-00003.gguf` is one of three. Nothing else is known of another name than that it
/// is one.
pub fn files_of(name: &str) -> Vec<String> {
    let numbers = || {
        let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let number_of = |digits: &str| {
            (digits.len() == 5)
                .then(|| digits.parse::<u32>().ok())
                .flatten()
        };
        let (number, count) = (number_of(number)?, number_of(count)?);
        (1..=count).contains(&number).then_some((stem, count))
    };
    match numbers() {
        None => vec![name.into()],
        Some((stem, count)) => (1..=count)
            .map(|number| format!("{stem}-{number:05}-of-{count:05}.gguf"))
            .collect(),
    }
}

/// Whether a key only says how a model is split.
pub fn is_split_key(key: &str) -> bool {
    key.starts_with("split.")
}

/// Which file of how many: from 0, as files say it. `None` if it is the only one.
fn place(metadata: &Metadata) -> Result<Option<(u32, u32)>> {
    match metadata.get::<u32>("split.count")?.unwrap_or(0) {
        0 | 1 => Ok(None),
        count => Ok(Some((metadata.require("split.no")?, count))),
    }
}

/// Refuses files that are not all of one model, each once and in order.
pub(super) fn check(heads: &[Head]) -> Result<()> {
    let places = heads
        .iter()
        .map(|head| place(&head.metadata))
        .collect::<Result<Vec<_>>>()?;
    if let [None] = places.as_slice() {
        return Ok(());
    }
    let mut numbers = vec![];
    let mut total = None;
    for (index, place) in places.iter().enumerate() {
        let Some((number, count)) = place else {
            return Err(wrong(format!(
                "file {} is a model of its own, no part of a split one",
                index + 1
            )));
        };
        let total = *total.get_or_insert(*count);
        if *count != total {
            let what = format!(
                "file {} is one of {count} parts, file 1 is one of {total}",
                index + 1
            );
            return Err(wrong(format!("{what}: they are of different models")));
        }
        if number >= count {
            return Err(wrong(format!(
                "file {} is part {} of {count}",
                index + 1,
                u64::from(*number) + 1
            )));
        }
        if let Some(before) = numbers.iter().position(|other| other == number) {
            let (number, before) = (number + 1, before + 1);
            return Err(wrong(format!(
                "files {before} and {} are both part {number} of {count}",
                index + 1
            )));
        }
        numbers.push(*number);
    }
    let count = total.unwrap_or_default();
    if let Some(missing) = (0..count).find(|number| !numbers.contains(number)) {
        let given: Vec<String> = numbers
            .iter()
            .take(8)
            .map(|number| (number + 1).to_string())
            .collect();
        let more = if numbers.len() > given.len() {
            " ..."
        } else {
            ""
        };
        return Err(wrong(format!(
            "part {} of {count} is missing; given: {}{more}",
            u64::from(missing) + 1,
            given.join(", ")
        )));
    }
    if let Some(index) = numbers
        .iter()
        .enumerate()
        .position(|(index, number)| index != *number as usize)
    {
        let found = numbers[index] + 1;
        return Err(wrong(format!(
            "file {} is part {found} of {count}: the parts are out of order",
            index + 1
        )));
    }
    same_model(heads)
}

/// What a later file says of the model, if it does, is what the first one says.
fn same_model(heads: &[Head]) -> Result<()> {
    let Some((first, others)) = heads.split_first() else {
        return Ok(());
    };
    for (index, head) in others.iter().enumerate() {
        if head.reader.order() != first.reader.order() {
            return Err(wrong(format!(
                "file {} has another byte order than file 1",
                index + 2
            )));
        }
        for (key, value) in head.metadata.pairs() {
            let own = matches!(*key, "split.no" | "general.alignment");
            let agreed = first
                .metadata
                .pairs()
                .iter()
                .find(|(other, _)| other == key)
                .map(|(_, value)| value);
            if !own && agreed.is_some_and(|agreed| agreed != value) {
                let what = format!(
                    "{} is {value} in file {}, but not in file 1",
                    quoted(key),
                    index + 2
                );
                return Err(wrong(format!("{what}: they are of different models")));
            }
        }
    }
    Ok(())
}

/// Refuses a tensor that two files have, and another number of them than the files say.
pub(super) fn check_tensors(heads: &[Head], tensors: &[TensorInfo]) -> Result<()> {
    let mut files: HashMap<&str, usize> = HashMap::with_capacity(tensors.len());
    for tensor in tensors {
        if let Some(file) = files.insert(tensor.name, tensor.file) {
            let (name, file, again) = (quoted(tensor.name), file + 1, tensor.file + 1);
            return Err(wrong(format!(
                "tensor {name} is in files {file} and {again}: they are of different models"
            )));
        }
    }
    for head in heads {
        let announced = head.metadata.get::<u32>("split.tensors.count")?;
        if let Some(announced) = announced.filter(|announced| *announced as usize != tensors.len())
        {
            let what = format!(
                "the files hold {} tensors, `split.tensors.count` is {announced}",
                tensors.len()
            );
            return Err(wrong(format!("{what}: they are of different models")));
        }
    }
    Ok(())
}

fn wrong(message: String) -> Problem {
    Problem::new(Code::ModelGgufSplit, message).help(
        "give all parts of one model in order: in a plan `gguf = [\"part1\", \"part2\"]`, to \
         `kiln inspect` any one of files that are called NAME-00001-of-00002.gguf; or join them: \
         llama-gguf-split --merge FIRST-PART OUTPUT",
    )
}
