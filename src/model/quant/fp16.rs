//! IEEE halves to singles and back, without branches, so that the compiler can take many at once.

const SIGN: u16 = 0x8000;
const INFINITY: u16 = 0x7c00;

/// The single of a half as blocks hold it.
pub(super) fn half(bytes: [u8; 2]) -> f32 {
    to_f32(u16::from_le_bytes(bytes))
}

/// The single of a half. Exact; a NaN comes out quiet, as the machine's own instruction has it.
pub(super) fn to_f32(half: u16) -> f32 {
    let magnitude = half & !SIGN;
    // A half's bits in a single's place are a number 2^112 too small, subnormal ones too.
    let value = f32::from_bits(u32::from(magnitude) << 13) * f32::from_bits((127 + 112) << 23);
    let infinite = if magnitude >= INFINITY {
        0x7f80_0000
    } else {
        0
    };
    let quiet = if magnitude > INFINITY { 0x0040_0000 } else { 0 };
    f32::from_bits(value.to_bits() | infinite | quiet | u32::from(half & SIGN) << 16)
}

/// The half nearest to a single, ties to even; beyond the largest half infinity; a NaN comes out
/// quiet, with its upper bits.
pub(super) fn from_f32(value: f32) -> u16 {
    /// 2^-14, the least normal half.
    const LEAST_NORMAL: u32 = (127 - 14) << 23;
    /// 2^16, beyond every half.
    const BEYOND: u32 = (127 + 16) << 23;
    /// The unit in the last place of 0.5 is that of subnormal halves: adding 0.5 rounds to it.
    const HALF: f32 = 0.5;
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let subnormal = (f32::from_bits(magnitude) + HALF)
        .to_bits()
        .wrapping_sub(HALF.to_bits());
    let odd = magnitude >> 13 & 1;
    let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0x0fff + odd) >> 13;
    let nan = 0x7e00 | magnitude >> 13 & 0x03ff;
    let half = if magnitude < LEAST_NORMAL {
        subnormal
    } else {
        normal
    };
    let half = if magnitude >= BEYOND {
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
    fn every_half_becomes_its_single_and_back() {
        for half in 0..=u16::MAX {
            let single = to_f32(half);
            assert_eq!(
                single.to_bits(),
                f16::from_bits(half).to_f32_const().to_bits(),
                "{half:04x}"
            );
            let quiet = if half & !SIGN > INFINITY {
                half | 0x0200
            } else {
                half
            };
            assert_eq!(from_f32(single), quiet, "{half:04x}");
        }
    }

    #[test]
    fn singles_become_the_nearest_half() {
        // Every half, the tie above it, and the singles on both sides of each.
        for half in 0..=u16::MAX {
            let single = to_f32(half).to_bits();
            for near in [single, single + 0x1000]
                .into_iter()
                .flat_map(|bits| [bits.wrapping_sub(1), bits, bits + 1])
            {
                let value = f32::from_bits(near);
                assert_eq!(
                    from_f32(value),
                    f16::from_f32_const(value).to_bits(),
                    "{near:08x}"
                );
            }
        }
        for step in 0..1_000_000u32 {
            let value = f32::from_bits(step.wrapping_mul(4297));
            assert_eq!(
                from_f32(value),
                f16::from_f32_const(value).to_bits(),
                "{value:e}"
            );
        }
    }
}
