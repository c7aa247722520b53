//! How `dequant` and `requant` convert a tensor: they read bands of rows and write up to three
//! blobs.

use std::io::Write;

use crate::action::{Blob, BlobSink, Content, Demand, Job, Outputs, Part, PartName};
use crate::base::{CanonJson, Code, Context, Problem, Result};
use crate::model::quant::{
    BAND_VALUES, Band, BlockGrid, BlockTensor, ErrorSum, GridLayout, Misfit, NativeEncoding, Plain,
    Rounding, Split, TensorFacts, first_non_finite, round, split,
};
use crate::model::weight::{Element, ErrorFacts, WeightEncoding, WeightFacts};

/// The name of the input in the orders of both stages.
pub const INPUT: &str = "tensor";

/// Bytes that a value of a band needs at most: in its gathered block, and encoded.
const BYTES_PER_VALUE: u64 = 4 + 4;

/// Bytes that are checked at a time if a tensor is passed on unchanged: whole elements.
const CHUNK_BYTES: usize = 1 << 20;

/// What an order over this tensor needs. The tensor itself is mapped, not read into memory.
pub fn demand(facts: &TensorFacts) -> Demand {
    let columns = facts.shape.last().copied().unwrap_or(0);
    let memory_bytes = columns
        .max(BAND_VALUES as u64)
        .saturating_mul(BYTES_PER_VALUE);
    Demand {
        memory_bytes: memory_bytes.saturating_add(Demand::default().memory_bytes),
        ..Demand::default()
    }
}

/// Codes or values, scales, offsets; `None` for what an encoding does not have.
pub type Blobs = [Option<Content>; 3];

/// Encodes each band into three buffers of `sizes(values)` bytes, and appends each buffer to a blob
/// of its own; no blob is made for an empty buffer. The parts of `source`, the bytes of the tensor,
/// that were read are released from memory.
pub fn write(
    job: &Job,
    source: &Blob,
    tensor: &BlockTensor,
    sizes: impl Fn(usize) -> [usize; 3],
    mut encode: impl FnMut(&Band, [&mut [u8]; 3]) -> Result<()>,
) -> Result<Blobs> {
    let mut sinks: [Option<Box<dyn BlobSink>>; 3] = [None, None, None];
    for (sink, size) in sinks.iter_mut().zip(sizes(tensor.len())) {
        if size > 0 {
            *sink = Some(job.create()?);
        }
    }
    let mut buffers = [const { Vec::new() }; 3];
    for band in tensor.bands() {
        job.check_cancelled()?;
        for (buffer, size) in buffers.iter_mut().zip(sizes(band.values)) {
            buffer.resize(size, 0);
        }
        encode(&band, buffers.each_mut().map(Vec::as_mut_slice))?;
        for (sink, buffer) in sinks.iter_mut().zip(&buffers) {
            if let Some(sink) = sink {
                sink.write_all(buffer)
                    .context(Code::Io, || "write a blob".into())?;
            }
        }
        let end = band.first + band.values;
        source.evict(if tensor.in_stored_order() {
            byte_offset(tensor, band.first)..byte_offset(tensor, end)
        } else {
            0..source.len()
        });
        job.progress(end as u64, tensor.len() as u64, "values");
    }
    let mut blobs = [None; 3];
    for (blob, sink) in blobs.iter_mut().zip(sinks) {
        if let Some(sink) = sink {
            *blob = Some(sink.finish()?);
        }
    }
    Ok(blobs)
}

/// Where the block of value `index` begins in the bytes of `tensor`.
fn byte_offset(tensor: &BlockTensor, index: usize) -> usize {
    let ggml = tensor.ggml();
    index / ggml.block_len as usize * ggml.block_bytes as usize
}

/// Writes the codes, scales and offsets of the blocks of `grid` as they are; nothing is rounded.
pub fn write_split(
    job: &Job,
    source: &Blob,
    tensor: &BlockTensor,
    grid: &dyn BlockGrid,
) -> Result<Blobs> {
    let layout = grid.layout();
    write(
        job,
        source,
        tensor,
        |values| layout.bytes(values),
        |band, [codes, scales, offsets]| {
            split(
                tensor,
                band,
                grid,
                Split {
                    codes: &mut *codes,
                    scales: &mut *scales,
                    offsets: &mut *offsets,
                },
            );
            refuse_non_finite(
                tensor,
                band,
                &layout,
                &Split {
                    codes,
                    scales,
                    offsets,
                },
            )
        },
    )
}

