//! Blocks of Q4_0, which `formats/q4_0.rs` describes.

use super::with_values;
use crate::model::quant::fp16::read_f16;

/// Values of a block.
pub(in crate::model::quant) const LEN: usize = 32;
/// Bytes of a block.
pub(in crate::model::quant) const BYTES: usize = 18;
const _: () = assert!(BYTES == 2 + LEN / 2);

/// Decodes whole blocks.
pub(super) fn decode(blocks: &[u8], out: &mut [f32]) {
    for ([d0, d1, codes @ ..], out) in with_values::<BYTES, LEN>(blocks, out) {
        let d = read_f16([*d0, *d1]);
        for (j, code) in codes.iter().enumerate() {
            out[j] = ((code & 0x0f) as i32 - 8) as f32 * d;
            out[j + 16] = ((code >> 4) as i32 - 8) as f32 * d;
        }
    }
}
