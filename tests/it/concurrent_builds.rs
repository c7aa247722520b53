//! Many kilns at once on one cache and one folder of artifacts, some of them killed, while the
//! cache is being cleared.

use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::tiny_build::{TinyBuild, codes, said};
use crate::support::tiny_gguf::Random;

const ROOM: &str = "together";

/// Builds that are to succeed.
fn begin(tiny: &TinyBuild, many: usize) -> Vec<Child> {
    let start = || {
        tiny.build(ROOM)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    (0..many).map(|_| start()).collect()
}

fn end(kilns: Vec<Child>) {
    for kiln in kilns {
        let output = kiln.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    }
}

fn gc(tiny: &TinyBuild) -> Output {
    let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
    kiln.args(["cache", "gc", "--json", "--cache"])
        .arg(tiny.cache(ROOM))
        .output()
        .unwrap()
}

/// What must hold when all is quiet again.
#[track_caller]
fn assert_right(tiny: &TinyBuild, expected: &crate::support::tiny_build::Written) {
    assert!(tiny.is_whole(ROOM));
    assert_eq!(tiny.written(ROOM), *expected);
    let (_, ran) = tiny.build_to_end(ROOM);
    assert_eq!(ran, 0, "there is nothing left to do");
    assert_eq!(
        std::fs::read_dir(tiny.cache(ROOM).join("tmp"))
            .unwrap()
            .count(),
        0
    );
}

/// Where nobody was killed, nothing lies about.
#[track_caller]
fn assert_tidy(tiny: &TinyBuild) {
    assert_eq!(
        std::fs::read_dir(tiny.cache(ROOM).join("partial"))
            .unwrap()
            .count(),
        0
    );
    let names = std::fs::read_dir(tiny.room(ROOM).join("out")).unwrap();
    let hidden = names.filter(|entry| {
        entry
            .as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with('.')
    });
    assert_eq!(
        hidden.count(),
        0,
        "nothing half-written lies beside the artifacts"
    );
}

#[test]
fn many_kilns_build_the_same_at_once() {
    for many in [2, 4, 8] {
        let tiny = TinyBuild::downloading();
        let expected = tiny.whole();
        end(begin(&tiny, many));
        assert_right(&tiny, &expected);
        assert_tidy(&tiny);
    }
}

#[test]
fn some_are_killed_and_the_others_do_not_mind() {
    let tiny = TinyBuild::downloading();
    let expected = tiny.whole();
    let begun = Instant::now();
    tiny.build_to_end("timed");
    let length_us = begun.elapsed().as_micros() as u64;
    let mut random = Random::of("crowd", 1);
    let mut killed = 0;
    for _ in 0..8 {
        let (kilns, victims) = (begin(&tiny, 2), begin(&tiny, 2));
        for mut victim in victims {
            sleep(Duration::from_micros(random.bits() % (length_us / 2)));
            victim.kill().unwrap();
            killed += usize::from(!victim.wait().unwrap().success());
        }
        end(kilns);
        assert_right(&tiny, &expected);
        std::fs::remove_dir_all(tiny.room(ROOM)).unwrap();
    }
    assert!(killed > 0, "{killed} were killed");
}

#[test]
fn what_is_cleared_meanwhile_is_nobodys_loss() {
    let tiny = TinyBuild::downloading();
    let expected = tiny.whole();
    let mut refused = 0;
    for round in 0..8 {
        let kilns = begin(&tiny, 1 + round % 3);
        // A cache that is not there yet cannot be cleared.
        let begun = Instant::now();
        while !tiny.cache(ROOM).join("layout").exists() {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "no cache is made"
            );
            sleep(Duration::from_millis(1));
        }
        for _ in 0..5 {
            let output = gc(&tiny);
            if !output.status.success() {
                assert_eq!(codes(&output), ["kiln::store::in_use"], "{}", said(&output));
                refused += 1;
            }
        }
        end(kilns);
        assert!(gc(&tiny).status.success(), "nobody is at work any more");
        assert_right(&tiny, &expected);
        assert_tidy(&tiny);
        if round % 2 == 0 {
            std::fs::remove_dir_all(tiny.room(ROOM)).unwrap();
        }
    }
    assert!(refused > 0, "no call met a build");
}
