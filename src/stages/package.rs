//! `package`: makes a bundle that Genie, Qualcomm's runtime for language models, loads on a device.
//!
//! What the parameters do not set is read from the GGUF and the binaries. These must fit each other
//! and be in the form that Genie requires. The binaries and the graphs for the CPU are passed on
//! without a copy. Qualcomm's libraries are not part of a bundle.

mod binaries;
mod commands;
mod genie;
mod readme;
mod rotary;
mod table;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::action::{
    Demand, InputSpec, InputStage, Inputs, Isolation, Job, Order, Outputs, ParamProblem, PartName,
    StageSpec, TypedStage,
};
use crate::artifact::bundle::{
    CONFIG, EXTENSIONS, GRAMMAR, METADATA, PROMPT, Platform, SUMS, TABLE, TOKENIZER,
};
use crate::artifact::context::{CPU, ROLES, is_on_cpu};
use crate::artifact::model::{self, MODEL, check_tokenizer};
use crate::artifact::tools::{GENIE, QNN, has_library, libraries};
use crate::base::{CanonJson, Code, Context, Problem, Result};
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::shards::Processor;
use crate::model::facts::ContextFacts;
use crate::model::quant_report::{Entry, QuantReport};
use crate::model::tokenizer::Tokenizer;
use crate::qnn::check_config;

use binaries::{Binary, check_facts, check_graphs, read_facts};

/// More than any sampler needs.
const MAX_TOP_K: u32 = 1 << 20;

/// Bytes that are hashed at a time.
const CHUNK_BYTES: usize = 4 << 20;

/// Memory for the tokenizer and its JSON. A vocabulary of 152 k tokens with its merges needs 78 MB.
const MEMORY_BYTES: u64 = 128 << 20;

/// The tool `qnn`, if the plan has it.
const QNN_IF_GIVEN: &str = "qnn?";

/// The parameters.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The system of the device.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(extend("default" = Platform::default()))]
    platform: Platform,
    /// Name of the binaries and of the folder on the device: letters, digits, `.`, `_` and `-`, at
    /// most 100.
    #[serde(default = "default_name")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"))]
    name: String,
    /// A prompt for the commands in `README.md` (`prompt.txt`), with its special tokens written
    /// out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prompt: Option<String>,
    /// Whether the embedding is also written as one table in f32 (`NAME_embedding.bin`), for Genie
    /// to look up, where the graph leaves the embedding to the CPU.
    #[serde(default, skip_serializing_if = "is_default")]
    #[schemars(extend("default" = false))]
    embedding_table: bool,
    /// Temperature: logits are divided by it before Genie samples a token.
    #[serde(default = "default_temp")]
    #[schemars(range(max = 100.0), extend("exclusiveMinimum" = 0.0))]
    temp: f64,
    /// Number of most probable tokens that are sampled from; 1 always takes the most probable one.
    #[serde(default = "default_top_k")]
    #[schemars(range(min = 1, max = MAX_TOP_K))]
    top_k: u32,
    /// Of these tokens, the most probable ones that together have this probability are kept.
    #[serde(default = "default_top_p")]
    #[schemars(range(max = 1.0), extend("exclusiveMinimum" = 0.0))]
    top_p: f64,
    /// Seed of the random numbers.
    #[serde(default = "default_seed")]
    seed: u32,
    /// How Genie makes tokens less likely that the text already has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    penalty: Option<Penalty>,
    /// Texts at which Genie ends an answer, besides the model's own tokens for an end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    stop: Vec<String>,
    /// Most tokens of an answer. By default as many as the context has room for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    max_tokens: Option<u32>,
    /// A grammar that answers follow: Genie samples only tokens that it allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grammar: Option<Grammar>,
}

/// How Genie makes tokens less likely that the text already has.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Penalty {
    /// How many of the last tokens count.
    #[schemars(range(max = i32::MAX))]
    last: u32,
    /// Logits of tokens among them are divided by it if they are above zero, and multiplied by it
    /// below; above 1 makes them less likely.
    #[serde(default = "no_repetition")]
    #[schemars(range(max = 100.0), extend("exclusiveMinimum" = 0.0))]
    repetition: f64,
    /// It is subtracted from the logit of each token among them.
    #[serde(default)]
    #[schemars(range(min = -100.0, max = 100.0))]
    presence: f64,
    /// It is subtracted as often as they have the token.
    #[serde(default)]
    #[schemars(range(min = -100.0, max = 100.0))]
    frequency: f64,
}

