//! The scales or offsets of blocks.

use super::stored::Stored;

/// A number for each block, `[rows, blocks]`.
#[derive(Clone)]
pub(super) enum Grid {
    /// As they are.
    Numbers(Stored),
    /// LPBQ: an integer for each block times a scale for each row.
    Products {
        /// `[rows, blocks]`.
        integers: Stored,
        /// `[rows]`.
        channels: Stored,
    },
}

impl Grid {
    /// The blob that has a number for each block.
    pub(super) fn blob(&self) -> &Stored {
        match self {
            Grid::Numbers(numbers) => numbers,
            Grid::Products { integers, .. } => integers,
        }
    }

    /// All of them, row by row.
    pub(super) fn all_numbers(&self) -> Box<dyn Iterator<Item = f32> + '_> {
        match self {
            Grid::Numbers(numbers) => Box::new(numbers.all_numbers()),
            Grid::Products { integers, channels } => {
                let blocks = integers.dims.last().copied().unwrap_or(1) as usize;
                let of_row = move |(row, channel): (usize, f32)| {
                    (row * blocks..(row + 1) * blocks)
                        .map(move |block| channel * integers.code(block) as f32)
                };
                Box::new(channels.all_numbers().enumerate().flat_map(of_row))
            }
        }
    }
}
