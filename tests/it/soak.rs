//! `kill -9` at random moments, over and over: the program from outside, with downloads, threads
//! and child processes.

use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::processes::{kill, working_on};
use crate::support::tiny_build::{TinyBuild, said};
use crate::support::tiny_gguf::Random;

/// What came of the rounds.
#[derive(Debug, Default, PartialEq)]
struct Count {
    rounds: usize,
    /// Strikes that hit a build alive, and of those the ones that found some of its work done.
    struck: usize,
    in_the_middle: usize,
    /// Rounds after which a build gave other bytes, or something half was seen before it.
    wrong: usize,
    /// Rounds after which a build did not succeed.
    refused: usize,
    /// Rounds after which `cache verify` found something.
    verify_faults: usize,
    /// Rounds after which a process of the killed build lived on.
    left_behind: usize,
}

/// Strikes each round once or twice, then builds undisturbed.
fn soak(rounds: usize, seed: u64) -> Count {
    let tiny = TinyBuild::downloading();
    let expected = tiny.whole();
    let begun = Instant::now();
    tiny.build_to_end("timed");
    let length_us = begun.elapsed().as_micros() as u64;

    let mut random = Random::of("kills", seed);
    let mut count = Count {
        rounds,
        ..Count::default()
    };
    for round in 0..rounds {
        let room = round.to_string();
        for _ in 0..=round % 2 {
            let whom = if random.bits().is_multiple_of(2) {
                Whom::Parent
            } else {
                Whom::All
            };
            let (is_struck, lives_on) = strike(
                &tiny,
                &room,
                Duration::from_micros(random.bits() % length_us),
                whom,
            );
            count.struck += usize::from(is_struck);
            count.left_behind += usize::from(lives_on);
            let blobs =
                fs::read_dir(tiny.cache(&room).join("blobs")).map_or(0, |blobs| blobs.count());
            count.in_the_middle += usize::from(is_struck && blobs > 0);
        }
        let mut is_wrong = tiny
            .written(&room)
            .iter()
            .any(|(stage, files)| expected[stage] != *files);
        let output = tiny.build(&room).output().unwrap();
        if !output.status.success() {
            println!("round {round}, refused: {}", said(&output));
            count.refused += 1;
        }
        is_wrong |= tiny.written(&room) != expected;
        count.wrong += usize::from(is_wrong);
        count.verify_faults += usize::from(!tiny.is_whole(&room));
        fs::remove_dir_all(tiny.room(&room)).unwrap();
        if round % 100 == 99 {
            println!("{count:?} after round {round}");
            std::io::stdout().flush().unwrap();
        }
    }
    println!("{count:?}; a build takes {} ms", length_us / 1000);
    count
}

enum Whom {
    /// The build alone: its children must follow by themselves.
    Parent,
    /// The build and its children, at once.
    All,
}

/// Kills a build after a while; yields whether it was alive, and whether any process of it was ten
/// seconds later.
fn strike(tiny: &TinyBuild, room: &str, after: Duration, whom: Whom) -> (bool, bool) {
    let mut kiln = tiny
        .build(room)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    sleep(after);
    if let Whom::All = whom {
        working_on(&tiny.room(room))
            .iter()
            .for_each(|process| kill(process));
    }
    kiln.kill().unwrap();
    let is_struck = !kiln.wait().unwrap().success();
    let begun = Instant::now();
    while !working_on(&tiny.room(room)).is_empty() {
        if begun.elapsed() > Duration::from_secs(10) {
            return (is_struck, true);
        }
        sleep(Duration::from_millis(1));
    }
    (is_struck, false)
}

fn check(rounds: usize, seed: u64) {
    let count = soak(rounds, seed);
    let Count {
        rounds,
        struck,
        in_the_middle,
        ..
    } = count;
    assert_eq!(
        count,
        Count {
            rounds,
            struck,
            in_the_middle,
            ..Count::default()
        },
        "all else is 0"
    );
    assert!(
        in_the_middle >= rounds / 4,
        "the kills must strike while something is done and something is not"
    );
}

#[test]
fn a_few_kills() {
    check(8, 1);
}

#[test]
#[ignore = "takes about six minutes"]
fn big_a_thousand_kills() {
    check(1000, 2);
}
