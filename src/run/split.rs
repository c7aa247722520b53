//! A candidate whose embedding or head the CPU computes: ONNX Runtime before or after the simulator.

use std::collections::BTreeMap;

use super::decoder::{Engine, Graph, Tensor};
use super::htp::Htp;
use super::onnx_runtime::OnnxRuntime;
use crate::action::Job;
use crate::base::{Problem, Result};
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::inputs::LOGITS;
use crate::model::facts::GraphFacts;
use crate::model::shards::{OuterModule, Place, Processor};

/// The inputs that the CPU computes with.
pub const ON_CPU: &str = "candidate/cpu/";

/// The context binaries, and the graphs of the embedding and the head.
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

    /// Runs the graph of `module` and returns its output `wanted`.
    fn run_module(
        &mut self,
        module: OuterModule,
        graph: Graph,
        inputs: &BTreeMap<String, Tensor>,
        wanted: &str,
    ) -> Result<Vec<f32>> {
        let file = format!("{}.onnx", module.graph_stem(graph.role()));
        let found = self
            .cpu
            .run_file(&file, inputs, &[wanted.into()])?
            .remove(wanted);
        found.ok_or_else(|| {
            Problem::new(
                "kiln::evaluate::graph",
                format!("{file} gives no `{wanted}`"),
            )
        })
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
            let name = OuterModule::Embedding.value();
            let rows = self.run_module(OuterModule::Embedding, graph, inputs, name)?;
            given.insert(name.into(), Tensor::F32(vec![1, tokens, self.hidden], rows));
        }
        if self.place.head == Processor::Npu {
            return self.npu.run(graph, &given, wanted);
        }
        let (name, logits) = (OuterModule::Head.value(), LOGITS);
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
        let head = self.run_module(
            OuterModule::Head,
            graph,
            &[(name.to_string(), normal)].into(),
            logits,
        )?;
        found.insert(logits.into(), head);
        Ok(found)
    }
}
