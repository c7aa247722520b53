//! The parts of a bundle, which `package` writes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::action::{Manifest, Part, PartName};
use crate::base::{Code, Problem, Result};
use crate::model::decoder::shards::Processor;
use crate::model::facts::ContextFacts;

/// The system of the device that a bundle is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Platform {
    /// A phone or another device with Android.
    #[default]
    Android,
    /// Windows on Snapdragon.
    Windows,
    /// Linux on ARM64.
    Linux,
}

/// The configuration of a dialog.
pub const CONFIG: &str = "genie_config.json";

/// The settings of the backend.
pub const EXTENSIONS: &str = "htp_backend_ext_config.json";

/// The tokenizer.
pub const TOKENIZER: &str = "tokenizer.json";

/// A description of the bundle for programs.
pub const METADATA: &str = "metadata.json";

/// The text of the device commands.
pub const PROMPT: &str = "prompt.txt";

/// The grammar that answers follow.
pub const GRAMMAR: &str = "grammar.txt";

/// The SHA-256 sums of all other files.
pub const SUMS: &str = "SHA256SUMS";

/// The end of the name of the embedding table; `.bin`, like all files that Genie maps on a phone.
pub const TABLE: &str = "_embedding.bin";

/// The context binaries of a bundle: the files whose facts name graphs.
pub fn bundled(bundle: &Manifest) -> impl Iterator<Item = (&PartName, &Part)> {
    let is_binary = |(name, part): &(&PartName, &Part)| {
        name.as_str().ends_with(".bin") && part.facts.value().get("graphs").is_some()
    };
    bundle.parts.iter().filter(is_binary)
}

/// Refuses a bundle that Genie cannot run. Genie reads embedding rows from a table only, and
/// samples tokens from the logits of a context binary only.
pub fn check_for_genie(bundle: &Manifest) -> Result<()> {
    let mut binaries: Vec<ContextFacts> = vec![];
    for (_, part) in bundled(bundle) {
        binaries.push(part.facts.read()?);
    }
    let place = ContextFacts::place(&binaries);
    if place.head == Processor::Cpu {
        return Err(Problem::new(
            Code::PackagePlace,
            "the bundle leaves the head to the CPU, and Genie samples from the output of the last \
             binary",
        )
        .help(
            "leave `head` out of `place` in the `graph` stage, or evaluate the `context-bin` with \
             the `evaluate` stage",
        ));
    }
    let mut names = bundle.parts.keys();
    let has_table = names.any(|name| name.as_str().ends_with(TABLE));
    if place.embedding == Processor::Cpu && !has_table {
        return Err(Problem::new(
            Code::PackagePlace,
            "the bundle leaves the embedding to the CPU, and has no table for Genie to look up \
             rows in",
        )
        .help("give the `package` stage `embedding_table = true`"));
    }
    Ok(())
}
