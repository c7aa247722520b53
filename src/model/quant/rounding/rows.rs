//! Whole rows under one scale: signed codes, perhaps with an integer for each block (LPBQ).

use rayon::prelude::*;

use super::Misfit;
use super::metric::Metric;
use super::search::{LANES, Lanes, Range, Ratios, STEP, Search, Tile};
use crate::base::{Code, Problem, Result};
use crate::model::quant::bands::slices;
use crate::model::quant::elements::write_codes;
use crate::model::quant::kernels::run_wide;
use crate::model::quant::{Band, BlockTensor, ErrorSum, decode};
use crate::model::weight::Element;

/// How rows are spelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowLayout {
    /// One a value: [`Element::Int8`] or [`Element::Int4`].
    pub codes: Element,
    /// Values that share an integer from 1 to 16, a byte each; none where a row has only its
    /// scale, an f32.
    pub block: Option<u32>,
}

/// Significant bits of a scale. A half holds those of `scale * integer`, so that a graph of halves
/// computes the very values that were written.
const SCALE_BITS: u32 = 11;
const LPBQ_SCALE_BITS: u32 = 7;

/// Largest integer of a block.
const INTEGERS: u8 = 16;

/// Smallest scale that is written; a row that is smaller still becomes zero.
const SMALLEST: f32 = 1e-30;

/// Rounds rows so that their errors cost least.
pub struct RowRounding {
    layout: RowLayout,
    columns: usize,
    metric: Metric,
}

/// Where the codes, the integers of blocks (if there are any) and the scales of rows go.
pub struct RowPieces<'a> {
    /// Codes; 4-bit ones two a byte, the even element in the low nibble.
    pub codes: &'a mut [u8],
    /// A byte a block.
    pub integers: &'a mut [u8],
    /// A little-endian f32 a row.
    pub scales: &'a mut [u8],
}

/// What rounding some rows did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowSum {
    /// How far the values are from their source.
    pub error: ErrorSum,
    /// Values that lie beyond the last code.
    pub clipped: u64,
}

impl RowSum {
    /// The sums of these rows and the next.
    pub fn and(self, next: Self) -> Self {
        RowSum {
            error: self.error.and(next.error),
            clipped: self.clipped + next.clipped,
        }
    }
}

impl RowRounding {
    /// Of rows with as many columns as `metric`. Refused: columns that are no whole number of
    /// blocks or bytes.
    pub fn new(layout: RowLayout, metric: Metric) -> Result<Self> {
        let columns = metric.columns();
        let unit = layout
            .block
            .unwrap_or(if layout.codes == Element::Int4 { 2 } else { 1 });
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

    /// Bytes of the pieces of `rows` rows.
    pub fn bytes(&self, rows: usize) -> [usize; 3] {
        let codes = self.columns * self.layout.codes.bits() as usize / 8;
        let integers = self
            .layout
            .block
            .map_or(0, |block| self.columns / block as usize);
        [codes * rows, integers * rows, 4 * rows]
    }

    /// Rounds `values`, whole rows; on all threads of the rayon pool. `Err` is the index of a value
    /// that is not finite.
    pub fn encode(&self, values: &[f32], pieces: RowPieces) -> std::result::Result<RowSum, usize> {
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(index);
        }
        let tiles = values.par_chunks(self.columns * LANES);
        let [codes, integers, scales] = self.bytes(LANES);
        let mut integers = slices(pieces.integers, integers, tiles.len());
        let out = pieces
            .codes
            .par_chunks_mut(codes)
            .zip(integers.par_iter_mut());
        let out = out.zip(pieces.scales.par_chunks_mut(scales));
        let sums: Vec<RowSum> = tiles
            .zip(out)
            .map(|(values, ((codes, integers), scales))| {
                self.tile(
                    values,
                    RowPieces {
                        codes,
                        integers,
                        scales,
                    },
                )
            })
            .collect();
        Ok(sums.into_iter().fold(RowSum::default(), RowSum::and))
    }

    fn range(&self) -> Range {
        let codes = if self.layout.codes == Element::Int4 {
            [-8.0, 7.0]
        } else {
            [-127.0, 127.0]
        };
        Range {
            codes,
            integers: self.layout.block.map_or(1, |_| INTEGERS),
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

    fn tile(&self, values: &[f32], pieces: RowPieces) -> RowSum {
        let rows = values.len() / self.columns;
        let by_position = |column: &usize| -> Lanes {
            std::array::from_fn(|lane| {
                values
                    .get(lane * self.columns + column)
                    .copied()
                    .unwrap_or(0.0)
            })
        };
        let range = self.range();
        let tile = Tile::new(
            range,
            &self.metric,
            self.metric.order.iter().map(by_position).collect(),
        );
        let bits = if self.layout.block.is_some() {
            LPBQ_SCALE_BITS
        } else {
            SCALE_BITS
        };
        let store_scale = |scale| {
            if scale < SMALLEST {
                1.0
            } else {
                rounded(scale, bits)
            }
        };
        let found = run_wide(Search {
            tile,
            ratios: &self.ratios(),
            store_scale,
        });
        let mut restored = vec![0.0; values.len()];
        let mut sum = RowSum::default();
        let block = self
            .layout
            .block
            .map_or(self.columns, |block| block as usize);
        let blocks = self.columns / block;
        for row in 0..rows {
            let mut codes = vec![0i8; self.columns];
            for (position, column) in self.metric.order.iter().enumerate() {
                let integer = found.integers[position / self.metric.block][row];
                if let Some(out) = pieces.integers.get_mut(row * blocks + column / block) {
                    *out = integer as u8;
                }
                let (step, code) = (found.scales[row] * integer, found.codes[position][row]);
                codes[*column] = code as i8;
                restored[row * self.columns + column] = f32::from(code as i8) * step;
                let beyond = values[row * self.columns + column] / step;
                sum.clipped +=
                    u64::from(beyond > range.codes[1] + 0.5 || beyond < range.codes[0] - 0.5);
            }
            pieces.scales[row * 4..][..4].copy_from_slice(&found.scales[row].to_le_bytes());
            let out = &mut pieces.codes[row * pieces_of(self.layout.codes, self.columns)..];
            write_codes(self.layout.codes, &codes, out);
        }
        sum.error = ErrorSum::of(values, &restored);
        sum
    }
}

fn pieces_of(codes: Element, columns: usize) -> usize {
    columns * codes.bits() as usize / 8
}

/// `value` with so many significant bits, above the smallest normal number.
fn rounded(value: f32, bits: u32) -> f32 {
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
    rounding.encode(&values, pieces).map_err(|index| Misfit {
        index,
        value: values[index],
    })
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn scales_and_their_multiples_are_halves() {
        for value in [0.01f32, 0.123456, 3.9999, 1.0] {
            let scale = rounded(value, LPBQ_SCALE_BITS);
            assert!(
                (scale / value - 1.0).abs() <= 1.0 / 128.0,
                "{value} {scale}"
            );
            for integer in 1..=INTEGERS {
                let step = scale * f32::from(integer);
                assert_eq!(f16::from_f32(step).to_f32(), step);
            }
            let scale = rounded(value, SCALE_BITS);
            assert_eq!(f16::from_f32(scale), f16::from_f32(value), "{value}");
        }
    }
}
