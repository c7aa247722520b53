//! Stores the shifted blocks of a row: their codes minus 1, and what that lacks in the added
//! columns.

use crate::model::weight::SumColumns;

/// Stores a row of `columns` codes from -8 to 8: blocks with a code 8 are shifted. `codes` and
/// `integers` have room for the added columns.
pub(super) fn shift_blocks(
    codes: &mut [i8],
    integers: &mut [u8],
    columns: usize,
    added: SumColumns,
) {
    let (blocks, group) = (added.blocks() as usize, added.group() as usize);
    let block = columns / blocks.max(1);
    let (codes, added_codes) = codes.split_at_mut(columns);
    let (integers, added_integers) = integers.split_at_mut(blocks);
    for (index, codes) in codes.chunks_exact_mut(block.max(1)).enumerate() {
        if !codes.contains(&8) {
            continue;
        }
        for code in codes {
            *code -= 1;
        }
        let [coarse, fine] = SumColumns::codes(integers[index]);
        added_codes[index] = coarse;
        added_codes[group + index] = fine;
    }
    let (coarse, fine) = added_integers.split_at_mut(added_integers.len() / 2);
    coarse.fill(SumColumns::INTEGERS[0]);
    fine.fill(SumColumns::INTEGERS[1]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_with_an_8_is_shifted() {
        let added = SumColumns::new(6, 2);
        let mut codes = [7, -8, 8, -7, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut integers = [9, 3, 16, 0, 0, 0, 0];
        shift_blocks(&mut codes, &mut integers, 6, added);
        assert_eq!(codes[..6], [7, -8, 7, -8, -1, 7]);
        assert_eq!(codes[6..10], [0, 1, 4, 0], "12 = 16 - 4, 64 = 4 * 16");
        assert_eq!(codes[10..], [0, -4, 0, 0]);
        assert_eq!(integers, [9, 3, 16, 16, 16, 1, 1]);
    }
}
