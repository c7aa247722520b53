//! Codebooks: a code of the IQ formats encodes four or eight magnitudes at once. Their signs are
//! stored separately.

/// Unpacks numbers that hold `N` digits of `bits` bits each, the first in the lowest bits. The
/// value of digit d is `digits[d]`.
pub(super) const fn unpack<const N: usize, const ENTRIES: usize>(
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

/// `values`, each negated if its bit of `signs` is set. The first value has the lowest bit.
pub(super) fn apply_signs<const N: usize>(values: &[i8; N], signs: u8) -> [i8; N] {
    std::array::from_fn(|j| {
        if signs >> j & 1 == 1 {
            -values[j]
        } else {
            values[j]
        }
    })
}

/// Eight signs, of which seven are stored; the number of minuses is even. `ksigns_iq2xs` of
/// ggml-common.h.
pub(super) fn even_signs(seven: u32) -> u8 {
    let seven = (seven & 0x7f) as u8;
    seven | (seven.count_ones() as u8 & 1) << 7
}