/// Refuses scales and offsets that are infinite or NaN.
pub fn refuse_non_finite(
    tensor: &BlockTensor,
    band: &Band,
    layout: &GridLayout,
    split: &Split,
) -> Result<()> {
    let mut bad_block = first_non_finite(layout.scales, split.scales);
    if let (None, Some(element)) = (bad_block, layout.offsets) {
        bad_block = first_non_finite(element, split.offsets);
    }
    match bad_block {
        None => Ok(()),
        Some(block) => {
            let index = band.first + block * layout.block as usize;
            Err(not_finite(tensor, index))
        }
    }
}

/// Writes every value rounded, and returns the rounding error too. `what` names the target in the
/// problem of a value that does not fit it.
pub fn write_rounded(
    job: &Job,
    source: &Blob,
    tensor: &BlockTensor,
    rounding: &dyn Rounding,
    what: &str,
) -> Result<(Blobs, ErrorSum)> {
    let mut sum = ErrorSum::default();
    let sizes = |values| {
        let [codes, scales] = rounding.bytes(values);
        [codes, scales, 0]
    };
    let blobs = write(job, source, tensor, sizes, |band, [codes, scales, _]| {
        let error = round(tensor, band, rounding, codes, scales);
        sum = sum.and(error.map_err(|misfit| refuse(tensor, band, misfit, what))?);
        Ok(())
    })?;
    Ok((blobs, sum))
}

/// Writes every value as `element`. A tensor that is stored so already is passed on unchanged.
pub fn write_values(
    job: &Job,
    source: &Blob,
    tensor: &BlockTensor,
    element: Element,
) -> Result<(Blobs, ErrorSum)> {
    match tensor.format().native_encoding() {
        NativeEncoding::Values(own) if own == element && tensor.in_stored_order() => {
            let (mut value, width) = (0, element.bits() as usize / 8);
            source.stream(CHUNK_BYTES, |chunk| {
                if let Some(bad) = first_non_finite(element, chunk) {
                    return Err(not_finite(tensor, value + bad));
                }
                value += chunk.len() / width;
                Ok(())
            })?;
            let values = job.input(INPUT)?.content();
            Ok(([Some(values), None, None], ErrorSum::default()))
        }
        _ => {
            let what = format!("{element:?}").to_lowercase();
            write_rounded(job, source, tensor, &Plain(element), &what)
        }
    }
}

/// The parts of a weight of this shape and encoding: its blobs, in the order of the encoding's
/// parts, with their facts.
pub fn outputs(
    shape: &[u64],
    encoding: WeightEncoding,
    blobs: Blobs,
    error: ErrorFacts,
) -> Result<Outputs> {
    let problem = |why: String| Problem::new(Code::WeightsEncoding, why);
    let specs = encoding.parts(shape).map_err(problem)?;
    let blobs: Vec<Content> = blobs.into_iter().flatten().collect();
    let sizes = blobs.iter().map(|blob| Some(blob.digest.size_bytes));
    if !sizes.eq(specs.iter().map(|spec| spec.size_bytes())) {
        return Err(problem(format!(
            "the blobs that were written are not those of {encoding} {shape:?}"
        )));
    }
    let mut outputs = Outputs::new();
    for (spec, content) in specs.iter().zip(blobs) {
        let facts = WeightFacts {
            encoding,
            part: spec.part,
            shape: shape.into(),
            error: if spec.part == encoding.main_part() {
                Some(error.clone())
            } else {
                None
            },
        };
        let facts = CanonJson::of(&facts)?;
        outputs.insert(PartName::new(spec.part.name())?, Part { content, facts });
    }
    Ok(outputs)
}

/// The facts of the `error` that `scheme` makes.
pub fn error_facts(tensor: &BlockTensor, scheme: &str, error: ErrorSum) -> ErrorFacts {
    ErrorFacts {
        source: tensor.ggml().name.into(),
        scheme: scheme.into(),
        exact: error.is_exact(),
        sqnr_db: error.sqnr_db(),
        output_sqnr_db: None,
        max_error: error.max_error(),
        clipped: None,
    }
}

/// The problem of a value that does not fit `what`.
pub fn refuse(tensor: &BlockTensor, band: &Band, misfit: Misfit, what: &str) -> Problem {
    let Misfit { index, value } = misfit;
    if !value.is_finite() {
        return not_finite(tensor, band.first + index);
    }
    let place = tensor.place(band.first + index);
    Problem::new(
        Code::WeightsRange,
        format!("{value:e} does not fit {what} ({place})"),
    )
    .help("keep this tensor in a wider form: `native` for `requant`, `f32` or `bf16` for `dequant`")
}

fn not_finite(tensor: &BlockTensor, index: usize) -> Problem {
    Problem::new(
        Code::WeightsNotFinite,
        format!("a value is infinite or NaN: {}", tensor.place(index)),
    )
    .help(
        "the file or the model that it was made from is damaged: fetch it again, or make it again",
    )
}
