//! Every kernel that this machine can run equals the scalar one, bit for bit.

use kiln::model::quant::ErrorLanes;
use kiln::model::quant::kernels::{Decode, Decoders, Kernels, available};
use proptest::prelude::*;

/// Edge cases of f16: zeros, subnormals, the largest and smallest normal numbers, infinities, quiet
/// and signalling NaNs.
const EDGES: [u16; 16] = [
    0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x83ff, 0x0400, 0x7bff, 0xfbff, 0x3c00, 0x7c00, 0xfc00,
    0x7c01, 0xfc01, 0x7e00, 0xffff,
];

fn scalar() -> &'static Kernels {
    available()
        .into_iter()
        .find(|kernels| kernels.name == "scalar")
        .unwrap()
}

fn wider() -> impl Iterator<Item = &'static Kernels> {
    available()
        .into_iter()
        .filter(|kernels| kernels.name != "scalar")
}

/// The bits of computed values. All NaNs are equal, since it is not specified which NaN a product
/// returns.
fn bits(values: &[f32]) -> Vec<u32> {
    let bits = |value: &f32| match value.is_nan() {
        true => f32::NAN.to_bits(),
        false => value.to_bits(),
    };
    values.iter().map(bits).collect()
}

/// The bits of converted values, including those of NaNs.
fn all_bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn decoded(decode: Decode, blocks: &[u8], values: usize) -> Vec<u32> {
    bits(&decoded_at(0, decode, blocks, values))
}

/// Decodes to `start` values after a cache line boundary, and checks that nothing around the output
/// was changed.
fn decoded_at(start: usize, decode: Decode, blocks: &[u8], values: usize) -> Vec<f32> {
    const UNTOUCHED: f32 = 12345.0;
    let mut out = vec![UNTOUCHED; values + 32];
    let start = out.as_ptr().align_offset(64) + start;
    decode(blocks, &mut out[start..start + values]);
    let decoded = out[start..start + values].to_vec();
    out[start..start + values].fill(UNTOUCHED);
    assert!(out.iter().all(|value| *value == UNTOUCHED));
    decoded
}

/// Rounds to f16 at an odd address, and checks that nothing around the output was changed.
fn rounded_to_f16(kernels: &Kernels, values: &[f32]) -> Vec<u8> {
    const UNTOUCHED: u8 = 0x5a;
    let mut out = vec![UNTOUCHED; values.len() * 2 + 65];
    let (output, behind) = out[1..].split_at_mut(values.len() * 2);
    (kernels.to_f16)(values, output);
    assert!(behind.iter().all(|byte| *byte == UNTOUCHED));
    assert_eq!(out[0], UNTOUCHED);
    out[1..=values.len() * 2].to_vec()
}

/// The error sums as text, which shows the signs of zeros and has one form of NaN.
fn measured(kernels: &Kernels, source: &[f32], result: &[f32]) -> String {
    let mut lanes = ErrorLanes::default();
    // In two steps: the second must add to the first.
    let step = source.len() / 16 * 8;
    (kernels.measure)(&mut lanes, &source[..step], &result[..step]);
    (kernels.measure)(&mut lanes, &source[step..], &result[step..]);
    format!("{lanes:?}")
}

/// f32 values with any bits, edge cases more often.
fn any_f32() -> impl Strategy<Value = f32> {
    let edges = [
        0,
        1,
        0x007f_ffff,
        0x0080_0000,
        0x7f7f_ffff,
        0x7f80_0000,
        0x7f80_0001,
        0x7fc0_0000,
    ];
    let edge = (prop::sample::select(edges.to_vec()), any::<bool>())
        .prop_map(|(bits, minus)| bits | u32::from(minus) << 31);
    prop_oneof![8 => any::<u32>(), 1 => edge].prop_map(f32::from_bits)
}

/// Name and decoder of a format; values and bytes of a block; the offsets of its f16 numbers.
type Format = (
    &'static str,
    fn(&Decoders) -> Decode,
    usize,
    usize,
    &'static [usize],
);

