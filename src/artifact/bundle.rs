//! What `package` hands over.

use crate::action::{Manifest, Part, PartName};
use crate::base::{Code, Problem, Result};
use crate::model::facts::ContextFacts;
use crate::model::shards::Processor;

/// The configuration of a dialog.
pub const CONFIG: &str = "genie_config.json";

/// The settings of the backend.
pub const EXTENSIONS: &str = "htp_backend_ext_config.json";

/// The tokenizer.
pub const TOKENIZER: &str = "tokenizer.json";

/// The text of the device commands.
pub const PROMPT: &str = "prompt.txt";

/// The sums of all other files.
pub const SUMS: &str = "SHA256SUMS";

/// What the name of the table of rows ends with; `.bin`, as all that Genie maps on a phone.
pub const TABLE: &str = "_embedding.bin";

/// The context binaries of a bundle: they say which graphs they hold.
pub fn bundled(bundle: &Manifest) -> impl Iterator<Item = (&PartName, &Part)> {
    let is_binary = |(name, part): &(&PartName, &Part)| {
        name.as_str().ends_with(".bin") && part.facts.value().get("graphs").is_some()
    };
    bundle.parts.iter().filter(is_binary)
}

/// Refuses a bundle that Genie does not run: it looks rows up in a table only, and draws tokens
/// from nothing but logits of a binary.
pub fn check_for_genie(bundle: &Manifest) -> Result<()> {
    let facts = bundled(bundle)
        .map(|(_, part)| part.facts.read())
        .collect::<Result<Vec<ContextFacts>>>()?;
    let place = ContextFacts::place(&facts);
    let refuse = |what: &str, help: &str| Err(Problem::new(Code::PackagePlace, what).help(help));
    if place.head == Processor::Cpu {
        return refuse(
            "the bundle leaves the head to the CPU, and Genie draws from what the last binary \
             gives",
            "leave `head` out of `place` in the `graph` stage, or hear what the model says by \
             `evaluate` with the `context-bin`",
        );
    }
    if place.embedding == Processor::Cpu
        && !bundle
            .parts
            .keys()
            .any(|name| name.as_str().ends_with(TABLE))
    {
        return refuse(
            "the bundle leaves the embedding to the CPU, and has no table for Genie to look up \
             rows in",
            "give the `package` stage `embedding_table = true`",
        );
    }
    Ok(())
}
