//! The rows of all tokens as one table in f32, which Genie looks up on the CPU and turns into what
//! the graph takes.

use std::io::Write;

use sha2::{Digest as _, Sha256};

use crate::action::{Job, Part};
use crate::artifact::context::CPU;
use crate::artifact::weight::Weight;
use crate::base::{CanonJson, Code, Context, Problem, Result};
use crate::model::decoder::tensors::Role;
use crate::model::facts::ArrayFacts;
use crate::model::onnx;
use crate::model::shards::End;
use crate::model::weight::Element;

/// Bytes that are written at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// A table that was written.
pub struct Table {
    pub part: Part,
    pub sha256: [u8; 32],
}

/// The table, of the graph and the weights that `job` was given below `cpu/`.
pub fn write(job: &Job) -> Result<Table> {
    let gain = gain(job)?;
    let folder = format!("{CPU}/weights/{}", Role::Embedding.weight());
    let weight = Weight::read(job, &folder)?;
    let (mut values, mut bytes) = (vec![0.0; weight.columns], Vec::with_capacity(CHUNK_BYTES));
    let (mut sink, mut hasher) = (job.create()?, Sha256::new());
    for row in 0..weight.rows {
        weight.row(row, &mut values);
        bytes.extend(values.iter().flat_map(|value| (value * gain).to_le_bytes()));
        if bytes.len() >= CHUNK_BYTES || row + 1 == weight.rows {
            job.check_cancelled()?;
            job.progress(row as u64 + 1, weight.rows as u64, "rows");
            sink.write_all(&bytes)
                .context(Code::Io, || "write a blob".into())?;
            hasher.update(&bytes);
            bytes.clear();
            weight.leave();
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

/// The power of two that the graph of the embedding multiplies its rows by.
fn gain(job: &Job) -> Result<f32> {
    let file = format!("{CPU}/{}.onnx", End::Embedding.graph_stem("prefill"));
    let model = onnx::decode(&job.read(&file)?)?;
    let mut nodes = model
        .graph
        .iter()
        .flat_map(|graph| &graph.node)
        .flat_map(|node| &node.attribute);
    let gain = nodes
        .find(|attribute| attribute.name == "gain")
        .and_then(|attribute| attribute.f);
    gain.ok_or_else(|| {
        Problem::new(
            Code::PackageTable,
            format!("`{file}` does not say its gain"),
        )
    })
}
