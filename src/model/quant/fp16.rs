//! Converts f16 to f32 and back without branches, so that the compiler can vectorize.

const SIGN: u16 = 0x8000;
const INFINITY: u16 = 0x7c00;

/// The f16 in `bytes`, little-endian, as f32.
pub(super) fn read_f16(bytes: [u8; 2]) -> f32 {
    to_f32(u16::from_le_bytes(bytes))
}

/// The f16 with these bits as f32. Exact; a NaN becomes quiet, as with the processor's instruction.
pub(super) fn to_f32(bits: u16) -> f32 {
    let magnitude = bits & !SIGN;
    // The bits of an f16, shifted to those of an f32, are a number 2^112 too small, subnormal ones
    // too.
    let value = f32::from_bits(u32::from(magnitude) << 13) * f32::from_bits((127 + 112) << 23);
    let infinite = if magnitude >= INFINITY {
        0x7f80_0000
    } else {
        0
    };
    let quiet = if magnitude > INFINITY { 0x0040_0000 } else { 0 };
    f32::from_bits(value.to_bits() | infinite | quiet | u32::from(bits & SIGN) << 16)
}

/// The bits of the nearest f16, ties to even; infinity beyond the largest f16; a NaN becomes quiet
/// and keeps its upper bits.
pub(super) fn from_f32(value: f32) -> u16 {
    /// 2^-14, the smallest normal f16.
    const MIN_NORMAL: u32 = (127 - 14) << 23;
    /// 2^16, larger than every f16.
    const OVERFLOW: u32 = (127 + 16) << 23;
    /// The unit in the last place of 0.5 is that of subnormal f16: adding 0.5 rounds to it.
    const HALF: f32 = 0.5;
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let subnormal = (f32::from_bits(magnitude) + HALF)
        .to_bits()
        .wrapping_sub(HALF.to_bits());
    let odd = magnitude >> 13 & 1;
    let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0x0fff + odd) >> 13;
    let nan = 0x7e00 | magnitude >> 13 & 0x03ff;
    let half = if magnitude < MIN_NORMAL {
        subnormal
    } else {
        normal
    };
    let half = if magnitude >= OVERFLOW {
        u32::from(INFINITY)
    } else {
        half
    };
    let half = if magnitude > 0x7f80_0000 { nan } else { half };
    half as u16 | (bits >> 16) as u16 & SIGN
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn every_f16_survives_a_round_trip() {
        for bits in 0..=u16::MAX {
            let value = to_f32(bits);
            let expected = f16::from_bits(bits).to_f32_const();
            assert_eq!(value.to_bits(), expected.to_bits(), "{bits:04x}");
            let is_nan = bits & !SIGN > INFINITY;
            let quiet = if is_nan { bits | 0x0200 } else { bits };
            assert_eq!(from_f32(value), quiet, "{bits:04x}");
        }
    }

    #[test]
    fn f32_becomes_the_nearest_f16() {
        fn check(value: f32) {
            let expected = f16::from_f32_const(value).to_bits();
            assert_eq!(
                from_f32(value),
                expected,
                "{value:e}, {:08x}",
                value.to_bits()
            );
        }
        // Every f16, the tie above it, and the f32 on both sides of each.
        for half in 0..=u16::MAX {
            let bits = to_f32(half).to_bits();
            for center in [bits, bits + 0x1000] {
                for near in [center.wrapping_sub(1), center, center + 1] {
                    check(f32::from_bits(near));
                }
            }
        }
        for step in 0..1_000_000u32 {
            check(f32::from_bits(step.wrapping_mul(4297)));
        }
    }
}
