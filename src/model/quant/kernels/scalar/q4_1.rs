//! Blocks of Q4_1, which `formats/q4_1.rs` describes.

use super::with_values;
use crate::model::quant::fp16::read_f16;

/// Values of a block.
pub(in crate::model::quant) const LEN: usize = 32;
/// Bytes of a block.
pub(in crate::model::quant) const BYTES: usize = 20;
const _: () = assert!(BYTES == 2 + 2 + LEN / 2);

/// Decodes whole blocks.
pub(super) fn decode(blocks: &[u8], out: &mut [f32]) {
    for ([d0, d1, m0, m1, codes @ ..], out) in with_values::<BYTES, LEN>(blocks, out) {
        let (d, m) = (read_f16([*d0, *d1]), read_f16([*m0, *m1]));
        for (j, code) in codes.iter().enumerate() {
            // The product has 11 + 4 significant bits. So it is exact and only the sum rounds, with
            // or without FMA.
            out[j] = (code & 0x0f) as f32 * d + m;
            out[j + 16] = (code >> 4) as f32 * d + m;
        }
    }
}
