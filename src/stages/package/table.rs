//! Writes the embedding as one table in f32, in which Genie looks up the rows of tokens on the CPU.

use std::io::Write;

use sha2::{Digest as _, Sha256};

use crate::action::{Job, Part};
use crate::artifact::context::CPU;
use crate::artifact::weight::Weight;
use crate::base::{CanonJson, Code, Context, Problem, Result};
use crate::model::decoder::Embedding;
use crate::model::decoder::shards::OuterModule;
use crate::model::decoder::tensors::Role;
use crate::model::facts::ArrayFacts;
use crate::model::onnx;
use crate::model::weight::Element;

/// Bytes that are written at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// The stored table.
pub(super) struct Table {
    pub(super) part: Part,
    pub(super) sha256: [u8; 32],
}

/// Writes the table from the graph and the weights below `cpu/` in the inputs of `job`; `embedding`
/// is that of the model.
pub(super) fn write(job: &Job, embedding: &Embedding) -> Result<Table> {
    let gain = read_gain(job)?;
    let scale = embedding.scale.unwrap_or(1.0);
    let folder = format!("{CPU}/weights/{}", Role::Embedding.weight());
    let weight = Weight::read(job, &folder)?;
    let (mut values, mut bytes) = (vec![0.0; weight.columns], Vec::with_capacity(CHUNK_BYTES));
    let (mut sink, mut hasher) = (job.create()?, Sha256::new());
    for row in 0..weight.rows {
        weight.row(row, &mut values);
        for value in &values {
            bytes.extend((value * gain * scale).to_le_bytes());
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

/// The power of two by which the graph of the embedding multiplies its rows.
fn read_gain(job: &Job) -> Result<f32> {
    let file = format!(
        "{CPU}/{}.onnx",
        OuterModule::Embedding.graph_stem("prefill")
    );
    let model = onnx::decode(&job.read(&file)?)?;
    for node in &model.graph.unwrap_or_default().node {
        for attribute in &node.attribute {
            if attribute.name == "gain"
                && let Some(gain) = attribute.f
            {
                return Ok(gain);
            }
        }
    }
    Err(Problem::new(
        Code::PackageTable,
        format!("`{file}` has no attribute `gain`"),
    ))
}
