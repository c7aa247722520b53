//! The program with a full disk, a limit on the size of files, and a read-only cache.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::tiny_build::{TinyBuild, codes, printed};

/// Runs kiln from a shell, after the commands `first`.
fn kiln_after(first: &str, tiny: &TinyBuild, workspace: &str) -> Output {
    let script = format!("{first}; exec \"$@\"");
    let kiln = env!("CARGO_BIN_EXE_kiln");
    Command::new("sh")
        .args(["-c", &script, "sh", kiln])
        .args(tiny.arguments(workspace))
        .output()
        .unwrap()
}

#[test]
fn a_file_size_limit_fails_the_build_cleanly() {
    let tiny = TinyBuild::downloading();
    let expected = tiny.expected();
    let mut failed = 0;
    // In blocks of 512 bytes, from no file at all to every file.
    for blocks in [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 1 << 20] {
        let workspace = blocks.to_string();
        // With the signal ignored, a write beyond the limit returns an error.
        let output = kiln_after(
            &format!("trap '' XFSZ; ulimit -f {blocks}"),
            &tiny,
            &workspace,
        );
        if output.status.success() {
            assert_eq!(tiny.written(&workspace), expected, "{blocks}");
            continue;
        }
        failed += 1;
        assert!(
            printed(&output).contains("File too large"),
            "{blocks}: {}",
            printed(&output)
        );
        assert!(
            printed(&output).contains("free some space"),
            "{blocks}: {}",
            printed(&output)
        );
        tiny.build_to_end(&workspace);
        assert_eq!(tiny.written(&workspace), expected, "{blocks}");
        assert!(tiny.verifies(&workspace), "{blocks}");
    }
    assert!((5..15).contains(&failed), "{failed} failed");
}

/// Builds in a workspace on a small disk, enlarges the disk, builds again and verifies the cache.
const ON_A_SMALL_DISK: &str = r#"
    workspace=$1; size=$2; kiln=$3; shift 3
    mount -t tmpfs -o size=${size}k small "$workspace" || exit 99
    "$kiln" "$@"; echo "first $?"
    mount -o remount,size=64m "$workspace" || exit 99
    "$kiln" "$@" >/dev/null; echo "second $?"
    "$kiln" cache verify --cache "$workspace/cache" >&2; echo "verify $?"
    cp -r "$workspace/out" "$workspace-out"
"#;

#[test]
#[ignore = "mounts small disks in its own namespace (unshare -rm), which not every machine allows"]
fn a_full_disk_fails_the_build_cleanly() {
    if !Command::new("unshare")
        .args(["-rm", "true"])
        .status()
        .is_ok_and(|status| status.success())
    {
        return eprintln!("SKIPPED: this machine does not allow a namespace to mount a small disk");
    }
    let tiny = TinyBuild::downloading();
    let expected = tiny.expected();
    let mut failed = 0;
    for size in (16..1200).step_by(16) {
        let workspace = size.to_string();
        fs::create_dir(tiny.workspace(&workspace)).unwrap();
        let mut shell = Command::new("unshare");
        shell
            .args(["-rm", "sh", "-c", ON_A_SMALL_DISK, "sh"])
            .arg(tiny.workspace(&workspace))
            .arg(&workspace);
        let output = shell
            .arg(env!("CARGO_BIN_EXE_kiln"))
            .args(tiny.arguments(&workspace))
            .output()
            .unwrap();
        let text = printed(&output);
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
                text.contains("first 1\n") && text.contains("free some space"),
                "{size} kB: {text}"
            );
        }
        assert_eq!(
            crate::support::tiny_build::written(&tiny.workspace(&format!("{size}-out"))),
            expected,
            "{size} kB"
        );
    }
    println!("{failed} sizes were too small");
    assert!(failed > 10, "{failed} failed");
}

/// Runs kiln without the privileges of root, so that file modes are respected.
fn unprivileged(call: &[&str], tiny: &TinyBuild, workspace: &str) -> Output {
    let mut kiln = Command::new("env");
    if rustix::process::geteuid().is_root() {
        kiln = Command::new("setpriv");
        kiln.args(["--bounding-set=-all", "--inh-caps=-all"]);
    }
    kiln.arg(env!("CARGO_BIN_EXE_kiln"))
        .args(call)
        .arg("--cache")
        .arg(tiny.cache(workspace))
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
fn a_read_only_cache_serves_hits() {
    let tiny = TinyBuild::new();
    let expected = tiny.expected();
    let (parts, _) = tiny.build_to_end("expected");
    let (plan, out) = (
        tiny.plan().display().to_string(),
        tiny.workspace("expected").join("elsewhere"),
    );
    let build = ["build", &plan, "--json", "--out", out.to_str().unwrap()];
    // Temporary files of a dead process cannot be removed and are ignored.
    fs::create_dir(tiny.cache("expected").join("tmp/kiln-4711")).unwrap();
    change_mode("a-w", &tiny.cache("expected"));

    let stdout = |call: &[&str]| {
        let output = unprivileged(call, &tiny, "expected");
        assert!(output.status.success(), "{call:?}: {}", printed(&output));
        printed(&output)
    };
    assert!(stdout(&build).contains(&format!("\"hits\":{parts},\"ran\":0")));
    assert_eq!(crate::support::tiny_build::written(&out), expected);
    assert!(stdout(&["plan", &plan]).contains("0 parts would run"));
    assert!(stdout(&["explain", &plan, "model"]).contains("model: hit"));
    assert!(stdout(&["cache", "stats"]).contains("reference"));
    assert!(stdout(&["cache", "verify"]).contains("none damaged"));
    assert!(stdout(&["cache", "gc", "--dry-run"]).contains("would remove"));
    let bundle = tiny.workspace("bundle.tar");
    stdout(&["cache", "export", &plan, bundle.to_str().unwrap()]);

    // Without the record and the notes, each part is looked up, and no note is written.
    change_mode("u+w", &tiny.cache("expected"));
    fs::remove_dir_all(tiny.cache("expected").join("last")).unwrap();
    fs::remove_dir_all(tiny.cache("expected").join("notes")).unwrap();
    fs::create_dir(tiny.cache("expected").join("notes")).unwrap();
    change_mode("a-w", &tiny.cache("expected"));
    assert!(stdout(&build).contains(&format!("\"hits\":{parts},\"ran\":0")));

    // A new result cannot be stored.
    let text = fs::read_to_string(tiny.plan())
        .unwrap()
        .replace("windows = 2", "windows = 1");
    fs::write(tiny.plan(), text).unwrap();
    let output = unprivileged(&build, &tiny, "expected");
    assert_eq!(
        codes(&output),
        ["kiln::store::read_only"],
        "{}",
        printed(&output)
    );
    assert!(printed(&output).contains("--cache"), "{}", printed(&output));
    change_mode("u+w", &tiny.cache("expected"));
    assert_eq!(tiny.build_to_end("expected"), (parts - 1, 1));
}
