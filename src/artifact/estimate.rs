//! The output of `estimate`: what the compiler expects of the graphs on a chip, by shard.

mod layers;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::action::{Manifest, Part, PartName};
use crate::base::{Code, Problem, Result, bytes, count};
use crate::model::decoder::shards::{OuterModule, Place, Shard};
use crate::model::facts::GraphFacts;
use crate::model::onnx::LinearShape;

/// The estimate of a shard, in its folder if it has one. Its facts are the same, without the names
/// of operations.
pub const ESTIMATE: &str = "estimate.json";

/// The same for people.
pub const ESTIMATE_TEXT: &str = "estimate.txt";

/// How to read the figures. The factor: 48 ms a token for a model of 1.5 billion weights, where
/// Qualcomm's AI Hub publishes 77 ms.
pub const NOTES: &str = "\
Time of one call. Bytes between DDR and the chip: weights and inputs (read), intermediate values
(fill, spill), outputs (written). Operations without a cost count as free. Compared with the figures
that Qualcomm publishes for X Elite (v73), an estimate for v73 was about 1.6 times too good.
";

/// `estimate.json`: the graphs of one shard, or of the whole model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardEstimate {
    /// The chip: `qcs9075`.
    pub soc: String,
    /// Its Hexagon architecture: 73 for v73.
    pub arch: u32,
    /// The graphs by role: `prefill`, `decode`.
    pub graphs: BTreeMap<String, GraphEstimate>,
}

/// The estimate of a graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GraphEstimate {
    /// Tokens per call.
    pub tokens: u32,
    /// Tokens that attention covers, past and new.
    pub context: u32,
    /// The part of the model that it computes; `None` for the whole model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
    /// The figures.
    #[serde(flatten)]
    pub figures: Figures,
    /// The names of the operations without a cost, if the stage collects them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// The linear layers of a decode graph by the names of their tensors, if the stage estimates
    /// them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub layers: BTreeMap<String, LayerEstimate>,
}

/// The estimate of a linear layer alone: of a graph with just this layer, which reads its input
/// from DDR and writes its output there. In the whole graph, layers may overlap.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerEstimate {
    /// The scheme of its weight, if the facts of the weight name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// What its time depends on.
    #[serde(flatten)]
    pub shape: LinearShape,
    /// Duration of a call in microseconds, to a hundredth.
    pub time_us: f64,
}

/// Figures of one call, of a graph or of all shards of a model together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Duration in microseconds.
    pub time_us: u64,
    /// Its lower bound.
    pub time_lower_us: u64,
    /// Its upper bound.
    pub time_upper_us: u64,
    /// Duration in cycles of the HTP.
    pub cycles: u64,
    /// Bytes of weights and inputs that are read from DDR.
    pub read_bytes: u64,
    /// Bytes of intermediate values that are read from DDR.
    pub fill_bytes: u64,
    /// Bytes of intermediate values that are written to DDR.
    pub spill_bytes: u64,
    /// Bytes of outputs that are written to DDR.
    pub write_bytes: u64,
    /// Number of operations that count as free, because the compiler has no cost for them.
    pub ops_without_cost: u64,
}

/// The estimates of the shards of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelEstimate {
    /// The chip.
    pub soc: String,
    /// Its Hexagon architecture.
    pub arch: u32,
    /// The sums over all shards, by role. Empty if shards are missing.
    pub sums: BTreeMap<String, Figures>,
    /// The graphs by role, in the order of the layers.
    pub graphs: BTreeMap<String, Vec<GraphEstimate>>,
    /// What runs on the CPU, of which there is no estimate: `embedding`, `head`.
    pub on_cpu: Vec<String>,
}

impl GraphEstimate {
    /// The estimate of a graph with these facts.
    pub fn new(graph: &GraphFacts, figures: Figures, names: Vec<String>) -> Self {
        GraphEstimate {
            tokens: graph.tokens,
            context: graph.context,
            shard: graph.shard,
            figures,
            names,
            layers: BTreeMap::new(),
        }
    }
}

impl Figures {
    fn add(&mut self, other: &Figures) {
        let Figures {
            time_us,
            time_lower_us,
            time_upper_us,
            cycles,
            read_bytes,
            fill_bytes,
            spill_bytes,
            write_bytes,
            ops_without_cost,
        } = *other;
        for (sum, value) in [
            (&mut self.time_us, time_us),
            (&mut self.time_lower_us, time_lower_us),
            (&mut self.time_upper_us, time_upper_us),
            (&mut self.cycles, cycles),
            (&mut self.read_bytes, read_bytes),
            (&mut self.fill_bytes, fill_bytes),
            (&mut self.spill_bytes, spill_bytes),
            (&mut self.write_bytes, write_bytes),
            (&mut self.ops_without_cost, ops_without_cost),
        ] {
            *sum = sum.saturating_add(value);
        }
    }

