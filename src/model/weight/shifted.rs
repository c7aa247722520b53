//! LPBQ with shifted blocks: the columns that are added to such a weight.
//!
//! A shifted block stores the codes -7..8 minus 1, as -8..7. Its integer is k, the scale of its row
//! is s, its inputs are x. What the stored codes lack is the sum of the inputs:
//!
//! ```text
//! sum_j s k c_j x_j = sum_j s k (c_j - 1) x_j + s k sum_j x_j
//! s k sum_j x_j = s (16 a + b) f,  f = (sum_j x_j) / 4,  4 k = 16 a + b
//! ```
//!
//! So the inputs of the layer are x, then f of each block, then f of each block again, and each
//! block has two more columns: a coarse one with the code a and a fine one with the code b. Both
//! are 0 if it is not shifted. The added columns are in blocks themselves, whose integer is 16 for
//! coarse ones and 1 for fine ones. All this is exact.

/// The added columns of a weight: the coarse ones, then the fine ones. Each group is padded with
/// zero columns to whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SumColumns {
    /// Blocks of a row, without the added ones.
    blocks: u64,
    /// Columns of a block.
    block: u64,
}

impl SumColumns {
    /// Columns of a block of `lpbq-32-shifted`.
    pub const BLOCK: u32 = 32;

    /// The sums are divided by this, so that they are not much larger than the inputs: both have
    /// one scale.
    pub const DIVISOR: u32 = 4;

    /// The integers of the blocks of coarse and of fine columns.
    pub const INTEGERS: [u8; 2] = [16, 1];

    /// For rows of `columns` in blocks of `block`.
    pub fn new(columns: u64, block: u32) -> Self {
        let block = u64::from(block.max(1));
        SumColumns {
            blocks: columns / block,
            block,
        }
    }

    /// Blocks of a row, without the added ones.
    pub fn blocks(self) -> u64 {
        self.blocks
    }

    /// The columns of a group, with its padding.
    pub fn group(self) -> u64 {
        let blocks = self.blocks.div_ceil(self.block);
        blocks.saturating_mul(self.block)
    }

    /// The columns of both groups.
    pub fn count(self) -> u64 {
        self.group().saturating_mul(2)
    }

    /// The codes of the coarse and the fine column of a shifted block with this integer, which is
    /// at most 16.
    pub fn codes(integer: u8) -> [i8; 2] {
        let sum = SumColumns::DIVISOR as i8 * integer as i8;
        let coarse = (sum + 8) / 16;
        [coarse, sum - 16 * coarse]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_codes_are_four_times_the_integer() {
        for integer in 1..=16 {
            let [coarse, fine] = SumColumns::codes(integer).map(i32::from);
            let [of_coarse, of_fine] = SumColumns::INTEGERS.map(i32::from);
            assert_eq!(
                coarse * of_coarse + fine * of_fine,
                SumColumns::DIVISOR as i32 * i32::from(integer)
            );
            assert!((0..=4).contains(&coarse), "{coarse}");
            assert!((-8..=7).contains(&fine), "{fine}");
        }
    }

    #[test]
    fn both_groups_are_whole_blocks() {
        let added = |columns| {
            let added = SumColumns::new(columns, 32);
            (added.blocks(), added.group(), added.count())
        };
        assert_eq!(added(64), (2, 32, 64));
        assert_eq!(added(1024), (32, 32, 64));
        assert_eq!(added(1536), (48, 64, 128));
    }
}