const FORMATS: [Format; 4] = [
    ("q4_0", |decoders| decoders.q4_0, 32, 18, &[0]),
    ("q4_1", |decoders| decoders.q4_1, 32, 20, &[0, 2]),
    ("q8_0", |decoders| decoders.q8_0, 32, 34, &[0]),
    ("q6_k", |decoders| decoders.q6_k, 256, 210, &[208]),
];

#[test]
fn available_kernels_match_the_cpu_features() {
    let names: Vec<&str> = available().iter().map(|kernels| kernels.name).collect();
    println!("{names:?}");
    assert_eq!(names.last(), Some(&"scalar"));
    #[cfg(target_arch = "x86_64")]
    assert_eq!(
        names.contains(&"avx2"),
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")
    );
    #[cfg(target_arch = "aarch64")]
    assert!(names.contains(&"neon"));
}

proptest! {
    #[test]
    fn random_blocks_decode_like_scalar(
        random in prop::collection::vec(any::<u8>(), 210 * 5),
        start in 0..16usize,
    ) {
        for (name, of, len, size, _) in FORMATS {
            let blocks = &random[..random.len() / size * size];
            let values = blocks.len() / size * len;
            let expected = decoded(of(&scalar().cached), blocks, values);
            for kernels in wider() {
                let near = decoded(of(&kernels.cached), blocks, values);
                prop_assert_eq!(near, &*expected, "{} {}", kernels.name, name);
                let far = bits(&decoded_at(start, of(&kernels.streaming), blocks, values));
                prop_assert_eq!(far, &*expected, "{} {} far {}", kernels.name, name, start);
            }
        }
    }

    #[test]
    fn edge_case_blocks_decode_like_scalar(
        random in prop::collection::vec(any::<u8>(), 210 * 16),
        rotation in 0..16usize,
    ) {
        for (name, of, len, size, f16s) in FORMATS {
            let mut blocks = random[..16 * size].to_vec();
            for (i, block) in blocks.chunks_mut(size).enumerate() {
                for (at, shift) in f16s.iter().zip([0, rotation]) {
                    block[*at..at + 2].copy_from_slice(&EDGES[(i + shift) % 16].to_le_bytes());
                }
            }
            let expected = decoded(of(&scalar().cached), &blocks, 16 * len);
            for kernels in wider() {
                let found = decoded(of(&kernels.cached), &blocks, 16 * len);
                prop_assert_eq!(found, &*expected, "{} {}", kernels.name, name);
            }
        }
    }

    #[test]
    fn f16_rounding_matches_scalar(values in prop::collection::vec(any_f32(), 0..70)) {
        // Most random f32 values overflow f16; these do not.
        let in_range = |value: &f32| f32::from_bits(value.to_bits() & 0x8fff_ffff | 0x3000_0000);
        let near: Vec<f32> = values.iter().map(in_range).collect();
        for values in [values, near] {
            let expected = rounded_to_f16(scalar(), &values);
            for kernels in wider() {
                prop_assert_eq!(rounded_to_f16(kernels, &values), &*expected, "{}", kernels.name);
            }
        }
    }

    #[test]
    fn error_sums_match_scalar(
        pairs in prop::collection::vec((-1e30f32..1e30, -1.0f32..1.0), 0..99),
        same in any::<bool>(),
    ) {
        let (mut source, mut result) = (vec![], vec![]);
        for (value, change) in pairs {
            source.push(value);
            result.push(if same { value } else { value * (1.0 + change / 64.0) });
        }
        let expected = measured(scalar(), &source, &result);
        for kernels in wider() {
            prop_assert_eq!(measured(kernels, &source, &result), &*expected, "{}", kernels.name);
        }
    }

    #[test]
    fn error_sums_of_any_bits_match_scalar(pairs in prop::collection::vec((any_f32(), any_f32()), 0..99)) {
        let (source, result): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
        let expected = measured(scalar(), &source, &result);
        for kernels in wider() {
            prop_assert_eq!(measured(kernels, &source, &result), &*expected, "{}", kernels.name);
        }
    }
}

