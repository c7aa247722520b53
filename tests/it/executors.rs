//! The contract of executors, run on a thread and in a child process; then what only a child can
//! suffer.
//!
//! The child is `work` of the helper program in `test_program`, which knows the stage kind `scripted`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln::action::{Action, ActionInput, Demand, Isolation, Registry, Window};
use kiln::base::{CanonJson, Code, Problem, Result, hash_bytes};
use kiln::execute::{Executor, Local, RunOutput, Watch};
use kiln::store::{BlobStore, Disk, LocalStore};
use serde_json::json;

use crate::support::alive::{is_alive, wait_until};
use crate::support::test_program::PROGRAM;

#[path = "test_program/scripted.rs"]
mod scripted;
use scripted::Scripted;

fn stages() -> Registry {
    Registry::new(vec![Box::new(Scripted)])
}

fn action(what: &str, argument: &str) -> Action {
    let file = ActionInput {
        digest: hash_bytes(b"clay"),
        window: None,
        facts: CanonJson::default(),
    };
    Action {
        stage: "scripted".into(),
        version: 3,
        params: json!({"do": what, "argument": argument}),
        inputs: [("clay".to_string(), file)].into(),
        tools: BTreeMap::new(),
        origin: None,
    }
}

#[derive(Default)]
struct JobMonitor {
    seen: Mutex<Vec<(u64, u64, String)>>,
    cancelled: AtomicBool,
    cancel_on_progress: bool,
}

impl Watch for JobMonitor {
    fn progress(&self, done: u64, total: u64, unit: &str) {
        self.seen.lock().unwrap().push((done, total, unit.into()));
        self.cancelled
            .store(self.cancel_on_progress, Ordering::SeqCst);
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }
}

/// A cache that holds `clay`, and the two ways to run.
struct Bench {
    folder: tempfile::TempDir,
    store: Disk,
}

const BOTH: [Isolation; 2] = [Isolation::Thread, Isolation::Process];

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let store = Disk::open(&folder.path().join("cache")).unwrap();
        let mut sink = store.create().unwrap();
        sink.write_all(b"clay").unwrap();
        sink.finish().unwrap();
        Bench { folder, store }
    }

    fn run(&self, isolation: Isolation, action: &Action, watch: &JobMonitor) -> Result<RunOutput> {
        let demand = Demand {
            isolation,
            ..Demand::default()
        };
        Local {
            store: &self.store,
            stages: &stages(),
            program: PROGRAM.into(),
        }
        .run(action, &demand, watch)
    }

    fn problem(&self, isolation: Isolation, what: &str) -> Problem {
        self.run(isolation, &action(what, ""), &JobMonitor::default())
            .err()
            .unwrap()
    }

    fn output(&self, ran: &RunOutput) -> Vec<u8> {
        self.store
            .open(&ran.outputs["out"].content.digest)
            .unwrap()
            .unwrap()
            .to_vec()
    }
}

