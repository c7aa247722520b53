//! The driver: real threads, a store in memory, and an executor for the fake stage kind.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::fake;
use crate::support::simulation::{event_lines, expected};
use kiln::action::{Action, Demand, Registry};
use kiln::base::{Code, Problem, Result, hash_bytes};
use kiln::engine::{Build, Built, Limits, Record, select};
use kiln::events::{Event, Listener, PartId, Why};
use kiln::execute::{Executor, RunOutput, Watch};
use kiln::plan::{Keep, StageId};
use kiln::store::{ActionCache, BlobStore, Memory};

/// A cache, a record and a registry for several builds.
struct TestBuild {
    store: Memory,
    record: Record,
    stages: Registry,
    jobs: u32,
    remembers: bool,
    cancel: AtomicBool,
}

struct FakeExecutor<'a>(&'a Memory);

impl Executor for FakeExecutor<'_> {
    fn run(&self, action: &Action, _: &Demand, watch: &dyn Watch) -> Result<RunOutput> {
        watch.progress(1, 2, "B");
        if let (Some(file), Some(_)) = (action.params["file"].as_str(), action.params.get("write"))
        {
            std::fs::write(file, "grey, written by the part").unwrap();
        }
        while action.params.get("slow").is_some() && !watch.cancelled() {
            std::thread::sleep(Duration::from_millis(1));
        }
        if watch.cancelled() {
            return Err(Problem::new(Code::Cancelled, "interrupted"));
        }
        let outputs = fake::outputs(action)?;
        let mut sink = self.0.create()?;
        sink.write_all(action.canonical_text().as_bytes()).unwrap();
        sink.finish()?;
        Ok(RunOutput {
            outputs,
            peak_memory_bytes: None,
        })
    }
}

/// Keeps all events, and cancels when the stage `slow` starts.
struct CancellingListener<'a> {
    events: Vec<Event>,
    cancel: &'a AtomicBool,
}

impl Listener for CancellingListener<'_> {
    fn on_event(&mut self, event: &Event) {
        if matches!(event, Event::Started { part, .. } if part.stage == "slow") {
            self.cancel.store(true, Ordering::Relaxed);
        }
        self.events.push(event.clone());
    }
}

impl TestBuild {
    fn new() -> TestBuild {
        let record = Record::default();
        let (store, stages, cancel) = (Memory::default(), fake::registry(), AtomicBool::new(false));
        TestBuild {
            store,
            record,
            stages,
            jobs: 2,
            remembers: false,
            cancel,
        }
    }

    fn build(&mut self, text: &str) -> (Built, Vec<Event>) {
        let store = self.store.clone();
        self.build_with(text, &store)
    }

    fn build_with(&mut self, text: &str, blobs: &dyn BlobStore) -> (Built, Vec<Event>) {
        let plan = fake::plan(text);
        self.cancel.store(false, Ordering::Relaxed);
        let build = Build {
            plan: &plan,
            stages: &self.stages,
            blobs,
            actions: &self.store,
            stage_cache: self.remembers.then(|| kiln::engine::StageCache {
                notes: &self.store,
                program: hash_bytes(b"this"),
            }),
            notes: &self.store,
            executor: &FakeExecutor(&self.store),
            last: &self.record,
            limits: Limits {
                jobs: self.jobs,
                memory_bytes: 1 << 20,
                keep_going: false,
            },
            completed: &|_, _| (),
            cancel: &self.cancel,
        };
        let mut listener = CancellingListener {
            events: vec![],
            cancel: &self.cancel,
        };
        let built = build.run(&mut listener);
        self.record.merge(&built).unwrap();
        (built, listener.events)
    }
}

/// The parts that start, and why.
fn started_parts(events: &[Event]) -> Vec<String> {
    let mut lines = vec![];
    for event in events {
        if let Event::Started { part, why } = event {
            let why: Vec<String> = why.iter().map(Why::to_string).collect();
            lines.push(format!("{part}: {}", why.join("; ")));
        }
    }
    lines.sort();
    lines
}

/// The last event.
fn last_line(events: &[Event]) -> String {
    event_lines(&events[events.len() - 1..])
}

const PLAN: &str = "
    clay: parts=3
    glaze: v=blue
    pot: from=clay,glaze parts=2
    shelf: from=pot";

