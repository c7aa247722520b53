//! The output of `reference`: windows of tokens with their logits, and a greedy continuation.

use serde::{Deserialize, Serialize};

use crate::action::{Manifest, Part};
use crate::base::{Code, Problem, Result};

/// `greedy.json`: the reference's greedy continuation of the prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Greedy {
    /// The prompt's tokens.
    pub prompt: Vec<u32>,
    /// The most probable tokens after it, one after the other, up to the one that ends the answer.
    pub tokens: Vec<u32>,
    /// Whether the answer ends with the last one.
    pub ended: bool,
    /// The distance of each token's logit from the second largest.
    pub gaps: Vec<f32>,
    /// Those tokens as text.
    pub text: String,
}

/// The tokens and logits of the first `count` windows of a reference, or of all, by their names.
pub fn windows(reference: &Manifest, count: Option<usize>) -> Result<Vec<(&str, (&Part, &Part))>> {
    let names = window_folders(reference);
    let count = count.unwrap_or(names.len());
    if count > names.len() {
        return Err(Problem::new(
            Code::EvaluateWindows,
            format!(
                "{count} windows are wanted, but the reference has {}",
                names.len()
            ),
        )
        .help("raise `windows` of the `reference` stage, or lower it here"));
    }
    let mut windows = vec![];
    for name in &names[..count] {
        let tokens = reference.part(&format!("{name}/tokens.json"))?;
        let logits = reference.part(&format!("{name}/logits"))?;
        windows.push((*name, (tokens, logits)));
    }
    Ok(windows)
}

/// The folders `window-NNN` of a reference, in order.
fn window_folders(reference: &Manifest) -> Vec<&str> {
    let mut folders = vec![];
    for name in reference.parts.keys() {
        if let Some((folder, _)) = name.as_str().split_once('/')
            && folder.starts_with("window-")
            && folders.last() != Some(&folder)
        {
            folders.push(folder);
        }
    }
    folders
}
