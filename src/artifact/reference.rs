//! What `reference` hands over.

use serde::{Deserialize, Serialize};

use crate::action::{Manifest, Part};
use crate::base::{Code, Problem, Result};

/// `greedy.json`: what the reference says after the prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Greedy {
    /// The prompt's tokens.
    pub prompt: Vec<u32>,
    /// The most probable tokens after it, one after the other, up to the one that ends the answer.
    pub tokens: Vec<u32>,
    /// Whether the last one ends it.
    pub ended: bool,
    /// How far the logit of each stands above the second's.
    pub gaps: Vec<f32>,
    /// Those tokens as text.
    pub text: String,
}

/// The tokens and logits of the first `wanted` windows of a reference, or of all, by their names.
pub fn windows<'a>(
    reference: &'a Manifest,
    wanted: Option<usize>,
) -> Result<Vec<(&'a str, (&'a Part, &'a Part))>> {
    let names: Vec<&str> = folders(reference, "window-").collect();
    let wanted = wanted.unwrap_or(names.len());
    if wanted > names.len() {
        return Err(Problem::new(
            Code::EvaluateWindows,
            format!(
                "{wanted} windows are wanted, but the reference has {}",
                names.len()
            ),
        )
        .help("raise `windows` of the `reference` stage, or lower it here"));
    }
    let part = |folder: &str, name: &str| reference.part(&format!("{folder}/{name}"));
    let window = |folder: &&'a str| {
        Ok((
            *folder,
            (part(folder, "tokens.json")?, part(folder, "logits")?),
        ))
    };
    names.iter().take(wanted).map(window).collect()
}

/// The top folders of `manifest` that begin with `prefix`, in order.
fn folders<'a>(manifest: &'a Manifest, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    let mut last = "";
    manifest.parts.keys().filter_map(move |name| {
        let (folder, _) = name.as_str().split_once('/')?;
        let is_new = folder.starts_with(prefix) && folder != last;
        last = folder;
        is_new.then_some(folder)
    })
}
