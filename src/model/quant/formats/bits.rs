//! Helpers of the formats. ggml packs adjacent values into adjacent bytes, not into adjacent bits.

/// `LEN` 4-bit codes, in groups of `2 * half`: the first half of a group is in the low nibbles of
/// `half` bytes, the second in the high ones.
pub(super) fn nibbles<const LEN: usize>(bytes: &[u8], half: usize) -> [u8; LEN] {
    let mut codes = [0; LEN];
    let groups = codes.chunks_exact_mut(2 * half);
    for (group, bytes) in groups.zip(bytes.chunks_exact(half)) {
        let (low, high) = group.split_at_mut(half);
        for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
            *low = byte & 0x0f;
            *high = byte >> 4;
        }
    }
    codes
}

/// 256 2-bit codes: in each 32 bytes, run r of 32 is in bits 2r and 2r + 1.
pub(super) fn pairs_of_bits(bytes: &[u8]) -> [u8; 256] {
    let mut codes = [0; 256];
    let groups = codes.as_chunks_mut::<128>().0;
    for (group, bytes) in groups.iter_mut().zip(bytes.as_chunks::<32>().0) {
        for run in 0..4 {
            for i in 0..32 {
                group[32 * run + i] = bytes[i] >> (2 * run) & 3;
            }
        }
    }
    codes
}

/// 256 bits in 32 bytes: bits 32p to 32p + 31 are bit p of each byte.
pub(super) fn bit_planes(bytes: &[u8]) -> [u8; 256] {
    let mut bits = [0; 256];
    for (plane, out) in bits.chunks_exact_mut(32).enumerate() {
        for (out, byte) in out.iter_mut().zip(bytes) {
            *out = byte >> plane & 1;
        }
    }
    bits
}

/// The little-endian u16 at `index`.
pub(super) fn u16_at(bytes: &[u8], index: usize) -> u16 {
    u16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]])
}

/// Repacks 32 nibbles. ggml has element j in the low nibble of byte j and element j + 16 in the
/// high one; the result has each even element in a low nibble and its successor in the high one.
pub(super) fn pair_nibbles(ggml: &[u8; 16]) -> [u8; 16] {
    std::array::from_fn(|k| match k {
        0..8 => (ggml[2 * k] & 0x0f) | (ggml[2 * k + 1] << 4),
        _ => (ggml[2 * k - 16] >> 4) | (ggml[2 * k - 15] & 0xf0),
    })
}
