//! `kiln inspect` on GGUFs.

use std::io::Write;

use crate::support::gguf_file::{GgufFile, Value};
use crate::support::tiny_gguf::TinyGguf;
use assert_cmd::Command;

/// Standard output and standard error of `kiln inspect FILE FLAGS`.
fn inspect(file: &[u8], flags: &[&str], code: i32) -> (String, String) {
    let mut path = tempfile::NamedTempFile::new().unwrap();
    path.write_all(file).unwrap();
    let output = Command::cargo_bin("kiln")
        .unwrap()
        .arg("inspect")
        .arg(path.path())
        .args(flags)
        .output()
        .unwrap();
    assert_eq!(
        output.status.code(),
        Some(code),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn inspect_prints_a_summary() {
    let (text, _) = inspect(&TinyGguf::llama().write(), &[], 0);
    assert!(
        text.contains("  attention     4 heads of 16 over 2 of keys and values\n"),
        "{text}"
    );
    assert!(!text.contains("blk.0."), "{text}");
}

#[test]
fn tensors_are_listed_with_the_flag() {
    let (text, _) = inspect(&TinyGguf::llama().write(), &["--tensors"], 0);
    assert!(
        text.contains("  blk.0.attn_k.weight             Q4_1    [32, 64]            1.3 kB\n"),
        "{text}"
    );
}

#[test]
fn inspect_prints_json() {
    let (text, _) = inspect(&TinyGguf::qwen2().write(), &["--json"], 0);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["model"]["architecture"], "qwen2");
    assert_eq!(json["tensors"][0]["shape"], serde_json::json!([288, 64]));
}

#[test]
fn unsupported_architectures_are_described() {
    let mut file: GgufFile = TinyGguf::llama().file();
    file.set("general.architecture", "mamba");
    let (text, _) = inspect(&file.write(), &[], 0);
    assert!(
        text.contains("kiln cannot build it: architecture `mamba` is not supported"),
        "{text}"
    );
    let (text, _) = inspect(&file.write(), &["--json"], 0);
    assert!(text.contains(r#""problem":{"#), "{text}");
}

#[test]
fn unsupported_tokenizers_are_reported() {
    let mut file: GgufFile = TinyGguf::llama().file();
    file.set("tokenizer.ggml.pre", "bloom");
    let (text, _) = inspect(&file.write(), &[], 0);
    assert!(
        text.contains("reference, scores  no: the pre-tokenizer `bloom` is not known"),
        "{text}"
    );
    file.set("tokenizer.ggml.pre", "a\n::error::\u{1b}[31m");
    let (text, _) = inspect(&file.write(), &[], 0);
    assert!(
        text.contains("the pre-tokenizer `a\\n::error::\\u{1b}[31m` is not known"),
        "{text}"
    );
}

#[test]
fn an_invalid_header_stops_reading() {
    let mut path = tempfile::NamedTempFile::new().unwrap();
    path.write_all(b"GGUF\x07\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0")
        .unwrap();
    // A sparse file: it needs no space, but reading it would take long.
    path.as_file().set_len(64 << 30).unwrap();
    let output = Command::cargo_bin("kiln")
        .unwrap()
        .arg("inspect")
        .arg(path.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("version"));
}

/// The call names one file of a split model; the others are found in its folder.
#[test]
fn other_parts_of_a_split_model_are_found() {
    let home = tempfile::tempdir().unwrap();
    let complete = TinyGguf::llama().file();
    let path = |number: usize| home.path().join(format!("tiny-{number:05}-of-00002.gguf"));
    for (number, tensors) in [(1, &complete.tensors[..7]), (2, &complete.tensors[7..])] {
        let mut part = GgufFile {
            tensors: tensors.to_vec(),
            ..complete.clone()
        };
        part.keys.retain(|_| number == 1);
        part.set("split.no", Value::U16(number as u16 - 1));
        part.set("split.count", Value::U16(2));
        std::fs::write(path(number), part.write()).unwrap();
    }
    let inspect = |path, flag| {
        Command::cargo_bin("kiln")
            .unwrap()
            .arg("inspect")
            .arg(path)
            .arg(flag)
            .output()
            .unwrap()
    };
    for number in [1, 2] {
        let output = inspect(path(number), "--json");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (&json["files"], &json["model"]["architecture"]),
            (&2.into(), &"llama".into())
        );
        let tensors = json["tensors"].as_array().unwrap();
        assert_eq!(
            (tensors.len(), &tensors[7]["file"]),
            (complete.tensors.len(), &1.into())
        );
    }
    let errors = |output: std::process::Output| String::from_utf8(output.stderr).unwrap();
    std::fs::rename(path(2), home.path().join("second.gguf")).unwrap();
    let text = errors(inspect(path(1), "--tensors"));
    assert!(text.contains("tiny-00002-of-00002.gguf"), "{text}");
    let text = errors(inspect(home.path().join("second.gguf"), "--tensors"));
    assert!(
        text.contains("part 1 of 2 is missing") && text.contains("NAME-00001-of-00002.gguf"),
        "{text}"
    );
}

#[test]
fn files_that_are_not_gguf_are_rejected() {
    let (_, text) = inspect(b"MZ\x01", &[], 2);
    assert!(
        text.contains(r#"unknown format: it begins with "MZ\x01""#),
        "{text}"
    );
    let (_, text) = inspect(&TinyGguf::llama().write()[..999], &[], 1);
    assert!(text.contains("truncated or damaged"), "{text}");
}
