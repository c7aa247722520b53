//! Output paths, and special files in place of kiln's files.

use std::fs;
use std::path::Path;

use crate::support::test_program::Project;
use crate::support::tree::files;

#[test]
fn output_paths_cannot_overwrite_inputs_or_the_cache() {
    let project = Project::open();
    project.stdout("build shop.toml --lock --log log");
    let before = files(&project.path("."));
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
        let (code, _, errors) = project.kiln(call, &[]);
        assert!(
            code == 2 && errors.contains("kiln::call::place"),
            "{call}: {code} {errors}"
        );
        assert_eq!(files(&project.path(".")), before, "{call}");
    }
    project.stdout("build shop.toml --log log --junit report.xml --trace trace.json");
    assert_eq!(
        project.kiln("cache export shop.toml .", &[]).0,
        1,
        "a folder cannot be replaced by a file"
    );
}

/// Replaces every file below `folder` by a FIFO without a reader or writer. Returns their number.
fn replace_by_fifos(folder: &Path) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            count += replace_by_fifos(&path);
        } else {
            fs::remove_file(&path).unwrap();
            make_fifo(&path);
            count += 1;
        }
    }
    count
}

fn make_fifo(path: &Path) {
    let (mode, kind) = (0o600.into(), rustix::fs::FileType::Fifo);
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
}

#[test]
fn a_fifo_in_place_of_a_file_does_not_block() {
    for folder in [
        "cache/last",
        "cache/actions",
        "cache/notes",
        "cache/blobs",
        "out/shop",
    ] {
        let project = Project::open();
        project.stdout("build shop.toml --lock");
        assert!(replace_by_fifos(&project.path(folder)) > 0);
        for call in [
            "plan shop.toml",
            "build shop.toml --locked",
            "cache stats",
            "cache verify",
            "cache gc",
            "verify shop.toml",
        ] {
            let (code, _, errors) = project.kiln(call, &[]);
            assert!(
                [0, 1, 3].contains(&code),
                "{folder}, {call}: {code} {errors}"
            );
        }
        project.kiln("cache verify --repair", &[]);
        fs::remove_dir_all(project.path("out")).unwrap();
        fs::remove_dir_all(project.path("cache/last")).unwrap();
        project.stdout("build shop.toml --locked");
    }
}

#[test]
fn a_log_on_a_fifo_does_not_block() {
    let project = Project::open();
    let pipe = project.path("pipe");
    make_fifo(&pipe);
    let (code, _, errors) = project.kiln("build shop.toml --log pipe", &[]);
    assert!(code == 2 && errors.contains("kiln::call::log"), "{errors}");
    let reader = std::thread::spawn(move || fs::read_to_string(pipe).unwrap());
    while project.kiln("build shop.toml --log pipe", &[]).0 != 0 {}
    assert!(reader.join().unwrap().contains("finished"));
    project.stdout("build shop.toml --log /dev/null");
}

#[test]
fn invalid_arguments_are_escaped_in_messages() {
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
        let output = kiln(words);
        let is_raw = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!output.contains(is_raw), "{output:?}");
        for line in output.lines() {
            assert!(!line.starts_with("::"), "{output:?}");
        }
    }
    let output = kiln(&[
        "build",
        "p.toml",
        "--memory",
        "https://me:secret@host/x?sig=secret",
    ]);
    assert!(
        !output.contains("secret") && output.contains("https://***@host/x?***"),
        "{output}"
    );
}