#[test]
fn a_second_build_runs_nothing() {
    let mut test_build = TestBuild::new();
    let (first, events) = test_build.build(PLAN);
    assert_eq!(last_line(&events), "0 hits, 7 ran, 0 failed\n");
    let (second, events) = test_build.build(PLAN);
    assert_eq!(last_line(&events), "7 hits, 0 ran, 0 failed\n");
    assert_eq!(first.completed, second.completed);
    assert_eq!(first.completed.len(), expected(&fake::plan(PLAN)).len());
}

#[test]
fn a_changed_parameter_reruns_dependents_and_explains_why() {
    let mut test_build = TestBuild::new();
    test_build.build(PLAN);
    let (_, events) = test_build.build(&PLAN.replace("blue", "green"));
    let started = started_parts(&events);
    let begins: Vec<&str> = started
        .iter()
        .map(|line| line.split(" b3:").next().unwrap())
        .collect();
    assert_eq!(
        begins,
        [
            "glaze/0: v: \"blue\" -> \"green\"",
            "pot/0: input glaze/0/out:",
            "pot/1: input glaze/0/out:",
            "shelf/0: input pot/0/out:"
        ]
    );
    let (_, events) = test_build.build(PLAN);
    assert_eq!(
        last_line(&events),
        "7 hits, 0 ran, 0 failed\n",
        "the old results are still there"
    );
}

#[test]
fn a_result_without_its_blob_is_a_miss() {
    let mut test_build = TestBuild::new();
    test_build.build("clay:");
    let (_, events) = test_build.build_with("clay:", &Memory::default());
    let [started] = &started_parts(&events)[..] else {
        panic!("one part starts")
    };
    assert!(
        started.starts_with("clay/0: missing from the cache: b3:"),
        "{started}"
    );
}

#[test]
fn a_panic_is_reported_as_a_failure() {
    for (text, code) in [
        ("bad: panic=expand", "bad failed"),
        ("bad: panic=run", "bad/0 failed"),
    ] {
        let (_, events) = TestBuild::new().build(text);
        assert!(
            event_lines(&events).contains(&format!("{code}: kiln::engine::panicked\n")),
            "{}",
            event_lines(&events)
        );
    }
}

#[test]
fn cancelling_keeps_completed_results() {
    let mut test_build = TestBuild::new();
    test_build.jobs = 1;
    let start = Instant::now();
    let (built, events) = test_build.build("clay:\n slow: from=clay slow=1\n pot: from=slow");
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(last_line(&events), "0 hits, 1 ran, 0 failed, cancelled\n");
    assert_eq!(built.completed.len(), 1);
    let (_, events) = test_build.build("clay:");
    assert_eq!(last_line(&events), "1 hits, 0 ran, 0 failed\n");
}

#[test]
fn reasons_refer_to_the_last_successful_run() {
    let mut test_build = TestBuild::new();
    test_build.build("clay:\n pot: from=clay v=1");
    test_build.build("clay:\n pot: from=clay v=1 fail=0");
    let (_, events) = test_build.build("clay:\n pot: from=clay v=2");
    assert_eq!(started_parts(&events), ["pot/0: v: 1 -> 2"]);
}

#[test]
fn a_dry_run_keeps_nothing() {
    let mut test_build = TestBuild::new();
    test_build.jobs = 0;
    let (built, events) = test_build.build(PLAN);
    assert_eq!(last_line(&events), "0 hits, 0 ran, 0 failed\n");
    let waiting: Vec<String> = built.parts.iter().map(|part| part.id.to_string()).collect();
    assert_eq!(waiting, ["clay/0", "clay/1", "clay/2", "glaze/0"]);
    assert!(
        test_build
            .store
            .get(&built.parts[0].task.key)
            .unwrap()
            .is_none()
    );
}

#[test]
fn a_record_can_be_reopened_and_tolerates_damage() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Record::open(folder.path(), "test").unwrap();
    let part = PartId {
        stage: "pot".into(),
        part: "1".into(),
    };
    assert_eq!(open().key(&part), None);
    let mut test_build = TestBuild::new();
    test_build.record = open();
    let (built, _) = test_build.build(PLAN);
    test_build.record.write().unwrap();
    let mut record = open();
    assert!(!record.merge(&built).unwrap(), "nothing has changed");
    assert_eq!(
        record.key(&part),
        Some(
            built.completed[&StageId("pot".into())]
                .details()
                .unwrap()
                .parts[1]
                .1
        )
    );
    assert_eq!(record.history().0.len(), 4);
    std::fs::write(folder.path().join("last/test.json"), "{").unwrap();
    assert_eq!(open().key(&part), None);
    assert!(open().merge(&built).unwrap());
}

