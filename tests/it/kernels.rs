//! Every kernel that this machine can run gives what the scalar one gives, bit for bit.

use kiln::model::quant::ErrorLanes;
use kiln::model::quant::kernels::{Decode, Decoders, Kernels, here};
use proptest::prelude::*;

/// Halves at every edge: zeros, subnormals, the largest and least normal ones, infinities, quiet
/// and signalling NaNs.
const EDGES: [u16; 16] = [
    0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x83ff, 0x0400, 0x7bff, 0xfbff, 0x3c00, 0x7c00, 0xfc00,
    0x7c01, 0xfc01, 0x7e00, 0xffff,
];

fn scalar() -> &'static Kernels {
    here().find(|kernels| kernels.name == "scalar").unwrap()
}

fn wider() -> impl Iterator<Item = &'static Kernels> {
    here().filter(|kernels| kernels.name != "scalar")
}

/// Bits of what was calculated; a NaN is a NaN, since which of two a product hands on is not said.
fn bits(values: &[f32]) -> Vec<u32> {
    values
        .iter()
        .map(|value| {
            if value.is_nan() {
                f32::NAN.to_bits()
            } else {
                value.to_bits()
            }
        })
        .collect()
}

/// Bits of what was converted, those of NaNs too.
fn all_bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn decoded(decode: Decode, blocks: &[u8], values: usize) -> Vec<u32> {
    bits(&decoded_at(0, decode, blocks, values))
}

/// Decodes to `start` singles behind a line of the cache, and looks that nothing around it was
/// touched.
fn decoded_at(start: usize, decode: Decode, blocks: &[u8], values: usize) -> Vec<f32> {
    const UNTOUCHED: f32 = 12345.0;
    let mut out = vec![UNTOUCHED; values + 32];
    let start = out.as_ptr().align_offset(64) + start;
    decode(blocks, &mut out[start..start + values]);
    assert!(
        out[..start]
            .iter()
            .chain(&out[start + values..])
            .all(|value| *value == UNTOUCHED)
    );
    out[start..start + values].to_vec()
}

/// Halves, and a look that nothing around them was touched. They begin at an odd address.
fn halved(kernels: &Kernels, values: &[f32]) -> Vec<u8> {
    const UNTOUCHED: u8 = 0x5a;
    let mut out = vec![UNTOUCHED; values.len() * 2 + 65];
    let (ours, behind) = out[1..].split_at_mut(values.len() * 2);
    (kernels.to_f16)(values, ours);
    assert!(behind.iter().all(|byte| *byte == UNTOUCHED));
    assert_eq!(out[0], UNTOUCHED);
    out[1..=values.len() * 2].to_vec()
}

/// Sums as text, in which zeros have signs and a NaN is a NaN.
fn measured(kernels: &Kernels, source: &[f32], result: &[f32]) -> String {
    let mut lanes = ErrorLanes::default();
    // In two steps: what was there must be kept.
    let step = source.len() / 16 * 8;
    (kernels.measure)(&mut lanes, &source[..step], &result[..step]);
    (kernels.measure)(&mut lanes, &source[step..], &result[step..]);
    format!("{lanes:?}")
}

