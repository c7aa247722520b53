//! `generate`: runs a bundle in libGenie, Qualcomm's runtime, on the HTP simulator. It generates
//! greedily from the prompt of the reference; the tokens should be those of the reference.
//!
//! The simulator cannot load a binary whose graphs share weights, and libGenie crashes if it tries.
//! Such a bundle is refused: this stage needs one that is built with `weight_sharing = false`.

use std::fs;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::action::{
    Demand, InputSpec, InputStage, Inputs, Isolation, Job, Manifest, Order, Outputs, PartName,
    StageSpec, TypedStage,
};
use crate::artifact::bundle::{CONFIG, EXTENSIONS, TOKENIZER, bundled, check_for_genie};
use crate::artifact::generation::{GENERATION, Generation};
use crate::artifact::reference::Greedy;
use crate::artifact::tools::{GENIE, QNN, libraries};
use crate::base::{CanonJson, Code, Context, Problem, Result};
use crate::model::facts::ContextFacts;
use crate::model::tokenizer::Tokenizer;
use crate::qnn::Dialog;

/// The library files that are loaded.
const LIBRARIES: [&str; 4] = [
    GENIE,
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
        version: 2,
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

    fn tools(_: &Params, _: &[InputStage]) -> Vec<&'static str> {
        vec![QNN]
    }

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Params>>> {
        let (bundle, reference) = (inputs.one("bundle")?, inputs.one("reference")?);
        refuse_shared_weights(bundle)?;
        check_for_genie(bundle)?;
        let Some(greedy) = reference.get("greedy.json") else {
            return Err(
                Problem::new(Code::GenerateNoPrompt, "the reference continues no prompt")
                    .help("give the `reference` stage a `prompt`"),
            );
        };
        let mut order = Order::new("", params)
            .input("greedy", greedy)
            .tools(libraries(inputs, &LIBRARIES)?);
        let mut bytes: u64 = 0;
        for (name, part) in &bundle.parts {
            let name = name.as_str();
            if [CONFIG, EXTENSIONS, TOKENIZER].contains(&name) || name.ends_with(".bin") {
                bytes = bytes.saturating_add(part.content.digest.size_bytes);
                order = order.input(format!("bundle/{name}"), part);
            }
        }
        // Measured: 665 MB for a binary of 256 MB, and 173 MB for a tiny one.
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
        let max_tokens = match params.tokens {
            Some(tokens) => tokens as usize,
            None => tokens.len(),
        };
        if max_tokens > tokens.len() && !ended {
            let what = format!(
                "{max_tokens} tokens are requested, the reference has {}",
                tokens.len()
            );
            return Err(Problem::new(Code::GenerateTokens, what)
                .help("raise `greedy` of the `reference` stage, or lower `tokens` here"));
        }
        let config: Config = serde_json::from_slice(&job.read(&format!("bundle/{CONFIG}"))?)
            .context(Code::GenerateConfig, || format!("read {CONFIG}"))?;
        let tokenizer = Tokenizer::from_json(&job.read(&format!("bundle/{TOKENIZER}"))?)?;
        let fed = config.fed(&prompt, &tokenizer)?;
        let ended = ended && max_tokens >= tokens.len();
        let mut expected = tokens;
        expected.truncate(max_tokens);
        if let Some(end) = expected.iter().position(|token| config.is_end(*token)) {
            expected.truncate(end);
        }

        let config = config.for_greedy(&link_bundle(job)?)?;
        let mut dialog = Dialog::open(&job.tool_folder(QNN)?, &config)?;
        let text = tokenizer.decode(fed)?;
        let encoded = dialog.encode(&text)?;
        if encoded != fed {
            let what =
                format!("Genie reads {text:?} as the tokens {encoded:?}, the reference as {fed:?}");
            return Err(Problem::new(Code::GenerateTokenizer, what));
        }
        let tokens = dialog.generate(fed, max_tokens as u32, &|done| {
            job.progress(done, max_tokens as u64, "tokens")
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

/// Fails for graphs that share weights: the simulator cannot load them, and libGenie would crash.
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

/// Makes a folder with symbolic links to the bundle's files, under their own names.
fn link_bundle(job: &Job) -> Result<PathBuf> {
    let folder = job.scratch()?.join("bundle");
    fs::create_dir_all(&folder).context(Code::Io, || format!("make {}", folder.display()))?;
    for (input, _) in job.inputs() {
        let Some(name) = input.strip_prefix("bundle/") else {
            continue;
        };
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
    /// The beginning-of-sequence token, if there is one.
    fn bos_token(&self) -> Option<u32> {
        let token = self.0.pointer("/dialog/context/bos-token")?.as_u64()?;
        u32::try_from(token).ok()
    }

    /// The tokens of `prompt` that Genie is given: all but the beginning-of-sequence token, which
    /// Genie puts before every prompt. Fails if the prompt does not begin with it.
    fn fed<'a>(&self, prompt: &'a [u32], tokenizer: &Tokenizer) -> Result<&'a [u32]> {
        let Some(bos) = self.bos_token() else {
            return Ok(prompt);
        };
        if let Some((first, rest)) = prompt.split_first()
            && *first == bos
        {
            return Ok(rest);
        }
        let text = tokenizer.decode(&[bos])?;
        let what = format!(
            "Genie puts {text:?} before the prompt, and the reference's prompt does not begin \
             with it"
        );
        Err(Problem::new(Code::GenerateFirstToken, what)
            .help("give a reference of the model in the bundle"))
    }

    /// Whether `token` ends a text.
    fn is_end(&self, token: u32) -> bool {
        match self.0.pointer("/dialog/context/eos-token") {
            Some(Value::Array(tokens)) => tokens.contains(&json!(token)),
            Some(end) => *end == json!(token),
            None => false,
        }
    }

    /// The text of the same configuration, with plain greedy sampling and the paths of the files in
    /// `folder`.
    fn for_greedy(mut self, folder: &Path) -> Result<String> {
        for pointer in [
            "/dialog/tokenizer/path",
            "/dialog/engine/backend/extensions",
            "/dialog/embedding/lut-path",
        ] {
            if let Some(path) = self.0.pointer_mut(pointer) {
                make_absolute(path, folder);
            }
        }
        let binaries = self.0.pointer_mut("/dialog/engine/model/binary/ctx-bins");
        if let Some(Value::Array(paths)) = binaries {
            for path in paths {
                make_absolute(path, folder);
            }
        }
        // The reference has no grammar and no texts at which an answer ends.
        if let Some(Value::Object(dialog)) = self.0.pointer_mut("/dialog") {
            dialog.remove("stop-sequence");
        }
        if let Some(Value::Object(context)) = self.0.pointer_mut("/dialog/context") {
            context.remove("grammar");
        }
        if let Some(sampler) = self.0.pointer_mut("/dialog/sampler") {
            *sampler = json!({
                "version": 1,
                "seed": 0,
                "temp": 1.0,
                "top-k": 1,
                "top-p": 1.0,
                "greedy": true,
            });
        }
        Ok(self.0.to_string())
    }
}

/// Prepends `folder` to the relative path `path`.
fn make_absolute(path: &mut Value, folder: &Path) {
    if let Value::String(path) = path {
        *path = folder.join(&*path).to_string_lossy().into_owned();
    }
}
