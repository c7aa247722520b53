//! Concurrent builds with one cache and one folder of artifacts, some of them killed, and garbage
//! collection meanwhile.

use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::tiny_build::{TinyBuild, codes, printed};
use crate::support::tiny_gguf::Random;

const WORKSPACE: &str = "shared";

/// Starts builds.
fn start(tiny: &TinyBuild, count: usize) -> Vec<Child> {
    let mut builds = vec![];
    for _ in 0..count {
        let mut kiln = tiny.build(WORKSPACE);
        kiln.stdout(Stdio::piped()).stderr(Stdio::piped());
        builds.push(kiln.spawn().unwrap());
    }
    builds
}

/// Waits for builds, which must succeed.
fn finish(builds: Vec<Child>) {
    for kiln in builds {
        let output = kiln.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", printed(&output));
    }
}

fn gc(tiny: &TinyBuild) -> Output {
    let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
    kiln.args(["cache", "gc", "--json", "--cache"])
        .arg(tiny.cache(WORKSPACE))
        .output()
        .unwrap()
}

/// Checks cache and artifacts after all builds.
#[track_caller]
fn assert_correct(tiny: &TinyBuild, expected: &crate::support::tiny_build::Written) {
    assert!(tiny.verifies(WORKSPACE));
    assert_eq!(tiny.written(WORKSPACE), *expected);
    let (_, ran) = tiny.build_to_end(WORKSPACE);
    assert_eq!(ran, 0, "nothing is left to do");
    assert_eq!(
        std::fs::read_dir(tiny.cache(WORKSPACE).join("tmp"))
            .unwrap()
            .count(),
        0
    );
}

/// Checks that no temporary files remain, if no build was killed.
#[track_caller]
fn assert_no_leftovers(tiny: &TinyBuild) {
    assert_eq!(
        std::fs::read_dir(tiny.cache(WORKSPACE).join("partial"))
            .unwrap()
            .count(),
        0
    );
    for entry in std::fs::read_dir(tiny.workspace(WORKSPACE).join("out")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(!name.starts_with('.'), "temporary folder {name}");
    }
}

#[test]
fn concurrent_builds_of_one_plan_succeed() {
    for count in [2, 4, 8] {
        let tiny = TinyBuild::downloading();
        let expected = tiny.expected();
        finish(start(&tiny, count));
        assert_correct(&tiny, &expected);
        assert_no_leftovers(&tiny);
    }
}

#[test]
fn killing_some_builds_does_not_affect_the_others() {
    let tiny = TinyBuild::downloading();
    let expected = tiny.expected();
    let started = Instant::now();
    tiny.build_to_end("timed");
    let length_us = started.elapsed().as_micros() as u64;
    let mut random = Random::of("concurrent builds", 1);
    let mut killed = 0;
    for _ in 0..8 {
        let (builds, victims) = (start(&tiny, 2), start(&tiny, 2));
        for mut victim in victims {
            sleep(Duration::from_micros(random.bits() % (length_us / 2)));
            victim.kill().unwrap();
            killed += usize::from(!victim.wait().unwrap().success());
        }
        finish(builds);
        assert_correct(&tiny, &expected);
        std::fs::remove_dir_all(tiny.workspace(WORKSPACE)).unwrap();
    }
    assert!(killed > 0, "{killed} were killed");
}

#[test]
fn gc_during_builds_is_safe() {
    let tiny = TinyBuild::downloading();
    let expected = tiny.expected();
    let mut refused = 0;
    for round in 0..8 {
        let builds = start(&tiny, 1 + round % 3);
        // `gc` needs an existing cache.
        let started = Instant::now();
        while !tiny.cache(WORKSPACE).join("layout").exists() {
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "no cache is created"
            );
            sleep(Duration::from_millis(1));
        }
        for _ in 0..5 {
            let output = gc(&tiny);
            if !output.status.success() {
                assert_eq!(
                    codes(&output),
                    ["kiln::store::in_use"],
                    "{}",
                    printed(&output)
                );
                refused += 1;
            }
        }
        finish(builds);
        assert!(gc(&tiny).status.success(), "no build is running");
        assert_correct(&tiny, &expected);
        assert_no_leftovers(&tiny);
        if round % 2 == 0 {
            std::fs::remove_dir_all(tiny.workspace(WORKSPACE)).unwrap();
        }
    }
    assert!(refused > 0, "no gc ran during a build");
}
