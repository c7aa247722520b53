//! `fetch` with valid and invalid wheels.

use std::io::{Cursor, Write};

use crate::support::fetching::{FetchRunner, sha256};
use kiln::base::{Code, Result};
use serde_json::json;
use zip::write::SimpleFileOptions;

fn wheel(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(vec![]));
    for (name, bytes) in members {
        writer
            .start_file(*name, SimpleFileOptions::default())
            .unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// The offset of the first record of the central directory.
fn directory(wheel: &[u8]) -> usize {
    wheel
        .windows(4)
        .position(|magic| magic == b"PK\x01\x02")
        .unwrap()
}

/// Replaces every `old` by `new`, which has the same length.
fn replace(wheel: &mut [u8], old: &[u8], new: &[u8]) {
    assert_eq!(old.len(), new.len());
    for at in 0..=wheel.len() - old.len() {
        if &wheel[at..at + old.len()] == old {
            wheel[at..at + new.len()].copy_from_slice(new);
        }
    }
}

fn unpack(wheel: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
    let runner = FetchRunner::new();
    let url = format!(
        "file:{}",
        runner.file("clay-1-py3-none-any.whl", wheel).display()
    );
    let outputs = runner.run(json!({"url": url, "sha256": sha256(wheel), "unpack": true}))?;
    Ok(outputs
        .iter()
        .map(|(name, part)| (name.to_string(), runner.folder.bytes(part).to_vec()))
        .collect())
}

/// The message for an invalid wheel.
fn wheel_error(wheel: &[u8]) -> String {
    let problem = unpack(wheel).unwrap_err();
    assert_eq!(problem.code, Code::FetchWheel);
    problem.to_string()
}

#[test]
fn shared_libraries_are_unpacked_by_file_name() {
    let wheel = wheel(&[
        ("clay/__init__.py", b"py"),
        ("clay/libclay.so", b"one"),
        ("clay.libs/libkiln.so.1.2", b"two"),
    ]);
    let expected = vec![
        ("libclay.so".to_string(), b"one".to_vec()),
        ("libkiln.so.1.2".to_string(), b"two".to_vec()),
    ];
    assert_eq!(unpack(&wheel).unwrap(), expected);
}

#[test]
fn a_wheel_without_libraries_is_rejected() {
    assert!(wheel_error(&wheel(&[("clay/__init__.py", b"py")])).contains("no shared library"));
}

#[test]
fn duplicate_library_names_are_rejected() {
    assert!(
        wheel_error(&wheel(&[("a/lib.so", b"one"), ("b/lib.so", b"two")]))
            .contains("two libraries named `lib.so`")
    );
}

#[test]
fn member_names_cannot_escape_the_wheel() {
    for name in [
        "../lib.so",
        "/lib.so",
        "a/../../lib.so",
        "a\\lib.so",
        "c:lib.so",
    ] {
        let mut hostile = wheel(&[("x".repeat(name.len()).as_str(), b"one")]);
        replace(
            &mut hostile,
            "x".repeat(name.len()).as_bytes(),
            name.as_bytes(),
        );
        assert!(wheel_error(&hostile).contains("leaves the wheel"), "{name}");
    }
}

#[test]
fn duplicate_members_are_rejected() {
    let mut hostile = wheel(&[("a.so", b"one"), ("b.so", b"two")]);
    replace(&mut hostile, b"b.so", b"a.so");
    assert!(wheel_error(&hostile).contains("two members of one name"));
}

#[test]
fn encrypted_members_are_rejected() {
    let mut hostile = wheel(&[("a.so", b"one")]);
    let flags = directory(&hostile) + 8;
    hostile[flags] |= 1;
    assert!(wheel_error(&hostile).contains("encrypted"));
}

#[test]
fn symbolic_links_are_rejected() {
    let mut writer = zip::ZipWriter::new(Cursor::new(vec![]));
    writer
        .add_symlink("a.so", "/etc/passwd", SimpleFileOptions::default())
        .unwrap();
    assert!(wheel_error(&writer.finish().unwrap().into_inner()).contains("symbolic link"));
}

#[test]
fn a_zip_bomb_is_rejected_before_unpacking() {
    let zeros = vec![0; 70 << 20];
    let bomb = wheel(&[("a.so", &zeros)]);
    assert!(bomb.len() < 100_000, "{}", bomb.len());
    assert!(wheel_error(&bomb).contains("would unpack to 73.4 MB"));
}

#[test]
fn a_member_with_a_wrong_size_is_rejected() {
    for stated in [10u32, 3000] {
        let mut hostile = wheel(&[("a.so", &[7; 2000])]);
        let size = directory(&hostile) + 24;
        hostile[size..size + 4].copy_from_slice(&stated.to_le_bytes());
        let problem = unpack(&hostile).unwrap_err();
        assert_eq!(problem.code, Code::FetchRead, "{stated}");
    }
}

#[test]
fn overlapping_members_are_rejected() {
    let mut hostile = wheel(&[("a.so", &[7; 500]), ("b.so", &[7; 500])]);
    let first = directory(&hostile);
    let second = first + 1 + directory(&hostile[first + 1..]);
    // Both records now point at the first member.
    hostile.copy_within(first + 42..first + 46, second + 42);
    assert!(unpack(&hostile).is_err());
}

#[test]
fn files_that_are_not_wheels_are_rejected() {
    let good = wheel(&[("a.so", b"one")]);
    for hostile in [
        &b""[..],
        b"not a zip at all",
        &good[..good.len() - 5],
        &good[..good.len() / 2],
    ] {
        wheel_error(hostile);
    }
}