fn no_repetition() -> f64 {
    1.0
}

/// A grammar for answers.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Grammar {
    /// What `text` is: a JSON Schema, a regular expression, or a grammar in EBNF.
    #[serde(rename = "type")]
    form: GrammarForm,
    /// The grammar.
    text: String,
}

/// The forms of a grammar, by Genie's names.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum GrammarForm {
    JsonSchema,
    Regex,
    Ebnf,
}

fn default_name() -> String {
    "model".into()
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn default_temp() -> f64 {
    0.8
}

fn default_top_k() -> u32 {
    40
}

fn default_top_p() -> f64 {
    0.95
}

fn default_seed() -> u32 {
    42
}

/// The stage.
pub struct Package;

impl TypedStage for Package {
    type Params = Params;
    type Order = Params;
    const SPEC: StageSpec = StageSpec {
        kind: "package",
        version: 6,
        summary: "a bundle that Genie loads on a device",
        output: "bundle",
        inputs: &[
            InputSpec {
                name: "model",
                meaning: "The model that the binary was made from.",
                accepts: &["model"],
                required: true,
                many: false,
            },
            InputSpec {
                name: "context",
                meaning: "A binary, or one per shard, with prefill and decode.",
                accepts: &["context-bin"],
                required: true,
                many: false,
            },
        ],
        params: &[
            "platform",
            "name",
            "prompt",
            "embedding_table",
            "temp",
            "top_k",
            "top_p",
            "seed",
            "penalty",
            "stop",
            "max_tokens",
            "grammar",
        ],
        keyed: &[],
        reaches_outside: false,
        measures: false,
    };

    fn check(params: &Params, _: &[InputStage]) -> Vec<ParamProblem> {
        let mut problems = vec![];
        let mut wrong = |path: &str, what: String, help: &str| {
            let problem = Problem::new(Code::PlanParameter, what).help(help);
            problems.push(ParamProblem {
                path: path.into(),
                problem,
            });
        };
        let name = &params.name;
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if !name.starts_with(|c: char| c.is_ascii_alphanumeric())
            || !name.chars().all(plain)
            || name.len() > 100
        {
            let help = "letters, digits, `.`, `_` and `-`, the first a letter or a digit, 100 at \
                        most: it goes into a shell";
            wrong("name", format!("`name` is {name:?}"), help);
        }
        if params.platform == Platform::Windows && !is_windows_name(name) {
            let help = "choose another one, that does not end in `.`";
            wrong(
                "name",
                format!("Windows has no files called {name:?}"),
                help,
            );
        }
        if let Some(Grammar { form, text }) = &params.grammar
            && *form == GrammarForm::JsonSchema
            && let Err(error) = serde_json::from_str::<Value>(text)
        {
            let help = "write a JSON Schema as a text";
            wrong("grammar/text", format!("`text` is not JSON: {error}"), help);
        }
        problems
    }

    /// libGenie checks the configuration, if the tool has it.
    fn tools(_: &Params, _: &[InputStage]) -> Vec<&'static str> {
        vec![QNN_IF_GIVEN]
    }

    fn foresee(_: &Params, inputs: &Inputs) -> Result<()> {
        check_tokenizer(inputs)?;
        if let Some(model) = model::decoder(inputs)? {
            rotary::check(&model)?;
        }
        Ok(())
    }

    fn expand(params: Params, inputs: &Inputs) -> Result<Vec<Order<Params>>> {
        let (model, context) = (inputs.one("model")?, inputs.one("context")?);
        let binaries = read_facts(context)?;
        check_facts(&binaries)?;
        let place = ContextFacts::place(binaries.iter().map(|(_, facts)| facts));
        if params.embedding_table && place.embedding == Processor::Npu {
            return Err(Problem::new(
                Code::PackageTable,
                "an embedding table is of no use: the NPU computes the embedding",
            )
            .help(
                "`place = { embedding = \"cpu\" }` in the `graph` stage, or no `embedding_table` \
                 here",
            ));
        }
        let mut order = Order::new("", params);
        for name in [MODEL, TOKENIZER] {
            order = order.input(name, model.part(name)?);
        }
        let digest = model.part(MODEL)?.content.digest;
        for (name, part) in &context.parts {
            let name = name.as_str();
            let file = name.rsplit('/').next().unwrap_or_default();
            if file == MODEL && part.content.digest != digest {
                return Err(Problem::new(
                    Code::PackageModel,
                    "the context binary is not of this model",
                )
                .help("give the `inspect` stage that the context binary was made from"));
            }
            if ["model.bin", "info.json", "quantization.json"].contains(&file) {
                order = order.input(format!("context/{name}"), part);
            }
            if is_on_cpu(name) {
                order = order.input(name, part);
            }
        }
        let mut demand = Demand {
            memory_bytes: MEMORY_BYTES,
            ..Demand::default()
        };
        if has_library(inputs, GENIE) {
            order = order.tools(libraries(inputs, &[GENIE])?);
            demand.isolation = Isolation::Process;
        }
        Ok(vec![order.demand(demand)])
    }

    fn run(params: Params, job: &Job) -> Result<Outputs> {
        let model: DecoderSpec = job.input(MODEL)?.facts.read()?;
        let tokenizer = Tokenizer::from_metadata(&job.read(TOKENIZER)?)?;
        let binaries = Binary::read_all(job)?;
        let first = check_graphs(&binaries, &model)?;
        let mut files = vec![];
        for number in 1..=binaries.len() {
            files.push(file_name(&params.name, number, binaries.len()));
        }
        let table_name = format!("{}{TABLE}", params.name);

        let bundle = genie::Bundle {
            params: &params,
            model: &model,
            tokenizer: &tokenizer,
            soc: first.soc()?,
            arch: first.info.arch,
            context: first.context()?,
            binaries: &files,
            place: ContextFacts::place(binaries.iter().map(|binary| &binary.facts)),
            table: params.embedding_table.then_some(table_name),
        };
        let config = pretty(&bundle.config()?)?;
        if job.has_tool(QNN) {
            check_config(&job.tool_folder(QNN)?, &config)?;
        }
        let mut texts = vec![
            (CONFIG, config),
            (EXTENSIONS, pretty(&bundle.extensions())?),
            (TOKENIZER, tokenizer.to_json()?),
            (
                "tokenizer_config.json",
                pretty(&bundle.tokenizer_config()?)?,
            ),
            (METADATA, pretty(&metadata(job, &bundle, &binaries)?)?),
            ("README.md", readme::text(&bundle, &first.info.build_id)),
        ];
        if let Some(prompt) = &params.prompt {
            texts.push((PROMPT, tokenizer.without_bos(prompt)?.into()));
        }
        if let Some(grammar) = &params.grammar {
            texts.push((GRAMMAR, grammar.text.clone()));
        }

        let mut outputs = Outputs::new();
        let mut sums = BTreeMap::new();
        let mut passed: Vec<(&str, &str)> = vec![];
        for (name, binary) in bundle.binaries.iter().zip(&binaries) {
            passed.push((name, &binary.input));
        }
        for (input, _) in job.inputs() {
            if is_on_cpu(input) {
                passed.push((input, input));
            }
        }
        for (name, input) in passed {
            sums.insert(name, sha256_of_input(job, input)?);
            outputs.insert(PartName::new(name)?, job.pass(input)?);
        }
        if let Some(name) = &bundle.table {
            let table = table::write(job)?;
            sums.insert(name, hex(&table.sha256));
            outputs.insert(PartName::new(name)?, table.part);
        }
        for (name, text) in &texts {
            sums.insert(name, hex(&Sha256::digest(text.as_bytes())));
            outputs.insert(
                PartName::new(*name)?,
                job.write(text.as_bytes(), CanonJson::default())?,
            );
        }
        let mut text = String::new();
        for (name, sum) in &sums {
            text += &format!("{sum}  {name}\n");
        }
        outputs.insert(
            PartName::new(SUMS)?,
            job.write(text.as_bytes(), CanonJson::default())?,
        );
        Ok(outputs)
    }
}

