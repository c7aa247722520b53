//! From metadata to a model that is understood in full: what would be computed otherwise than its
//! file says is refused. One file an architecture.

mod hyperparameters;
mod llama;
mod qwen2;
mod tensors;
mod vocabulary;

use crate::base::{Problem, Result};
use crate::model::facts::{ModelFacts, RopeRows};
use crate::model::gguf::{Gguf, Metadata, quoted};

/// What sets an architecture apart from the others.
#[derive(Debug)]
pub struct Architecture {
    /// `general.architecture`, and the prefix of its keys.
    pub name: &'static str,
    /// How the rows of `attn_q` and `attn_k` are laid out for RoPE.
    pub rope_rows: RopeRows,
    /// Whether q, k and v must have biases, or may.
    pub needs_qkv_bias: bool,
}

/// Every architecture.
static ALL: [&Architecture; 2] = [&llama::LLAMA, &qwen2::QWEN2];

impl Architecture {
    /// The architecture that `metadata` names.
    pub fn of(metadata: &Metadata) -> Result<&'static Architecture> {
        let name: &str = metadata.require("general.architecture")?;
        ALL.into_iter()
            .find(|architecture| architecture.name == name)
            .ok_or_else(|| {
                let known: Vec<&str> = ALL.iter().map(|architecture| architecture.name).collect();
                Problem::new(
                    "kiln::model::architecture",
                    format!("architecture {} is not supported", quoted(name)),
                )
                .help(format!("kiln knows {}", known.join(" and ")))
            })
    }
}

/// What the model of `gguf` is, once its keys, its tensors and its vocabulary fit each other.
pub fn model_facts(gguf: &Gguf) -> Result<ModelFacts> {
    let architecture = Architecture::of(&gguf.metadata)?;
    let facts = hyperparameters::read(gguf, architecture)?;
    tensors::check(gguf, architecture, &facts)?;
    vocabulary::check(&gguf.metadata, facts.vocab)?;
    Ok(facts)
}

/// What is odd about the model of `gguf`, which `facts` describe, and changes nothing that is made
/// of it.
pub fn model_warnings(gguf: &Gguf, facts: &ModelFacts) -> Vec<String> {
    vocabulary::unused_ids(&gguf.metadata, facts.vocab)
}

/// Most lines of a list in a message.
const SHOWN: usize = 20;

/// One problem that lists `lines`; none if there are none.
fn refuse_all(code: &str, what: &str, lines: Vec<String>) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    Err(Problem {
        causes: shortened(lines),
        ..Problem::new(code, what)
    })
}

/// As many of `lines` as a person reads.
fn shortened(mut lines: Vec<String>) -> Vec<String> {
    let count = lines.len();
    if count > SHOWN {
        lines.truncate(SHOWN);
        lines.push(format!("and {} more", count - SHOWN));
    }
    lines
}
