//! Encodes tensors by a scheme.

use super::scheme::Scheme;
use crate::action::{Blob, Job, Outputs};
use crate::artifact::bands::{self, Blobs};
use crate::base::{Code, Problem, Result};
use crate::model::quant::{
    BlockGrid, BlockTensor, ErrorSum, GridLayout, Int8Blocks, Metric, NativeEncoding, Positive,
    RowPieces, RowRounding, RowSum, Split, decode, recombine, round_rows, split,
};
use crate::model::weight::{Element, ErrorFacts, WeightEncoding};

/// Name of the input with the second moments of a tensor's inputs.
pub(super) const MOMENTS: &str = "moments";
/// Name of the input with the mean squares of a tensor's inputs.
pub(super) const DIAGONAL: &str = "diagonal";

/// Writes the tensor, which has the shape `shape`, in `scheme`.
pub(super) fn encode(
    job: &Job,
    source: &Blob,
    tensor: &BlockTensor,
    scheme: Scheme,
    shape: &[u64],
) -> Result<Outputs> {
    let values = |element| {
        let (blobs, sum) = bands::write_values(job, source, tensor, element)?;
        Ok((
            WeightEncoding::Plain { element },
            blobs,
            facts(tensor, scheme, sum),
        ))
    };
    let columns = shape.last().copied().unwrap_or(0);
    let (encoding, blobs, error) = match (scheme, tensor.format().native_encoding()) {
        _ if shape.len() == 1 => values(Element::F32)?,
        (Scheme::Native | Scheme::NativeSafe, NativeEncoding::Values(element)) => values(element)?,
        (Scheme::Native | Scheme::NativeSafe, NativeEncoding::Wide(_)) => values(Element::F32)?,
        (Scheme::Native, NativeEncoding::Blocks(grid)) => {
            let blobs = bands::write_split(job, source, tensor, grid)?;
            (
                blocks(grid.layout(), columns),
                blobs,
                facts(tensor, scheme, ErrorSum::default()),
            )
        }
        (Scheme::NativeSafe, NativeEncoding::Blocks(grid)) => {
            encode_positive(job, source, tensor, grid, columns)?
        }
        (Scheme::F16, _) => values(Element::F16)?,
        (Scheme::Int8Block, _) => {
            let (blobs, sum) =
                bands::write_rounded(job, source, tensor, &Int8Blocks, "8-bit codes under a half")?;
            (
                blocks(Int8Blocks::LAYOUT, columns),
                blobs,
                facts(tensor, scheme, sum),
            )
        }
        _ => encode_rows(job, source, tensor, scheme, shape)?,
    };
    bands::outputs(shape, encoding, blobs, error)
}

/// The encoding of a grid over rows of `columns` values.
fn blocks(layout: GridLayout, columns: u64) -> WeightEncoding {
    WeightEncoding::blocks(
        layout.codes,
        layout.block,
        layout.scales,
        layout.offsets,
        columns,
    )
}

fn facts(tensor: &BlockTensor, scheme: Scheme, sum: ErrorSum) -> ErrorFacts {
    bands::error_facts(tensor, scheme.name(), sum)
}

/// Writes the tensor in its own grid, but with positive scales only.
fn encode_positive(
    job: &Job,
    source: &Blob,
    tensor: &BlockTensor,
    grid: &dyn BlockGrid,
    columns: u64,
) -> Result<(WeightEncoding, Blobs, ErrorFacts)> {
    let mut needs_offsets = false;
    let mut buffers = [const { Vec::new() }; 3];
    for band in tensor.bands() {
        job.check_cancelled()?;
        let [codes, scales, offsets] = resize(&mut buffers, grid.layout().bytes(band.values));
        let mut parts = Split {
            codes,
            scales,
            offsets,
        };
        split(tensor, &band, grid, parts.reborrow());
        needs_offsets |= Positive::needs_offsets(grid, &parts);
    }
    let grid = Positive::new(grid, needs_offsets);
    let layout = grid.layout();
    let mut sum = ErrorSum::default();
    let blobs = bands::write(
        job,
        source,
        tensor,
        |values| layout.bytes(values),
        |band, [codes, scales, offsets]| {
            let mut parts = Split {
                codes,
                scales,
                offsets,
            };
            split(tensor, band, &grid, parts.reborrow());
            bands::refuse_non_finite(tensor, band, &layout, &parts)?;
            let mut restored = vec![0.0; band.values];
            recombine(&layout, &parts, &mut restored);
            let mut values = vec![0.0; band.values];
            decode(tensor, band, &mut values);
            sum = sum.and(ErrorSum::of(&values, &restored));
            Ok(())
        },
    )?;
    // Equal values count as exact: a mirrored zero may have another sign.
    let error = ErrorFacts {
        exact: sum.max_error() == 0.0,
        ..facts(tensor, Scheme::NativeSafe, sum)
    };
    Ok((blocks(layout, columns), blobs, error))
}

