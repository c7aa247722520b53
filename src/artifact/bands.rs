//! Tensors on their way through `dequant` and `requant`: read a band at a time, written to a few
//! blobs.

use std::io::Write;

use crate::action::{Blob, BlobSink, Content, Demand, Job, Outputs, Part, PartName};
use crate::base::{CanonJson, Code, Context, Problem, Result};
use crate::model::facts::TensorFacts;
use crate::model::quant::{
    BAND_VALUES, Band, BlockGrid, BlockTensor, ErrorSum, GridLayout, Misfit, NativeEncoding, Plain,
    Rounding, Split, first_non_finite, round, split,
};
use crate::model::weight::{Element, ErrorFacts, WeightEncoding, WeightFacts};

/// What the input is called in the orders of both stages.
pub const INPUT: &str = "tensor";

/// Bytes that a value of a band takes at most: its gathered block and what it is spelled as.
const BYTES_PER_VALUE: u64 = 4 + 4;

/// As much of what is handed on as it lies is looked through at a time: whole elements.
const PIECE_BYTES: usize = 1 << 20;

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

/// Codes or values, scales and offsets, where there are any.
pub type Blobs = [Option<Content>; 3];

/// Spells every band into buffers of `sizes(values)` bytes and writes those that are not empty to a
/// blob each. What was read of `source`, the bytes of the tensor, does not stay in memory.
pub fn write(
    job: &Job,
    source: &Blob,
    tensor: &BlockTensor,
    sizes: impl Fn(usize) -> [usize; 3],
    mut spell: impl FnMut(&Band, [&mut [u8]; 3]) -> Result<()>,
) -> Result<Blobs> {
    let mut sinks: [Option<Box<dyn BlobSink>>; 3] = [None, None, None];
    for (sink, _) in sinks
        .iter_mut()
        .zip(sizes(tensor.len()))
        .filter(|(_, size)| *size > 0)
    {
        *sink = Some(job.create()?);
    }
    let mut buffers = [const { Vec::new() }; 3];
    for band in tensor.bands() {
        job.check_cancelled()?;
        buffers
            .iter_mut()
            .zip(sizes(band.values))
            .for_each(|(buffer, size)| buffer.resize(size, 0));
        spell(&band, buffers.each_mut().map(Vec::as_mut_slice))?;
        let pairs = sinks
            .iter_mut()
            .zip(&buffers)
            .filter_map(|(sink, buffer)| Some((sink.as_mut()?, buffer)));
        for (sink, buffer) in pairs {
            sink.write_all(buffer)
                .context(Code::Io, || "write a blob".into())?;
        }
        let place = |value: usize| {
            value / tensor.ggml().block_len as usize * tensor.ggml().block_bytes as usize
        };
        source.leave(match tensor.in_stored_order() {
            true => place(band.first)..place(band.first + band.values),
            false => 0..source.len(),
        });
        job.progress(
            (band.first + band.values) as u64,
            tensor.len() as u64,
            "values",
        );
    }
    let [codes, scales, offsets] = sinks.map(|sink| sink.map(|sink| sink.finish()).transpose());
    Ok([codes?, scales?, offsets?])
}

/// The blocks of `grid` taken apart; nothing is rounded.
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

/// Refuses scales and offsets that are no numbers.
pub fn refuse_non_finite(
    tensor: &BlockTensor,
    band: &Band,
    layout: &GridLayout,
    split: &Split,
) -> Result<()> {
    let numbers = [
        (Some(layout.scales), &*split.scales),
        (layout.offsets, &*split.offsets),
    ];
    let bad = |(element, bytes): (Option<Element>, &[u8])| first_non_finite(element?, bytes);
    match numbers.into_iter().find_map(bad) {
        None => Ok(()),
        Some(block) => Err(not_finite(
            tensor,
            band.first + block * layout.block as usize,
        )),
    }
}

/// Every value rounded, and how far that takes them from the source. `what` the values do not fit,
/// if they do not.
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

/// Every value as `element`. What is spelled so already is handed on as it lies there.
pub fn write_values(
    job: &Job,
    source: &Blob,
    tensor: &BlockTensor,
    element: Element,
) -> Result<(Blobs, ErrorSum)> {
    match tensor.format().native_encoding() {
        NativeEncoding::Values(own) if own == element && tensor.in_stored_order() => {
            let (mut value, width) = (0, element.bits() as usize / 8);
            source.stream(PIECE_BYTES, |piece| {
                if let Some(bad) = first_non_finite(element, piece) {
                    return Err(not_finite(tensor, value + bad));
                }
                value += piece.len() / width;
                Ok(())
            })?;
            Ok((
                [Some(job.input(INPUT)?.content()), None, None],
                ErrorSum::default(),
            ))
        }
        _ => write_rounded(
            job,
            source,
            tensor,
            &Plain(element),
            &format!("{element:?}").to_lowercase(),
        ),
    }
}

/// The parts of a weight of this shape and encoding: its blobs, in the order of the encoding's
/// parts, and what they say of themselves.
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
            error: (spec.part == encoding.main_part()).then(|| error.clone()),
        };
        let facts = CanonJson::of(&facts)?;
        outputs.insert(PartName::new(spec.part.name())?, Part { content, facts });
    }
    Ok(outputs)
}

/// The facts of `error`; `scheme` made it.
pub fn error_facts(tensor: &BlockTensor, scheme: &str, error: ErrorSum) -> ErrorFacts {
    ErrorFacts {
        source: tensor.ggml().name.into(),
        scheme: scheme.into(),
        exact: error.is_exact(),
        sqnr_db: error.sqnr_db(),
        max_error: error.max_error(),
        clipped: None,
    }
}

/// The problem of a value that `what` does not hold.
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
