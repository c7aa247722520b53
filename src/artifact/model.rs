//! A model, the output of `inspect` and `rotate`: the names of its parts, and what their facts tell
//! before any stage has run.

use crate::action::{Content, Inputs, Manifest, Part, PartName};
use crate::base::{CanonJson, Result, hash_bytes};
use crate::model::decoder::{DecoderSpec, ModelFacts};
use crate::model::tokenizer::TokenizerFacts;

/// What the model is: [`ModelFacts`], in the facts too.
pub const MODEL: &str = "model.json";
/// The metadata of the tokenizer; [`TokenizerFacts`] are its facts.
pub const TOKENIZER: &str = "tokenizer.json";
/// The header of the GGUF without its tensors; the names of these are the facts.
pub const METADATA: &str = "metadata.gguf";

/// The decoder in the slot `model` of a stage; `None` if that input is not complete.
pub fn decoder(inputs: &Inputs) -> Result<Option<DecoderSpec>> {
    match inputs.optional("model") {
        Some(model) => Ok(Some(model.part(MODEL)?.facts.read()?)),
        None => Ok(None),
    }
}

/// Refuses a model whose text kiln cannot read, if the slot `model` of a stage is complete.
pub fn check_tokenizer(inputs: &Inputs) -> Result<()> {
    match inputs.optional("model") {
        Some(model) => {
            let facts: TokenizerFacts = model.part(TOKENIZER)?.facts.read()?;
            facts.check()
        }
        None => Ok(()),
    }
}

/// The facts of a model, without its bytes: enough to foresee what stages can make of it.
pub fn described(model: &ModelFacts, tokenizer: &TokenizerFacts) -> Result<Manifest> {
    let mut manifest = Manifest::default();
    for (name, facts) in [
        (MODEL, CanonJson::of(model)?),
        (TOKENIZER, CanonJson::of(tokenizer)?),
    ] {
        let content = Content {
            digest: hash_bytes(&[]),
            window: None,
        };
        let part = Part { content, facts };
        manifest.parts.insert(PartName::new(name)?, part);
    }
    Ok(manifest)
}
