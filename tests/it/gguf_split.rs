//! Models in several files, and big-endian files.

use crate::support::gguf_file::{GgufFile, Value};
use kiln::model::gguf::{ByteOrder, Gguf, Prefix, swap};
use kiln::model::quant::GgmlType;
use kiln::model::summary::Summary;

/// Part `number` (from 1) of `count` with one tensor. The first part has the metadata.
fn part(number: u16, count: u16) -> GgufFile {
    let mut file = GgufFile::default();
    if number == 1 {
        file.set("general.name", "split");
    }
    file.set("split.no", Value::U16(number - 1));
    file.set("split.count", Value::U16(count));
    file.set("split.tensors.count", Value::I32(count.into()));
    file.tensor(&format!("t{number}"), &[4], 0, vec![number as u8; 16]);
    file
}

fn parse(files: &[Vec<u8>]) -> kiln::base::Result<Gguf<'_>> {
    let files: Vec<Prefix> = files.iter().map(|file| Prefix::whole(file)).collect();
    Gguf::parse_files(&files)
}

#[track_caller]
fn check_rejected(files: &[GgufFile], expected: &str) {
    let files: Vec<Vec<u8>> = files.iter().map(GgufFile::write).collect();
    let problem = parse(&files)
        .map(drop)
        .expect_err("the files should be rejected")
        .to_string();
    assert!(problem.contains(expected), "{problem}");
}

#[test]
fn all_parts_form_one_model() {
    let files = [part(1, 3), part(2, 3), part(3, 3)].map(|file| file.write());
    let gguf = parse(&files).unwrap();
    let found: Vec<_> = gguf
        .tensors
        .iter()
        .map(|tensor| (tensor.name, tensor.file, gguf.data(tensor)[0]))
        .collect();
    assert_eq!(found, [("t1", 0, 1), ("t2", 1, 2), ("t3", 2, 3)]);
    // The metadata does not mention the split.
    assert_eq!(
        gguf.metadata.iter().map(|(key, _)| key).collect::<Vec<_>>(),
        ["general.name"]
    );
    assert!(
        Summary {
            gguf: &gguf,
            model: None
        }
        .to_string()
        .contains("GGUF version 3, 3 tensors in 3 files, 12 weights")
    );

    let mut only = part(1, 1);
    only.keys.retain(|(key, _)| key != "split.tensors.count");
    assert!(Gguf::parse(&only.write()).is_ok());
}

#[test]
fn inconsistent_parts_are_rejected() {
    check_rejected(&[part(1, 3)], "part 2 of 3 is missing; found: 1");
    check_rejected(
        &[part(1, 3), part(3, 3)],
        "part 2 of 3 is missing; found: 1, 3",
    );
    check_rejected(
        &[part(2, 2), part(1, 2)],
        "file 1 is part 2 of 2: the parts are out of order",
    );
    check_rejected(
        &[part(1, 2), part(1, 2)],
        "files 1 and 2 are both part 1 of 2",
    );
    check_rejected(
        &[part(1, 2), part(2, 3)],
        "file 2 is one of 3 parts, file 1 is one of 2",
    );
    check_rejected(
        &[part(1, 2), GgufFile::default()],
        "file 2 is a model of its own",
    );
    check_rejected(&[], "a model without a file");

    let mut beyond = part(2, 2);
    beyond.set("split.no", Value::U16(7));
    check_rejected(&[part(1, 2), beyond], "file 2 is part 8 of 2");
    let mut foreign = part(2, 2);
    foreign.set("general.name", "another");
    check_rejected(
        &[part(1, 2), foreign],
        "`general.name` is another in file 2, but not in file 1",
    );
    let mut same = part(2, 2);
    same.tensors[0].name = "t1".into();
    check_rejected(&[part(1, 2), same], "tensor `t1` is in files 1 and 2");
    let mut more = part(2, 2);
    more.tensor("t3", &[4], 0, vec![0; 16]);
    check_rejected(
        &[part(1, 2), more],
        "the files hold 3 tensors, `split.tensors.count` is 2",
    );
    let mut damaged = part(2, 2);
    damaged.tensors[0].offset = Some(32);
    check_rejected(
        &[part(1, 2), damaged],
        "failed to read file 2 of the 2 of a model",
    );
}

/// A later part without a stated alignment has the default one, as llama-gguf-split writes it, or
/// that of the first part, as gguf-py writes it.
#[test]
fn later_parts_may_use_either_alignment() {
    for alignment in [32, 64, 4096] {
        let mut first = GgufFile {
            alignment: 4096,
            ..part(1, 2)
        };
        first.set("general.alignment", 4096);
        let mut second = GgufFile {
            alignment,
            ..part(2, 2)
        };
        second.set("general.alignment", alignment as u32);
        if alignment != 64 {
            second.keys.retain(|(key, _)| key != "general.alignment");
        }
        let files = [first.write(), second.write()];
        let gguf = parse(&files).unwrap();
        assert_eq!(
            gguf.data(&gguf.tensors[1]),
            [2; 16],
            "alignment {alignment}"
        );
        assert_eq!(gguf.tensors[1].range.start % alignment as u64, 0);
    }
}

