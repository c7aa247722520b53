//! Where kiln writes, and what it finds in the places of its own files.

use std::fs;
use std::path::Path;

use crate::support::test_program::Project;
use crate::support::tree::files;

#[test]
fn nothing_is_written_over_what_is_read_nor_into_the_cache() {
    let shop = Project::open();
    shop.done("build shop.toml --lock --log log");
    let before = files(&shop.path("."));
    for call in [
        "build shop.toml --log shop.toml",
        "build shop.toml --junit shop.lock",
        "build shop.toml --trace clay.txt",
        "build shop.toml --log cache/layout",
        "build shop.toml --junit cache/new/report.xml",
        "build shop.toml --out cache/blobs",
        "build shop.toml --out out/../cache",
        "build shop.toml --junit report --trace ./report",
        "replay log --junit log",
        "replay log --trace cache/layout",
        "cache export shop.toml shop.toml",
        "cache export shop.toml cache/all.tar",
    ] {
        let (code, _, errors) = shop.kiln(call, &[]);
        assert!(
            code == 2 && errors.contains("kiln::call::place"),
            "{call}: {code} {errors}"
        );
        assert_eq!(files(&shop.path(".")), before, "{call}");
    }
    shop.done("build shop.toml --log log --junit report.xml --trace trace.json");
    assert_eq!(
        shop.kiln("cache export shop.toml .", &[]).0,
        1,
        "a folder is no file"
    );
}

/// Puts a pipe, at whose other end nobody is, in place of every file below `folder`.
fn pipes(folder: &Path) -> usize {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let replaced = entries.map(|path| match path.is_dir() {
        true => pipes(&path),
        false => {
            fs::remove_file(&path).unwrap();
            rustix::fs::mknodat(
                rustix::fs::CWD,
                &path,
                rustix::fs::FileType::Fifo,
                0o600.into(),
                0,
            )
            .unwrap();
            1
        }
    });
    replaced.sum()
}

#[test]
fn a_pipe_in_place_of_a_file_is_no_reason_to_wait() {
    for room in [
        "cache/last",
        "cache/actions",
        "cache/notes",
        "cache/blobs",
        "out/shop",
    ] {
        let shop = Project::open();
        shop.done("build shop.toml --lock");
        assert!(pipes(&shop.path(room)) > 0);
        for call in [
            "plan shop.toml",
            "build shop.toml --locked",
            "cache stats",
            "cache verify",
            "cache gc",
            "verify shop.toml",
        ] {
            let (code, _, errors) = shop.kiln(call, &[]);
            assert!([0, 1, 3].contains(&code), "{room}, {call}: {code} {errors}");
        }
        shop.kiln("cache verify --repair", &[]);
        fs::remove_dir_all(shop.path("out")).unwrap();
        fs::remove_dir_all(shop.path("cache/last")).unwrap();
        shop.done("build shop.toml --locked");
    }
}

#[test]
fn a_log_waits_for_nobody() {
    let shop = Project::open();
    let pipe = shop.path("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    let (code, _, errors) = shop.kiln("build shop.toml --log pipe", &[]);
    assert!(code == 2 && errors.contains("kiln::call::log"), "{errors}");
    let reader = std::thread::spawn(move || fs::read_to_string(pipe).unwrap());
    while shop.kiln("build shop.toml --log pipe", &[]).0 != 0 {}
    assert!(reader.join().unwrap().contains("finished"));
    shop.done("build shop.toml --log /dev/null");
}

#[test]
fn a_mistake_in_a_call_is_quoted_as_a_terminal_may_have_it() {
    let kiln = |words: &[&str]| {
        let output = assert_cmd::Command::cargo_bin("kiln")
            .unwrap()
            .args(words)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    for words in [
        &["build", "--\u{1b}]0;title\u{7}"][..],
        &["\u{1b}[2J\u{202e}"],
        &["build", "p.toml", "--memory", "1\u{1b}[31mGB"],
        &[
            "init",
            "hf:a/b/c.gguf",
            "--soc",
            "x\n::set-output name=a::b",
        ],
    ] {
        let said = kiln(words);
        let is_raw = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(
            !said.contains(is_raw) && !said.lines().any(|line| line.starts_with("::")),
            "{said:?}"
        );
    }
    let said = kiln(&[
        "build",
        "p.toml",
        "--memory",
        "https://me:secret@host/x?sig=secret",
    ]);
    assert!(
        !said.contains("secret") && said.contains("https://***@host/x?***"),
        "{said}"
    );
}
