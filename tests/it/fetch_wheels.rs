//! `fetch` on wheels, decent and hostile.

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

/// Where the central directory's record of the first member begins.
fn directory(wheel: &[u8]) -> usize {
    wheel
        .windows(4)
        .position(|magic| magic == b"PK\x01\x02")
        .unwrap()
}

/// Puts `new` for every `old`, which is as long.
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

fn refusal(wheel: &[u8]) -> String {
    let problem = unpack(wheel).unwrap_err();
    assert_eq!(problem.code, Code::FetchWheel);
    problem.to_string()
}

#[test]
fn shared_libraries_come_out_under_their_own_names() {
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
fn a_wheel_without_libraries_is_no_tool() {
    assert!(refusal(&wheel(&[("clay/__init__.py", b"py")])).contains("no shared library"));
}

#[test]
fn two_libraries_of_one_name_are_refused() {
    assert!(
        refusal(&wheel(&[("a/lib.so", b"one"), ("b/lib.so", b"two")]))
            .contains("two libraries named `lib.so`")
    );
}

#[test]
fn members_cannot_leave_the_wheel() {
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
        assert!(refusal(&hostile).contains("leaves the wheel"), "{name}");
    }
}

#[test]
fn two_members_of_one_name_are_refused() {
    let mut hostile = wheel(&[("a.so", b"one"), ("b.so", b"two")]);
    replace(&mut hostile, b"b.so", b"a.so");
    assert!(refusal(&hostile).contains("two members of one name"));
}

#[test]
fn encrypted_members_are_refused() {
    let mut hostile = wheel(&[("a.so", b"one")]);
    let flags = directory(&hostile) + 8;
    hostile[flags] |= 1;
    assert!(refusal(&hostile).contains("encrypted"));
}

#[test]
fn symbolic_links_are_refused() {
    let mut writer = zip::ZipWriter::new(Cursor::new(vec![]));
    writer
        .add_symlink("a.so", "/etc/passwd", SimpleFileOptions::default())
        .unwrap();
    assert!(refusal(&writer.finish().unwrap().into_inner()).contains("symbolic link"));
}

#[test]
fn a_bomb_is_refused_before_it_goes_off() {
    let zeros = vec![0; 70 << 20];
    let bomb = wheel(&[("a.so", &zeros)]);
    assert!(bomb.len() < 100_000, "{}", bomb.len());
    assert!(refusal(&bomb).contains("would unpack to 73.4 MB"));
}

#[test]
fn a_member_that_is_longer_or_shorter_than_it_says_is_refused() {
    for says in [10u32, 3000] {
        let mut liar = wheel(&[("a.so", &[7; 2000])]);
        let size = directory(&liar) + 24;
        liar[size..size + 4].copy_from_slice(&says.to_le_bytes());
        let problem = unpack(&liar).unwrap_err();
        assert_eq!(problem.code, Code::FetchRead, "{says}");
    }
}

#[test]
fn members_cannot_share_their_bytes() {
    let mut hostile = wheel(&[("a.so", &[7; 500]), ("b.so", &[7; 500])]);
    let first = directory(&hostile);
    let second = first + 1 + directory(&hostile[first + 1..]);
    hostile.copy_within(first + 42..first + 46, second + 42); // both records now point at the first member
    assert!(unpack(&hostile).is_err());
}

#[test]
fn bytes_that_are_no_wheel_are_refused() {
    let good = wheel(&[("a.so", b"one")]);
    for hostile in [
        &b""[..],
        b"not a zip at all",
        &good[..good.len() - 5],
        &good[..good.len() / 2],
    ] {
        refusal(hostile);
    }
}