#[test]
fn completed_stages_are_unchanged_until_an_input_differs() {
    let mut test_build = TestBuild::new();
    test_build.remembers = true;
    test_build.build(PLAN);
    let (_, events) = test_build.build(PLAN);
    let unchanged = events
        .iter()
        .filter(|event| matches!(event, Event::Unchanged { .. }))
        .count();
    assert_eq!(
        (unchanged, last_line(&events).as_str()),
        (4, "7 hits, 0 ran, 0 failed\n")
    );
    let (_, events) = test_build.build(&PLAN.replace("blue", "green"));
    let unchanged: Vec<&Event> = events
        .iter()
        .filter(|event| matches!(event, Event::Unchanged { .. }))
        .collect();
    assert_eq!(
        unchanged,
        [&Event::Unchanged {
            stage: "clay".into(),
            parts: 3
        }]
    );
    assert_eq!(started_parts(&events).len(), 4);
    // If a blob is gone, its stage is expanded.
    let (_, events) = test_build.build_with("clay:", &Memory::default());
    assert_eq!(last_line(&events), "0 hits, 1 ran, 0 failed\n");
}

#[test]
fn a_part_fails_after_its_timeout() {
    let mut test_build = TestBuild::new();
    let (_, events) = test_build.build("pot: slow=1 timeout=30");
    assert_eq!(last_line(&events), "0 hits, 0 ran, 1 failed\n");
    let problem = events.iter().find_map(|event| match event {
        Event::Failed { problem, .. } => Some(problem),
        _ => None,
    });
    assert_eq!(problem.unwrap().code, Code::EngineTimeout);
}

#[test]
fn a_retry_waits_before_it_runs() {
    let mut test_build = TestBuild::new();
    let start = Instant::now();
    let (_, events) = test_build.build("pot: slow=1 timeout=30 retries=1");
    let retried = events
        .iter()
        .filter(|event| matches!(event, Event::Retried { attempt: 1, .. }))
        .count();
    assert_eq!(
        (retried, last_line(&events).as_str()),
        (1, "0 hits, 0 ran, 1 failed\n")
    );
    assert!(
        start.elapsed() >= Duration::from_secs(1),
        "it waits before the retry"
    );
}

#[test]
fn a_file_that_changes_during_the_build_fails_its_reader() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clay.txt");
    let plan = format!("clay: file={} write=1", path.display());
    let mut test_build = TestBuild::new();
    test_build.remembers = true;
    std::fs::write(&path, "grey").unwrap();
    let (built, events) = test_build.build(&plan);
    assert_eq!(last_line(&events), "0 hits, 0 ran, 1 failed\n");
    assert!(
        events.iter().any(
            |e| matches!(e, Event::Failed { problem, .. } if problem.code == Code::InputChanged)
        )
    );
    assert!(
        test_build
            .store
            .get(&built.parts[0].task.key)
            .unwrap()
            .is_none()
    );
    // A file that is written again with the same bytes has not changed.
    let (_, events) = test_build.build(&plan);
    assert_eq!(last_line(&events), "0 hits, 1 ran, 0 failed\n");
    std::fs::write(&path, "grey, written by the part").unwrap();
    let (_, events) = test_build.build(&plan);
    assert_eq!(last_line(&events), "1 hits, 0 ran, 0 failed\n");
    std::fs::write(&path, "red").unwrap();
    let (_, events) = test_build.build(&plan.replace("write=1", ""));
    let started = started_parts(&events);
    assert!(
        started[0].starts_with("clay/0: digest: \"b3:"),
        "{started:?}"
    );
}

#[test]
fn select_keeps_the_targets_and_their_dependencies() {
    let names = |targets: &[&str]| -> Result<Vec<(String, Keep)>> {
        let targets: Vec<String> = targets.iter().map(|name| name.to_string()).collect();
        let stages = select(fake::plan(PLAN), &targets)?.stages;
        Ok(stages.into_iter().map(|s| (s.id.0, s.keep)).collect())
    };
    assert_eq!(
        names(&["glaze"]).unwrap(),
        [("glaze".to_string(), Keep::All)]
    );
    assert_eq!(names(&["pot", "clay"]).unwrap().len(), 3);
    assert_eq!(names(&[]).unwrap().len(), 4);
    assert_eq!(names(&["bowl"]).unwrap_err().code, Code::CallUnknownStage);
}