/// Scales and offsets with all bit patterns.
#[test]
fn every_scale_decodes_like_scalar() {
    const AT_ONCE: usize = 1 << 11;
    for (name, of, len, size, f16s) in FORMATS {
        let mut state = 1u32;
        for first in (0..=u16::MAX).step_by(AT_ONCE) {
            let mut blocks = vec![0; AT_ONCE * size];
            for (block, scale) in blocks.chunks_mut(size).zip(first..=u16::MAX) {
                block.fill_with(|| {
                    state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                    (state >> 24) as u8
                });
                // With an odd factor, the offset takes all values too, in another order.
                for (at, number) in f16s.iter().zip([scale, scale.wrapping_mul(40503)]) {
                    block[*at..at + 2].copy_from_slice(&number.to_le_bytes());
                }
            }
            let expected = decoded(of(&scalar().cached), &blocks, AT_ONCE * len);
            for decoders in wider().flat_map(|kernels| [&kernels.cached, &kernels.streaming]) {
                assert!(
                    decoded(of(decoders), &blocks, AT_ONCE * len) == expected,
                    "{name} from scale {first:04x} on"
                );
            }
        }
    }
}

#[test]
fn every_f16_decodes_like_scalar() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let expected = all_bits(&decoded_at(0, scalar().from_f16, &all, 1 << 16));
    for kernels in wider() {
        assert_eq!(
            all_bits(&decoded_at(0, kernels.from_f16, &all, 1 << 16)),
            expected,
            "{}",
            kernels.name
        );
        // With every short length and alignment.
        for count in 0..70 {
            for start in 0..16 {
                let part = &all[2 * start..2 * (start + count)];
                let values = decoded_at(start, kernels.from_f16, part, count);
                assert_eq!(
                    all_bits(&values),
                    expected[start..start + count],
                    "{} {count} {start}",
                    kernels.name
                );
            }
        }
    }
}

/// Every f16 value, the tie above it, and the neighbours of both. This includes the largest
/// subnormal, values just above the largest f16, and NaNs whose payload does not fit f16.
#[test]
fn every_rounding_tie_matches_scalar() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let halves = decoded_at(0, scalar().from_f16, &all, 1 << 16);
    let mut values = vec![];
    let mut add_neighbours = |bits: u32| {
        for bits in [bits.wrapping_sub(1), bits, bits + 1] {
            values.push(f32::from_bits(bits));
        }
    };
    for half in &halves {
        add_neighbours(half.to_bits());
        add_neighbours(half.to_bits() + 0x1000);
        // Between subnormal f16 values, the tie is at a larger distance.
        if half.is_finite() {
            add_neighbours((half + half.signum() * 0.5f32.powi(25)).to_bits());
        }
    }
    // And a million f32 values with other bits.
    for step in 0..1_000_000u32 {
        values.push(f32::from_bits(step.wrapping_mul(4297)));
    }
    let expected = rounded_to_f16(scalar(), &values);
    for kernels in wider() {
        assert!(
            rounded_to_f16(kernels, &values) == expected,
            "{}",
            kernels.name
        );
    }
}

/// A difference in the sign of zero or in the last bit is an error.
#[test]
fn one_bit_differences_are_detected_in_every_lane() {
    for case in 0..38 {
        let (at, bit) = (case / 2, case % 2 * 31);
        let mut source = [1.0f32; 19];
        source[at] = if bit == 0 { 1.0 } else { 0.0 };
        let mut result = source;
        result[at] = f32::from_bits(source[at].to_bits() ^ 1 << bit);
        for kernels in available() {
            let mut lanes = ErrorLanes::default();
            (kernels.measure)(&mut lanes, &source, &result);
            assert!(!lanes.sum().is_exact(), "{} {at} {bit}", kernels.name);
            let error = if bit == 0 {
                f64::from(f32::EPSILON)
            } else {
                0.0
            };
            assert_eq!(
                lanes.sum().max_error(),
                error,
                "{} {at} {bit}",
                kernels.name
            );
        }
    }
}