/// The bytes of a block are 0, 1, 2, ..., so that moved bytes can be recognized.
#[track_caller]
fn check_swap(name: &str, expected: &[(usize, &[u8])]) {
    let ggml = GgmlType::by_name(name).unwrap();
    let block: Vec<u8> = (0..ggml.block_bytes).map(|byte| byte as u8).collect();
    let mut blocks = [block.clone(), block.clone()].concat();
    swap(ggml, &mut blocks).unwrap();
    let mut expected_block = block;
    for (at, bytes) in expected {
        expected_block[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    assert_eq!(
        blocks,
        [expected_block.clone(), expected_block].concat(),
        "{name}"
    );
}

#[test]
fn swapping_reverses_only_multi_byte_fields() {
    check_swap("F32", &[(0, &[3, 2, 1, 0])]);
    check_swap("I64", &[(0, &[7, 6, 5, 4, 3, 2, 1, 0])]);
    check_swap("I8", &[]);
    check_swap("MXFP4", &[]);
    check_swap("Q4_0", &[(0, &[1, 0])]);
    check_swap("Q4_1", &[(0, &[1, 0, 3, 2])]);
    check_swap("Q5_0", &[(0, &[1, 0, 5, 4, 3, 2])]);
    check_swap("Q5_1", &[(0, &[1, 0, 3, 2, 7, 6, 5, 4])]);
    check_swap("Q6_K", &[(208, &[209, 208])]);
    check_swap("Q3_K", &[(108, &[109, 108])]);
    check_swap("IQ1_M", &[(48, &[49, 48, 51, 50, 53, 52, 55, 54])]);
    check_swap("TQ2_0", &[(64, &[65, 64])]);
    let problem = swap(GgmlType::by_name("IQ2_XXS").unwrap(), &mut [])
        .unwrap_err()
        .to_string();
    assert!(
        problem.contains("IQ2_XXS in a big-endian file"),
        "{problem}"
    );
}

/// A big-endian file, written number by number.
#[test]
fn headers_in_big_endian_order_are_read() {
    let mut bytes = b"GGUF".to_vec();
    let word = |bytes: &mut Vec<u8>, number: u32| bytes.extend(number.to_be_bytes());
    let long = |bytes: &mut Vec<u8>, number: u64| bytes.extend(number.to_be_bytes());
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend((text.len() as u64).to_be_bytes());
        bytes.extend(text.as_bytes());
    };
    word(&mut bytes, 3);
    long(&mut bytes, 1);
    long(&mut bytes, 4);
    text(&mut bytes, "words");
    word(&mut bytes, 9);
    word(&mut bytes, 8);
    long(&mut bytes, 2);
    text(&mut bytes, "a");
    text(&mut bytes, "bc");
    text(&mut bytes, "numbers");
    word(&mut bytes, 9);
    word(&mut bytes, 5);
    long(&mut bytes, 2);
    word(&mut bytes, 258);
    word(&mut bytes, u32::MAX);
    text(&mut bytes, "half");
    word(&mut bytes, 6);
    bytes.extend(0.5f32.to_be_bytes());
    text(&mut bytes, "general.alignment");
    word(&mut bytes, 4);
    word(&mut bytes, 8);
    text(&mut bytes, "t");
    word(&mut bytes, 2);
    long(&mut bytes, 2);
    long(&mut bytes, 1);
    word(&mut bytes, 0);
    long(&mut bytes, 0);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.extend([1.5f32, -2.0].map(f32::to_be_bytes).concat());

    let gguf = Gguf::parse(&bytes).unwrap();
    assert_eq!(
        (gguf.version, gguf.order, gguf.alignment),
        (3, ByteOrder::Big, 8)
    );
    let metadata = serde_json::to_string(&gguf.metadata).unwrap();
    assert_eq!(
        metadata,
        r#"{"general.alignment":8,"half":0.5,"numbers":[258,-1],"words":["a","bc"]}"#
    );
    assert_eq!(gguf.tensors[0].shape, [1, 2]);
    let mut data = gguf.data(&gguf.tensors[0]).to_vec();
    swap(gguf.tensors[0].ggml, &mut data).unwrap();
    assert_eq!(data, [1.5f32, -2.0].map(f32::to_le_bytes).concat());
    assert!(
        Summary {
            gguf: &gguf,
            model: None
        }
        .to_string()
        .contains("GGUF version 3, big-endian, 1 tensors")
    );
}
