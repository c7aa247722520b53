//! Formats: decoding and rounding equal ggml's, and splitting blocks into parts is exact.

use crate::support::peers::{python, stdout_of};
use crate::support::quantize::{Quant, encode};
use half::f16;
use kiln::model::gguf::Gguf;
use kiln::model::quant::TensorFacts;
use kiln::model::quant::*;
use kiln::model::weight::Element;
use proptest::prelude::*;
use sha2::{Digest, Sha256};

const GOLDEN: &str = include_str!("golden/quant.txt");

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let float = |bytes: &[u8; 4]| f32::from_le_bytes(*bytes);
    bytes.as_chunks().0.iter().map(float).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn decoded(name: &str, blocks: &[u8]) -> Vec<f32> {
    let ggml = GgmlType::by_name(name).unwrap();
    let mut out = vec![0.0; blocks.len() / ggml.block_bytes as usize * ggml.block_len as usize];
    ggml.format.decode(blocks, &mut out);
    out
}

/// Values computed from codes, scales and offsets.
fn recombined(name: &str, blocks: &[u8]) -> Vec<f32> {
    let ggml = GgmlType::by_name(name).unwrap();
    let NativeEncoding::Blocks(grid) = ggml.format.native_encoding() else {
        panic!("{name} has blocks")
    };
    let layout = grid.layout();
    let values = blocks.len() / ggml.block_bytes as usize * ggml.block_len as usize;
    let [mut codes, mut scales, mut offsets] = layout.bytes(values).map(|size| vec![0; size]);
    grid.split(
        blocks,
        Split {
            codes: &mut codes,
            scales: &mut scales,
            offsets: &mut offsets,
        },
    );
    let code = |i: usize| match layout.codes {
        Element::Int8 => codes[i] as i8 as f32,
        element => {
            let nibble = (codes[i / 2] >> (i % 2 * 4)) & 15;
            if element == Element::Int4 {
                ((nibble << 4) as i8 >> 4) as f32
            } else {
                nibble as f32
            }
        }
    };
    let number = |element: Element, bytes: &[u8], i: usize| match element {
        Element::F16 => f16::from_le_bytes(bytes.as_chunks().0[i]).to_f32(),
        _ => f32::from_le_bytes(bytes.as_chunks().0[i]),
    };
    let value = |i: usize| {
        let block = i / layout.block as usize;
        let product = code(i) * number(layout.scales, &scales, block);
        match layout.offsets {
            Some(element) => product + number(element, &offsets, block),
            None => product,
        }
    };
    (0..values).map(value).collect()
}

/// Bits for comparisons, with one bit pattern for all NaNs.
fn comparable(values: &[f32]) -> Vec<u32> {
    let bits = |value: &f32| match value.is_nan() {
        true => f32::NAN.to_bits(),
        false => value.to_bits(),
    };
    values.iter().map(bits).collect()
}

fn sha256(values: &[f32]) -> String {
    let bits = comparable(values).into_iter();
    let bytes: Vec<u8> = bits.flat_map(u32::to_le_bytes).collect();
    crate::support::fetching::sha256(&bytes)
}

/// The blocks of `sweep` in tests/it/golden/quant.py: splitmix64.
fn sweep(ggml: &GgmlType, blocks: usize) -> Vec<u8> {
    let size = blocks * ggml.block_bytes as usize;
    let word = |i: u64| {
        let z = u64::from(ggml.id).wrapping_add(0x9e3779b97f4a7c15u64.wrapping_mul(i + 1));
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58476d1ce4e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d049bb133111eb);
        (z ^ (z >> 31)).to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..size.div_ceil(8) as u64).flat_map(word).collect();
    bytes.truncate(size);
    bytes
}

/// A few blocks with all values, blocks with edge cases of scales, and thousands of random blocks.
#[test]
fn every_type_decodes_like_ggml() {
    let mut checked = std::collections::BTreeSet::new();
    for line in GOLDEN.lines() {
        let name = match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["encode-Q8_0", ..] => continue,
            ["edge", name, blocks, expected] => {
                assert_eq!(
                    sha256(&decoded(name, &unhex(blocks))),
                    *expected,
                    "{name}, edges"
                );
                continue;
            }
            ["sweep", name, blocks, expected] => {
                let blocks = sweep(GgmlType::by_name(name).unwrap(), blocks.parse().unwrap());
                assert_eq!(
                    sha256(&decoded(name, &blocks)),
                    *expected,
                    "{name}, random blocks"
                );
                *name
            }
            [name, blocks, expected] => {
                assert_eq!(
                    bits(&decoded(name, &unhex(blocks))),
                    bits(&floats(&unhex(expected))),
                    "{name}"
                );
                *name
            }
            other => panic!("{other:?}"),
        };
        checked.insert(name);
    }
    assert_eq!(checked, GgmlType::all().map(|ggml| ggml.name).collect());
}

