//! The tensors of a `model`, and the patterns that choose among them.

use globset::{Glob, GlobMatcher};

use crate::action::{Manifest, ParamProblem, Part};
use crate::base::{Code, Context, Problem, Result};
use crate::model::facts::TensorFacts;

/// A tensor of a `model` manifest.
pub struct Tensor<'a> {
    /// Its name: `blk.0.attn_q.weight`.
    pub name: &'a str,
    /// Its bytes, as the GGUF holds them.
    pub part: &'a Part,
    /// Its facts.
    pub facts: TensorFacts,
}

impl Tensor<'_> {
    /// Whether it has rows: a weight matrix, no norm or bias.
    pub fn is_matrix(&self) -> bool {
        self.facts.shape.len() == 2
    }
}

/// The tensors of `model`, by name.
pub fn all(model: &Manifest) -> Result<Vec<Tensor<'_>>> {
    model
        .under("tensors")
        .map(|(name, part)| {
            Ok(Tensor {
                name,
                part,
                facts: part.facts.read()?,
            })
        })
        .collect()
}

/// The matcher of a pattern of tensor names.
pub fn pattern(text: &str) -> Result<GlobMatcher> {
    let glob =
        Glob::new(text).context(Code::PlanPattern, || format!("read the pattern `{text}`"))?;
    Ok(glob.compile_matcher())
}

/// The problem of the parameter at `path`, if it is no pattern.
pub fn check_pattern(text: &str, path: String) -> Option<ParamProblem> {
    pattern(text)
        .err()
        .map(|problem| ParamProblem { path, problem })
}

/// A pattern that chose nothing, no `what`: most likely a slip of the pen, so not to be passed
/// over.
pub fn unmatched(text: &str, what: &str, tensors: &[Tensor]) -> Problem {
    let example = tensors
        .iter()
        .find(|tensor| tensor.name.starts_with("blk.") && tensor.is_matrix());
    let example = example.or(tensors.first()).map_or("", |tensor| tensor.name);
    Problem::new(
        Code::WeightsUnmatched,
        format!("the pattern `{text}` matches no {what} of the model"),
    )
    .help(format!(
        "tensors are called like `{example}`; `kiln inspect --tensors FILE` lists them"
    ))
}
