//! Every kernel that this machine can run gives what the scalar one gives, bit for bit.

use kiln::model::quant::ErrorLanes;
use kiln::model::quant::kernels::{Decode, Decoders, Kernels, here};
use proptest::prelude::*;

/// Halves at every edge: zeros, subnormals, the largest and least normal ones, infinities, quiet and signalling NaNs.
const EDGES: [u16; 16] = [
    0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x83ff, 0x0400, 0x7bff, 0xfbff, 0x3c00, 0x7c00, 0xfc00, 0x7c01, 0xfc01,
    0x7e00, 0xffff,
];

fn scalar() -> &'static Kernels {
    here().find(|kernels| kernels.name == "scalar").unwrap()
}

fn wider() -> impl Iterator<Item = &'static Kernels> {
    here().filter(|kernels| kernels.name != "scalar")
}

/// Bits; a NaN is a NaN, since which of two a product hands on is not said.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() }).collect()
}

fn decoded(decode: Decode, blocks: &[u8], values: usize) -> Vec<u32> {
    decoded_at(0, decode, blocks, values)
}

/// Decodes to `start` singles behind a line of the cache, and looks that nothing around it was touched.
fn decoded_at(start: usize, decode: Decode, blocks: &[u8], values: usize) -> Vec<u32> {
    const UNTOUCHED: f32 = 12345.0;
    let mut out = vec![UNTOUCHED; values + 32];
    let start = out.as_ptr().align_offset(64) + start;
    decode(blocks, &mut out[start..start + values]);
    assert!(out[..start].iter().chain(&out[start + values..]).all(|value| *value == UNTOUCHED));
    bits(&out[start..start + values])
}

/// The decoder of a format, by which it is found in a table; values and bytes of a block; where its halves are.
type Format = (&'static str, fn(&Decoders) -> Decode, usize, usize, &'static [usize]);

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
    assert_eq!(names.contains(&"avx2"), is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c"));
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
                prop_assert_eq!(far, expected.clone(), "{} {} far {}", kernels.name, name, start);
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
    fn halves(bits_of in prop::collection::vec(any::<u32>(), 0..70)) {
        let values: Vec<f32> = bits_of.iter().map(|bits| f32::from_bits(*bits)).collect();
        // Most random singles are beyond a half; these are not.
        let near: Vec<f32> = bits_of.iter().map(|bits| f32::from_bits(bits & 0x8fff_ffff | 0x3000_0000)).collect();
        for values in [values, near] {
            let mut expected = vec![0; values.len() * 2];
            (scalar().to_halves)(&values, &mut expected);
            for kernels in wider() {
                let mut out = vec![0; expected.len()];
                (kernels.to_halves)(&values, &mut out);
                prop_assert_eq!(&out, &expected, "{}", kernels.name);
            }
        }
    }

    #[test]
    fn sums(pairs in prop::collection::vec((-1e30f32..1e30, -1.0f32..1.0), 0..99), same in any::<bool>()) {
        let source: Vec<f32> = pairs.iter().map(|(value, _)| *value).collect();
        let result: Vec<f32> = pairs.iter().map(|(value, by)| if same { *value } else { value * (1.0 + by / 64.0) }).collect();
        let measured = |kernels: &Kernels| {
            let mut lanes = ErrorLanes::default();
            // In two steps: what was there must be kept.
            let step = source.len() / 16 * 8;
            (kernels.measure)(&mut lanes, &source[..step], &result[..step]);
            (kernels.measure)(&mut lanes, &source[step..], &result[step..]);
            lanes
        };
        for kernels in wider() {
            prop_assert_eq!(measured(kernels), measured(scalar()), "{}", kernels.name);
        }
    }
}

#[test]
fn every_half() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let expected = decoded(scalar().from_halves, &all, 1 << 16);
    for kernels in wider() {
        assert_eq!(decoded(kernels.from_halves, &all, 1 << 16), expected, "{}", kernels.name);
        // An odd number of them, too.
        assert_eq!(decoded(kernels.from_halves, &all[..2 * 37], 37), expected[..37], "{}", kernels.name);
    }
}

/// A sign of zero and a difference in the last bit both count.
#[test]
fn a_difference_in_one_bit_is_seen_in_every_lane() {
    for at in 0..19 {
        let source = [1.0f32; 19];
        let mut result = source;
        result[at] = f32::from_bits(1.0f32.to_bits() + 1);
        for kernels in here() {
            let mut lanes = ErrorLanes::default();
            (kernels.measure)(&mut lanes, &source, &result);
            assert!(!lanes.sum().is_exact(), "{} {at}", kernels.name);
            assert_eq!(lanes.sum().max_error(), f64::from(f32::EPSILON), "{} {at}", kernels.name);
        }
    }
}
