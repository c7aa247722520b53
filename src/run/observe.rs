//! Shows an observer the inner values of a candidate's prefill graph.

use std::collections::{BTreeMap, HashMap};

use super::decoder::{Tensor, first_inputs};
use super::layers::{Observer, run_layers};
use super::onnx_runtime::OnnxRuntime;
use crate::action::Job;
use crate::base::Result;
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::inputs::HostInput;
use crate::model::facts::GraphFacts;
use crate::model::onnx;

/// The graph that is observed.
pub const PREFILL: &str = "candidate/prefill.onnx";

/// Shows `observer` the float values of the candidate of `job` over each of `windows`.
pub fn observe(
    job: &Job,
    model: &DecoderSpec,
    windows: &[Vec<u32>],
    observer: &mut impl Observer,
) -> Result<()> {
    let facts: GraphFacts = job.input(PREFILL)?.facts.read()?;
    let graph = onnx::decode(&job.read(PREFILL)?)?;
    let runtime = OnnxRuntime::open(job)?;

    // The windows differ in their tokens only.
    let mut shared = BTreeMap::new();
    let mut per_window: Vec<HashMap<String, Tensor>> = vec![];
    let token_ids = HostInput::TokenIds.name();
    for tokens in windows {
        shared = first_inputs(model, &facts, tokens)?;
        per_window.push(shared.remove_entry(&token_ids).into_iter().collect());
        for (name, tensor) in &shared {
            if let (Tensor::F32(_, elements), true) = (tensor, observer.wants(name)) {
                observer.see(name, elements)?;
            }
        }
    }
    observer.pass()?;
    run_layers(
        &runtime,
        graph,
        &shared,
        per_window,
        observer,
        |done, total| {
            job.progress(done, total, "runs");
            job.check_cancelled()
        },
    )
}
