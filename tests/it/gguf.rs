//! The GGUF reader: valid files and rejected files.

use crate::support::gguf_file::{GgufFile, Tensor, Value, array, string};
use crate::support::tiny_gguf::TinyGguf;
use kiln::model::gguf::{Array, Gguf, Header, Uniform, Value as Read, ValueType};
use kiln::model::summary::Summary;
use proptest::prelude::*;

/// One key, one tensor of four floats.
fn small() -> GgufFile {
    let mut file = GgufFile::default();
    file.set("general.name", "small");
    file.tensor("a", &[4], 0, vec![7; 16]);
    file
}

#[track_caller]
fn check_rejected(file: &GgufFile, expected: &str) {
    check_bytes_rejected(&file.write(), expected);
}

#[track_caller]
fn check_bytes_rejected(bytes: &[u8], expected: &str) {
    let problem = Gguf::parse(bytes)
        .map(drop)
        .expect_err("the file should be rejected")
        .to_string();
    assert!(problem.contains(expected), "{problem}");
}

#[track_caller]
fn check_value_rejected(type_id: u32, bytes: Vec<u8>, expected: &str) {
    let mut file = small();
    file.set("key", Value::Raw(type_id, bytes));
    check_rejected(&file, expected);
}

#[test]
fn a_small_file_is_read() {
    let mut file = small();
    file.tensor("b", &[2, 3], 1, vec![9; 12]);
    let bytes = file.write();
    let gguf = Gguf::parse(&bytes).unwrap();
    assert_eq!((gguf.version, gguf.alignment), (3, 32));
    assert_eq!(
        gguf.metadata.require::<&str>("general.name").unwrap(),
        "small"
    );
    assert_eq!(gguf.data(&gguf.tensors[0]), [7; 16]);
    assert_eq!(gguf.data(&gguf.tensors[1]), [9; 12]);
    assert_eq!(gguf.tensors[1].shape, [3, 2]);
    assert_eq!(gguf.tensors[1].ggml.name, "F16");
}

#[test]
fn versions_2_and_3_are_read() {
    let versions = [2, 3].map(|version| {
        Gguf::parse(&GgufFile { version, ..small() }.write())
            .unwrap()
            .version
    });
    assert_eq!(versions, [2, 3]);
}

#[test]
fn other_versions_are_rejected() {
    check_rejected(
        &GgufFile {
            version: 1,
            ..small()
        },
        "version 1, whose lengths have 32 bits",
    );
    check_rejected(
        &GgufFile {
            version: 4,
            ..small()
        },
        "version 4; kiln reads versions 2 and 3",
    );
    check_rejected(
        &GgufFile {
            version: 1u32.swap_bytes(),
            ..small()
        },
        "version 1, whose lengths have 32 bits",
    );
    check_rejected(
        &GgufFile {
            version: 4u32.swap_bytes(),
            ..small()
        },
        "version 4; kiln reads versions 2 and 3",
    );
    check_rejected(
        &GgufFile {
            magic: *b"GGML",
            ..small()
        },
        "not a GGUF: it begins with \"GGML\"",
    );
    check_bytes_rejected(b"", "4 bytes are announced at byte 0, but only 0 are left");
}

#[test]
fn every_truncation_is_rejected() {
    let mut file = small();
    file.set("list", Value::Strings(vec!["x".into(), "yz".into()]));
    let bytes = file.write();
    let end = Gguf::parse(&bytes).unwrap().tensors[0].range.end as usize;
    for length in 0..end {
        assert!(
            Gguf::parse(&bytes[..length]).is_err(),
            "{length} of {end} bytes"
        );
    }
    // The padding after the last tensor may be missing, as some writers leave it out.
    assert!(Gguf::parse(&bytes[..end]).is_ok());
}

