//! The scales or offsets of blocks.

use super::stored::Stored;

/// One number for each block, `[rows, blocks]`.
#[derive(Clone)]
pub(super) enum Grid {
    /// The numbers as stored.
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
    /// The blob that has one number for each block.
    pub(super) fn blob(&self) -> &Stored {
        match self {
            Grid::Numbers(numbers) => numbers,
            Grid::Products { integers, .. } => integers,
        }
    }

    /// All numbers, row by row.
    pub(super) fn all_numbers(&self) -> Box<dyn Iterator<Item = f32> + '_> {
        let (integers, channels) = match self {
            Grid::Numbers(numbers) => return Box::new(numbers.all_numbers()),
            Grid::Products { integers, channels } => (integers, channels),
        };
        let blocks = integers.dims.last().copied().unwrap_or(1) as usize;
        let rows = channels.all_numbers().enumerate();
        Box::new(rows.flat_map(move |(row, channel)| {
            (row * blocks..(row + 1) * blocks)
                .map(move |block| channel * integers.code(block) as f32)
        }))
    }
}
