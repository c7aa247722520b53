//! What a real build survives: `kill -9` at any moment, and damage to its cache.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::processes::working_on;
use crate::support::tiny_build::TinyBuild;
use kiln::base::hash_bytes;
use kiln::store::Disk;
use rustix::pipe::fcntl_setpipe_size;

const ROUNDS: usize = 20;
/// A few dozen events: the least that the kernel grants.
const PIPE_BYTES: usize = 4096;

/// Begins a build and kills it once it has told `events` events; yields whether that struck it
/// alive.
fn kill_after(events: usize, tiny: &TinyBuild, room: &str) -> bool {
    let mut kiln = tiny
        .build(room)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let stdout = kiln.stdout.take().unwrap();
    // Nobody reads on after that many: the full pipe holds the build until it is struck.
    fcntl_setpipe_size(&stdout, PIPE_BYTES).unwrap();
    let mut lines = BufReader::with_capacity(64, stdout).lines();
    lines
        .by_ref()
        .take(events)
        .for_each(|line| drop(line.unwrap()));
    // Wherever it is by now.
    sleep(Duration::from_micros(events as u64 * 997 % 3000));
    kiln.kill().unwrap();
    !kiln.wait().unwrap().success()
}

/// The signal that ends a child takes a moment to arrive.
fn wait_for_the_end_of(processes: &[PathBuf]) {
    let begin = Instant::now();
    while processes.iter().any(|process| {
        !fs::read(process.join("cmdline"))
            .unwrap_or_default()
            .is_empty()
    }) {
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "left behind: {processes:?}"
        );
        sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_killed_build_leaves_nothing_half_and_nothing_to_do_twice() {
    let tiny = TinyBuild::new();
    let told = tiny.events("whole").len();
    let expected = tiny.written("whole");
    assert_eq!(
        expected.keys().collect::<Vec<_>>(),
        ["model", "plain", "reference", "rounded", "weights"]
    );
    let (parts, ran) = tiny.build_to_end("whole");
    assert_eq!(ran, 0);

    let (mut killed, mut saved) = (0, 0);
    for round in 0..ROUNDS {
        let name = round.to_string();
        killed += usize::from(kill_after(told * round / ROUNDS, &tiny, &name));

        wait_for_the_end_of(&working_on(&tiny.room(&name)));
        for (stage, files) in tiny.written(&name) {
            assert_eq!(
                files, expected[&stage],
                "round {round}: `{stage}` is there, so it must be whole"
            );
        }
        let store = Disk::open(&tiny.cache(&name)).unwrap();
        let verified = store.verify().unwrap();
        assert_eq!(verified.faults, [], "round {round}");
        drop(store);

        let (hits, ran) = tiny.build_to_end(&name);
        assert_eq!(hits + ran, parts, "round {round}");
        // At least: two parts of this plan may share an action.
        assert!(
            hits >= verified.actions as u64,
            "round {round}: what was complete does not run again"
        );
        assert_eq!(tiny.written(&name), expected, "round {round}");
        let left_behind = fs::read_dir(tiny.cache(&name).join("tmp")).unwrap().count();
        assert_eq!(left_behind, 0, "round {round}");
        saved += hits;
    }
    assert!(
        killed >= ROUNDS / 2 && saved > 0,
        "the kills must strike during builds: {killed} did, {saved} parts were saved"
    );
}

fn blob(cache: &Path, bytes: &[u8]) -> PathBuf {
    let hex = hash_bytes(bytes).hex();
    cache.join("blobs").join(&hex[..2]).join(hex)
}

#[test]
fn a_flipped_bit_in_the_cache_is_named_and_then_mended() {
    let tiny = TinyBuild::new();
    tiny.build_to_end("whole");
    let expected = tiny.written("whole");
    let cache = tiny.cache("whole");

    // A tensor must be made again, from a model that is damaged.
    let (_, codes) = expected["weights"]
        .iter()
        .find(|(name, _)| name.ends_with("codes"))
        .unwrap();
    fs::remove_file(blob(&cache, codes)).unwrap();
    let mut model = tiny.model.clone();
    let source = blob(&cache, &model);
    model[5000] ^= 1;
    fs::remove_file(&source).unwrap();
    fs::write(&source, model).unwrap();

    let output = tiny.build("whole").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(
        text.contains("kiln::store::corrupt") && text.contains(source.to_str().unwrap()),
        "{text}"
    );
    assert_eq!(
        tiny.written("whole"),
        expected,
        "what was written out before is not touched"
    );

    let (_, ran) = tiny.build_to_end("whole");
    assert_eq!(ran, 2, "the source, and the tensor");
    assert_eq!(tiny.written("whole"), expected);
}