/// CVE-2024-23605, CVE-2024-21836.
#[test]
fn counts_beyond_the_file_are_rejected() {
    check_rejected(
        &GgufFile {
            claimed_keys: Some(1 << 61),
            ..small()
        },
        "2305843009213693952 metadata keys",
    );
    check_rejected(
        &GgufFile {
            claimed_tensors: Some(u64::MAX),
            ..small()
        },
        "18446744073709551615 tensors",
    );
    check_rejected(
        &GgufFile {
            claimed_tensors: Some(1000),
            ..small()
        },
        "1000 tensors are announced; the file has room",
    );
}

/// CVE-2024-21825, CVE-2024-23496.
#[test]
fn lengths_beyond_the_file_are_rejected() {
    check_value_rejected(
        8,
        u64::MAX.to_le_bytes().into(),
        "18446744073709551615 bytes; at most 1073741824",
    );
    check_value_rejected(
        8,
        (1u64 << 29).to_le_bytes().into(),
        "536870912 bytes are announced",
    );
    check_value_rejected(
        9,
        array(8, u64::MAX, []),
        "18446744073709551615 array elements are announced",
    );
    check_value_rejected(
        9,
        array(12, 1 << 29, []),
        "536870912 array elements are announced",
    );
    check_value_rejected(9, array(0, 1000, []), "1000 array elements are announced");
}

#[test]
fn invalid_values_are_rejected() {
    check_value_rejected(
        13,
        vec![],
        "failed to read metadata key `key`: unknown value type 13",
    );
    check_value_rejected(9, array(13, 1, [0]), "unknown value type 13");
    check_value_rejected(9, array(9, 1, array(0, 1, [0])), "array of arrays");
    check_value_rejected(7, vec![2], "a bool of 2");
    check_value_rejected(9, array(7, 2, [1, 2]), "a bool of 2");
    check_value_rejected(
        8,
        [3, 0, 0, 0, 0, 0, 0, 0, 0xff, b'a', b'b'].into(),
        "not UTF-8",
    );
    check_value_rejected(9, array(8, 1, [1, 0, 0, 0, 0, 0, 0, 0, 0xff]), "not UTF-8");
}

#[test]
fn duplicate_and_invalid_keys_are_rejected() {
    let mut file = small();
    file.keys.push(("general.name".into(), Value::U8(1)));
    check_rejected(&file, "metadata key `general.name` twice");
    let mut file = small();
    file.set("", 1);
    check_rejected(&file, "has 0 bytes");
    let mut file = small();
    file.set(&"k".repeat(65536), 1);
    check_rejected(&file, "has 65536 bytes");
}

#[test]
fn alignment_must_be_a_power_of_two() {
    for (alignment, expected) in [(0, "u32 0;"), (3, "u32 3;"), (1 << 31, "u32 2147483648;")] {
        let mut file = small();
        file.set("general.alignment", alignment);
        check_rejected(&file, expected);
    }
    let mut file = small();
    file.set("general.alignment", Value::U64(32));
    check_rejected(&file, "`general.alignment` is u64 32; expected a u32");

    let mut file = GgufFile {
        alignment: 1 << 12,
        ..small()
    };
    file.set("general.alignment", 1 << 12);
    assert_eq!(
        Gguf::parse(&file.write()).unwrap().tensors[0].range,
        4096..4112
    );
}

#[track_caller]
fn check_tensor_rejected(change: impl FnOnce(&mut Tensor), expected: &str) {
    let mut file = small();
    change(&mut file.tensors[0]);
    check_rejected(&file, expected);
}

/// CVE-2024-21802, CVE-2026-33298, CVE-2026-7482.
#[test]
fn oversized_shapes_are_rejected() {
    check_tensor_rejected(|t| t.dims = vec![1 << 32, 1 << 32], "2^63 values or more");
    check_tensor_rejected(|t| t.dims = vec![u64::MAX], "2^63 values or more");
    check_tensor_rejected(
        |t| t.dims = vec![0, 1 << 32, 1 << 32],
        "2^63 values or more",
    );
    check_tensor_rejected(|t| t.dims = vec![1 << 62], "ends beyond 2^64 bytes");
    check_tensor_rejected(|t| t.dims = vec![1; 5], "5 dimensions; at most 4");
    check_tensor_rejected(
        |t| t.dims = vec![400],
        "tensor `a` ends at byte 1696, but the file has 128",
    );
    check_tensor_rejected(
        |t| (t.dims, t.type_id) = (vec![33], 2),
        "rows of 33 are no whole number of Q4_0 blocks of 32",
    );
}

