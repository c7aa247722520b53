//! Codebooks: a code of the IQ formats stands for four or eight values at once, and their signs are
//! kept apart.

/// `entries` numbers, each of which packs `N` digits of `bits` bits, the first in the lowest; a
/// digit d stands for `digits[d]`.
pub(super) const fn unpacked<const N: usize, const ENTRIES: usize>(
    packed: &[u16; ENTRIES],
    digits: &[i8],
    bits: u32,
) -> [[i8; N]; ENTRIES] {
    let mut book = [[0; N]; ENTRIES];
    let mut entry = 0;
    while entry < ENTRIES {
        let mut j = 0;
        while j < N {
            let digit = packed[entry] >> (bits * j as u32) & ((1 << bits) - 1);
            book[entry][j] = digits[digit as usize];
            j += 1;
        }
        entry += 1;
    }
    book
}

/// `values` with a minus before each whose bit is set, the first in the lowest.
pub(super) fn signed<const N: usize>(values: &[i8; N], signs: u8) -> [i8; N] {
    std::array::from_fn(|j| {
        if signs >> j & 1 == 1 {
            -values[j]
        } else {
            values[j]
        }
    })
}

/// Eight signs of which seven are stored: their number of minuses is even. `ksigns_iq2xs` of
/// ggml-common.h.
pub(super) fn even_signs(seven: u32) -> u8 {
    let seven = (seven & 0x7f) as u8;
    seven | (seven.count_ones() as u8 & 1) << 7
}