/// Whether Windows takes a file whose name begins with `name`.
fn is_windows_name(name: &str) -> bool {
    let stem = name
        .split('.')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    let numbered = |prefix| {
        let rest = stem.strip_prefix(prefix);
        rest.is_some_and(|digit| digit.len() == 1 && digit.bytes().all(|c| c.is_ascii_digit()))
    };
    let is_device = ["con", "prn", "aux", "nul"].contains(&stem.as_str());
    !is_device && !numbered("com") && !numbered("lpt") && !name.ends_with('.')
}

/// The file name of binary `number` of `count`.
fn file_name(name: &str, number: usize, count: usize) -> String {
    if count == 1 {
        format!("{name}.bin")
    } else {
        format!("{name}_part_{number}_of_{count}.bin")
    }
}

/// `metadata.json`: a description of the bundle for programs.
fn metadata(job: &Job, bundle: &genie::Bundle, binaries: &[Binary]) -> Result<Value> {
    let mut files = vec![];
    for (name, binary) in bundle.binaries.iter().zip(binaries) {
        let digest = job.input(&binary.input)?.digest;
        files.push(json!({
            "file": name,
            "bytes": digest.size_bytes,
            "digest": digest.to_string(),
            "graphs": binary.graphs,
            "build_id": binary.info.build_id,
            "weight_sharing": binary.facts.weight_sharing,
        }));
    }
    let mut weights: BTreeMap<String, WeightSummary> = BTreeMap::new();
    for (name, _) in job.inputs() {
        if !name.ends_with("quantization.json") {
            continue;
        }
        let report: QuantReport = serde_json::from_slice(&job.read(name)?)
            .context(Code::PackageReport, || format!("read `{name}`"))?;
        for entry in report.tensors.values() {
            weights
                .entry(format!("{} as {}", entry.error.source, entry.error.scheme))
                .or_default()
                .add(entry);
        }
    }
    let not_measured = "not measured";
    let mut metadata = json!({
        "name": bundle.params.name,
        "platform": bundle.params.platform,
        "soc": {
            "name": bundle.soc.name(),
            "model": bundle.soc.model,
            "architecture": format!("v{}", bundle.arch),
        },
        "model": bundle.model,
        "context": bundle.context,
        "binaries": files,
        "weights": weights,
        "device": {
            "time_to_first_token_ms": not_measured,
            "tokens_per_second": not_measured,
            "peak_memory_bytes": not_measured,
            "power_w": not_measured,
        },
    });
    for module in bundle.place.on_cpu() {
        for role in ROLES {
            let file = format!("{CPU}/{}.onnx", module.graph_stem(role));
            metadata[CPU][module.name()][role] = json!(file);
        }
    }
    Ok(metadata)
}

