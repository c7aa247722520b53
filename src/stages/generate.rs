//! `generate`: the answer of a bundle in Qualcomm's own runtime. libGenie loads the bundle on the
//! HTP simulator, reads the prompt of the reference and generates greedily; the result should be
//! the reference's own continuation.
//!
//! The simulator loads no binary whose graphs share weights, and libGenie crashes over one: such a
//! bundle is refused. So this stage needs a bundle of the same graphs, each with its own weights
//! (`weight_sharing = false`).

use std::fs;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::action::{
    Demand, Given, InputSpec, Inputs, Isolation, Job, Manifest, Order, Outputs, PartName,
    StageSpec, TypedStage,
};
use crate::artifact::bundle::{CONFIG, EXTENSIONS, TOKENIZER, bundled, check_for_genie};
use crate::artifact::generation::{GENERATION, Generation};
use crate::artifact::reference::Greedy;
use crate::artifact::tools::{QNN, libraries};
use crate::base::{CanonJson, Code, Context, Problem, Result};
use crate::model::facts::ContextFacts;
use crate::model::tokenizer::Tokenizer;
use crate::qnn::Dialog;

/// What libGenie loads.
const LIBRARIES: [&str; 4] = [
    "libGenie.so",
    "libQnnHtp.so",
    "libQnnHtpNetRunExtensions.so",
    "libQnnSystem.so",
];

/// The parameters.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// Number of the reference's greedy tokens that are generated. By default all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    tokens: Option<u32>,
}

/// The stage.
pub struct Generate;

impl TypedStage for Generate {
    type Params = Params;
    type Order = Params;
    const SPEC: StageSpec = StageSpec {
        kind: "generate",
        version: 1,
        summary: "the answer of a bundle in libGenie, on the simulator",
        output: "generation",
        inputs: &[
            InputSpec {
                name: "bundle",
                meaning: "A bundle around a binary built with `weight_sharing = false`.",
                accepts: &["bundle"],
                required: true,
                many: false,
            },
            InputSpec {
                name: "reference",
                meaning: "A reference with a `prompt`.",
                accepts: &["reference"],
                required: true,
                many: false,
            },
        ],
        params: &["tokens"],
        keyed: &[],
        reaches_outside: false,
        measures: true,
    };

    fn tools(_: &Params, _: &[Given]) -> Vec<&'static str> {
        vec![QNN]
    }

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Params>>> {
        let (bundle, reference) = (inputs.one("bundle")?, inputs.one("reference")?);
        refuse_shared_weights(bundle)?;
        check_for_genie(bundle)?;
        let greedy = reference.get("greedy.json").ok_or_else(|| {
            Problem::new(Code::GenerateNoPrompt, "the reference continues no prompt")
                .help("give the `reference` stage a `prompt`")
        })?;
        let mut order = Order::new("", params)
            .input("greedy", greedy)
            .tools(libraries(inputs, &LIBRARIES)?);
        let mut bytes: u64 = 0;
        for (name, part) in &bundle.parts {
            if [CONFIG, EXTENSIONS, TOKENIZER].contains(&name.as_str())
                || name.as_str().ends_with(".bin")
            {
                bytes = bytes.saturating_add(part.content.digest.size_bytes);
                order = order.input(format!("bundle/{name}"), part);
            }
        }
        // 665 MB were measured for a binary of 256 MB, 173 MB for next to nothing.
        let memory_bytes = bytes.saturating_mul(4).saturating_add(512 << 20);
        Ok(vec![order.demand(Demand {
            memory_bytes,
            threads: 1,
            isolation: Isolation::Process,
        })])
    }

    fn run(params: Params, job: &Job) -> Result<Outputs> {
        let Greedy {
            prompt,
            tokens,
            ended,
            ..
        } = serde_json::from_slice(&job.read("greedy")?)
            .context(Code::GenerateReference, || "read `greedy`".into())?;
        let most = params.tokens.map_or(tokens.len(), |tokens| tokens as usize);
        if most > tokens.len() && !ended {
            let what = format!(
                "{most} tokens are asked for, the reference has {}",
                tokens.len()
            );
            return Err(Problem::new(Code::GenerateTokens, what)
                .help("raise `greedy` of the `reference` stage, or lower `tokens` here"));
        }
        let config: Config = serde_json::from_slice(&job.read(&format!("bundle/{CONFIG}"))?)
            .context(Code::GenerateConfig, || format!("read {CONFIG}"))?;
        let tokenizer = Tokenizer::from_json(&job.read(&format!("bundle/{TOKENIZER}"))?)?;
        config.begins(&prompt, &tokenizer)?;
        let ended = ended && most >= tokens.len();
        let expected: Vec<u32> = tokens
            .into_iter()
            .take(most)
            .take_while(|token| !config.ends(*token))
            .collect();

        let config = config.for_greedy(&laid_out(job)?)?;
        let mut dialog = Dialog::open(&job.tool_folder(QNN)?, &config)?;
        let text = tokenizer.decode(&prompt)?;
        let read = dialog.encode(&text)?;
        if read != prompt {
            let what =
                format!("Genie reads {text:?} as the tokens {read:?}, the reference as {prompt:?}");
            return Err(Problem::new(Code::GenerateTokenizer, what));
        }
        let tokens = dialog.generate(&prompt, most as u32, &|done| {
            job.progress(done, most as u64, "tokens")
        })?;
        let (text, expected_text) = (dialog.decode(&tokens)?, tokenizer.decode(&expected)?);
        let generation = CanonJson::of(&Generation {
            prompt,
            tokens,
            text,
            expected,
            ended,
            expected_text,
        })?
        .to_string();
        Ok([(
            PartName::new(GENERATION)?,
            job.write(generation.as_bytes(), CanonJson::default())?,
        )]
        .into())
    }
}