/// CVE-2025-53630, CVE-2026-27940: sums and their padding.
#[test]
fn overflowing_offsets_are_rejected() {
    let mut file = small();
    let huge = |name: &str, values: u64, offset| Tensor {
        name: name.into(),
        dims: vec![values],
        type_id: 24,
        offset: Some(offset),
        data: vec![],
    };
    let near = i64::MAX as u64 & !31;
    file.tensors = vec![
        huge("a", near, 0),
        huge("b", near, near),
        huge("c", near, 2 * near),
    ];
    check_rejected(
        &file,
        "tensor `c`: shape [9223372036854775776] of I8 at 18446744073709551552 ends beyond 2^64",
    );
    file.tensors = vec![
        huge("a", near, 0),
        huge("b", near, near),
        huge("c", 63, 2 * near),
    ];
    check_rejected(&file, "ends beyond 2^64 bytes");
    file.tensors = vec![huge("a", near, 0), huge("b", near, near)];
    check_rejected(&file, "tensor `a` ends at byte 9223372036854775");
}

#[test]
fn unknown_tensor_types_are_rejected() {
    check_tensor_rejected(
        |t| t.type_id = 31,
        "failed to read tensor `a`: type Q4_0_4_4 (id 31) was removed from ggml",
    );
    check_tensor_rejected(|t| t.type_id = 43, "unknown type id 43");
    check_tensor_rejected(|t| t.type_id = 101, "unknown type id 101");
    check_tensor_rejected(|t| t.type_id = 9, "Q8_1 (id 9) is never stored");
}

#[test]
fn tensor_data_must_be_contiguous() {
    for offset in [32, 1, u64::MAX] {
        check_tensor_rejected(
            |t| t.offset = Some(offset),
            &format!("begin at {offset} of the data section; expected 0"),
        );
    }
    let mut file = small();
    file.tensor("b", &[4], 0, vec![0; 16]);
    file.tensors[1].offset = Some(16);
    check_rejected(
        &file,
        "failed to read tensor `b`: its data begin at 16 of the data section; expected 32",
    );
}

#[test]
fn duplicate_and_invalid_tensor_names_are_rejected() {
    let mut file = small();
    file.tensor("a", &[4], 0, vec![0; 16]);
    check_rejected(&file, "tensor `a` twice");
    check_tensor_rejected(
        |t| t.name = "n".repeat(64),
        "has 64 bytes; expected 1 to 63",
    );
    check_tensor_rejected(|t| t.name = String::new(), "has 0 bytes");
    check_tensor_rejected(
        |t| t.name = "\u{1b}[2J".repeat(20),
        r"failed to read tensor `\u{1b}[2J",
    );
}

