//! TQ1_0: 256 values `d * (q - 1)`, d f16, q a trit, five in a byte. `block_tq1_0` of
//! ggml-common.h.

use super::blockwise::{Blockwise, Parts};
use crate::model::quant::fp16::read_f16;
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
    unpack_trits(wide, first);
    unpack_trits(narrow, second);
    unpack_trits(fours, last);
    Parts::scaled(codes, [read_f16([*d0, *d1])])
}

/// Run r of `out` is digit r of each byte in base 3, minus one. A byte is a fraction of 256; the
/// first digit after multiplication by 3^r is the carry out of one more multiplication by 3.
fn unpack_trits(bytes: &[u8], out: &mut [i8]) {
    for (run, out) in out.chunks_exact_mut(bytes.len()).enumerate() {
        let power = 3u8.pow(run as u32);
        for (out, byte) in out.iter_mut().zip(bytes) {
            let digit = (u16::from(byte.wrapping_mul(power)) * 3) >> 8;
            *out = digit as i8 - 1;
        }
    }
}