/// The simulator loads no shared weights, and libGenie ends its process over them.
fn refuse_shared_weights(bundle: &Manifest) -> Result<()> {
    for (name, part) in bundled(bundle) {
        let facts: ContextFacts = part.facts.read()?;
        if facts.weight_sharing {
            let what =
                format!("the graphs of `{name}` share weights, which the simulator cannot load");
            return Err(Problem::new(Code::GenerateSharedWeights, what).help(
                "package a `context-bin` of the same graphs with `weight_sharing = false` for \
                 this stage; the shared one is for the phone",
            ));
        }
    }
    Ok(())
}

/// A folder with the bundle's files under their own names (symbolic links).
fn laid_out(job: &Job) -> Result<PathBuf> {
    let folder = job.scratch()?.join("bundle");
    fs::create_dir_all(&folder).context(Code::Io, || format!("make {}", folder.display()))?;
    for (input, name) in job
        .inputs()
        .filter_map(|(input, _)| Some((input, input.strip_prefix("bundle/")?)))
    {
        let (link, target) = (folder.join(name), job.path(input)?);
        std::os::unix::fs::symlink(&target, &link).context(Code::Io, || {
            format!("link {} to {}", link.display(), target.display())
        })?;
    }
    Ok(folder)
}

/// A `genie_config.json`.
#[derive(Deserialize)]
struct Config(Value);

impl Config {
    /// Genie puts the first token before a prompt that does not begin with it: the reference must
    /// have it too.
    fn begins(&self, prompt: &[u32], tokenizer: &Tokenizer) -> Result<()> {
        let first = self
            .0
            .pointer("/dialog/context/bos-token")
            .and_then(Value::as_u64);
        let Some(first) = first.and_then(|first| u32::try_from(first).ok()) else {
            return Ok(());
        };
        if prompt.first() == Some(&first) {
            return Ok(());
        }
        let text = tokenizer.decode(&[first])?;
        let what = format!(
            "Genie puts {text:?} before the prompt, and the reference's prompt does not begin \
             with it"
        );
        Err(Problem::new(Code::GenerateFirstToken, what).help(format!(
            "begin `prompt` of the `reference` stage with {text:?}"
        )))
    }

    /// Whether a text ends with `token`.
    fn ends(&self, token: u32) -> bool {
        let is_it = |value: &Value| value.as_u64() == Some(token.into());
        match self.0.pointer("/dialog/context/eos-token") {
            Some(Value::Array(ends)) => ends.iter().any(is_it),
            Some(end) => is_it(end),
            None => false,
        }
    }

    /// The text of the same configuration, but that the most probable token is always taken, with
    /// its files in `folder`.
    fn for_greedy(mut self, folder: &Path) -> Result<String> {
        let at = |name: &mut Value| {
            if let Value::String(name) = name {
                *name = folder.join(&*name).to_string_lossy().into_owned();
            }
        };
        for pointer in [
            "/dialog/tokenizer/path",
            "/dialog/engine/backend/extensions",
            "/dialog/embedding/lut-path",
        ] {
            self.0.pointer_mut(pointer).into_iter().for_each(at);
        }
        let binaries = self
            .0
            .pointer_mut("/dialog/engine/model/binary/ctx-bins")
            .and_then(Value::as_array_mut);
        binaries.into_iter().flatten().for_each(at);
        if let Some(sampler) = self.0.pointer_mut("/dialog/sampler") {
            *sampler = json!({ "version": 1, "seed": 0, "temp": 1.0, "top-k": 1, "top-p": 1.0, "greedy": true });
        }
        Ok(self.0.to_string())
    }
}