/// The weights of one source type and scheme.
#[derive(Default, Serialize)]
struct WeightSummary {
    tensors: u64,
    bytes: u64,
    exact: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    worst_sqnr_db: Option<f64>,
}

impl WeightSummary {
    fn add(&mut self, entry: &Entry) {
        self.tensors += 1;
        self.bytes = self.bytes.saturating_add(entry.bytes);
        self.exact += u64::from(entry.error.exact);
        if let Some(sqnr_db) = entry.error.sqnr_db {
            self.worst_sqnr_db = Some(match self.worst_sqnr_db {
                Some(worst) => worst.min(sqnr_db),
                None => sqnr_db,
            });
        }
    }
}

fn pretty(value: &Value) -> Result<String> {
    let text = serde_json::to_string_pretty(value)
        .context(Code::PackageJson, || "serialize JSON".into())?;
    Ok(text + "\n")
}

/// The sha256 of an input, which is streamed, since it may be as large as a model.
fn sha256_of_input(job: &Job, input: &str) -> Result<String> {
    let bytes = job.read(input)?;
    let (mut hasher, mut done) = (Sha256::new(), 0);
    bytes.stream(CHUNK_BYTES, |chunk| {
        job.check_cancelled()?;
        job.progress(done, bytes.len() as u64, "B");
        hasher.update(chunk);
        done += chunk.len() as u64;
        Ok::<(), Problem>(())
    })?;
    Ok(hex(&hasher.finalize()))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