#[test]
fn outputs_and_progress_come_back() {
    for isolation in BOTH {
        let (bench, watch) = (Bench::new(), JobMonitor::default());
        let ran = bench
            .run(isolation, &action("reverse", ""), &watch)
            .unwrap();
        assert_eq!(bench.output(&ran), b"yalc");
        assert_eq!(ran.outputs["out"].facts.to_string(), r#"{"reversed":true}"#);
        let seen = watch.seen.into_inner().unwrap();
        assert_eq!(seen.first(), Some(&(1, 2, "B".into())));
        assert_eq!(seen.last(), Some(&(2, 2, "B".into())));
        assert_eq!(
            ran.peak_memory_bytes.is_some_and(|peak| peak > 1 << 20),
            isolation == Isolation::Process
        );
    }
}

#[test]
fn a_problem_comes_back_whole() {
    for isolation in BOTH {
        let problem = Bench::new().problem(isolation, "fail");
        assert_eq!(
            problem,
            Problem::new(Code::of("kiln::scripted"), "refused").help("ask nicely")
        );
    }
}

#[test]
fn a_window_is_read_as_if_it_were_a_file() {
    for isolation in BOTH {
        let bench = Bench::new();
        let mut action = action("copy by path", "");
        let window = Some(Window {
            blob: hash_bytes(b"clay"),
            offset: 1,
        });
        action.inputs.get_mut("clay").unwrap().digest = hash_bytes(b"la");
        action.inputs.get_mut("clay").unwrap().window = window;
        let ran = bench
            .run(isolation, &action, &JobMonitor::default())
            .unwrap();
        assert_eq!(bench.output(&ran), b"la");

        action.inputs.get_mut("clay").unwrap().digest = hash_bytes(b"al");
        let problem = bench
            .run(isolation, &action, &JobMonitor::default())
            .err()
            .unwrap();
        assert_eq!(problem.code, Code::StoreWindow, "other bytes than it says");

        let past_the_end = Some(Window {
            blob: hash_bytes(b"clay"),
            offset: u64::MAX,
        });
        action.inputs.get_mut("clay").unwrap().window = past_the_end;
        let problem = bench
            .run(isolation, &action, &JobMonitor::default())
            .err()
            .unwrap();
        assert_eq!(problem.code, Code::StoreWindow);
    }
}

#[test]
fn what_cannot_run_is_refused() {
    for isolation in BOTH {
        let bench = Bench::new();
        let code = |action: &Action| {
            bench
                .run(isolation, action, &JobMonitor::default())
                .err()
                .unwrap()
                .code
                .to_string()
        };
        assert_eq!(
            code(&Action {
                stage: "juggle".into(),
                ..action("fail", "")
            }),
            "kiln::execute::unknown_stage"
        );
        assert_eq!(
            code(&Action {
                version: 2,
                ..action("fail", "")
            }),
            "kiln::execute::stage_version"
        );
        assert_eq!(
            code(&Action {
                inputs: BTreeMap::new(),
                ..action("reverse", "")
            }),
            "kiln::input_missing"
        );
        assert_eq!(code(&action("lie", "")), "kiln::execute::output_missing");
        let mut gone = action("reverse", "");
        gone.inputs.get_mut("clay").unwrap().digest = hash_bytes(b"glaze");
        assert_eq!(code(&gone), "kiln::store::gone");
    }
}

#[test]
fn half_finished_work_waits_for_the_next_attempt() {
    for isolation in BOTH {
        let bench = Bench::new();
        bench.problem(isolation, "download, then fail");
        let ran = bench
            .run(isolation, &action("resume", ""), &JobMonitor::default())
            .unwrap();
        assert_eq!(bench.output(&ran), b"ha");
        let ran = bench
            .run(isolation, &action("resume", ""), &JobMonitor::default())
            .unwrap();
        assert_eq!(bench.output(&ran), b"", "success has cleared it");
    }
}

#[test]
fn an_attempt_leaves_nothing_in_the_cache() {
    for isolation in BOTH {
        let bench = Bench::new();
        bench
            .run(isolation, &action("reverse", ""), &JobMonitor::default())
            .unwrap();
        bench.problem(isolation, "fail");
        let own: Vec<PathBuf> = fs::read_dir(bench.store.root().join("tmp"))
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        assert_eq!(own.len(), 1);
        assert_eq!(fs::read_dir(&own[0]).unwrap().count(), 0);
    }
}

#[test]
fn a_crash_says_what_and_where_and_its_last_words() {
    let problem = Bench::new().problem(Isolation::Process, "abort");
    assert_eq!(problem.code, Code::ExecuteCrashed);
    assert!(
        problem
            .message
            .contains("`scripted` died: signal: 6 (SIGABRT)"),
        "{problem}"
    );
    assert!(problem.causes[0].ends_with("noise last words"), "{problem}");
    assert!(problem.causes[0].len() < 4200, "only the tail is shown");

    let problem = Bench::new().problem(Isolation::Process, "exit");
    assert!(problem.message.contains("exit status: 7"), "{problem}");

    let problem = Bench::new().problem(Isolation::Process, "panic");
    assert!(problem.causes[0].contains("lost the thread"), "{problem}");
}

#[test]
fn a_program_that_is_not_there_is_a_problem() {
    let bench = Bench::new();
    let local = Local {
        store: &bench.store,
        stages: &stages(),
        program: "/nowhere/kiln".into(),
    };
    let demand = Demand {
        isolation: Isolation::Process,
        ..Demand::default()
    };
    let problem = local
        .run(&action("reverse", ""), &demand, &JobMonitor::default())
        .err()
        .unwrap();
    assert_eq!(problem.code, Code::ExecuteSpawn);
}

#[test]
fn cancelling_ends_the_child_and_what_it_started() {
    let bench = Bench::new();
    let pids = bench.folder.path().join("pids");
    let watch = JobMonitor {
        cancel_on_progress: true,
        ..JobMonitor::default()
    };
    let problem = bench
        .run(
            Isolation::Process,
            &action("linger", pids.to_str().unwrap()),
            &watch,
        )
        .err()
        .unwrap();
    assert_eq!(problem.code, Code::Cancelled);
    for pid in fs::read_to_string(&pids).unwrap().split(' ') {
        wait_until("it should be gone", || !is_alive(pid));
    }
}

#[test]
fn a_child_does_not_outlive_a_killed_engine() {
    let bench = Bench::new();
    let plan = "[plan]\nname = 'plan'\n[stage.slow]\nkind = 'scripted'\ndo = 'linger'\nargument = \
                'FOLDER/pids'\n"
        .replace("FOLDER", bench.folder.path().to_str().unwrap());
    fs::write(bench.folder.path().join("plan.toml"), plan).unwrap();
    let mut engine = Command::new(PROGRAM)
        .args(["build", "plan.toml", "--cache", "cache"])
        .current_dir(bench.folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pids = bench.folder.path().join("pids");
    wait_until("the child should start", || {
        pids.exists() && !fs::read_to_string(&pids).unwrap().is_empty()
    });
    let pids = fs::read_to_string(&pids).unwrap();
    let (child, helper) = pids.split_once(' ').unwrap();
    assert!(is_alive(child));
    engine.kill().unwrap();
    engine.wait().unwrap();
    wait_until("the child should die with its engine", || !is_alive(child));
    // Only a direct child is on the leash.
    Command::new("kill").args(["-9", helper]).status().unwrap();

    let tmp = bench.store.root().join("tmp");
    drop(Disk::open(bench.store.root()).unwrap().scratch().unwrap());
    assert_eq!(
        fs::read_dir(&tmp).unwrap().count(),
        1,
        "only this test's own folder is left"
    );
}
