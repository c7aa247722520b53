//! A candidate's context binary on the HTP simulator of libQnnHtp, or the binaries of its shards
//! one after the other.

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

/// The context binaries of a model. One at a time is loaded into the simulator.
pub struct Htp {
    /// The libraries of the tool `qnn`.
    folder: PathBuf,
    /// In the order of the layers.
    binaries: Vec<Binary>,
    /// The index of the loaded binary, and its simulator.
    loaded: Option<(usize, Simulator)>,
}

/// A context binary, and its graphs by role.
struct Binary {
    bytes: Blob,
    graphs: BTreeMap<String, GraphFacts>,
}

impl Htp {
    /// Opens the inputs `candidate/model.bin`, or `candidate/PART-of-N/model.bin`.
    pub fn open(job: &Job) -> Result<Self> {
        Self::of(job, &binary_inputs(job))
    }

    /// Opens these inputs, each of which reads the outputs of the one before.
    pub fn of(job: &Job, inputs: &[&str]) -> Result<Self> {
        let mut binaries = vec![];
        for name in inputs {
            let ContextFacts { graphs, .. } = job.input(name)?.facts.read()?;
            let bytes = job.read(name)?;
            binaries.push(Binary { bytes, graphs });
        }
        Ok(Htp {
            folder: job.tool_folder(QNN)?,
            binaries,
            loaded: None,
        })
    }

    /// Binary `index`, and the simulator that it is loaded into.
    fn load(&mut self, index: usize) -> Result<(&Binary, &Simulator)> {
        let binary = &self.binaries[index];
        let simulator = match self.loaded.take() {
            Some((at, simulator)) if at == index => simulator,
            // The old simulator frees its memory before the new one loads.
            other => {
                drop(other);
                Simulator::load(&self.folder, &binary.bytes)?
            }
        };
        let (_, simulator) = self.loaded.insert((index, simulator));
        Ok((binary, simulator))
    }
}

impl Binary {
    fn graph(&self, graph: Graph) -> Result<&GraphFacts> {
        let role = graph.role();
        let Some(facts) = self.graphs.get(role) else {
            let message = format!("the context binary holds no {role} graph");
            return Err(Problem::new(Code::EvaluateGraphs, message)
                .help("build it with both graphs: leave `graphs` out of the `context-bin` stage"));
        };
        Ok(facts)
    }
}

impl Engine for Htp {
    fn facts(&self, graph: Graph) -> Result<GraphFacts> {
        let Some(binary) = self.binaries.first() else {
            let message = "there is no context binary";
            return Err(Problem::new(Code::EvaluateGraphs, message));
        };
        Ok(binary.graph(graph)?.clone())
    }

    fn run(
        &mut self,
        graph: Graph,
        inputs: &BTreeMap<String, Tensor>,
        outputs: &[String],
    ) -> Result<BTreeMap<String, Vec<f32>>> {
        let mut values = BTreeMap::new();
        // What a binary passes to the next one, as raw bytes.
        let mut intermediate: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for index in 0..self.binaries.len() {
            let (binary, simulator) = self.load(index)?;
            let name = &binary.graph(graph)?.name;
            let info = simulator.graph(name)?;
            let mut graph_inputs = BTreeMap::new();
            for tensor in &info.inputs {
                let bytes = if let Some(bytes) = intermediate.remove(&tensor.name) {
                    bytes
                } else if let Some(value) = inputs.get(&tensor.name) {
                    encode(tensor, value)?
                } else {
                    let message = format!("`{name}` has an unknown input `{}`", tensor.name);
                    return Err(Problem::new(Code::EvaluateGraphs, message));
                };
                graph_inputs.insert(tensor.name.clone(), bytes);
            }
            for (output, bytes) in simulator.execute(name, &graph_inputs)? {
                match info.tensor(&output) {
                    Some(tensor) if outputs.contains(&output) => {
                        values.insert(output, decode(tensor, &bytes)?);
                    }
                    _ => {
                        intermediate.insert(output, bytes);
                    }
                }
            }
        }
        for name in outputs {
            if !values.contains_key(name) {
                let message = format!("the candidate has no output `{name}`");
                return Err(Problem::new(Code::EvaluateGraphs, message));
            }
        }
        Ok(values)
    }
}

/// The bytes of `value` in the type that the graph declares.
fn encode(tensor: &TensorInfo, value: &Tensor) -> Result<Vec<u8>> {
    let mut bytes = vec![];
    match value {
        Tensor::I32(_, values) if has_type(tensor, DataType::Int32) => {
            for value in values {
                bytes.extend(value.to_le_bytes());
            }
        }
        Tensor::F32(_, values) if has_type(tensor, DataType::Float16) => {
            for value in values {
                bytes.extend(f16::from_f32(*value).to_le_bytes());
            }
        }
        Tensor::F32(_, values) if has_type(tensor, DataType::Float32) => {
            for value in values {
                bytes.extend(value.to_le_bytes());
            }
        }
        Tensor::F32(_, values) => {
            let (Some(last), Some((scale, offset))) = (last_code(tensor), tensor.scale_offset)
            else {
                return Err(unsupported_type(tensor));
            };
            let width = if last > 255 { 2 } else { 1 };
            for value in values {
                let code = f64::from(*value / scale).round() as i64 - i64::from(offset);
                bytes.extend(&code.clamp(0, last).to_le_bytes()[..width]);
            }
        }
        Tensor::I32(..) => return Err(unsupported_type(tensor)),
    }
    Ok(bytes)
}

fn has_type(tensor: &TensorInfo, data_type: DataType) -> bool {
    tensor.data_type == data_type as u32
}

/// The last code of a tensor of unsigned codes.
fn last_code(tensor: &TensorInfo) -> Option<i64> {
    if has_type(tensor, DataType::UFixed16) {
        Some(u16::MAX.into())
    } else if has_type(tensor, DataType::UFixed8) {
        Some(u8::MAX.into())
    } else {
        None
    }
}

/// The values of `tensor`, which `bytes` hold.
fn decode(tensor: &TensorInfo, bytes: &[u8]) -> Result<Vec<f32>> {
    let mut values = vec![];
    if has_type(tensor, DataType::Float16) {
        for bytes in bytes.as_chunks::<2>().0 {
            values.push(f16::from_le_bytes(*bytes).to_f32());
        }
    } else if has_type(tensor, DataType::Float32) {
        for bytes in bytes.as_chunks::<4>().0 {
            values.push(f32::from_le_bytes(*bytes));
        }
    } else if let (Some(last), Some((scale, offset))) = (last_code(tensor), tensor.scale_offset) {
        if last > 255 {
            for bytes in bytes.as_chunks::<2>().0 {
                let code = i32::from(u16::from_le_bytes(*bytes));
                values.push((code + offset) as f32 * scale);
            }
        } else {
            for code in bytes {
                values.push((i32::from(*code) + offset) as f32 * scale);
            }
        }
    } else {
        return Err(unsupported_type(tensor));
    }
    Ok(values)
}

fn unsupported_type(tensor: &TensorInfo) -> Problem {
    Problem::new(
        Code::EvaluateType,
        format!(
            "`{}` is {}, which the evaluation does not feed",
            tensor.name, tensor.type_name
        ),
    )
    .help("build the context binary with f16, u16 or u8 activations and i32 token ids")
}
