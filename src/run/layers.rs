//! Runs a graph in ONNX Runtime and passes its values to an observer.
//!
//! Each layer runs over all windows before the next one. So only the weights of one layer, or a
//! slice of a large matrix, are in memory, and of the values only those that a later layer reads.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;

use prost::Message;

use super::decoder::{Engine, Graph, Tensor};
use super::lookup::look_up;
use super::onnx_runtime::{OnnxRuntime, file_name, run};
use crate::base::{Code, Context, Problem, Result};
use crate::model::facts::GraphFacts;
use crate::model::onnx::proto::{
    GraphProto, ModelProto, TensorShapeProto, TensorTypeProto, ValueInfoProto, element,
};
use crate::model::onnx::{self, Segment, segments, sliced};

/// Elements of a slice of a large matrix, if there is one window: 64 MB in f32. With several
/// windows a matrix is not sliced, since the partial results of all of them would stay in memory.
pub const SLICE_ELEMENTS: u64 = 1 << 24;

/// Receives the values of a graph while it runs.
pub trait Observer {
    /// Whether the float value of this name is shown.
    fn wants(&self, value: &str) -> bool;

    /// Shows the elements of a value in the next window.
    fn see(&mut self, value: &str, elements: &[f32]) -> Result<()>;

    /// Called after each segment: the values shown since the last call are not shown again.
    fn pass(&mut self) -> Result<()> {
        Ok(())
    }
}

impl OnnxRuntime {
    /// Runs the candidate's graph in `file` and returns the values of the named `outputs`.
    pub fn run_file(
        &mut self,
        file: &str,
        inputs: &BTreeMap<String, Tensor>,
        outputs: &[String],
    ) -> Result<BTreeMap<String, Vec<f32>>> {
        let path = self.folder().join(file);
        let bytes = fs::read(&path).context(Code::Io, || format!("read {}", path.display()))?;
        let mut captured = CapturedOutputs {
            names: outputs,
            values: BTreeMap::new(),
        };
        let mut token_ids = HashMap::new();
        for (name, tensor) in inputs {
            if matches!(tensor, Tensor::I32(..)) {
                token_ids.insert(name.clone(), tensor.clone());
            }
        }
        let model = onnx::decode(&bytes)?;
        run_layers(
            self,
            model,
            inputs,
            vec![token_ids],
            &mut captured,
            |_, _| Ok(()),
        )
        .map_err(|problem| problem.within(format!("failed to run {file}")))?;
        Ok(captured.values)
    }
}

impl Engine for OnnxRuntime {
    fn facts(&self, graph: Graph) -> Result<GraphFacts> {
        self.graph_facts(graph)
    }

    fn run(
        &mut self,
        graph: Graph,
        inputs: &BTreeMap<String, Tensor>,
        outputs: &[String],
    ) -> Result<BTreeMap<String, Vec<f32>>> {
        self.run_file(&file_name(graph), inputs, outputs)
    }
}

/// Keeps the values of the named outputs.
struct CapturedOutputs<'a> {
    names: &'a [String],
    values: BTreeMap<String, Vec<f32>>,
}

impl Observer for CapturedOutputs<'_> {
    fn wants(&self, value: &str) -> bool {
        self.names.iter().any(|name| name == value)
    }

    fn see(&mut self, value: &str, elements: &[f32]) -> Result<()> {
        self.values.insert(value.into(), elements.to_vec());
        Ok(())
    }
}

/// Runs `model`, whose weights are the candidate's, once for each window. `per_window` has the
/// inputs of each window alone, `shared` those of all.
pub(super) fn run_layers(
    runtime: &OnnxRuntime,
    mut model: ModelProto,
    shared: &BTreeMap<String, Tensor>,
    mut per_window: Vec<HashMap<String, Tensor>>,
    observer: &mut impl Observer,
    progress: impl Fn(u64, u64) -> Result<()>,
) -> Result<()> {
    look_up(&mut model, runtime.folder(), &mut per_window)?;
    if per_window.len() == 1 {
        model = sliced(model, SLICE_ELEMENTS);
    }
    let graph_segments = segments(&model, |value| {
        is_float(value) && observer.wants(&value.name)
    })?;
    let windows = per_window.len();
    let total = (graph_segments.len() * windows) as u64;
    for (at, segment) in graph_segments.iter().enumerate() {
        let Some(graph) = &segment.model.graph else {
            continue;
        };
        if graph.output.is_empty() {
            continue;
        }
        let mut outputs = vec![];
        for output in &graph.output {
            outputs.push(output.name.clone());
        }
        let mut read_later: HashSet<&str> = HashSet::new();
        for later in &graph_segments[at + 1..] {
            read_later.extend(later.reads.iter().map(String::as_str));
        }
        let mut session = runtime.load_model(&segment.model.encode_to_vec())?;
        for (index, values) in per_window.iter_mut().enumerate() {
            progress((at * windows + index) as u64, total)?;
            let mut computed = vec![];
            let inputs = segment_inputs(segment, values, shared)?;
            run(&mut session, &inputs, &outputs, |name, elements| {
                if segment.shows.iter().any(|shown| shown == name) {
                    observer.see(name, elements)?;
                }
                if read_later.contains(name) {
                    let tensor = Tensor::F32(output_shape(graph, name)?, elements.to_vec());
                    computed.push((name.to_string(), tensor));
                }
                Ok(())
            })?;
            values.retain(|name, _| read_later.contains(name.as_str()));
            values.extend(computed);
        }
        drop(session);
        observer.pass()?;
    }
    progress(total, total)
}

fn segment_inputs<'a>(
    segment: &'a Segment,
    values: &'a HashMap<String, Tensor>,
    shared: &'a BTreeMap<String, Tensor>,
) -> Result<Vec<(&'a str, &'a Tensor)>> {
    let mut inputs = vec![];
    for name in &segment.reads {
        let Some(tensor) = values.get(name).or(shared.get(name)) else {
            let message = format!("the graph has an unknown input `{name}`");
            return Err(Problem::new(Code::EvaluateGraph, message));
        };
        inputs.push((name.as_str(), tensor));
    }
    Ok(inputs)
}

fn tensor_type(value: &ValueInfoProto) -> Option<&TensorTypeProto> {
    value.r#type.as_ref()?.tensor_type.as_ref()
}

fn is_float(value: &ValueInfoProto) -> bool {
    match tensor_type(value) {
        Some(tensor) => tensor.elem_type == element::FLOAT,
        None => false,
    }
}

fn output_shape(graph: &GraphProto, name: &str) -> Result<Vec<usize>> {
    for output in &graph.output {
        if output.name != name {
            continue;
        }
        let Some(shape) = tensor_type(output) else {
            break;
        };
        if let Some(shape) = shape.shape.as_ref().and_then(static_shape) {
            return Ok(shape);
        }
    }
    let message = format!("`{name}` has no static shape");
    Err(Problem::new(Code::OnnxMalformed, message))
}

/// The extents of `shape`; `None` if one of them is not a number.
fn static_shape(shape: &TensorShapeProto) -> Option<Vec<usize>> {
    let mut extents = vec![];
    for dim in &shape.dim {
        extents.push(usize::try_from(dim.dim_value?).ok()?);
    }
    Some(extents)
}
