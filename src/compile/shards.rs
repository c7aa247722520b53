//! The shards of a model that a stage compiles, and the orders that do so.

use super::{Compilations, Elements, compile_bytes, process_demand};
use crate::action::{Manifest, Order, Smaller, ToolFile};
use crate::artifact::context::shards;
use crate::base::Result;
use crate::model::decoder::DecoderSpec;
use crate::model::decoder::shards::{Place, Shard};
use crate::model::decoder::tensors::{by_name, role_of_blob};
use crate::model::facts::GraphFacts;

/// What a stage compiles: the graphs of some roles, of all shards or of a sample.
pub struct CompiledShards<'a> {
    source: &'a Manifest,
    roles: &'a [String],
    /// The model of the graphs.
    pub model: DecoderSpec,
    /// All shards; empty if the model is not cut.
    all: Vec<Shard>,
    /// Those that are compiled; the whole model if it is not cut.
    compiled: Vec<Shard>,
    /// Of the files of the graphs: `onnx` or `dlc`.
    extension: &'static str,
}

impl<'a> CompiledShards<'a> {
    /// The graphs `roles` of `source`, which are files with this `extension`: `onnx` or `dlc`. With
    /// `sample`, of this many shards.
    pub fn new(
        source: &'a Manifest,
        extension: &'static str,
        roles: &'a [String],
        sample: Option<u32>,
    ) -> Result<Self> {
        let model: DecoderSpec = source.part("model.json")?.facts.read()?;
        let all = shards(source)?;
        let compiled = match sample {
            _ if all.is_empty() => vec![Shard::whole(&model)],
            Some(count) => sampled(&all, count as usize),
            None => all.clone(),
        };
        Ok(CompiledShards {
            source,
            roles,
            model,
            all,
            compiled,
            extension,
        })
    }

    /// Whether the model is cut into shards.
    pub fn is_cut(&self) -> bool {
        !self.all.is_empty()
    }

    /// What computes the embedding and the head.
    pub fn place(&self) -> Place {
        Place::of(&self.all)
    }

    /// The facts of all graphs that are compiled.
    pub fn graphs(&self) -> Result<Vec<GraphFacts>> {
        let mut graphs = vec![];
        for shard in &self.compiled {
            for role in self.roles {
                graphs.push(self.source.part(&self.file(shard, role))?.facts.read()?);
            }
        }
        Ok(graphs)
    }

    /// An order for each shard. Its inputs are the graphs, named after their roles, and the weights
    /// that they read.
    pub fn orders<T: Clone>(&self, work: &T, tools: &[ToolFile]) -> Result<Vec<Order<T>>> {
        let weights = self.source.under("weights");
        let compilations = Compilations::new(&self.model, weights, self.roles.len(), self.place());
        let is_onnx = self.extension == "onnx";
        let smaller = if is_onnx {
            self.more_shards(&compilations)?
        } else {
            vec![]
        };
        let tensors = by_name(&self.model);
        let mut orders = vec![];
        for shard in &self.compiled {
            let memory_bytes = if is_onnx {
                compilations.bytes(shard)
            } else {
                compile_bytes(dlc_elements(self.source), self.roles.len() as u64)
            };
            let mut order = Order::new(shard.folder(), work.clone())
                .tools(tools.to_vec())
                .demand(process_demand(memory_bytes))
                .smaller(smaller.clone());
            for role in self.roles {
                let part = self.source.part(&self.file(shard, role))?;
                order = order.input(format!("{role}.{}", self.extension), part);
            }
            for (name, part) in self.source.under("weights") {
                if let Some(role) = role_of_blob(&tensors, name)
                    && shard.reads(role, &self.model)
                {
                    order = order.input(format!("weights/{name}"), part);
                }
            }
            orders.push(order);
        }
        Ok(orders)
    }

    fn file(&self, shard: &Shard, role: &str) -> String {
        format!("{}.{}", shard.graph_stem(role), self.extension)
    }

    /// The peak memory with 2, 4, 8 ... times as many shards, up to one layer per shard.
    fn more_shards(&self, compilations: &Compilations) -> Result<Vec<Smaller>> {
        let (mut count, mut smaller) = ((self.all.len() as u32).max(1), vec![]);
        while count < self.model.block_count() {
            count = count.saturating_mul(2).min(self.model.block_count());
            let advice = format!("give the `graph` stage `shards = {count}`");
            smaller.push(Smaller {
                memory_bytes: compilations.largest(count)?,
                advice,
            });
        }
        Ok(smaller)
    }
}

/// `count` of `shards` at equal distances, with the first and the last.
fn sampled(shards: &[Shard], count: usize) -> Vec<Shard> {
    let count = count.min(shards.len());
    let (last, steps) = (shards.len() - 1, count.saturating_sub(1).max(1));
    let mut sample = vec![];
    for step in 0..count {
        sample.push(shards[last * step / steps]);
    }
    sample
}

/// The elements of the weights in DLCs. Each file holds all weights in fp16 and little else.
fn dlc_elements(dlc: &Manifest) -> Elements {
    let mut values = 0;
    for (name, part) in &dlc.parts {
        if name.as_str().ends_with(".dlc") {
            values = values.max(part.content.digest.size_bytes / 2);
        }
    }
    Elements { codes: 0, values }
}
