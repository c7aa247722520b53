//! Rounds rows that have one scale each: signed codes, and with LPBQ an integer for each block.

use rayon::prelude::*;

use super::Misfit;
use super::lanes::{LANES, Lanes};
use super::metric::Metric;
use super::search::{CodeRange, Ratios, STEP, Search, Tile};
use super::shift::shift_blocks;
use crate::base::{Code, Problem, Result};
use crate::model::quant::bands::slices;
use crate::model::quant::elements::write_codes;
use crate::model::quant::error::decibels;
use crate::model::quant::kernels::run_wide;
use crate::model::quant::{Band, BlockTensor, ErrorSum, decode};
use crate::model::weight::{Element, SumColumns};

/// The encoding of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowLayout {
    /// Type of the codes: [`Element::Int8`] or [`Element::Int4`].
    pub codes: Element,
    /// Values that share an integer from 1 to 16, stored as a byte; `None` if a row has only its
    /// f32 scale.
    pub block: Option<u32>,
    /// Whether a block of 4-bit codes has the codes -8..7 or -7..8; then the rows have the columns
    /// of [`SumColumns`] too.
    pub shifts: bool,
}

/// Significant bits of a scale. f16 holds `scale * integer` exactly, so that an f16 graph computes
/// with the values that were written.
const SCALE_BITS: u32 = 11;
const LPBQ_SCALE_BITS: u32 = 7;

/// Largest integer of a block.
const INTEGERS: u8 = 16;

/// Smallest scale that is written; the values of a row with a smaller scale become zero.
const MIN_SCALE: f32 = 1e-30;

/// Rounds rows so that the cost of their errors is small.
pub struct RowRounding {
    layout: RowLayout,
    columns: usize,
    metric: Metric,
}

/// Output buffers of the codes, the integers of blocks (if there are any) and the scales of rows.
pub struct RowPieces<'a> {
    /// Codes; two 4-bit codes per byte, the even element in the low nibble.
    pub codes: &'a mut [u8],
    /// One byte per block.
    pub integers: &'a mut [u8],
    /// One little-endian f32 per row.
    pub scales: &'a mut [u8],
}

impl<'a> RowPieces<'a> {
    /// Splits the buffers into `count` groups of `codes`, `integers` and `scales` bytes each.
    fn split(self, [codes, integers, scales]: [usize; 3], count: usize) -> Vec<RowPieces<'a>> {
        let codes = self.codes.chunks_mut(codes);
        let integers = slices(self.integers, integers, count);
        let scales = self.scales.chunks_mut(scales);
        let mut groups = Vec::with_capacity(count);
        for ((codes, integers), scales) in codes.zip(integers).zip(scales) {
            groups.push(RowPieces {
                codes,
                integers,
                scales,
            });
        }
        groups
    }
}

/// The errors of some rounded rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowSum {
    /// Error against the source.
    pub error: ErrorSum,
    /// Sum of squares of the layer's output, by the metric of the rounding.
    signal: f64,
    /// Sum of squares of the output's error, by the same metric.
    noise: f64,
    /// Values beyond the last code.
    pub clipped: u64,
}

impl RowSum {
    /// The sums over these rows and the `next` ones.
    pub fn and(self, next: Self) -> Self {
        RowSum {
            error: self.error.and(next.error),
            signal: self.signal + next.signal,
            noise: self.noise + next.noise,
            clipped: self.clipped + next.clipped,
        }
    }

    /// Signal to rounding noise in the layer's output, as [`decibels`].
    pub fn output_sqnr_db(&self) -> Option<f64> {
        decibels(self.signal, self.noise)
    }
}

impl RowRounding {
    /// For rows with as many columns as `metric`. An error if they are not a multiple of the block
    /// or do not fill whole bytes.
    pub fn new(layout: RowLayout, metric: Metric) -> Result<Self> {
        let columns = metric.columns();
        let unit = match layout.block {
            Some(block) => block,
            None if layout.codes == Element::Int4 => 2,
            None => 1,
        };
        if unit == 0 || !columns.is_multiple_of(unit as usize) {
            return Err(Problem::new(
                Code::WeightsColumns,
                format!("{columns} columns are no whole number of blocks of {unit}"),
            ));
        }
        Ok(RowRounding {
            layout,
            columns,
            metric,
        })
    }

    /// Bytes of codes, integers and scales of `rows` rows.
    pub fn bytes(&self, rows: usize) -> [usize; 3] {
        let columns = self.stored_columns();
        let integers = match self.layout.block {
            Some(block) => columns / block as usize,
            None => 0,
        };
        let codes = columns * self.layout.codes.bits() as usize / 8;
        [codes * rows, integers * rows, 4 * rows]
    }

    /// The columns that are added for shifted blocks.
    fn added_columns(&self) -> Option<SumColumns> {
        match self.layout.block {
            Some(block) if self.layout.shifts => Some(SumColumns::new(self.columns as u64, block)),
            _ => None,
        }
    }

    /// The columns of a row as it is stored.
    fn stored_columns(&self) -> usize {
        let added = self.added_columns().map_or(0, SumColumns::count);
        self.columns + added as usize
    }

    /// Rounds whole rows of `values` on all threads of the rayon pool. `Err` is the index of a
    /// value that is not finite.
    pub fn encode(&self, values: &[f32], pieces: RowPieces) -> std::result::Result<RowSum, usize> {
        for (index, value) in values.iter().enumerate() {
            if !value.is_finite() {
                return Err(index);
            }
        }
        let tiles = values.par_chunks(self.columns * LANES);
        let pieces = pieces.split(self.bytes(LANES), tiles.len());
        let sums: Vec<RowSum> = tiles
            .zip(pieces)
            .map(|(values, pieces)| self.encode_tile(values, pieces))
            .collect();
        let mut total = RowSum::default();
        for sum in sums {
            total = total.and(sum);
        }
        Ok(total)
    }

