//! Tensors written under a scheme.

use super::scheme::Scheme;
use crate::action::{Blob, Job, Outputs};
use crate::artifact::bands::{self, Blobs};
use crate::base::{Code, Problem, Result};
use crate::model::quant::{
    BlockGrid, BlockTensor, ErrorSum, GridLayout, Int8Blocks, Metric, NativeEncoding, Positive,
    RowPieces, RowRounding, RowSum, Split, decode, recombine, round_rows, split,
};
use crate::model::weight::{Element, ErrorFacts, WeightEncoding};

/// What the orders call the moments of a tensor's inputs.
pub(super) const MOMENTS: &str = "moments";
/// What they call their mean squares.
pub(super) const DIAGONAL: &str = "diagonal";

/// The tensor under `scheme`, of shape `shape`.
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
            positive(job, source, tensor, grid, columns)?
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
        _ => rows(job, source, tensor, scheme, shape)?,
    };
    bands::outputs(shape, encoding, blobs, error)
}

/// The encoding of a grid over rows of `columns`.
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

/// The tensor's own grid with positive scales.
fn positive(
    job: &Job,
    source: &Blob,
    tensor: &BlockTensor,
    grid: &dyn BlockGrid,
    columns: u64,
) -> Result<(WeightEncoding, Blobs, ErrorFacts)> {
    let lifts = {
        let mut found = false;
        let mut buffers = [const { Vec::new() }; 3];
        for band in tensor.bands() {
            job.check_cancelled()?;
            let [codes, scales, offsets] = sized(&mut buffers, grid.layout().bytes(band.values));
            let mut pieces = Split {
                codes,
                scales,
                offsets,
            };
            split(tensor, &band, grid, pieces.reborrow());
            found |= Positive::must_lift(grid, &pieces);
        }
        found
    };
    let grid = Positive::new(grid, lifts);
    let layout = grid.layout();
    let mut sum = ErrorSum::default();
    let blobs = bands::write(
        job,
        source,
        tensor,
        |values| layout.bytes(values),
        |band, [codes, scales, offsets]| {
            let mut pieces = Split {
                codes,
                scales,
                offsets,
            };
            split(tensor, band, &grid, pieces.reborrow());
            bands::refuse_non_finite(tensor, band, &layout, &pieces)?;
            let mut restored = vec![0.0; band.values];
            recombine(&layout, &pieces, &mut restored);
            let mut values = vec![0.0; band.values];
            decode(tensor, band, &mut values);
            sum = sum.and(ErrorSum::of(&values, &restored));
            Ok(())
        },
    )?;
    // A mirrored zero may have lost its sign.
    let error = ErrorFacts {
        exact: sum.max_error() == 0.0,
        ..facts(tensor, Scheme::NativeSafe, sum)
    };
    Ok((blocks(layout, columns), blobs, error))
}

fn sized(buffers: &mut [Vec<u8>; 3], sizes: [usize; 3]) -> [&mut [u8]; 3] {
    buffers
        .iter_mut()
        .zip(sizes)
        .for_each(|(buffer, size)| buffer.resize(size, 0));
    buffers.each_mut().map(Vec::as_mut_slice)
}

/// Whole rows, rounded so that their errors cost least by what is known of their inputs.
fn rows(
    job: &Job,
    source: &Blob,
    tensor: &BlockTensor,
    scheme: Scheme,
    shape: &[u64],
) -> Result<(WeightEncoding, Blobs, ErrorFacts)> {
    let (Some(layout), &[_, columns]) = (scheme.rows(), shape) else {
        return Err(Problem::new(
            Code::WeightsScheme,
            format!("`{}` holds matrices only", scheme.name()),
        ));
    };
    let rounding = RowRounding::new(layout, metric(job, columns as usize, layout.block)?)?;
    let mut sum = RowSum::default();
    let of_rows = |values: usize| rounding.bytes(values / columns as usize);
    let blobs = bands::write(
        job,
        source,
        tensor,
        of_rows,
        |band, [codes, integers, scales]| {
            let rounded = round_rows(
                tensor,
                band,
                &rounding,
                RowPieces {
                    codes,
                    integers,
                    scales,
                },
            );
            sum = sum
                .and(rounded.map_err(|misfit| bands::refuse(tensor, band, misfit, scheme.name()))?);
            Ok(())
        },
    )?;
    let share = sum.clipped as f64 / tensor.len() as f64;
    let clipped = Some((1e6 * share).round() / 1e6);
    let encoding = match layout.block {
        None => WeightEncoding::Channel {
            codes: layout.codes,
        },
        Some(block) => WeightEncoding::Lpbq { block },
    };
    Ok((
        encoding,
        blobs,
        ErrorFacts {
            clipped,
            ..facts(tensor, scheme, sum.error)
        },
    ))
}

/// What errors cost, by the moments of the inputs, their mean squares, or nothing.
fn metric(job: &Job, columns: usize, block: Option<u32>) -> Result<Metric> {
    let numbers = |input: &str| -> Result<Vec<f32>> {
        let bytes = job.read(input)?;
        Ok(bytes
            .as_chunks()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect())
    };
    if job.input(MOMENTS).is_ok() {
        return Metric::full(&numbers(MOMENTS)?, columns, block);
    }
    if job.input(DIAGONAL).is_ok() {
        let squares = numbers(DIAGONAL)?;
        if squares.len() != columns {
            let what = format!(
                "the calibration has {} mean squares of {columns} inputs",
                squares.len()
            );
            return Err(Problem::new(Code::WeightsMoments, what).help("calibrate the same model"));
        }
        return Metric::diagonal(&squares, block);
    }
    Ok(Metric::plain(columns, block))
}
