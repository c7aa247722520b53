//! Encodings of weights other than that of their file: with fewer bits, or without negative scales.

mod lanes;
mod metric;
mod positive;
mod round;
mod rows;
mod search;
mod shift;

pub use metric::Metric;
pub use positive::{Positive, recombine};
pub use round::{Int8Blocks, Misfit, Plain, Rounding, round};
pub use rows::{RowLayout, RowPieces, RowRounding, RowSum, round_rows};