    fn code_range(&self) -> CodeRange {
        CodeRange {
            codes: match self.layout.codes {
                Element::Int4 if self.layout.shifts => [-8.0, 8.0],
                Element::Int4 => [-8.0, 7.0],
                _ => [-127.0, 127.0],
            },
            shifts: self.layout.shifts,
            integers: match self.layout.block {
                Some(_) => INTEGERS,
                None => 1,
            },
        }
    }

    fn ratios(&self) -> Ratios {
        match (self.layout.codes, self.layout.block) {
            (Element::Int4, None) => Ratios {
                all: -24..=0,
                near: &[0, 2, 4, 6, 8, 10, 12],
                step: STEP,
            },
            (Element::Int4, Some(_)) => Ratios {
                all: -6..=1,
                near: &[-2, -1, 0, 1, 2],
                step: 1.02,
            },
            _ => Ratios {
                all: -20..=0,
                near: &[0],
                step: STEP,
            },
        }
    }

    /// The values of up to [`LANES`] rows by position, one row per lane.
    fn lanes(&self, values: &[f32]) -> Vec<Lanes> {
        let mut all = Vec::with_capacity(self.columns);
        for column in &self.metric.order {
            let mut lanes = [0.0; LANES];
            for (row, values) in values.chunks_exact(self.columns).enumerate() {
                lanes[row] = values[*column];
            }
            all.push(lanes);
        }
        all
    }

    /// Rounds up to [`LANES`] rows.
    fn encode_tile(&self, values: &[f32], pieces: RowPieces) -> RowSum {
        let rows = values.len() / self.columns;
        let range = self.code_range();
        let (bits, block) = match self.layout.block {
            Some(block) => (LPBQ_SCALE_BITS, block as usize),
            None => (SCALE_BITS, self.columns),
        };
        let found = run_wide(Search {
            tile: Tile::new(range, &self.metric, self.lanes(values)),
            ratios: &self.ratios(),
            store_scale: |scale| {
                if scale < MIN_SCALE {
                    1.0
                } else {
                    round_bits(scale, bits)
                }
            },
        });
        let mut restored = vec![0.0; values.len()];
        let mut sum = RowSum::default();
        let [code_bytes, integer_bytes, _] = self.bytes(1);
        for row in 0..rows {
            sum.signal += f64::from(found.signal[row]);
            sum.noise += f64::from(found.cost[row]);
            let scale = found.scales[row];
            let values = &values[row * self.columns..][..self.columns];
            let restored = &mut restored[row * self.columns..][..self.columns];
            let integers = &mut pieces.integers[row * integer_bytes..][..integer_bytes];
            let mut codes = vec![0i8; self.stored_columns()];
            for (position, column) in self.metric.order.iter().enumerate() {
                let integer = found.integers[position / self.metric.block][row];
                if let Some(out) = integers.get_mut(column / block) {
                    *out = integer as u8;
                }
                let code = found.codes[position][row] as i8;
                codes[*column] = code;
                restored[*column] = f32::from(code) * (scale * integer);
            }
            for (index, values) in values.chunks(block).enumerate() {
                let step = match integers.get(index) {
                    Some(integer) => scale * f32::from(*integer),
                    None => scale,
                };
                let has_largest = codes[index * block..][..values.len()].contains(&8);
                let [low, high] = range.of_block(has_largest);
                for value in values {
                    let exact_code = value / step;
                    if exact_code > high + 0.5 || exact_code < low - 0.5 {
                        sum.clipped += 1;
                    }
                }
            }
            if let Some(added) = self.added_columns() {
                shift_blocks(&mut codes, integers, self.columns, added);
            }
            pieces.scales[row * 4..][..4].copy_from_slice(&scale.to_le_bytes());
            let out = &mut pieces.codes[row * code_bytes..];
            write_codes(self.layout.codes, &codes, out);
        }
        sum.error = ErrorSum::of(values, &restored);
        sum
    }
}

/// Rounds `value`, a normal number, to `bits` significant bits.
fn round_bits(value: f32, bits: u32) -> f32 {
    let cut = f32::MANTISSA_DIGITS - bits;
    let half = 1 << (cut - 1);
    f32::from_bits(value.to_bits().saturating_add(half) & !((1 << cut) - 1))
}

/// Decodes a band and rounds its rows.
pub fn round_rows(
    tensor: &BlockTensor,
    band: &Band,
    rounding: &RowRounding,
    pieces: RowPieces,
) -> std::result::Result<RowSum, Misfit> {
    let mut values = vec![0.0; band.values];
    decode(tensor, band, &mut values);
    match rounding.encode(&values, pieces) {
        Ok(sum) => Ok(sum),
        Err(index) => Err(Misfit {
            index,
            value: values[index],
        }),
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn scales_and_their_multiples_are_exact_in_f16() {
        for value in [0.01f32, 0.123456, 3.9999, 1.0] {
            let scale = round_bits(value, LPBQ_SCALE_BITS);
            assert!(
                (scale / value - 1.0).abs() <= 1.0 / 128.0,
                "{value} {scale}"
            );
            for integer in 1..=INTEGERS {
                let step = scale * f32::from(integer);
                assert_eq!(f16::from_f32(step).to_f32(), step);
            }
            let scale = round_bits(value, SCALE_BITS);
            assert_eq!(f16::from_f32(scale), f16::from_f32(value), "{value}");
        }
    }
}