#[test]
fn int8_blocks_round_like_gguf_py() {
    let line = GOLDEN
        .lines()
        .find(|line| line.starts_with("encode-Q8_0"))
        .unwrap();
    let [_, values, expected] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let values = floats(&unhex(values));
    let (mut codes, mut scales) = (vec![0; values.len()], vec![0; values.len() / 16]);
    Int8Blocks.encode(&values, &mut codes, &mut scales).unwrap();
    let mut blocks = vec![];
    for (scale, codes) in scales.chunks(2).zip(codes.chunks(32)) {
        blocks.extend_from_slice(scale);
        blocks.extend_from_slice(codes);
    }
    assert_eq!(blocks, unhex(expected));
}

proptest! {
    #[test]
    fn recombined_blocks_equal_decoded_blocks(seed: u64, count in 1usize..6) {
        let mut random = crate::support::tiny_gguf::Random::of("blocks", seed);
        for ggml in GgmlType::all() {
            if !matches!(ggml.format.native_encoding(), NativeEncoding::Blocks(_)) {
                continue;
            }
            let mut blocks = vec![0; count * ggml.block_bytes as usize];
            for byte in &mut blocks {
                *byte = random.bits() as u8;
                // Many zeros, for scales and sub-scales that are zero or subnormal.
                if seed.is_multiple_of(4) && random.bits().is_multiple_of(2) {
                    *byte = 0;
                }
            }
            let found = comparable(&recombined(ggml.name, &blocks));
            let expected = comparable(&decoded(ggml.name, &blocks));
            prop_assert_eq!(found, expected, "{}", ggml.name);
        }
    }

    #[test]
    fn f16_rounds_to_nearest(value in -65519.0f32..65519.0) {
        let mut out = [0; 2];
        Plain(Element::F16).encode(&[value], &mut out, &mut []).unwrap();
        prop_assert_eq!(f16::from_le_bytes(out), f16::from_f32_const(value));
    }
}

#[test]
fn every_f16_decodes() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for (half, value) in (0..=u16::MAX).zip(decoded("F16", &all)) {
        let expected = f16::from_bits(half).to_f32_const();
        assert!(
            value.to_bits() == expected.to_bits() || value.is_nan() && expected.is_nan(),
            "{half:04x}"
        );
    }
}

fn misfit(rounding: &dyn Rounding, values: &[f32]) -> Option<usize> {
    let [mut codes, mut scales] = rounding.bytes(values.len()).map(|size| vec![0; size]);
    rounding.encode(values, &mut codes, &mut scales).err()
}

#[test]
fn overflow_is_reported() {
    assert_eq!(
        misfit(&Plain(Element::F16), &[1.0, 65519.0, 65520.0]),
        Some(2)
    );
    assert_eq!(misfit(&Plain(Element::Bf16), &[1.0, f32::MAX]), Some(1));
    assert_eq!(
        misfit(&Plain(Element::F32), &[1.0, f32::MAX, f32::NAN]),
        Some(2)
    );
    for (value, expected) in [
        (127.0 * 65504.0, None),
        (-127.0 * 65520.0, Some(40)),
        (f32::NAN, Some(40)),
    ] {
        let mut values = [1.0; 64];
        values[40] = value;
        assert_eq!(misfit(&Int8Blocks, &values), expected, "{value}");
    }
}

#[test]
fn rounding_errors_are_measured() {
    let facts = TensorFacts {
        shape: vec![3, 32],
        ggml_type: "F32".into(),
    };
    let mut values = [1.0; 96];
    values[70] = 1.0 + f32::EPSILON;
    let check = |rounding: &dyn Rounding, values: &[f32]| {
        let bytes = encode(Quant::F32, values);
        let tensor = BlockTensor::new(&facts, &bytes, RowOrder::Stored).unwrap();
        let band = tensor.bands().next().unwrap();
        let [mut codes, mut scales] = rounding.bytes(band.values).map(|size| vec![0; size]);
        round(&tensor, &band, rounding, &mut codes, &mut scales)
    };
    assert!(check(&Plain(Element::F32), &values).unwrap().is_exact());
    let rounded = check(&Plain(Element::F16), &values).unwrap();
    assert_eq!(
        (rounded.is_exact(), rounded.max_error()),
        (false, f32::EPSILON as f64)
    );
    values[70] = -1e6;
    assert_eq!(
        check(&Plain(Element::F16), &values),
        Err(Misfit {
            index: 70,
            value: -1e6
        })
    );
}

