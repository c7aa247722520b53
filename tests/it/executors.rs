//! The contract of executors, on a thread and in a child process, and failures of child processes.
//!
//! The child process is `work` of the helper program in `test_program`, which has the stage kind
//! `scripted`.

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
    progress: Mutex<Vec<(u64, u64, String)>>,
    cancelled: AtomicBool,
    cancel_on_progress: bool,
}

impl Watch for JobMonitor {
    fn progress(&self, done: u64, total: u64, unit: &str) {
        self.progress
            .lock()
            .unwrap()
            .push((done, total, unit.into()));
        self.cancelled
            .store(self.cancel_on_progress, Ordering::SeqCst);
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }
}

/// A cache with the blob `clay`.
struct TestCache {
    folder: tempfile::TempDir,
    store: Disk,
}

const BOTH: [Isolation; 2] = [Isolation::Thread, Isolation::Process];

impl TestCache {
    fn new() -> TestCache {
        let folder = tempfile::tempdir().unwrap();
        let store = Disk::open(&folder.path().join("cache")).unwrap();
        let mut sink = store.create().unwrap();
        sink.write_all(b"clay").unwrap();
        sink.finish().unwrap();
        TestCache { folder, store }
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
fn outputs_and_progress_are_returned() {
    for isolation in BOTH {
        let (cache, watch) = (TestCache::new(), JobMonitor::default());
        let ran = cache
            .run(isolation, &action("reverse", ""), &watch)
            .unwrap();
        assert_eq!(cache.output(&ran), b"yalc");
        assert_eq!(ran.outputs["out"].facts.to_string(), r#"{"reversed":true}"#);
        let progress = watch.progress.into_inner().unwrap();
        assert_eq!(progress.first(), Some(&(1, 2, "B".into())));
        assert_eq!(progress.last(), Some(&(2, 2, "B".into())));
        assert_eq!(
            ran.peak_memory_bytes.is_some_and(|peak| peak > 1 << 20),
            isolation == Isolation::Process
        );
    }
}

#[test]
fn a_problem_is_returned_unchanged() {
    for isolation in BOTH {
        let problem = TestCache::new().problem(isolation, "fail");
        assert_eq!(
            problem,
            Problem::new(Code::of("kiln::scripted"), "refused").help("ask nicely")
        );
    }
}

#[test]
fn a_window_can_be_read_by_path() {
    for isolation in BOTH {
        let cache = TestCache::new();
        let mut action = action("copy by path", "");
        let window = Some(Window {
            blob: hash_bytes(b"clay"),
            offset: 1,
        });
        action.inputs.get_mut("clay").unwrap().digest = hash_bytes(b"la");
        action.inputs.get_mut("clay").unwrap().window = window;
        let ran = cache
            .run(isolation, &action, &JobMonitor::default())
            .unwrap();
        assert_eq!(cache.output(&ran), b"la");

        action.inputs.get_mut("clay").unwrap().digest = hash_bytes(b"al");
        let problem = cache
            .run(isolation, &action, &JobMonitor::default())
            .err()
            .unwrap();
        assert_eq!(
            problem.code,
            Code::StoreWindow,
            "the window has other bytes"
        );

        let past_the_end = Some(Window {
            blob: hash_bytes(b"clay"),
            offset: u64::MAX,
        });
        action.inputs.get_mut("clay").unwrap().window = past_the_end;
        let problem = cache
            .run(isolation, &action, &JobMonitor::default())
            .err()
            .unwrap();
        assert_eq!(problem.code, Code::StoreWindow);
    }
}

#[test]
fn invalid_actions_are_rejected() {
    for isolation in BOTH {
        let cache = TestCache::new();
        let code = |action: &Action| {
            cache
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
        assert_eq!(
            code(&action("claim a missing blob", "")),
            "kiln::execute::output_missing"
        );
        let mut gone = action("reverse", "");
        gone.inputs.get_mut("clay").unwrap().digest = hash_bytes(b"glaze");
        assert_eq!(code(&gone), "kiln::store::gone");
    }
}

#[test]
fn partial_files_survive_a_failed_attempt() {
    for isolation in BOTH {
        let cache = TestCache::new();
        cache.problem(isolation, "download, then fail");
        let ran = cache
            .run(isolation, &action("resume", ""), &JobMonitor::default())
            .unwrap();
        assert_eq!(cache.output(&ran), b"ha");
        let ran = cache
            .run(isolation, &action("resume", ""), &JobMonitor::default())
            .unwrap();
        assert_eq!(cache.output(&ran), b"", "a success removes it");
    }
}

#[test]
fn scratch_files_are_removed_after_each_attempt() {
    for isolation in BOTH {
        let cache = TestCache::new();
        cache
            .run(isolation, &action("reverse", ""), &JobMonitor::default())
            .unwrap();
        cache.problem(isolation, "fail");
        let tmp = fs::read_dir(cache.store.root().join("tmp")).unwrap();
        let folders: Vec<PathBuf> = tmp.map(|entry| entry.unwrap().path()).collect();
        assert_eq!(folders.len(), 1);
        assert_eq!(fs::read_dir(&folders[0]).unwrap().count(), 0);
    }
}

#[test]
fn a_crash_reports_the_signal_and_the_stderr_tail() {
    let problem = TestCache::new().problem(Isolation::Process, "abort");
    assert_eq!(problem.code, Code::ExecuteCrashed);
    assert!(
        problem
            .message
            .contains("`scripted` died: signal: 6 (SIGABRT)"),
        "{problem}"
    );
    assert!(
        problem.causes[0].ends_with("noise end of stderr"),
        "{problem}"
    );
    assert!(problem.causes[0].len() < 4200, "only the tail is shown");

    let problem = TestCache::new().problem(Isolation::Process, "exit");
    assert!(problem.message.contains("exit status: 7"), "{problem}");

    let problem = TestCache::new().problem(Isolation::Process, "panic");
    assert!(problem.causes[0].contains("a panic message"), "{problem}");
}

#[test]
fn a_missing_program_is_reported() {
    let cache = TestCache::new();
    let local = Local {
        store: &cache.store,
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
fn cancelling_kills_the_child_and_its_descendants() {
    let cache = TestCache::new();
    let pids = cache.folder.path().join("pids");
    let watch = JobMonitor {
        cancel_on_progress: true,
        ..JobMonitor::default()
    };
    let problem = cache
        .run(
            Isolation::Process,
            &action("hang", pids.to_str().unwrap()),
            &watch,
        )
        .err()
        .unwrap();
    assert_eq!(problem.code, Code::Cancelled);
    for pid in fs::read_to_string(&pids).unwrap().split(' ') {
        wait_until("the process should end", || !is_alive(pid));
    }
}

#[test]
fn a_child_dies_with_its_parent() {
    let cache = TestCache::new();
    let plan = "[plan]\nname = 'plan'\n[stage.slow]\nkind = 'scripted'\ndo = 'hang'\nargument = \
                'FOLDER/pids'\n"
        .replace("FOLDER", cache.folder.path().to_str().unwrap());
    fs::write(cache.folder.path().join("plan.toml"), plan).unwrap();
    let mut engine = Command::new(PROGRAM)
        .args(["build", "plan.toml", "--cache", "cache"])
        .current_dir(cache.folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pids = cache.folder.path().join("pids");
    wait_until("the child should start", || {
        pids.exists() && !fs::read_to_string(&pids).unwrap().is_empty()
    });
    let pids = fs::read_to_string(&pids).unwrap();
    let (child, helper) = pids.split_once(' ').unwrap();
    assert!(is_alive(child));
    engine.kill().unwrap();
    engine.wait().unwrap();
    wait_until("the child should die with its parent", || !is_alive(child));
    // Only the direct child dies with its parent.
    Command::new("kill").args(["-9", helper]).status().unwrap();

    let tmp = cache.store.root().join("tmp");
    drop(Disk::open(cache.store.root()).unwrap().scratch().unwrap());
    assert_eq!(
        fs::read_dir(&tmp).unwrap().count(),
        1,
        "only the folder of this test is left"
    );
}
