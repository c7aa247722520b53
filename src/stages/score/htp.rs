//! A candidate's context binary on the HTP simulator of libQnnHtp.

use std::collections::BTreeMap;

use half::f16;

use super::decoder::{Engine, Graph, Tensor};
use crate::action::Job;
use crate::base::{Problem, Result};
use crate::model::facts::GraphFacts;
use crate::qnn::{DataType, GraphInfo, Simulator, TensorInfo};
use crate::stages::device::QNN;

/// The two graphs of a loaded context binary.
pub struct Htp {
    simulator: Simulator,
    prefill: GraphFacts,
    decode: GraphFacts,
}

impl Htp {
    /// Loads the input `candidate/model.bin` into the simulator of tool `qnn`.
    pub fn open(job: &Job) -> Result<Self> {
        let simulator = Simulator::load(&job.tool_folder(QNN)?, &job.read("candidate/model.bin")?)?;
        let graphs: Vec<GraphFacts> = simulator.graphs().iter().map(facts).collect::<Result<_>>()?;
        let (decode, prefill): (Vec<_>, Vec<_>) = graphs.into_iter().partition(|graph| graph.tokens == 1);
        let one = |mut graphs: Vec<GraphFacts>, what: &str| match (graphs.pop(), graphs.is_empty()) {
            (Some(graph), true) => Ok(graph),
            _ => Err(Problem::new("kiln::score::graphs", format!("the context binary must hold one {what} graph"))),
        };
        Ok(Htp { simulator, prefill: one(prefill, "prefill")?, decode: one(decode, "decode")? })
    }
}

/// The mask is `[1, 1, tokens, context]`.
fn facts(graph: &GraphInfo) -> Result<GraphFacts> {
    match graph.tensor("attention_mask").map(|mask| mask.shape.as_slice()) {
        Some([1, 1, tokens, context]) => {
            Ok(GraphFacts { name: graph.name.clone(), tokens: *tokens, context: *context, shard: None })
        }
        other => Err(Problem::new(
            "kiln::score::graphs",
            format!("`{}` is no decoder of Genie's form: its attention_mask is {other:?}", graph.name),
        )),
    }
}

impl Engine for Htp {
    fn facts(&self, graph: Graph) -> Result<GraphFacts> {
        Ok(match graph {
            Graph::Prefill => self.prefill.clone(),
            Graph::Decode => self.decode.clone(),
        })
    }

    fn run(
        &mut self,
        graph: Graph,
        inputs: &BTreeMap<String, Tensor>,
        wanted: &[String],
    ) -> Result<BTreeMap<String, Vec<f32>>> {
        let name = self.facts(graph)?.name;
        let info = self.simulator.graph(&name)?;
        let feed = |tensor: &TensorInfo| {
            let value = inputs.get(&tensor.name).ok_or_else(|| {
                Problem::new("kiln::score::graphs", format!("`{name}` has an unknown input `{}`", tensor.name))
            })?;
            Ok((tensor.name.clone(), spell(tensor, value)?))
        };
        let feeds = info.inputs.iter().map(feed).collect::<Result<_>>()?;
        let mut outputs = self.simulator.execute(&name, &feeds)?;
        let mut read = |wanted: &String| {
            let tensor = info.tensor(wanted).zip(outputs.remove(wanted));
            let (tensor, bytes) =
                tensor.ok_or_else(|| Problem::new("kiln::score::graphs", format!("`{name}` gives no `{wanted}`")))?;
            Ok((wanted.clone(), floats(tensor, &bytes)?))
        };
        wanted.iter().map(&mut read).collect()
    }
}

/// `value` in the type that the graph declares.
fn spell(tensor: &TensorInfo, value: &Tensor) -> Result<Vec<u8>> {
    Ok(match value {
        Tensor::I32(_, values) if tensor.data_type == DataType::Int32 as u32 => {
            values.iter().flat_map(|value| value.to_le_bytes()).collect()
        }
        Tensor::F32(_, values) if tensor.data_type == DataType::Float16 as u32 => {
            values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect()
        }
        Tensor::F32(_, values) if tensor.data_type == DataType::Float32 as u32 => {
            values.iter().flat_map(|value| value.to_le_bytes()).collect()
        }
        Tensor::F32(_, values) => match (codes(tensor), tensor.scale_offset) {
            (Some(last), Some((scale, offset))) => {
                let code = |value: &f32| (f64::from(*value / scale).round() as i64 - i64::from(offset)).clamp(0, last);
                let width = if last > 255 { 2 } else { 1 };
                values.iter().flat_map(|value| code(value).to_le_bytes().into_iter().take(width)).collect()
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
        Ok(bytes.as_chunks::<2>().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect())
    } else if tensor.data_type == DataType::Float32 as u32 {
        Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    } else if let (Some(last), Some((scale, offset))) = (codes(tensor), tensor.scale_offset) {
        let value = |code: i32| (code + offset) as f32 * scale;
        Ok(if last > 255 {
            bytes.as_chunks::<2>().0.iter().map(|bytes| value(u16::from_le_bytes(*bytes).into())).collect()
        } else {
            bytes.iter().map(|byte| value((*byte).into())).collect()
        })
    } else {
        Err(other_type(tensor))
    }
}

fn other_type(tensor: &TensorInfo) -> Problem {
    Problem::new("kiln::score::type", format!("`{}` is {}, which `score` does not feed", tensor.name, tensor.type_name))
        .help("build the context binary with f16, u16 or u8 activations and i32 token ids")
}