#[test]
fn metadata_is_read_by_type() {
    let mut file = small();
    file.set("small", Value::U8(9));
    file.set("negative", Value::I32(-1));
    file.set("wide", Value::U64(1 << 32));
    file.set("real", 0.5);
    file.set("nan", f32::NAN);
    file.set("double", Value::F64(0.5));
    file.set("yes", Value::Bool(1));
    file.set("heads", Value::I32s(vec![9, 9]));
    file.set("uneven", Value::I32s(vec![9, 3]));
    file.set("none", Value::I32s(vec![]));
    let bytes = file.write();
    let metadata = Gguf::parse(&bytes).unwrap().metadata;
    assert_eq!(metadata.require::<u32>("small").unwrap(), 9);
    assert_eq!(metadata.require::<f32>("real").unwrap(), 0.5);
    assert!(metadata.require::<bool>("yes").unwrap());
    assert_eq!(metadata.get::<u32>("absent").unwrap(), None);
    assert_eq!(metadata.require::<Uniform>("heads").unwrap().0, 9);
    assert_eq!(metadata.require::<Uniform>("small").unwrap().0, 9);
    let heads = metadata.require::<Array>("heads").unwrap();
    assert_eq!((heads.element, heads.len), (ValueType::I32, 2));
    assert_eq!(
        heads.iter().collect::<Vec<_>>(),
        [Read::I32(9), Read::I32(9)]
    );

    let message = |result: kiln::base::Result<u32>| result.unwrap_err().message;
    let expected = "expected an integer from 0 to 4294967295";
    assert_eq!(
        message(metadata.require("absent")),
        format!("metadata key `absent` is missing; {expected}")
    );
    assert_eq!(
        message(metadata.require("negative")),
        format!("metadata key `negative`: {expected}, found i32 -1")
    );
    assert_eq!(
        message(metadata.require("wide")),
        format!("metadata key `wide`: {expected}, found u64 4294967296")
    );
    assert_eq!(
        message(metadata.require("heads")),
        format!("metadata key `heads`: {expected}, found array of 2 i32")
    );
    assert!(metadata.require::<f32>("nan").is_err());
    assert!(metadata.require::<f32>("double").is_err());
    assert!(metadata.require::<Uniform>("uneven").is_err());
    assert!(metadata.require::<Uniform>("none").is_err());
}

#[test]
fn strings_are_borrowed_from_the_file() {
    let token = |i: usize| string(&format!("token {i}"));
    let mut file = small();
    file.set(
        "tokens",
        Value::Raw(9, array(8, 303_000, (0..303_000).flat_map(token))),
    );
    let bytes = file.write();
    let gguf = Gguf::parse(&bytes).unwrap();
    let tokens = gguf.metadata.require::<Array>("tokens").unwrap();
    assert_eq!(tokens.iter().last(), Some(Read::Str("token 302999")));
    let Some(Read::Str(last)) = tokens.iter().last() else {
        panic!("a string")
    };
    assert!(
        bytes.as_ptr_range().contains(&last.as_ptr()),
        "borrowed from the file"
    );
}

#[test]
fn tiny_models_are_read() {
    for model in [TinyGguf::llama(), TinyGguf::qwen2()] {
        Gguf::parse(&model.write()).unwrap();
    }
}

/// A file small enough for mutations to hit every field.
fn seed_file() -> Vec<u8> {
    let mut file = small();
    file.set("list", Value::Strings(vec!["x".into(), "yz".into()]));
    file.set("flag", Value::Bool(1));
    file.set("general.alignment", 32);
    file.tensor("q", &[32, 2], 2, vec![3; 36]);
    file.write()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    /// A file with a few changed bytes is read or rejected, and its tensors lie inside the file.
    #[test]
    fn mutations_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in 0usize..64,
    ) {
        let mut bytes = seed_file();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(bytes.len() - cut);
        if let Ok(gguf) = Gguf::parse(&bytes) {
            for tensor in &gguf.tensors {
                let length = tensor.range.end - tensor.range.start;
                prop_assert_eq!(gguf.data(tensor).len() as u64, length);
            }
            let metadata = serde_json::to_string(&gguf.metadata).unwrap();
            Summary { gguf: &gguf, model: None }.to_string();
            let mut written = vec![];
            Header::new(&gguf.metadata, gguf.alignment).write(&mut written).unwrap();
            let reread = Gguf::parse(&written).unwrap();
            let reread = serde_json::to_string(&reread.metadata).unwrap();
            prop_assert_eq!(reread, metadata);
        }
    }

    /// The same, with 64-bit fields replaced by numbers that are likely to overflow.
    #[test]
    fn extreme_numbers_never_panic(
        at in any::<prop::sample::Index>(),
        shift in 0u32..64,
        below in 0u64..3,
    ) {
        let mut bytes = seed_file();
        let at = at.index(bytes.len() - 8);
        bytes[at..at + 8].copy_from_slice(&(1u64 << shift).wrapping_sub(below).to_le_bytes());
        let _ = Gguf::parse(&bytes);
    }
}
