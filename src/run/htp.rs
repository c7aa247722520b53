//! A candidate's context binary on the HTP simulator of libQnnHtp, or those of its shards, one
//! after the other.

use std::collections::BTreeMap;
use std::path::PathBuf;

use half::f16;

use super::decoder::{Engine, Graph, Tensor};
use crate::action::{Blob, Job};
use crate::artifact::context::binary_inputs;
use crate::artifact::tools::QNN;
use crate::base::{Code, Problem, Result};
use crate::model::facts::{ContextFacts, GraphFacts};
use crate::qnn::{DataType, Simulator, TensorInfo};

/// The context binaries of a model, of which one is in the simulator at a time.
pub struct Htp {
    /// Of the tool `qnn`.
    folder: PathBuf,
    /// In the order of the layers.
    binaries: Vec<Binary>,
    /// The binary of this index.
    loaded: Option<(usize, Simulator)>,
}

/// A context binary, and its graphs by role.
struct Binary {
    bytes: Blob,
    graphs: BTreeMap<String, GraphFacts>,
}

impl Htp {
    /// Of the inputs `candidate/model.bin`, or `candidate/PART-of-N/model.bin`.
    pub fn open(job: &Job) -> Result<Self> {
        Self::of(job, &binary_inputs(job))
    }

    /// Of these inputs, each of which goes on where the one before ends.
    pub fn of(job: &Job, binaries: &[&str]) -> Result<Self> {
        let binary = |name: &&str| {
            let ContextFacts { graphs, .. } = job.input(name)?.facts.read()?;
            Ok(Binary {
                bytes: job.read(name)?,
                graphs,
            })
        };
        let binaries = binaries.iter().map(binary).collect::<Result<_>>()?;
        Ok(Htp {
            folder: job.tool_folder(QNN)?,
            binaries,
            loaded: None,
        })
    }

    /// Binary `index`, and the simulator that holds it.
    fn load(&mut self, index: usize) -> Result<(&Binary, &Simulator)> {
        let binary = &self.binaries[index];
        let simulator = match self.loaded.take() {
            Some((at, simulator)) if at == index => simulator,
            // It goes before the next one comes.
            other => {
                drop(other);
                Simulator::load(&self.folder, &binary.bytes)?
            }
        };
        Ok((binary, &self.loaded.insert((index, simulator)).1))
    }
}

impl Binary {
    fn graph(&self, graph: Graph) -> Result<&GraphFacts> {
        let role = graph.role();
        self.graphs.get(role).ok_or_else(|| {
            Problem::new(
                Code::EvaluateGraphs,
                format!("the context binary holds no {role} graph"),
            )
            .help("build it with both graphs: leave `graphs` out of the `context-bin` stage")
        })
    }
}

impl Engine for Htp {
    fn facts(&self, graph: Graph) -> Result<GraphFacts> {
        let none = || Problem::new(Code::EvaluateGraphs, "there is no context binary");
        self.binaries
            .first()
            .ok_or_else(none)?
            .graph(graph)
            .cloned()
    }

    fn run(
        &mut self,
        graph: Graph,
        inputs: &BTreeMap<String, Tensor>,
        wanted: &[String],
    ) -> Result<BTreeMap<String, Vec<f32>>> {
        let mut given = BTreeMap::new();
        // What a binary hands to the next, as it is.
        let mut between: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for index in 0..self.binaries.len() {
            let (binary, simulator) = self.load(index)?;
            let name = &binary.graph(graph)?.name;
            let info = simulator.graph(name)?;
            let feed = |tensor: &TensorInfo| {
                let bytes = match (between.remove(&tensor.name), inputs.get(&tensor.name)) {
                    (Some(bytes), _) => bytes,
                    (None, Some(value)) => spell(tensor, value)?,
                    (None, None) => {
                        let message = format!("`{name}` has an unknown input `{}`", tensor.name);
                        return Err(Problem::new(Code::EvaluateGraphs, message));
                    }
                };
                Ok((tensor.name.clone(), bytes))
            };
            let feeds = info.inputs.iter().map(feed).collect::<Result<_>>()?;
            for (output, bytes) in simulator.execute(name, &feeds)? {
                match info.tensor(&output).filter(|_| wanted.contains(&output)) {
                    Some(tensor) => drop(given.insert(output, floats(tensor, &bytes)?)),
                    None => drop(between.insert(output, bytes)),
                }
            }
        }
        match wanted.iter().find(|wanted| !given.contains_key(*wanted)) {
            Some(lacking) => Err(Problem::new(
                Code::EvaluateGraphs,
                format!("the candidate gives no `{lacking}`"),
            )),
            None => Ok(given),
        }
    }
}

/// `value` in the type that the graph declares.
fn spell(tensor: &TensorInfo, value: &Tensor) -> Result<Vec<u8>> {
    Ok(match value {
        Tensor::I32(_, values) if tensor.data_type == DataType::Int32 as u32 => values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
        Tensor::F32(_, values) if tensor.data_type == DataType::Float16 as u32 => values
            .iter()
            .flat_map(|value| f16::from_f32(*value).to_le_bytes())
            .collect(),
        Tensor::F32(_, values) if tensor.data_type == DataType::Float32 as u32 => values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
        Tensor::F32(_, values) => match (codes(tensor), tensor.scale_offset) {
            (Some(last), Some((scale, offset))) => {
                let code = |value: &f32| {
                    (f64::from(*value / scale).round() as i64 - i64::from(offset)).clamp(0, last)
                };
                let width = if last > 255 { 2 } else { 1 };
                values
                    .iter()
                    .flat_map(|value| code(value).to_le_bytes().into_iter().take(width))
                    .collect()
            }
            _ => return Err(other_type(tensor)),
        },
        _ => return Err(other_type(tensor)),
    })
}

/// The last code of a tensor of unsigned codes.
fn codes(tensor: &TensorInfo) -> Option<i64> {
    if tensor.data_type == DataType::UFixed16 as u32 {
        Some(u16::MAX.into())
    } else if tensor.data_type == DataType::UFixed8 as u32 {
        Some(u8::MAX.into())
    } else {
        None
    }
}

fn floats(tensor: &TensorInfo, bytes: &[u8]) -> Result<Vec<f32>> {
    if tensor.data_type == DataType::Float16 as u32 {
        Ok(bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|bytes| f16::from_le_bytes(*bytes).to_f32())
            .collect())
    } else if tensor.data_type == DataType::Float32 as u32 {
        Ok(bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect())
    } else if let (Some(last), Some((scale, offset))) = (codes(tensor), tensor.scale_offset) {
        let value = |code: i32| (code + offset) as f32 * scale;
        Ok(if last > 255 {
            bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|bytes| value(u16::from_le_bytes(*bytes).into()))
                .collect()
        } else {
            bytes.iter().map(|byte| value((*byte).into())).collect()
        })
    } else {
        Err(other_type(tensor))
    }
}

fn other_type(tensor: &TensorInfo) -> Problem {
    Problem::new(
        Code::EvaluateType,
        format!(
            "`{}` is {}, which the evaluation does not feed",
            tensor.name, tensor.type_name
        ),
    )
    .help("build the context binary with f16, u16 or u8 activations and i32 token ids")
}
