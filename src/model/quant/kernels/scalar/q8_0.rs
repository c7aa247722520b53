//! Blocks of Q8_0, which `formats/q8_0.rs` describes.

use super::with_values;
use crate::model::quant::fp16::read_f16;

/// Values of a block.
pub(in crate::model::quant) const LEN: usize = 32;
/// Bytes of a block.
pub(in crate::model::quant) const BYTES: usize = 34;
const _: () = assert!(BYTES == 2 + LEN);

/// Decodes whole blocks.
pub(super) fn decode(blocks: &[u8], out: &mut [f32]) {
    for ([d0, d1, codes @ ..], out) in with_values::<BYTES, LEN>(blocks, out) {
        let d = read_f16([*d0, *d1]);
        *out = codes.map(|code| code as i8 as f32 * d);
    }
}