#[test]
fn infinities_and_nans_are_found() {
    let f16s = |values: &[f32]| encode(Quant::F16, values);
    let mut values = vec![1.0; 3000];
    assert_eq!(first_non_finite(Element::F16, &f16s(&values)), None);
    values[2500] = f32::NAN;
    assert_eq!(first_non_finite(Element::F16, &f16s(&values)), Some(2500));
    values[7] = f32::NEG_INFINITY;
    assert_eq!(
        first_non_finite(Element::F32, &encode(Quant::F32, &values)),
        Some(7)
    );
    assert_eq!(
        first_non_finite(Element::Bf16, &encode(Quant::Bf16, &values)),
        Some(7)
    );
}

#[test]
fn error_sums_are_correct() {
    let error = ErrorSum::of(&[3.0, -4.0, 0.0], &[3.0, -3.5, 0.0]);
    assert_eq!(
        (error.is_exact(), error.max_error(), error.sqnr_db()),
        (false, 0.5, Some(20.0))
    );
    let signs = ErrorSum::of(&[-0.0], &[0.0]);
    assert_eq!(
        (signs.is_exact(), signs.max_error(), signs.sqnr_db()),
        (false, 0.0, None)
    );
    assert!(ErrorSum::of(&[1.5], &[1.5]).is_exact());
}

fn f32_matrix(rows: u64, columns: u64) -> (TensorFacts, Vec<u8>) {
    let values: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
    (
        TensorFacts {
            shape: vec![rows, columns],
            ggml_type: "F32".into(),
        },
        encode(Quant::F32, &values),
    )
}

