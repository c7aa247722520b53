//! Builds that are killed with `kill -9` at some moment, and damage to the cache.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::processes::processes_using;
use crate::support::results::entry_path;
use crate::support::tiny_build::TinyBuild;
use kiln::store::Disk;
use rustix::pipe::fcntl_setpipe_size;

const ROUNDS: usize = 20;
/// The smallest size that the kernel allows, a few dozen events.
const PIPE_BYTES: usize = 4096;

/// Starts a build and kills it after `events` events. Returns whether it was still running.
fn kill_after(events: usize, tiny: &TinyBuild, workspace: &str) -> bool {
    let mut kiln = tiny
        .build(workspace)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let stdout = kiln.stdout.take().unwrap();
    // After these events nothing is read, so the full pipe blocks the build until it is killed.
    fcntl_setpipe_size(&stdout, PIPE_BYTES).unwrap();
    let mut lines = BufReader::with_capacity(64, stdout).lines();
    for line in lines.by_ref().take(events) {
        line.unwrap();
    }
    sleep(Duration::from_micros(events as u64 * 997 % 3000));
    kiln.kill().unwrap();
    !kiln.wait().unwrap().success()
}

/// Waits until processes have ended, since the signal to a child takes a moment.
fn wait_for_end(processes: &[PathBuf]) {
    let start = Instant::now();
    for process in processes {
        let command_line = || fs::read(process.join("cmdline")).unwrap_or_default();
        while !command_line().is_empty() {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "still running: {processes:?}"
            );
            sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn a_killed_build_leaves_no_partial_output_and_loses_no_result() {
    let tiny = TinyBuild::new();
    let event_count = tiny.events("expected").len();
    let expected = tiny.written("expected");
    assert_eq!(
        expected.keys().collect::<Vec<_>>(),
        ["model", "plain", "reference", "rounded", "weights"]
    );
    let (parts, ran) = tiny.build_to_end("expected");
    assert_eq!(ran, 0);

    let (mut killed, mut kept) = (0, 0);
    for round in 0..ROUNDS {
        let name = round.to_string();
        killed += usize::from(kill_after(event_count * round / ROUNDS, &tiny, &name));

        wait_for_end(&processes_using(&tiny.workspace(&name)));
        for (stage, files) in tiny.written(&name) {
            assert_eq!(
                files, expected[&stage],
                "round {round}: the folder of `{stage}` must be complete"
            );
        }
        let store = Disk::open(&tiny.cache(&name)).unwrap();
        let verified = store.verify().unwrap();
        assert_eq!(verified.faults, [], "round {round}");
        drop(store);

        let (hits, ran) = tiny.build_to_end(&name);
        assert_eq!(hits + ran, parts, "round {round}");
        // Not equal, since two parts of this plan can share an action.
        assert!(
            hits >= verified.actions as u64,
            "round {round}: completed actions do not run again"
        );
        assert_eq!(tiny.written(&name), expected, "round {round}");
        let left_behind = fs::read_dir(tiny.cache(&name).join("tmp")).unwrap().count();
        assert_eq!(left_behind, 0, "round {round}");
        kept += hits;
    }
    assert!(
        killed >= ROUNDS / 2 && kept > 0,
        "builds must be killed while they run: {killed} were, {kept} parts were kept"
    );
}

#[test]
fn a_corrupt_blob_is_reported_and_then_repaired() {
    let tiny = TinyBuild::new();
    tiny.build_to_end("expected");
    let expected = tiny.written("expected");
    let cache = tiny.cache("expected");

    // A tensor must be computed again from a damaged model.
    let (_, codes) = expected["weights"]
        .iter()
        .find(|(name, _)| name.ends_with("codes"))
        .unwrap();
    fs::remove_file(entry_path(&cache, "blobs", codes, "")).unwrap();
    let mut model = tiny.model.clone();
    let source = entry_path(&cache, "blobs", &model, "");
    model[5000] ^= 1;
    fs::remove_file(&source).unwrap();
    fs::write(&source, model).unwrap();

    let output = tiny.build("expected").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(
        text.contains("kiln::store::corrupt") && text.contains(source.to_str().unwrap()),
        "{text}"
    );
    assert_eq!(
        tiny.written("expected"),
        expected,
        "existing artifacts are not changed"
    );

    let (_, ran) = tiny.build_to_end("expected");
    assert_eq!(ran, 2, "the source, and the tensor");
    assert_eq!(tiny.written("expected"), expected);
}
