//! A candidate's ONNX graphs in ONNX Runtime, on the CPU and in f32.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use ort::environment::Environment;
use ort::session::builder::GraphOptimizationLevel;

use ort::session::{OutputSelector, RunOptions, Session, SessionInputValue};
use ort::value::TensorRef;

use super::decoder::{Engine, Graph, Tensor};
use super::observe::{Observer, run_layers};
use crate::action::Job;
use crate::artifact::tools::RUNTIME;
use crate::base::{Code, Context, Problem, Result};
use crate::model::facts::GraphFacts;
use crate::model::onnx;

/// The graphs of an `onnx` manifest, or those that a context binary leaves to the CPU; of the one
/// that runs, a layer at a time is loaded.
pub struct OnnxRuntime {
    environment: Environment,
    /// Where the candidate's files are among the inputs: `candidate/`.
    inputs: String,
    folder: PathBuf,
    facts: Vec<(Graph, GraphFacts)>,
}

impl OnnxRuntime {
    /// Loads the runtime of tool `ort` and lays the candidate's files (the inputs `candidate/...`)
    /// out in the job's scratch folder.
    pub fn open(job: &Job) -> Result<Self> {
        Self::of(job, "candidate/")
    }

    /// The same of the files that are inputs called `inputs...`.
    pub fn of(job: &Job, inputs: &str) -> Result<Self> {
        let library = library(&job.tool_folder("ort")?)?;
        let environment = ort::init_from(&library)
            .context(Code::EvaluateRuntime, || {
                format!("load {}", library.display())
            })?
            .build()
            .context(Code::EvaluateRuntime, || "start ONNX Runtime".into())?;
        Self::within(environment, job, inputs)
    }

    /// The candidate as it was opened. A process may start the runtime only once.
    pub fn anew(&self, job: &Job) -> Result<Self> {
        Self::within(self.environment.clone(), job, &self.inputs)
    }

    fn within(environment: Environment, job: &Job, inputs: &str) -> Result<Self> {
        let folder = job.scratch()?.join(inputs);
        for (name, _) in job.inputs() {
            if let Some(inside) = name.strip_prefix(inputs) {
                lay_out(&job.path(name)?, &folder.join(inside))?;
            }
        }
        let mut facts = vec![];
        for graph in [Graph::Prefill, Graph::Decode] {
            if let Ok(input) = job.input(&format!("{inputs}{}", file_name(graph))) {
                facts.push((graph, input.facts.read()?));
            }
        }
        Ok(OnnxRuntime {
            environment,
            inputs: inputs.into(),
            folder,
            facts,
        })
    }

    /// Where the candidate's files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Puts `model` in the place of the prefill graph.
    pub fn replace_prefill(&self, model: &[u8]) -> Result<()> {
        let path = self.folder.join(file_name(Graph::Prefill));
        // The file may share its bytes with the blob store: a new one takes its name.
        fs::remove_file(&path).context(Code::Io, || format!("remove {}", path.display()))?;
        fs::write(&path, model).context(Code::Io, || format!("write {}", path.display()))
    }

    /// Puts the file at `from` in the place of the candidate's file `name`.
    pub fn replace(&self, name: &str, from: &Path) -> Result<()> {
        lay_out(from, &self.folder.join(name))
    }

    /// Loads `model`, whose external data are the candidate's.
    pub fn load_model(&self, model: &[u8]) -> Result<Session> {
        let path = self.folder.join("piece.onnx");
        fs::write(&path, model).context(Code::Io, || format!("write {}", path.display()))?;
        // Only what keeps the arithmetic: higher levels fuse DequantizeLinear and MatMul into
        // MatMulNBits, which by default rounds activations to 8 bits. One thread: the same
        // sums in the same order on every machine. No pattern of memory learned from the
        // first run: the second would take the room for all values anew, and keep that of the
        // first.
        Session::builder(&self.environment)
            .and_then(
                |builder| Ok(builder.with_optimization_level(GraphOptimizationLevel::Level1)?),
            )
            .and_then(|builder| Ok(builder.with_intra_threads(1)?))
            .and_then(|builder| Ok(builder.with_memory_pattern(false)?))
            .and_then(|mut builder| builder.commit_from_file(&path))
            .context(Code::EvaluateGraph, || {
                "load a layer into ONNX Runtime".into()
            })
    }
}

fn file_name(graph: Graph) -> String {
    format!("{}.onnx", graph.role())
}

