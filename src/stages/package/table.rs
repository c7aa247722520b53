//! Writes the embedding as one table in f32, in which Genie looks up the rows of tokens on the CPU.

use std::io::Write;

use sha2::{Digest as _, Sha256};

use crate::action::{Job, Part};
use crate::artifact::context::CPU;
use crate::artifact::weight::Weight;
use crate::base::{CanonJson, Code, Context, Problem, Result};
use crate::model::decoder::shards::OuterModule;
use crate::model::decoder::tensors::Role;
use crate::model::facts::ArrayFacts;
use crate::model::onnx;
use crate::model::onnx::proto::element;
use crate::model::weight::Element;

/// Bytes that are written at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// The stored table.
pub(super) struct Table {
    pub(super) part: Part,
    pub(super) sha256: [u8; 32],
}

/// Writes the table from the graph and the weights below `cpu/` in the inputs of `job`.
pub(super) fn write(job: &Job) -> Result<Table> {
    let factor = read_factor(job)?;
    let folder = format!("{CPU}/weights/{}", Role::Embedding.weight());
    let weight = Weight::read(job, &folder)?;
    let (mut values, mut bytes) = (vec![0.0; weight.columns], Vec::with_capacity(CHUNK_BYTES));
    let (mut sink, mut hasher) = (job.create()?, Sha256::new());
    for row in 0..weight.rows {
        weight.row(row, &mut values);
        for value in &values {
            bytes.extend((value * factor).to_le_bytes());
        }
        if bytes.len() >= CHUNK_BYTES || row + 1 == weight.rows {
            job.check_cancelled()?;
            job.progress(row as u64 + 1, weight.rows as u64, "rows");
            sink.write_all(&bytes)
                .context(Code::Io, || "write a blob".into())?;
            hasher.update(&bytes);
            bytes.clear();
            weight.evict();
        }
    }
    let facts = ArrayFacts {
        shape: vec![weight.rows as u64, weight.columns as u64],
        element: Element::F32,
    };
    let part = Part {
        content: sink.finish()?,
        facts: CanonJson::of(&facts)?,
    };
    Ok(Table {
        part,
        sha256: hasher.finalize().into(),
    })
}

/// The factor by which the graph of the embedding multiplies its rows: the gain of the lookup, times
/// the only number in the graph, if there is one.
fn read_factor(job: &Job) -> Result<f32> {
    let file = format!(
        "{CPU}/{}.onnx",
        OuterModule::Embedding.graph_stem("prefill")
    );
    let graph = onnx::decode(&job.read(&file)?)?.graph.unwrap_or_default();
    let mut attributes = graph.node.iter().flat_map(|node| &node.attribute);
    let gain = attributes.find(|attribute| attribute.name == "gain");
    let Some(gain) = gain.and_then(|attribute| attribute.f) else {
        return Err(Problem::new(
            Code::PackageTable,
            format!("`{file}` has no attribute `gain`"),
        ));
    };
    let mut factor = gain;
    for constant in &graph.initializer {
        if let Ok(bytes) = constant.raw_data.as_slice().try_into()
            && constant.data_type == element::FLOAT
        {
            factor *= f32::from_le_bytes(bytes);
        }
    }
    Ok(factor)
}
