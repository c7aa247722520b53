//! A candidate's ONNX graphs in ONNX Runtime, on the CPU and in f32.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use ort::environment::Environment;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{OutputSelector, RunOptions, Session, SessionInputValue};
use ort::value::TensorRef;

use super::decoder::{Graph, Tensor};
use crate::action::Job;
use crate::artifact::tools::RUNTIME;
use crate::base::{Code, Context, Problem, Result};
use crate::model::facts::GraphFacts;

/// The graphs of an `onnx` manifest, or those that a context binary leaves to the CPU. While a
/// graph runs, one layer of it is loaded at a time.
pub struct OnnxRuntime {
    environment: Environment,
    /// Prefix of the names of the candidate's files among the inputs: `candidate/`.
    inputs: String,
    folder: PathBuf,
    facts: Vec<(Graph, GraphFacts)>,
}

impl OnnxRuntime {
    /// Loads the runtime of tool `ort` and links the candidate's files (the inputs `candidate/...`)
    /// into the job's scratch folder.
    pub fn open(job: &Job) -> Result<Self> {
        Self::of(job, "candidate/")
    }

    /// The same for the files whose input names begin with `inputs`.
    pub fn of(job: &Job, inputs: &str) -> Result<Self> {
        let library = find_library(&job.tool_folder("ort")?)?;
        let environment = ort::init_from(&library)
            .context(Code::EvaluateRuntime, || {
                format!("load {}", library.display())
            })?
            .build()
            .context(Code::EvaluateRuntime, || "start ONNX Runtime".into())?;
        Self::with_environment(environment, job, inputs)
    }

    /// The candidate with its original files. A process may start the runtime only once.
    pub fn reopen(&self, job: &Job) -> Result<Self> {
        Self::with_environment(self.environment.clone(), job, &self.inputs)
    }

    fn with_environment(environment: Environment, job: &Job, inputs: &str) -> Result<Self> {
        let folder = job.scratch()?.join(inputs);
        for (name, _) in job.inputs() {
            if let Some(inside) = name.strip_prefix(inputs) {
                link_file(&job.path(name)?, &folder.join(inside))?;
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

    /// The facts of the candidate's graph `graph`.
    pub fn graph_facts(&self, graph: Graph) -> Result<GraphFacts> {
        for (known, facts) in &self.facts {
            if *known == graph {
                return Ok(facts.clone());
            }
        }
        let message = format!("there is no {}", file_name(graph));
        Err(Problem::new(Code::EvaluateGraph, message))
    }

    /// Where the candidate's files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Replaces the prefill graph by `model`.
    pub fn replace_prefill(&self, model: &[u8]) -> Result<()> {
        let path = self.folder.join(file_name(Graph::Prefill));
        // The file may be a link to a blob of the store, so it is removed, not overwritten.
        fs::remove_file(&path).context(Code::Io, || format!("remove {}", path.display()))?;
        fs::write(&path, model).context(Code::Io, || format!("write {}", path.display()))
    }

    /// Replaces the candidate's file `name` by the file at `from`.
    pub fn replace(&self, name: &str, from: &Path) -> Result<()> {
        link_file(from, &self.folder.join(name))
    }

    /// Loads `model`, whose external data are the candidate's.
    pub fn load_model(&self, model: &[u8]) -> Result<Session> {
        let path = self.folder.join("segment.onnx");
        fs::write(&path, model).context(Code::Io, || format!("write {}", path.display()))?;
        self.load_file(&path).context(Code::EvaluateGraph, || {
            "load a layer into ONNX Runtime".into()
        })
    }

    fn load_file(&self, path: &Path) -> ort::Result<Session> {
        Session::builder(&self.environment)?
            // Only optimizations that keep the arithmetic: higher levels fuse DequantizeLinear and
            // MatMul into MatMulNBits, which by default rounds activations to 8 bits.
            .with_optimization_level(GraphOptimizationLevel::Level1)?
            // One thread: the same sums in the same order on every machine.
            .with_intra_threads(1)?
            // A memory pattern learned from the first run would make the second one allocate the
            // memory of all values once more, and keep that of the first.
            .with_memory_pattern(false)?
            .commit_from_file(path)
    }
}

/// The name of the file of a graph.
pub(super) fn file_name(graph: Graph) -> String {
    format!("{}.onnx", graph.role())
}

/// Makes `to` a hard link to `from`, or a copy if the folder is on another file system. ONNX
/// Runtime refuses external data that a symbolic link puts outside the model's folder.
fn link_file(from: &Path, to: &Path) -> Result<()> {
    try_link_file(from, to).context(Code::Io, || {
        format!("link {} to {}", to.display(), from.display())
    })
}

fn try_link_file(from: &Path, to: &Path) -> io::Result<()> {
    let from = fs::canonicalize(from)?;
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    // An existing file may be a link to the same blob: copying onto it would empty both.
    match fs::remove_file(to) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if fs::hard_link(&from, to).is_err() {
        fs::copy(&from, to)?;
    }
    Ok(())
}

/// The runtime's library in `folder`; its name ends with its version.
fn find_library(folder: &Path) -> Result<PathBuf> {
    let entries =
        fs::read_dir(folder).context(Code::Io, || format!("list {}", folder.display()))?;
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(RUNTIME) {
            return Ok(entry.path());
        }
    }
    Err(Problem::new(
        Code::EvaluateRuntime,
        format!("there is no {RUNTIME}* in {}", folder.display()),
    ))
}

/// Runs `session` on `inputs` and passes the elements of each of the `outputs` to `show`.
pub(super) fn run(
    session: &mut Session,
    inputs: &[(&str, &Tensor)],
    outputs: &[String],
    mut show: impl FnMut(&str, &[f32]) -> Result<()>,
) -> Result<()> {
    let mut values = vec![];
    for (name, tensor) in inputs {
        let value =
            input_value(tensor).context(Code::EvaluateRun, || "feed ONNX Runtime".to_string())?;
        values.push((*name, value));
    }
    let mut selector = OutputSelector::no_default();
    for name in outputs {
        selector = selector.with(name);
    }
    let options = RunOptions::new()
        .context(Code::EvaluateRun, || "configure ONNX Runtime".into())?
        .with_outputs(selector);
    let values = session
        .run_with_options(values, &options)
        .context(Code::EvaluateRun, || "run ONNX Runtime".into())?;
    for (name, value) in values.iter() {
        let (_, elements) = value
            .try_extract_tensor::<f32>()
            .context(Code::EvaluateRun, || format!("read `{name}`"))?;
        show(name, elements)?;
    }
    Ok(())
}

fn input_value(tensor: &Tensor) -> ort::Result<SessionInputValue<'_>> {
    Ok(match tensor {
        Tensor::I32(shape, values) => {
            TensorRef::from_array_view((shape.as_slice(), values.as_slice()))?.into()
        }
        Tensor::F32(shape, values) => {
            TensorRef::from_array_view((shape.as_slice(), values.as_slice()))?.into()
        }
    })
}
