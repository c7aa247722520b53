//! A candidate of which the CPU computes an end: ONNX Runtime before the simulator, or after it.

use std::collections::BTreeMap;

use super::decoder::{Engine, Graph, Tensor};
use super::htp::Htp;
use super::onnx_runtime::OnnxRuntime;
use crate::action::Job;
use crate::base::{Code, Problem, Result};
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::inputs::LOGITS;
use crate::model::facts::GraphFacts;
use crate::model::shards::{End, Place, Processor};

/// The inputs that the CPU computes with.
pub const ON_CPU: &str = "candidate/cpu/";

/// The context binaries, and the graphs at their ends.
pub struct Split {
    npu: Htp,
    cpu: OnnxRuntime,
    place: Place,
    hidden: usize,
}

impl Split {
    /// Of the candidate's binaries and of the inputs `candidate/cpu/...`.
    pub fn open(job: &Job, place: Place, model: &DecoderSpec) -> Result<Self> {
        Ok(Split {
            npu: Htp::open(job)?,
            cpu: OnnxRuntime::of(job, ON_CPU)?,
            place,
            hidden: model.hidden as usize,
        })
    }

    /// What the graph of `end` makes of `inputs`.
    fn run_end(
        &mut self,
        end: End,
        graph: Graph,
        inputs: &BTreeMap<String, Tensor>,
        wanted: &str,
    ) -> Result<Vec<f32>> {
        let file = format!("{}.onnx", end.graph_stem(graph.role()));
        let found = self
            .cpu
            .run_file(&file, inputs, &[wanted.into()])?
            .remove(wanted);
        found
            .ok_or_else(|| Problem::new(Code::EvaluateGraph, format!("{file} gives no `{wanted}`")))
    }
}

impl Engine for Split {
    fn facts(&self, graph: Graph) -> Result<GraphFacts> {
        self.npu.facts(graph)
    }

    fn run(
        &mut self,
        graph: Graph,
        inputs: &BTreeMap<String, Tensor>,
        wanted: &[String],
    ) -> Result<BTreeMap<String, Vec<f32>>> {
        let tokens = self.facts(graph)?.tokens as usize;
        let mut given = inputs.clone();
        if self.place.embedding == Processor::Cpu {
            let name = End::Embedding.value();
            let rows = self.run_end(End::Embedding, graph, inputs, name)?;
            given.insert(name.into(), Tensor::F32(vec![1, tokens, self.hidden], rows));
        }
        if self.place.head == Processor::Npu {
            return self.npu.run(graph, &given, wanted);
        }
        let (name, logits) = (End::Head.value(), LOGITS);
        let of_npu: Vec<String> = wanted
            .iter()
            .filter(|wanted| *wanted != logits)
            .cloned()
            .chain([name.into()])
            .collect();
        let mut found = self.npu.run(graph, &given, &of_npu)?;
        let normal = Tensor::F32(
            vec![1, 1, tokens, self.hidden],
            found.remove(name).unwrap_or_default(),
        );
        let head = self.run_end(
            End::Head,
            graph,
            &[(name.to_string(), normal)].into(),
            logits,
        )?;
        found.insert(logits.into(), head);
        Ok(found)
    }
}