#[test]
fn rope_rows_are_reordered_to_half_split() {
    let (facts, bytes) = f32_matrix(8, 1);
    let tensor = BlockTensor::new(&facts, &bytes, RowOrder::HalfSplit { heads: 2 }).unwrap();
    let read: Vec<f32> = tensor
        .bands()
        .flat_map(|band| floats(&band.blocks))
        .collect();
    assert_eq!(read, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    let vector = TensorFacts {
        shape: vec![8],
        ..facts
    };
    let tensor = BlockTensor::new(&vector, &bytes, RowOrder::HalfSplit { heads: 2 }).unwrap();
    assert_eq!(
        tensor
            .bands()
            .flat_map(|band| floats(&band.blocks))
            .collect::<Vec<_>>(),
        read
    );
}

#[test]
fn bands_cover_a_tensor_exactly_once() {
    for (rows, columns, bands) in [
        (3, 700_000, 3),
        (2, 1 << 21, 2),
        (1025, 1 << 10, 2),
        (7, 5, 1),
    ] {
        let (facts, bytes) = f32_matrix(rows, columns);
        let tensor = BlockTensor::new(&facts, &bytes, RowOrder::Stored).unwrap();
        let mut next = 0;
        for band in tensor.bands() {
            assert_eq!((band.first, band.blocks.len()), (next, band.values * 4));
            next += band.values;
        }
        assert_eq!((next, tensor.bands().count()), (tensor.len(), bands));
    }
}

fn check_rejected(
    shape: &[u64],
    ggml_type: &str,
    bytes: usize,
    heads: Option<u32>,
    expected: &str,
) {
    let facts = TensorFacts {
        shape: shape.into(),
        ggml_type: ggml_type.into(),
    };
    let order = heads.map_or(RowOrder::Stored, |heads| RowOrder::HalfSplit { heads });
    let problem = BlockTensor::new(&facts, &vec![0; bytes], order)
        .map(drop)
        .expect_err("the tensor should be rejected")
        .to_string();
    assert!(problem.contains(expected), "{problem}");
}

#[test]
fn invalid_tensors_are_rejected() {
    check_rejected(&[], "F32", 4, None, "neither a vector nor a matrix");
    check_rejected(&[2, 2, 2], "F32", 32, None, "neither a vector nor a matrix");
    check_rejected(&[0, 4], "F32", 0, None, "neither a vector nor a matrix");
    check_rejected(&[2, 32], "Q4_0", 35, None, "is 36 bytes, found 35 bytes");
    check_rejected(&[2, 33], "Q4_0", 36, None, "no whole number of blocks");
    check_rejected(
        &[1 << 63, 32],
        "Q4_0",
        18,
        None,
        "no whole number of blocks",
    );
    check_rejected(
        &[2, 256],
        "Q4_K",
        287,
        None,
        "is 288 bytes, found 287 bytes",
    );
    check_rejected(&[2, 256], "Q4_X", 288, None, "no type `Q4_X`");
    check_rejected(
        &[6, 1],
        "F32",
        24,
        Some(2),
        "6 rows are not 2 heads of row pairs",
    );
    check_rejected(&[6, 1], "F32", 24, Some(0), "6 rows are not 0 heads");
}

#[test]
fn types_are_found_by_id() {
    assert_eq!(GgmlType::by_id(14).unwrap().name, "Q6_K");
    let message = |id| GgmlType::by_id(id).unwrap_err().message;
    let removed = [
        (4, "Q4_2"),
        (5, "Q4_3"),
        (31, "Q4_0_4_4"),
        (33, "Q4_0_8_8"),
        (36, "IQ4_NL_4_4"),
        (38, "IQ4_NL_8_8"),
    ];
    for (id, name) in removed {
        assert_eq!(
            message(id),
            format!("type {name} (id {id}) was removed from ggml")
        );
    }
    assert_eq!(message(9), "type Q8_1 (id 9) is never stored in a file");
    assert_eq!(message(101), "unknown type id 101");
    assert_eq!(message(u32::MAX), "unknown type id 4294967295");
}

#[test]
fn errors_of_wide_types_are_measured_in_full_precision() {
    let check = |name: &str, bytes: Vec<u8>, exact: bool, max_error: f64| {
        let ggml = GgmlType::by_name(name).unwrap();
        let facts = TensorFacts {
            shape: vec![bytes.len() as u64 / ggml.block_bytes],
            ggml_type: name.into(),
        };
        let tensor = BlockTensor::new(&facts, &bytes, RowOrder::Stored).unwrap();
        let band = tensor.bands().next().unwrap();
        let mut values = vec![0; band.values * 4];
        let sum = round(&tensor, &band, &Plain(Element::F32), &mut values, &mut []).unwrap();
        assert_eq!(
            (sum.is_exact(), sum.max_error()),
            (exact, max_error),
            "{name}"
        );
    };
    check("I8", vec![0x80, 0x7f, 0], true, 0.0);
    check("I16", i16::MIN.to_le_bytes().into(), true, 0.0);
    check("I32", ((1 << 24) + 1i32).to_le_bytes().into(), false, 1.0);
    check("I32", (-(1 << 24) + 1i32).to_le_bytes().into(), true, 0.0);
    check("I64", i64::MAX.to_le_bytes().into(), false, 1.0);
    check(
        "I64",
        [i64::MIN, (1 << 62) - (1 << 37)]
            .map(i64::to_le_bytes)
            .concat(),
        false,
        f64::from(1u32 << 31) * 64.0,
    );
    check(
        "F64",
        [0.5, -1.25f64].map(f64::to_le_bytes).concat(),
        true,
        0.0,
    );
    check(
        "F64",
        [0.5, 1.0 + f64::EPSILON].map(f64::to_le_bytes).concat(),
        false,
        f64::EPSILON,
    );
    check("F64", 1e-300f64.to_le_bytes().into(), false, 1e-300);
}

/// With another file: `KILN_GGUF=model.gguf cargo test --test it quant:: -- --ignored`.
#[test]
#[ignore = "needs a package index"]
fn a_complete_file_decodes_like_gguf_py() {
    let path =
        std::env::var_os("KILN_GGUF").map_or_else(crate::support::tools::smollm2, Into::into);
    let file = std::fs::read(&path).unwrap();
    let gguf = Gguf::parse(&file).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/golden/quant.py");
    let expected = stdout_of(python().arg(script).arg(&path));
    assert_eq!(expected.lines().count(), gguf.tensors.len());
    for line in expected.lines() {
        let (name, digest) = line.split_once(' ').unwrap();
        let info = gguf.tensors.iter().find(|info| info.name == name).unwrap();
        let tensor = BlockTensor::new(&info.facts(), gguf.data(info), RowOrder::Stored).unwrap();
        let mut sha256 = Sha256::new();
        for band in tensor.bands() {
            let mut values = vec![0.0; band.values];
            decode(&tensor, &band, &mut values);
            sha256.update(encode(Quant::F32, &values));
        }
        let found = sha256.finalize();
        assert_eq!(found.to_vec(), unhex(digest), "{name}");
    }
}
