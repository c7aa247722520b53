//! Repeated `kill -9` at random moments, with downloads, threads and child processes.

use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::processes::{kill, processes_using};
use crate::support::tiny_build::{TinyBuild, printed};
use crate::support::tiny_gguf::Random;

/// The results of all rounds.
#[derive(Debug, Default, PartialEq)]
struct Count {
    rounds: usize,
    /// Kills of a running build.
    killed: usize,
    /// Kills of a running build that had written some blobs.
    killed_midway: usize,
    /// Rounds with wrong or incomplete artifacts.
    wrong: usize,
    /// Rounds whose final build failed.
    failed: usize,
    /// Rounds after which `cache verify` failed.
    verify_faults: usize,
    /// Kills after which a process of the build kept running.
    left_behind: usize,
}

/// Kills one or two builds in each round, then builds undisturbed.
fn soak(rounds: usize, seed: u64) -> Count {
    let tiny = TinyBuild::downloading();
    let expected = tiny.expected();
    let start = Instant::now();
    tiny.build_to_end("timed");
    let length_us = start.elapsed().as_micros() as u64;

    let mut random = Random::of("kills", seed);
    let mut count = Count {
        rounds,
        ..Count::default()
    };
    for round in 0..rounds {
        let workspace = round.to_string();
        for _ in 0..=round % 2 {
            let target = if random.bits().is_multiple_of(2) {
                Target::Parent
            } else {
                Target::All
            };
            let delay = Duration::from_micros(random.bits() % length_us);
            let (was_running, keeps_running) = kill_build(&tiny, &workspace, delay, target);
            count.killed += usize::from(was_running);
            count.left_behind += usize::from(keeps_running);
            let has_blobs = match fs::read_dir(tiny.cache(&workspace).join("blobs")) {
                Ok(mut blobs) => blobs.next().is_some(),
                Err(_) => false,
            };
            count.killed_midway += usize::from(was_running && has_blobs);
        }
        let mut is_wrong = false;
        for (stage, files) in tiny.written(&workspace) {
            is_wrong |= expected[&stage] != files;
        }
        let output = tiny.build(&workspace).output().unwrap();
        if !output.status.success() {
            println!("round {round} failed: {}", printed(&output));
            count.failed += 1;
        }
        is_wrong |= tiny.written(&workspace) != expected;
        count.wrong += usize::from(is_wrong);
        count.verify_faults += usize::from(!tiny.verifies(&workspace));
        fs::remove_dir_all(tiny.workspace(&workspace)).unwrap();
        if round % 100 == 99 {
            println!("{count:?} after round {round}");
            std::io::stdout().flush().unwrap();
        }
    }
    println!("{count:?}; a build takes {} ms", length_us / 1000);
    count
}

/// The processes to kill.
enum Target {
    /// Only the build; its children must end by themselves.
    Parent,
    /// The build and its children.
    All,
}

/// Kills a build after a delay. Returns whether it was running, and whether any of its processes
/// was still running ten seconds later.
fn kill_build(tiny: &TinyBuild, workspace: &str, after: Duration, target: Target) -> (bool, bool) {
    let mut kiln = tiny
        .build(workspace)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    sleep(after);
    if let Target::All = target {
        for process in processes_using(&tiny.workspace(workspace)) {
            kill(&process);
        }
    }
    kiln.kill().unwrap();
    let was_running = !kiln.wait().unwrap().success();
    let start = Instant::now();
    while !processes_using(&tiny.workspace(workspace)).is_empty() {
        if start.elapsed() > Duration::from_secs(10) {
            return (was_running, true);
        }
        sleep(Duration::from_millis(1));
    }
    (was_running, false)
}

fn check(rounds: usize, seed: u64) {
    let count = soak(rounds, seed);
    let Count {
        rounds,
        killed,
        killed_midway,
        ..
    } = count;
    assert_eq!(
        count,
        Count {
            rounds,
            killed,
            killed_midway,
            ..Count::default()
        },
        "all other counts are 0"
    );
    assert!(killed_midway >= rounds / 4, "builds must be killed midway");
}

#[test]
fn random_kills() {
    check(8, 1);
}

#[test]
#[ignore = "takes about six minutes"]
fn big_thousand_random_kills() {
    check(1000, 2);
}