    /// Duration in milliseconds.
    pub fn time_ms(&self) -> f64 {
        self.time_us as f64 / 1000.0
    }
}

impl ShardEstimate {
    /// Without the names of operations: the facts.
    pub fn without_names(mut self) -> Self {
        for graph in self.graphs.values_mut() {
            graph.names.clear();
        }
        self
    }
}

impl ModelEstimate {
    /// Reads the facts of an `estimate` manifest.
    pub fn read(manifest: &Manifest) -> Result<Self> {
        let shards = estimates(manifest).map(|(_, part)| part.facts.read());
        ModelEstimate::of(shards.collect::<Result<_>>()?)
    }

    /// Puts the estimates of the shards of a model together.
    pub fn of(shards: Vec<ShardEstimate>) -> Result<Self> {
        let Some(first) = shards.first() else {
            return Err(Problem::new(
                Code::ValidateEstimate,
                "there is no estimate of any shard",
            ));
        };
        let mut model = ModelEstimate {
            soc: first.soc.clone(),
            arch: first.arch,
            sums: BTreeMap::new(),
            graphs: BTreeMap::new(),
            on_cpu: vec![],
        };
        let mut places = vec![];
        for shard in shards {
            for (role, graph) in shard.graphs {
                places.extend(graph.shard);
                model.graphs.entry(role).or_default().push(graph);
            }
        }
        for (role, graphs) in &mut model.graphs {
            graphs.sort_by_key(|graph| part(graph).0);
            let (_, count) = part(&graphs[0]);
            if graphs.len() == count as usize {
                let mut sum = Figures::default();
                for graph in graphs.iter() {
                    sum.add(&graph.figures);
                }
                model.sums.insert(role.clone(), sum);
            }
        }
        for module in Place::of(&places).on_cpu() {
            model.on_cpu.push(OuterModule::name(module).into());
        }
        Ok(model)
    }

    /// The linear layers of the decode graphs of all shards, by the names of their tensors.
    pub fn layers(&self) -> BTreeMap<&str, &LayerEstimate> {
        let mut layers = BTreeMap::new();
        for graph in self.graphs.values().flatten() {
            for (tensor, layer) in &graph.layers {
                layers.insert(tensor.as_str(), layer);
            }
        }
        layers
    }

    /// What the figures are, for people.
    pub fn heading(&self) -> String {
        let ModelEstimate { soc, arch, .. } = self;
        format!("an estimate of Qualcomm's compiler for {soc} (v{arch}), not a measurement")
    }
}

/// The parts of an `estimate` manifest that have a [`ShardEstimate`].
pub fn estimates(manifest: &Manifest) -> impl Iterator<Item = (&PartName, &Part)> {
    let parts = manifest.parts.iter();
    parts.filter(|(name, _)| name.as_str().rsplit('/').next() == Some(ESTIMATE))
}

/// The sums, or, if shards are missing, what there is of them.
impl fmt::Display for ModelEstimate {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(
            f,
            "{:28} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8}",
            "", "ms", "lower", "upper", "read", "fill", "spill", "written", "no cost"
        )?;
        for (role, graphs) in &self.graphs {
            if let Some(sum) = self.sums.get(role) {
                let tokens = count(graphs[0].tokens as usize, "token");
                write_row(f, &format!("{role}, {tokens}"), sum)?;
                continue;
            }
            for graph in graphs {
                let layers = match graph.shard {
                    Some(shard) => shard.layers(),
                    None => "all layers".into(),
                };
                write_row(f, &format!("{role}, {layers}"), &graph.figures)?;
            }
            let (_, shards) = part(&graphs[0]);
            let found = graphs.len();
            writeln!(f, "{role}: {found} of {shards} shards, so there is no sum")?;
        }
        for module in &self.on_cpu {
            writeln!(f, "not included: the {module}, which runs on the CPU")?;
        }
        layers::write_table(f, &self.layers())
    }
}

fn write_row(f: &mut fmt::Formatter, label: &str, figures: &Figures) -> fmt::Result {
    let ms = |us: u64| format!("{:.3}", us as f64 / 1000.0);
    writeln!(
        f,
        "{label:28} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8}",
        ms(figures.time_us),
        ms(figures.time_lower_us),
        ms(figures.time_upper_us),
        bytes(figures.read_bytes),
        bytes(figures.fill_bytes),
        bytes(figures.spill_bytes),
        bytes(figures.write_bytes),
        figures.ops_without_cost,
    )
}

/// The number of the shard of `graph`, and the number of shards.
fn part(graph: &GraphEstimate) -> (u32, u32) {
    match graph.shard {
        Some(shard) => (shard.part, shard.of),
        None => (1, 1),
    }
}
