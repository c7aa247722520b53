//! The tensors of a `model`, and the glob patterns that select some of them.

use globset::{Glob, GlobMatcher};

use crate::action::{Manifest, ParamProblem, Part};
use crate::base::{Code, Context, Problem, Result};
use crate::model::quant::TensorFacts;

/// A tensor of a `model` manifest.
pub struct Tensor<'a> {
    /// Its name: `blk.0.attn_q.weight`.
    pub name: &'a str,
    /// Its bytes, as in the GGUF.
    pub part: &'a Part,
    /// Its facts.
    pub facts: TensorFacts,
}

impl Tensor<'_> {
    /// Whether it is a weight matrix, not a norm or bias.
    pub fn is_matrix(&self) -> bool {
        self.facts.shape.len() == 2
    }
}

/// The tensors of `model`, by name.
pub fn all(model: &Manifest) -> Result<Vec<Tensor<'_>>> {
    let mut tensors = vec![];
    for (name, part) in model.under("tensors") {
        let facts = part.facts.read()?;
        tensors.push(Tensor { name, part, facts });
    }
    Ok(tensors)
}

/// The matcher of a pattern of tensor names.
pub fn pattern(text: &str) -> Result<GlobMatcher> {
    let glob =
        Glob::new(text).context(Code::PlanPattern, || format!("read the pattern `{text}`"))?;
    Ok(glob.compile_matcher())
}

/// The problem of the parameter at `path`, if `text` is not a valid pattern.
pub fn check_pattern(text: &str, path: String) -> Option<ParamProblem> {
    match pattern(text) {
        Ok(_) => None,
        Err(problem) => Some(ParamProblem { path, problem }),
    }
}

/// The problem of a pattern that matches no `what`, which is most likely a typing error.
pub fn unmatched(text: &str, what: &str, tensors: &[Tensor]) -> Problem {
    let mut example = match tensors.first() {
        Some(tensor) => tensor.name,
        None => "",
    };
    for tensor in tensors {
        if tensor.name.starts_with("blk.") && tensor.is_matrix() {
            example = tensor.name;
            break;
        }
    }
    Problem::new(
        Code::WeightsUnmatched,
        format!("the pattern `{text}` matches no {what} of the model"),
    )
    .help(format!(
        "tensors are called like `{example}`; `kiln inspect --tensors FILE` lists them"
    ))
}