fn resize(buffers: &mut [Vec<u8>; 3], sizes: [usize; 3]) -> [&mut [u8]; 3] {
    for (buffer, size) in buffers.iter_mut().zip(sizes) {
        buffer.resize(size, 0);
    }
    buffers.each_mut().map(Vec::as_mut_slice)
}

/// Rounds whole rows, with the least error in the output for the inputs that were calibrated.
fn encode_rows(
    job: &Job,
    source: &Blob,
    tensor: &BlockTensor,
    scheme: Scheme,
    shape: &[u64],
) -> Result<(WeightEncoding, Blobs, ErrorFacts)> {
    let (Some(layout), &[_, columns]) = (scheme.rows(), shape) else {
        return Err(Problem::new(
            Code::WeightsScheme,
            format!("`{}` is for matrices only", scheme.name()),
        ));
    };
    let calibrated = read_metric(job, columns as usize, layout.block)?;
    let is_calibrated = calibrated.is_some();
    let metric = calibrated.unwrap_or_else(|| Metric::plain(columns as usize, layout.block));
    let rounding = RowRounding::new(layout, metric)?;
    let mut sum = RowSum::default();
    let blobs = bands::write(
        job,
        source,
        tensor,
        |values| rounding.bytes(values / columns as usize),
        |band, [codes, integers, scales]| {
            let parts = RowPieces {
                codes,
                integers,
                scales,
            };
            match round_rows(tensor, band, &rounding, parts) {
                Ok(rounded) => sum = sum.and(rounded),
                Err(misfit) => return Err(bands::refuse(tensor, band, misfit, scheme.name())),
            }
            Ok(())
        },
    )?;
    let share = sum.clipped as f64 / tensor.len() as f64;
    let clipped = Some((1e6 * share).round() / 1e6);
    let output_sqnr_db = if is_calibrated {
        sum.output_sqnr_db()
    } else {
        None
    };
    let encoding = match layout.block {
        None => WeightEncoding::Channel {
            codes: layout.codes,
        },
        Some(block) if layout.shifts => WeightEncoding::LpbqShifted { block },
        Some(block) => WeightEncoding::Lpbq { block },
    };
    Ok((
        encoding,
        blobs,
        ErrorFacts {
            output_sqnr_db,
            clipped,
            ..facts(tensor, scheme, sum.error)
        },
    ))
}

/// The metric of the error by the second moments of the inputs, or by their mean squares. `None`
/// without a calibration of them.
fn read_metric(job: &Job, columns: usize, block: Option<u32>) -> Result<Option<Metric>> {
    if job.input(MOMENTS).is_ok() {
        return Metric::full(&read_f32(job, MOMENTS)?, columns, block).map(Some);
    }
    if job.input(DIAGONAL).is_ok() {
        let squares = read_f32(job, DIAGONAL)?;
        if squares.len() != columns {
            let what = format!(
                "the calibration has {} mean squares of {columns} inputs",
                squares.len()
            );
            return Err(Problem::new(Code::WeightsMoments, what).help("calibrate the same model"));
        }
        return Metric::diagonal(&squares, block).map(Some);
    }
    Ok(None)
}

fn read_f32(job: &Job, input: &str) -> Result<Vec<f32>> {
    let bytes = job.read(input)?;
    let (numbers, _) = bytes.as_chunks();
    Ok(numbers
        .iter()
        .map(|number| f32::from_le_bytes(*number))
        .collect())
}
