//! A disk that is full, a file that may not grow, a cache that is read-only: the real program.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::tiny_build::{TinyBuild, codes, said};

/// Runs kiln by way of a shell that first does `first`.
fn kiln_after(first: &str, tiny: &TinyBuild, room: &str) -> Output {
    let script = format!("{first}; exec \"$@\"");
    let kiln = env!("CARGO_BIN_EXE_kiln");
    Command::new("sh")
        .args(["-c", &script, "sh", kiln])
        .args(tiny.arguments(room))
        .output()
        .unwrap()
}

#[test]
fn a_file_that_may_not_grow_fails_the_build_and_nothing_else() {
    let tiny = TinyBuild::downloading();
    let expected = tiny.whole();
    let mut failed = 0;
    // In blocks of 512 bytes; from "no file at all" to "every file".
    for blocks in [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 1 << 20] {
        let room = blocks.to_string();
        // Ignored, the signal becomes an error of the write that goes too far.
        let output = kiln_after(&format!("trap '' XFSZ; ulimit -f {blocks}"), &tiny, &room);
        if output.status.success() {
            assert_eq!(tiny.written(&room), expected, "{blocks}");
            continue;
        }
        failed += 1;
        assert!(
            said(&output).contains("File too large"),
            "{blocks}: {}",
            said(&output)
        );
        assert!(
            said(&output).contains("make room"),
            "{blocks}: {}",
            said(&output)
        );
        tiny.build_to_end(&room);
        assert_eq!(tiny.written(&room), expected, "{blocks}");
        assert!(tiny.is_whole(&room), "{blocks}");
    }
    assert!((5..15).contains(&failed), "{failed} failed");
}

/// A build in a room that is a disk of so many kB, then again after the disk has grown, then a look
/// at the cache.
const ON_A_SMALL_DISK: &str = r#"
    room=$1; size=$2; kiln=$3; shift 3
    mount -t tmpfs -o size=${size}k small "$room" || exit 99
    "$kiln" "$@"; echo "first $?"
    mount -o remount,size=64m "$room" || exit 99
    "$kiln" "$@" >/dev/null; echo "second $?"
    "$kiln" cache verify --cache "$room/cache" >&2; echo "verify $?"
    cp -r "$room/out" "$room-out"
"#;

#[test]
#[ignore = "mounts small disks in a namespace of its own, which not every machine allows (unshare \
            -rm)"]
fn a_full_disk_fails_the_build_and_nothing_else() {
    if !Command::new("unshare")
        .args(["-rm", "true"])
        .status()
        .is_ok_and(|status| status.success())
    {
        return eprintln!("SKIPPED: this machine grants no namespace to mount a small disk in");
    }
    let tiny = TinyBuild::downloading();
    let expected = tiny.whole();
    let mut failed = 0;
    for size in (16..1200).step_by(16) {
        let room = size.to_string();
        fs::create_dir(tiny.room(&room)).unwrap();
        let mut shell = Command::new("unshare");
        shell
            .args(["-rm", "sh", "-c", ON_A_SMALL_DISK, "sh"])
            .arg(tiny.room(&room))
            .arg(&room);
        let output = shell
            .arg(env!("CARGO_BIN_EXE_kiln"))
            .args(tiny.arguments(&room))
            .output()
            .unwrap();
        let text = said(&output);
        assert!(
            text.contains("second 0\n") && text.contains("verify 0\n"),
            "{size} kB: {text}"
        );
        if !text.contains("first 0\n") {
            failed += 1;
            assert!(
                text.contains("No space left on device"),
                "{size} kB: {text}"
            );
            assert!(
                text.contains("first 1\n") && text.contains("make room"),
                "{size} kB: {text}"
            );
        }
        assert_eq!(
            crate::support::tiny_build::written(&tiny.room(&format!("{size}-out"))),
            expected,
            "{size} kB"
        );
    }
    println!("{failed} sizes were too small");
    assert!(failed > 10, "{failed} failed");
}

/// Runs kiln as someone for whom the mode of a file counts: root goes without its privileges.
fn humbly(call: &[&str], tiny: &TinyBuild, room: &str) -> Output {
    let mut kiln = match rustix::process::geteuid().is_root() {
        true => Command::new("setpriv"),
        false => Command::new("env"),
    };
    if rustix::process::geteuid().is_root() {
        kiln.args(["--bounding-set=-all", "--inh-caps=-all"]);
    }
    kiln.arg(env!("CARGO_BIN_EXE_kiln"))
        .args(call)
        .arg("--cache")
        .arg(tiny.cache(room))
        .output()
        .unwrap()
}

fn change_mode(mode: &str, folder: &Path) {
    assert!(
        Command::new("chmod")
            .args(["-R", mode])
            .arg(folder)
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn a_read_only_cache_serves_what_it_has() {
    let tiny = TinyBuild::new();
    let expected = tiny.whole();
    let (parts, _) = tiny.build_to_end("whole");
    let (plan, out) = (
        tiny.plan().display().to_string(),
        tiny.room("whole").join("elsewhere"),
    );
    let build = ["build", &plan, "--json", "--out", out.to_str().unwrap()];
    // What a dead process left there cannot be removed, and is nobody's concern.
    fs::create_dir(tiny.cache("whole").join("tmp/kiln-4711")).unwrap();
    change_mode("a-w", &tiny.cache("whole"));

    let succeeds = |call: &[&str]| {
        let output = humbly(call, &tiny, "whole");
        assert!(output.status.success(), "{call:?}: {}", said(&output));
        said(&output)
    };
    assert!(succeeds(&build).contains(&format!("\"hits\":{parts},\"ran\":0")));
    assert_eq!(crate::support::tiny_build::written(&out), expected);
    assert!(succeeds(&["plan", &plan]).contains("0 parts would run"));
    assert!(succeeds(&["explain", &plan, "model"]).contains("model: hit"));
    assert!(succeeds(&["cache", "stats"]).contains("reference"));
    assert!(succeeds(&["cache", "verify"]).contains("none damaged"));
    assert!(succeeds(&["cache", "gc", "--dry-run"]).contains("would remove"));
    let bundle = tiny.room("bundle.tar");
    succeeds(&["cache", "export", &plan, bundle.to_str().unwrap()]);

    // Without the record and the notes all is found part by part, and not remembered.
    change_mode("u+w", &tiny.cache("whole"));
    fs::remove_dir_all(tiny.cache("whole").join("last")).unwrap();
    fs::remove_dir_all(tiny.cache("whole").join("notes")).unwrap();
    fs::create_dir(tiny.cache("whole").join("notes")).unwrap();
    change_mode("a-w", &tiny.cache("whole"));
    assert!(succeeds(&build).contains(&format!("\"hits\":{parts},\"ran\":0")));

    // What it has not cannot be put there.
    let text = fs::read_to_string(tiny.plan())
        .unwrap()
        .replace("windows = 2", "windows = 1");
    fs::write(tiny.plan(), text).unwrap();
    let output = humbly(&build, &tiny, "whole");
    assert_eq!(
        codes(&output),
        ["kiln::store::read_only"],
        "{}",
        said(&output)
    );
    assert!(said(&output).contains("--cache"), "{}", said(&output));
    change_mode("u+w", &tiny.cache("whole"));
    assert_eq!(tiny.build_to_end("whole"), (parts - 1, 1));
}
