//! The driver: real threads, a store in memory, an executor that does as the plan's text says.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::fake;
use crate::support::simulation::{expected, told};
use kiln::action::{Action, Demand, Registry};
use kiln::base::{Code, Problem, Result, hash_bytes};
use kiln::engine::{Build, Built, Limits, Record, select};
use kiln::events::{Event, Listener, PartId, Why};
use kiln::execute::{Executor, Ran, Watch};
use kiln::plan::{Keep, StageId};
use kiln::store::{ActionCache, BlobStore, Memory};

/// A cache, a record and a registry that outlive their builds.
struct TestBuild {
    store: Memory,
    record: Record,
    stages: Registry,
    jobs: u32,
    remembers: bool,
    cancel: AtomicBool,
}

struct Wheel<'a>(&'a Memory);

impl Executor for Wheel<'_> {
    fn run(&self, action: &Action, _: &Demand, watch: &dyn Watch) -> Result<Ran> {
        watch.progress(1, 2, "turns");
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
        Ok(Ran {
            outputs,
            peak_memory_bytes: None,
        })
    }
}

/// Keeps what it hears, and cancels when something slow starts.
struct Ear<'a> {
    logged: Vec<Event>,
    cancel: &'a AtomicBool,
}

impl Listener for Ear<'_> {
    fn on_event(&mut self, event: &Event) {
        if matches!(event, Event::Started { part, .. } if part.stage == "slow") {
            self.cancel.store(true, Ordering::Relaxed);
        }
        self.logged.push(event.clone());
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
            memory: self.remembers.then(|| kiln::engine::Memory {
                notes: &self.store,
                program: hash_bytes(b"this"),
            }),
            notes: &self.store,
            executor: &Wheel(&self.store),
            last: &self.record,
            limits: Limits {
                jobs: self.jobs,
                memory_bytes: 1 << 20,
                keep_going: false,
            },
            completed: &|_, _| (),
            cancel: &self.cancel,
        };
        let mut ear = Ear {
            logged: vec![],
            cancel: &self.cancel,
        };
        let built = build.run(&mut ear);
        self.record.merge(&built).unwrap();
        (built, ear.logged)
    }
}

/// Which parts start, and why.
fn started(events: &[Event]) -> Vec<String> {
    let line = |event: &Event| match event {
        Event::Started { part, why } => Some(format!(
            "{part}: {}",
            why.iter()
                .map(Why::to_string)
                .collect::<Vec<_>>()
                .join("; ")
        )),
        _ => None,
    };
    let mut lines: Vec<String> = events.iter().filter_map(line).collect();
    lines.sort();
    lines
}

fn end(events: &[Event]) -> String {
    told(&events[events.len() - 1..])
}

const POTS: &str = "
    clay: parts=3
    glaze: v=blue
    pot: from=clay,glaze parts=2
    shelf: from=pot";

#[test]
fn the_second_build_runs_nothing_and_gives_the_same() {
    let mut test_build = TestBuild::new();
    let (first, events) = test_build.build(POTS);
    assert_eq!(end(&events), "0 hits, 7 ran, 0 failed\n");
    let (second, events) = test_build.build(POTS);
    assert_eq!(end(&events), "7 hits, 0 ran, 0 failed\n");
    assert_eq!(first.completed, second.completed);
    assert_eq!(first.completed.len(), expected(&fake::plan(POTS)).len());
}

#[test]
fn one_changed_parameter_reruns_what_follows_and_says_why() {
    let mut test_build = TestBuild::new();
    test_build.build(POTS);
    let (_, events) = test_build.build(&POTS.replace("blue", "green"));
    let started = started(&events);
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
    let (_, events) = test_build.build(POTS);
    assert_eq!(
        end(&events),
        "7 hits, 0 ran, 0 failed\n",
        "the old results are still there"
    );
}

#[test]
fn a_result_whose_blob_is_gone_is_no_hit() {
    let mut test_build = TestBuild::new();
    test_build.build("clay:");
    let (_, events) = test_build.build_with("clay:", &Memory::default());
    let [started] = &started(&events)[..] else {
        panic!("one part starts")
    };
    assert!(
        started.starts_with("clay/0: missing from the cache: b3:"),
        "{started}"
    );
}

#[test]
fn a_panic_is_a_problem_of_its_stage() {
    for (text, code) in [
        ("bad: panic=expand", "bad failed"),
        ("bad: panic=run", "bad/0 failed"),
    ] {
        let (_, events) = TestBuild::new().build(text);
        assert!(
            told(&events).contains(&format!("{code}: kiln::engine::panicked\n")),
            "{}",
            told(&events)
        );
    }
}

#[test]
fn an_interruption_ends_what_runs_and_keeps_what_is_done() {
    let mut test_build = TestBuild::new();
    test_build.jobs = 1;
    let begun = Instant::now();
    let (built, events) = test_build.build("clay:\n slow: from=clay slow=1\n pot: from=slow");
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(end(&events), "0 hits, 1 ran, 0 failed, cancelled\n");
    assert_eq!(built.completed.len(), 1);
    let (_, events) = test_build.build("clay:");
    assert_eq!(end(&events), "1 hits, 0 ran, 0 failed\n");
}

