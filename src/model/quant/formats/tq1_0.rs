//! TQ1_0: 256 values `d * (q - 1)`, d a half, q a trit, five in a byte. `block_tq1_0` of
//! ggml-common.h.

use super::blockwise::{Blockwise, Parts};
use crate::model::quant::fp16::half;
use crate::model::weight::Element;

const LEN: usize = 256;
const BYTES: usize = 54;
const _: () = assert!(BYTES == 32 + 16 + 4 + 2);

/// The format TQ1_0.
pub(super) static TQ1_0: Blockwise<BYTES, LEN, 1> = Blockwise {
    codes: Element::Int4,
    numbers: Element::F16,
    offsets: false,
    parts,
};

fn parts(block: &[u8; BYTES]) -> Parts<LEN, 1> {
    let [rest @ .., d0, d1] = block;
    let (groups, fours) = rest.split_at(48);
    let (wide, narrow) = groups.split_at(32);
    let mut codes = [0; LEN];
    let (first, rest) = codes.split_at_mut(5 * wide.len());
    let (second, last) = rest.split_at_mut(5 * narrow.len());
    trits(wide, first);
    trits(narrow, second);
    trits(fours, last);
    Parts::scaled(codes, [half([*d0, *d1])])
}

/// Run r of `out` is digit r of each byte, which is a fraction of 256 in base 3: multiplied by 3^r
/// its first digit is its carry out of a multiplication by 3.
fn trits(bytes: &[u8], out: &mut [i8]) {
    for (out, power) in out.chunks_exact_mut(bytes.len()).zip([1u8, 3, 9, 27, 81]) {
        let digit = |byte: &u8| (u16::from(byte.wrapping_mul(power)) * 3) >> 8;
        out.iter_mut()
            .zip(bytes)
            .for_each(|(out, byte)| *out = digit(byte) as i8 - 1);
    }
}
