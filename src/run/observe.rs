//! Runs a candidate's graphs in ONNX Runtime, and shows what their values hold.
//!
//! It goes layer by layer over all windows: of the weights one layer is held, or a slice of a large
//! matrix, of the values those that a later layer reads.

use std::collections::{BTreeMap, HashMap, HashSet};

use prost::Message;

use super::decoder::{Tensor, opening};
use super::lookup::look_up;
use super::onnx_runtime::{OnnxRuntime, run};
use crate::action::Job;
use crate::base::{Code, Problem, Result};
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::inputs::HostInput;
use crate::model::facts::GraphFacts;
use crate::model::onnx::proto::{GraphProto, ModelProto, ValueInfoProto, element};
use crate::model::onnx::{self, Segment, segments, sliced};

/// The graph that is observed.
pub const PREFILL: &str = "candidate/prefill.onnx";

/// One window multiplies by some rows of a larger matrix at a time: in f32, 64 MB. Over several
/// windows a matrix stays whole, since what all of them make of the rows would have to be held.
pub const SLICE_ELEMENTS: u64 = 1 << 24;

/// Who looks on.
pub trait Observer {
    /// Whether the float value of this name is shown.
    fn wants(&self, value: &str) -> bool;

    /// Shows the elements of a value in the next window.
    fn see(&mut self, value: &str, elements: &[f32]) -> Result<()>;

    /// What was shown since the last call, nobody will show again.
    fn pass(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Shows `observer` the float values of the candidate of `job` over each of `windows`.
pub fn observe(
    job: &Job,
    model: &DecoderSpec,
    windows: &[Vec<u32>],
    observer: &mut impl Observer,
) -> Result<()> {
    let facts: GraphFacts = job.input(PREFILL)?.facts.read()?;
    let whole = onnx::decode(&job.read(PREFILL)?)?;
    let runtime = OnnxRuntime::open(job)?;

    // The windows differ in their tokens only.
    let mut shared = BTreeMap::new();
    let mut held: Vec<HashMap<String, Tensor>> = vec![];
    let token_ids = HostInput::TokenIds.name();
    for tokens in windows {
        shared = opening(model, &facts, tokens)?;
        held.push(shared.remove_entry(&token_ids).into_iter().collect());
        for (name, tensor) in &shared {
            if let (Tensor::F32(_, elements), true) = (tensor, observer.wants(name)) {
                observer.see(name, elements)?;
            }
        }
    }
    observer.pass()?;
    run_layers(&runtime, whole, &shared, held, observer, |done, total| {
        job.progress(done, total, "runs");
        job.check_cancelled()
    })
}

/// Runs `whole`, whose weights are the candidate's, once for each of `held`: what a window alone is
/// fed. All are fed what is `shared`.
pub fn run_layers(
    runtime: &OnnxRuntime,
    mut whole: ModelProto,
    shared: &BTreeMap<String, Tensor>,
    mut held: Vec<HashMap<String, Tensor>>,
    observer: &mut impl Observer,
    progress: impl Fn(u64, u64) -> Result<()>,
) -> Result<()> {
    look_up(&mut whole, runtime.folder(), &mut held)?;
    let whole = if held.len() == 1 {
        sliced(whole, SLICE_ELEMENTS)
    } else {
        whole
    };
    let segments = segments(&whole, |value| {
        element_type(value) == element::FLOAT && observer.wants(&value.name)
    })?;
    let windows = held.len();
    let total = (segments.len() * windows) as u64;
    for (at, segment) in segments.iter().enumerate() {
        let Some(graph) = segment
            .model
            .graph
            .as_ref()
            .filter(|graph| !graph.output.is_empty())
        else {
            continue;
        };
        let mut session = runtime.load_model(&segment.model.encode_to_vec())?;
        let outputs: Vec<String> = graph
            .output
            .iter()
            .map(|output| output.name.clone())
            .collect();
        let later: HashSet<&str> = segments
            .iter()
            .skip(at + 1)
            .flat_map(|segment| &segment.reads)
            .map(String::as_str)
            .collect();
        for (index, held) in held.iter_mut().enumerate() {
            progress((at * windows + index) as u64, total)?;
            let mut made = vec![];
            run(
                &mut session,
                feeds(segment, held, shared)?,
                &outputs,
                |name, elements| {
                    if segment.shows.iter().any(|shown| shown == name) {
                        observer.see(name, elements)?;
                    }
                    if later.contains(name) {
                        made.push((
                            name.to_string(),
                            Tensor::F32(dims(graph, name)?, elements.to_vec()),
                        ));
                    }
                    Ok(())
                },
            )?;
            held.retain(|name, _| later.contains(name.as_str()));
            held.extend(made);
        }
        drop(session);
        observer.pass()?;
    }
    progress(total, total)
}

fn feeds<'a>(
    segment: &'a Segment,
    held: &'a HashMap<String, Tensor>,
    shared: &'a BTreeMap<String, Tensor>,
) -> Result<impl Iterator<Item = (&'a str, &'a Tensor)>> {
    let feed = |name: &'a String| {
        let tensor = held.get(name).or_else(|| shared.get(name));
        let missing = || {
            Problem::new(
                Code::EvaluateGraph,
                format!("nobody knows what to feed the input `{name}`"),
            )
        };
        tensor
            .map(|tensor| (name.as_str(), tensor))
            .ok_or_else(missing)
    };
    Ok(segment
        .reads
        .iter()
        .map(feed)
        .collect::<Result<Vec<_>>>()?
        .into_iter())
}

fn element_type(value: &ValueInfoProto) -> i32 {
    value
        .r#type
        .as_ref()
        .and_then(|kind| kind.tensor_type.as_ref())
        .map_or(0, |tensor| tensor.elem_type)
}

fn dims(graph: &GraphProto, name: &str) -> Result<Vec<usize>> {
    let value = graph.output.iter().find(|value| value.name == name);
    let tensor = value.and_then(|value| value.r#type.as_ref()?.tensor_type.as_ref());
    let dims = tensor
        .and_then(|tensor| tensor.shape.as_ref())
        .map(|shape| &shape.dim);
    let dims = dims.and_then(|dims| {
        dims.iter()
            .map(|dim| usize::try_from(dim.dim_value?).ok())
            .collect()
    });
    dims.ok_or_else(|| Problem::new(Code::OnnxMalformed, format!("`{name}` has no static shape")))
}