/// ONNX Runtime refuses external data that a symbolic link puts outside the model's folder, so: a
/// hard link, or a copy where the folder lies on another file system.
fn lay_out(from: &Path, to: &Path) -> Result<()> {
    let link = || {
        let from = fs::canonicalize(from)?;
        to.parent().map_or(Ok(()), fs::create_dir_all)?;
        // A file that stands there may be a link to the very blob: copying onto it would empty
        // both.
        fs::remove_file(to).or_else(|error| {
            if error.kind() == ErrorKind::NotFound {
                Ok(())
            } else {
                Err(error)
            }
        })?;
        fs::hard_link(&from, to).or_else(|_| fs::copy(&from, to).map(drop))
    };
    link().context(Code::Io, || {
        format!("link {} to {}", to.display(), from.display())
    })
}

/// The runtime's file carries its version in its name.
fn library(folder: &Path) -> Result<PathBuf> {
    let entries =
        fs::read_dir(folder).context(Code::Io, || format!("list {}", folder.display()))?;
    let is_runtime = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(RUNTIME))
    };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(is_runtime)
        .ok_or_else(|| {
            Problem::new(
                Code::EvaluateRuntime,
                format!("there is no {}* in {}", RUNTIME, folder.display()),
            )
        })
}

impl Engine for OnnxRuntime {
    fn facts(&self, graph: Graph) -> Result<GraphFacts> {
        let given = self
            .facts
            .iter()
            .find(|(given, _)| *given == graph)
            .map(|(_, facts)| facts.clone());
        given.ok_or_else(|| {
            Problem::new(
                Code::EvaluateGraph,
                format!("there is no {}", file_name(graph)),
            )
        })
    }

    fn run(
        &mut self,
        graph: Graph,
        inputs: &BTreeMap<String, Tensor>,
        wanted: &[String],
    ) -> Result<BTreeMap<String, Vec<f32>>> {
        self.run_file(&file_name(graph), inputs, wanted)
    }
}

impl OnnxRuntime {
    /// Runs the candidate's graph in `file`.
    pub fn run_file(
        &mut self,
        file: &str,
        inputs: &BTreeMap<String, Tensor>,
        wanted: &[String],
    ) -> Result<BTreeMap<String, Vec<f32>>> {
        let path = self.folder.join(file);
        let bytes = fs::read(&path).context(Code::Io, || format!("read {}", path.display()))?;
        let mut taken = Taken {
            wanted,
            values: BTreeMap::new(),
        };
        let ids = inputs
            .iter()
            .filter(|(_, tensor)| matches!(tensor, Tensor::I32(..)));
        let held = ids
            .map(|(name, tensor)| (name.clone(), tensor.clone()))
            .collect();
        run_layers(
            self,
            onnx::decode(&bytes)?,
            inputs,
            vec![held],
            &mut taken,
            |_, _| Ok(()),
        )
        .map_err(|problem| problem.within(format!("failed to run {file}")))?;
        Ok(taken.values)
    }
}

/// The values of wanted outputs.
struct Taken<'a> {
    wanted: &'a [String],
    values: BTreeMap<String, Vec<f32>>,
}

impl Observer for Taken<'_> {
    fn wants(&self, value: &str) -> bool {
        self.wanted.iter().any(|wanted| wanted == value)
    }

    fn see(&mut self, value: &str, elements: &[f32]) -> Result<()> {
        self.values.insert(value.into(), elements.to_vec());
        Ok(())
    }
}

/// Runs `session` on `feeds` and shows the values of each output of `wanted`.
pub fn run<'a>(
    session: &mut Session,
    feeds: impl Iterator<Item = (&'a str, &'a Tensor)>,
    wanted: &[String],
    mut show: impl FnMut(&str, &[f32]) -> Result<()>,
) -> Result<()> {
    let context = |what: &'static str| move || what.to_string();
    let feeds = feeds
        .map(|(name, tensor)| Ok((name, value(tensor)?)))
        .collect::<ort::Result<Vec<_>>>()
        .context(Code::EvaluateRun, context("feed ONNX Runtime"))?;
    let selector = wanted
        .iter()
        .fold(OutputSelector::no_default(), |selector, name| {
            selector.with(name)
        });
    let options = RunOptions::new()
        .context(Code::EvaluateRun, context("ask ONNX Runtime"))?
        .with_outputs(selector);
    let outputs = session
        .run_with_options(feeds, &options)
        .context(Code::EvaluateRun, context("run ONNX Runtime"))?;
    for (name, value) in outputs.iter() {
        let (_, values) = value
            .try_extract_tensor::<f32>()
            .context(Code::EvaluateRun, || format!("read `{name}`"))?;
        show(name, values)?;
    }
    Ok(())
}

fn value(tensor: &Tensor) -> ort::Result<SessionInputValue<'_>> {
    Ok(match tensor {
        Tensor::I32(shape, values) => {
            TensorRef::from_array_view((shape.as_slice(), values.as_slice()))?.into()
        }
        Tensor::F32(shape, values) => {
            TensorRef::from_array_view((shape.as_slice(), values.as_slice()))?.into()
        }
    })
}
