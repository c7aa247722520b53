//! How ggml packs codes into bytes: the value next to another is not in the next bits, but in the
//! next byte.

/// `LEN` 4-bit codes, in groups of `2 * half`: the first half of a group is in the low nibbles of
/// `half` bytes, the second in the high ones.
pub(super) fn nibbles<const LEN: usize>(bytes: &[u8], half: usize) -> [u8; LEN] {
    let mut codes = [0; LEN];
    for (out, bytes) in codes
        .chunks_exact_mut(2 * half)
        .zip(bytes.chunks_exact(half))
    {
        let (low, high) = out.split_at_mut(half);
        low.iter_mut()
            .zip(bytes)
            .for_each(|(out, byte)| *out = byte & 0x0f);
        high.iter_mut()
            .zip(bytes)
            .for_each(|(out, byte)| *out = byte >> 4);
    }
    codes
}

/// 256 2-bit codes: in each 32 bytes, run r of 32 is in bits 2r and 2r + 1.
pub(super) fn pairs_of_bits(bytes: &[u8]) -> [u8; 256] {
    let mut codes = [0; 256];
    for (out, bytes) in codes.chunks_exact_mut(128).zip(bytes.chunks_exact(32)) {
        for (run, out) in out.chunks_exact_mut(32).enumerate() {
            out.iter_mut()
                .zip(bytes)
                .for_each(|(out, byte)| *out = byte >> (2 * run) & 3);
        }
    }
    codes
}

/// 256 bits in 32 bytes: run r of 32 is in bit r.
pub(super) fn bit_planes(bytes: &[u8]) -> [u8; 256] {
    let mut bits = [0; 256];
    for (run, out) in bits.chunks_exact_mut(32).enumerate() {
        out.iter_mut()
            .zip(bytes)
            .for_each(|(out, byte)| *out = byte >> run & 1);
    }
    bits
}

/// Little-endian u16 number `index`.
pub(super) fn u16_at(bytes: &[u8], index: usize) -> u16 {
    u16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]])
}

/// ggml puts element j of 32 into the low nibble of byte j and element j + 16 into the high one;
/// the result has the even element in the low nibble and its successor in the high one.
pub(super) fn pair_nibbles(ggml: &[u8; 16]) -> [u8; 16] {
    std::array::from_fn(|k| match k {
        0..8 => (ggml[2 * k] & 0x0f) | (ggml[2 * k + 1] << 4),
        _ => (ggml[2 * k - 16] >> 4) | (ggml[2 * k - 15] & 0xf0),
    })
}