#[test]
fn a_failed_build_is_compared_with_what_went_before() {
    let mut test_build = TestBuild::new();
    test_build.build("clay:\n pot: from=clay v=1");
    test_build.build("clay:\n pot: from=clay v=1 fail=0");
    let (_, events) = test_build.build("clay:\n pot: from=clay v=2");
    assert_eq!(started(&events), ["pot/0: v: 1 -> 2"]);
}

#[test]
fn a_dry_run_tells_and_keeps_nothing() {
    let mut test_build = TestBuild::new();
    test_build.jobs = 0;
    let (built, events) = test_build.build(POTS);
    assert_eq!(end(&events), "0 hits, 0 ran, 0 failed\n");
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
fn a_record_survives_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Record::open(folder.path(), "test").unwrap();
    let part = PartId {
        stage: "pot".into(),
        part: "1".into(),
    };
    assert_eq!(open().key(&part), None);
    let mut test_build = TestBuild::new();
    test_build.record = open();
    let (built, _) = test_build.build(POTS);
    test_build.record.write().unwrap();
    let mut record = open();
    assert!(!record.merge(&built).unwrap(), "no news");
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
fn what_was_complete_is_recalled_until_anything_differs() {
    let mut test_build = TestBuild::new();
    test_build.remembers = true;
    test_build.build(POTS);
    let (_, events) = test_build.build(POTS);
    let unchanged = events
        .iter()
        .filter(|event| matches!(event, Event::Unchanged { .. }))
        .count();
    assert_eq!(
        (unchanged, end(&events).as_str()),
        (4, "7 hits, 0 ran, 0 failed\n")
    );
    let (_, events) = test_build.build(&POTS.replace("blue", "green"));
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
    assert_eq!(started(&events).len(), 4);
    // A blob that is gone is missed, and what made it is expanded.
    let (_, events) = test_build.build_with("clay:", &Memory::default());
    assert_eq!(end(&events), "0 hits, 1 ran, 0 failed\n");
}

#[test]
fn a_part_that_takes_too_long_is_ended_and_fails() {
    let mut test_build = TestBuild::new();
    let (_, events) = test_build.build("pot: slow=1 timeout=30");
    assert_eq!(end(&events), "0 hits, 0 ran, 1 failed\n");
    let problem = events.iter().find_map(|event| match event {
        Event::Failed { problem, .. } => Some(problem),
        _ => None,
    });
    assert_eq!(problem.unwrap().code, Code::EngineTimeout);
}

#[test]
fn a_part_that_fails_once_is_tried_again_after_a_while() {
    let mut test_build = TestBuild::new();
    let begun = Instant::now();
    let (_, events) = test_build.build("pot: slow=1 timeout=30 retries=1");
    let retried = events
        .iter()
        .filter(|event| matches!(event, Event::Retried { attempt: 1, .. }))
        .count();
    assert_eq!(
        (retried, end(&events).as_str()),
        (1, "0 hits, 0 ran, 1 failed\n")
    );
    assert!(
        begun.elapsed() >= Duration::from_secs(1),
        "it waits for what may pass"
    );
}

#[test]
fn a_file_that_changes_while_it_is_in_use_fails_what_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clay.txt");
    let plan = format!("clay: file={} write=1", path.display());
    let mut test_build = TestBuild::new();
    test_build.remembers = true;
    std::fs::write(&path, "grey").unwrap();
    let (built, events) = test_build.build(&plan);
    assert_eq!(end(&events), "0 hits, 0 ran, 1 failed\n");
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
    // Written again with the same bytes, it is the same.
    let (_, events) = test_build.build(&plan);
    assert_eq!(end(&events), "0 hits, 1 ran, 0 failed\n");
    std::fs::write(&path, "grey, written by the part").unwrap();
    let (_, events) = test_build.build(&plan);
    assert_eq!(end(&events), "1 hits, 0 ran, 0 failed\n");
    std::fs::write(&path, "red").unwrap();
    let (_, events) = test_build.build(&plan.replace("write=1", ""));
    let started = started(&events);
    assert!(
        started[0].starts_with("clay/0: digest: \"b3:"),
        "{started:?}"
    );
}

#[test]
fn a_part_of_a_plan_is_what_is_wanted_and_what_that_needs() {
    let names = |wanted: &[&str]| {
        let wanted: Vec<String> = wanted.iter().map(|name| name.to_string()).collect();
        let plan = select(fake::plan(POTS), &wanted)?;
        Ok::<_, Problem>(
            plan.stages
                .into_iter()
                .map(|s| (s.id.0, s.keep))
                .collect::<Vec<_>>(),
        )
    };
    assert_eq!(
        names(&["glaze"]).unwrap(),
        [("glaze".to_string(), Keep::All)]
    );
    assert_eq!(names(&["pot", "clay"]).unwrap().len(), 3);
    assert_eq!(names(&[]).unwrap().len(), 4);
    assert_eq!(names(&["bowl"]).unwrap_err().code, Code::CallUnknownStage);
}
