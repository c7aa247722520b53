//! A candidate whose embedding or head runs on the CPU: ONNX Runtime before or after the simulator.

use std::collections::BTreeMap;

use super::decoder::{Engine, Graph, Tensor};
use super::htp::Htp;
use super::onnx_runtime::OnnxRuntime;
use crate::action::Job;
use crate::base::{Code, Problem, Result};
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::inputs::LOGITS;
use crate::model::decoder::shards::{OuterModule, Place, Processor};
use crate::model::facts::GraphFacts;

/// The inputs that the CPU computes with.
const ON_CPU: &str = "candidate/cpu/";

/// The context binaries, and the graphs that run on the CPU.
pub(super) struct Split {
    npu: Htp,
    cpu: OnnxRuntime,
    place: Place,
    hidden: usize,
}

impl Split {
    /// Opens the candidate's binaries and the inputs `candidate/cpu/...`.
    pub(super) fn open(job: &Job, place: Place, model: &DecoderSpec) -> Result<Self> {
        Ok(Split {
            npu: Htp::open(job)?,
            cpu: OnnxRuntime::of(job, ON_CPU)?,
            place,
            hidden: model.hidden as usize,
        })
    }

    /// The value `output` that the graph of `end` computes from `inputs`.
    fn run_module(
        &mut self,
        module: OuterModule,
        graph: Graph,
        inputs: &BTreeMap<String, Tensor>,
        output: &str,
    ) -> Result<Vec<f32>> {
        let file = format!("{}.onnx", module.graph_stem(graph.role()));
        let mut values = self.cpu.run_file(&file, inputs, &[output.into()])?;
        let Some(values) = values.remove(output) else {
            let message = format!("{file} has no output `{output}`");
            return Err(Problem::new(Code::EvaluateGraph, message));
        };
        Ok(values)
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
        outputs: &[String],
    ) -> Result<BTreeMap<String, Vec<f32>>> {
        let tokens = self.facts(graph)?.tokens as usize;
        let mut npu_inputs = inputs.clone();
        if self.place.embedding == Processor::Cpu {
            let name = OuterModule::Embedding.value();
            let rows = self.run_module(OuterModule::Embedding, graph, inputs, name)?;
            let rows = Tensor::F32(vec![1, tokens, self.hidden], rows);
            npu_inputs.insert(name.into(), rows);
        }
        if self.place.head == Processor::Npu {
            return self.npu.run(graph, &npu_inputs, outputs);
        }
        let head_input = OuterModule::Head.value();
        let mut npu_outputs = outputs.to_vec();
        npu_outputs.retain(|output| output != LOGITS);
        npu_outputs.push(head_input.into());
        let mut values = self.npu.run(graph, &npu_inputs, &npu_outputs)?;
        let normal = values.remove(head_input).unwrap_or_default();
        let normal = Tensor::F32(vec![1, 1, tokens, self.hidden], normal);
        let head_inputs = [(head_input.to_string(), normal)].into();
        let logits = self.run_module(OuterModule::Head, graph, &head_inputs, LOGITS)?;
        values.insert(LOGITS.into(), logits);
        Ok(values)
    }
}