/// Singles of any bits, those at the edges more often.
fn any_single() -> impl Strategy<Value = f32> {
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

/// The decoder of a format, by which it is found in a table; values and bytes of a block; where its
/// halves are.
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
fn a_server_of_today_has_wider_ones() {
    let names: Vec<&str> = here().map(|kernels| kernels.name).collect();
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
    fn random_blocks(random in prop::collection::vec(any::<u8>(), 210 * 5), start in 0..16usize) {
        for (name, of, len, size, _) in FORMATS {
            let blocks = &random[..random.len() / size * size];
            let values = blocks.len() / size * len;
            let expected = decoded(of(&scalar().near), blocks, values);
            for kernels in wider() {
                prop_assert_eq!(decoded(of(&kernels.near), blocks, values), expected.clone(), "{} {}", kernels.name, name);
                let far = decoded_at(start, of(&kernels.far), blocks, values);
                prop_assert_eq!(bits(&far), expected.clone(), "{} {} far {}", kernels.name, name, start);
            }
        }
    }

    #[test]
    fn blocks_at_the_edges(random in prop::collection::vec(any::<u8>(), 210 * 16), turn in 0..16usize) {
        for (name, of, len, size, halves) in FORMATS {
            let mut blocks = random[..16 * size].to_vec();
            for (i, block) in blocks.chunks_mut(size).enumerate() {
                for (at, shift) in halves.iter().zip([0, turn]) {
                    block[*at..at + 2].copy_from_slice(&EDGES[(i + shift) % 16].to_le_bytes());
                }
            }
            let expected = decoded(of(&scalar().near), &blocks, 16 * len);
            for kernels in wider() {
                prop_assert_eq!(decoded(of(&kernels.near), &blocks, 16 * len), expected.clone(), "{} {}", kernels.name, name);
            }
        }
    }

    #[test]
    fn halves(values in prop::collection::vec(any_single(), 0..70)) {
        // Most random singles are beyond a half; these are not.
        let near: Vec<f32> = values.iter().map(|value| f32::from_bits(value.to_bits() & 0x8fff_ffff | 0x3000_0000)).collect();
        for values in [values, near] {
            let expected = halved(scalar(), &values);
            for kernels in wider() {
                prop_assert_eq!(halved(kernels, &values), &*expected, "{}", kernels.name);
            }
        }
    }

    #[test]
    fn sums(pairs in prop::collection::vec((-1e30f32..1e30, -1.0f32..1.0), 0..99), same in any::<bool>()) {
        let source: Vec<f32> = pairs.iter().map(|(value, _)| *value).collect();
        let result: Vec<f32> = pairs.iter().map(|(value, by)| if same { *value } else { value * (1.0 + by / 64.0) }).collect();
        let expected = measured(scalar(), &source, &result);
        for kernels in wider() {
            prop_assert_eq!(measured(kernels, &source, &result), &*expected, "{}", kernels.name);
        }
    }

    #[test]
    fn sums_of_anything(pairs in prop::collection::vec((any_single(), any_single()), 0..99)) {
        let (source, result): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
        let expected = measured(scalar(), &source, &result);
        for kernels in wider() {
            prop_assert_eq!(measured(kernels, &source, &result), &*expected, "{}", kernels.name);
        }
    }
}

/// A scale of any bits, and an offset of any: of either sign, subnormal, infinite, not a number.
#[test]
fn every_scale() {
    const AT_ONCE: usize = 1 << 11;
    for (name, of, len, size, halves) in FORMATS {
        let mut state = 1u32;
        for first in (0..=u16::MAX).step_by(AT_ONCE) {
            let mut blocks = vec![0; AT_ONCE * size];
            for (block, scale) in blocks.chunks_mut(size).zip(first..=u16::MAX) {
                block.fill_with(|| {
                    state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                    (state >> 24) as u8
                });
                // An odd factor takes the offset through all of them too, in another order.
                for (at, half) in halves.iter().zip([scale, scale.wrapping_mul(40503)]) {
                    block[*at..at + 2].copy_from_slice(&half.to_le_bytes());
                }
            }
            let expected = decoded(of(&scalar().near), &blocks, AT_ONCE * len);
            for decoders in wider().flat_map(|kernels| [&kernels.near, &kernels.far]) {
                assert!(
                    decoded(of(decoders), &blocks, AT_ONCE * len) == expected,
                    "{name} from scale {first:04x} on"
                );
            }
        }
    }
}

#[test]
fn every_half() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let expected = all_bits(&decoded_at(0, scalar().from_f16, &all, 1 << 16));
    for kernels in wider() {
        assert_eq!(
            all_bits(&decoded_at(0, kernels.from_f16, &all, 1 << 16)),
            expected,
            "{}",
            kernels.name
        );
        // Any number of them from anywhere, too.
        for (count, start) in (0..70).flat_map(|count| (0..16).map(move |start| (count, start))) {
            let singles = decoded_at(
                start,
                kernels.from_f16,
                &all[2 * start..2 * (start + count)],
                count,
            );
            assert_eq!(
                all_bits(&singles),
                expected[start..start + count],
                "{} {count} {start}",
                kernels.name
            );
        }
    }
}

/// Every half, the tie behind it, and what is beside both: among them the largest subnormal, what
/// is just beyond the largest half, and NaNs of which a half would keep nothing.
#[test]
fn every_tie() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let halves = decoded_at(0, scalar().from_f16, &all, 1 << 16);
    let near = |half: &f32| {
        [0, 0x1000]
            .map(|tie| half.to_bits() + tie)
            .map(|bits| [bits.wrapping_sub(1), bits, bits + 1])
    };
    let values: Vec<f32> = halves
        .iter()
        .flat_map(near)
        .flatten()
        .map(f32::from_bits)
        .collect();
    // Between subnormal halves, ties are further apart than the one above.
    let ties = halves
        .iter()
        .filter(|half| half.is_finite())
        .map(|half| half + half.signum() * 0.5f32.powi(25));
    let near = ties
        .flat_map(|tie| [tie.to_bits() - 1, tie.to_bits(), tie.to_bits() + 1])
        .map(f32::from_bits);
    // And singles of every kind.
    let steps = (0..1_000_000u32).map(|step| f32::from_bits(step.wrapping_mul(4297)));
    let values: Vec<f32> = values.into_iter().chain(near).chain(steps).collect();
    let expected = halved(scalar(), &values);
    for kernels in wider() {
        assert!(halved(kernels, &values) == expected, "{}", kernels.name);
    }
}

/// A sign of zero and a difference in the last bit both count.
#[test]
fn a_difference_in_one_bit_is_seen_in_every_lane() {
    for (at, bit) in (0..19).flat_map(|at| [(at, 0), (at, 31)]) {
        let mut source = [1.0f32; 19];
        source[at] = if bit == 0 { 1.0 } else { 0.0 };
        let mut result = source;
        result[at] = f32::from_bits(source[at].to_bits() ^ 1 << bit);
        for kernels in here() {
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
