//! The driver: real threads, a store in memory, an executor that does as the plan's text says.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kiln::action::{Action, Demand, Registry};
use kiln::base::{Problem, Result};
use kiln::engine::{Build, Built, Limits, Record, select};
use kiln::events::{Event, Listener, Why};
use kiln::execute::{Executor, Ran, Watch};
use kiln::plan::Keep;
use kiln::store::{ActionCache, BlobStore, Memory};
use support::fake;
use support::simulation::{expected, told};

/// A cache, a record and a registry that outlive their builds.
struct Yard {
    store: Memory,
    record: Record,
    stages: Registry,
    jobs: u32,
    cancel: AtomicBool,
}

struct Wheel<'a>(&'a Memory);

impl Executor for Wheel<'_> {
    fn run(&self, action: &Action, _: &Demand, watch: &dyn Watch) -> Result<Ran> {
        watch.progress(1, 2, "turns");
        while action.params.get("slow").is_some() && !watch.cancelled() {
            std::thread::sleep(Duration::from_millis(1));
        }
        if watch.cancelled() {
            return Err(Problem::new("kiln::cancelled", "interrupted"));
        }
        let outputs = fake::outputs(action)?;
        let mut sink = self.0.create()?;
        sink.write_all(action.canonical_text().as_bytes()).unwrap();
        sink.finish()?;
        Ok(Ran { outputs, peak_memory_bytes: None })
    }
}

/// Keeps what it hears, and cancels when something slow starts.
struct Ear<'a> {
    heard: Vec<Event>,
    cancel: &'a AtomicBool,
}

impl Listener for Ear<'_> {
    fn hear(&mut self, event: &Event) {
        if matches!(event, Event::Started { part, .. } if part.stage == "slow") {
            self.cancel.store(true, Ordering::Relaxed);
        }
        self.heard.push(event.clone());
    }
}

impl Yard {
    fn new() -> Yard {
        let record = Record::default();
        Yard { store: Memory::default(), record, stages: fake::registry(), jobs: 2, cancel: AtomicBool::new(false) }
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
            executor: &Wheel(&self.store),
            last: &self.record,
            limits: Limits { jobs: self.jobs, memory_bytes: 1 << 20 },
            cancel: &self.cancel,
        };
        let mut ear = Ear { heard: vec![], cancel: &self.cancel };
        let built = build.run(&mut ear);
        self.record.merge(&built);
        (built, ear.heard)
    }
}

/// Which parts start, and why.
fn started(events: &[Event]) -> Vec<String> {
    let line = |event: &Event| match event {
        Event::Started { part, why } => {
            Some(format!("{part}: {}", why.iter().map(Why::to_string).collect::<Vec<_>>().join("; ")))
        }
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
    let mut yard = Yard::new();
    let (first, events) = yard.build(POTS);
    assert_eq!(end(&events), "0 hits, 7 ran, 0 failed\n");
    let (second, events) = yard.build(POTS);
    assert_eq!(end(&events), "7 hits, 0 ran, 0 failed\n");
    assert_eq!(first.manifests, second.manifests);
    assert_eq!(first.manifests.len(), expected(&fake::plan(POTS)).len());
}

#[test]
fn one_changed_parameter_reruns_what_follows_and_says_why() {
    let mut yard = Yard::new();
    yard.build(POTS);
    let (_, events) = yard.build(&POTS.replace("blue", "green"));
    let started = started(&events);
    let begins: Vec<&str> = started.iter().map(|line| line.split(" b3:").next().unwrap()).collect();
    assert_eq!(
        begins,
        [
            "glaze/0: v: \"blue\" -> \"green\"",
            "pot/0: input glaze/0/out:",
            "pot/1: input glaze/0/out:",
            "shelf/0: input pot/0/out:"
        ]
    );
    let (_, events) = yard.build(POTS);
    assert_eq!(end(&events), "7 hits, 0 ran, 0 failed\n", "the old results are still there");
}

#[test]
fn a_result_whose_blob_is_gone_is_no_hit() {
    let mut yard = Yard::new();
    yard.build("clay:");
    let (_, events) = yard.build_with("clay:", &Memory::default());
    let [started] = &started(&events)[..] else { panic!("one part starts") };
    assert!(started.starts_with("clay/0: gone from the cache: b3:"), "{started}");
}

#[test]
fn a_panic_is_a_problem_of_its_stage() {
    for (text, code) in [("bad: panic=expand", "bad failed"), ("bad: panic=run", "bad/0 failed")] {
        let (_, events) = Yard::new().build(text);
        assert!(told(&events).contains(&format!("{code}: kiln::engine::panicked\n")), "{}", told(&events));
    }
}

#[test]
fn an_interruption_ends_what_runs_and_keeps_what_is_done() {
    let mut yard = Yard::new();
    yard.jobs = 1;
    let begun = Instant::now();
    let (built, events) = yard.build("clay:\n slow: from=clay slow=1\n pot: from=slow");
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(end(&events), "0 hits, 1 ran, 0 failed, cancelled\n");
    assert_eq!(built.manifests.len(), 1);
    let (_, events) = yard.build("clay:");
    assert_eq!(end(&events), "1 hits, 0 ran, 0 failed\n");
}

#[test]
fn a_failed_build_is_compared_with_what_went_before() {
    let mut yard = Yard::new();
    yard.build("clay:\n pot: from=clay v=1");
    yard.build("clay:\n pot: from=clay v=1 fail=0");
    let (_, events) = yard.build("clay:\n pot: from=clay v=2");
    assert_eq!(started(&events), ["pot/0: v: 1 -> 2"]);
}

#[test]
fn a_dry_run_tells_and_keeps_nothing() {
    let mut yard = Yard::new();
    yard.jobs = 0;
    let (built, events) = yard.build(POTS);
    assert_eq!(end(&events), "0 hits, 0 ran, 0 failed\n");
    let waiting: Vec<String> = built.parts.iter().map(|part| part.id.to_string()).collect();
    assert_eq!(waiting, ["clay/0", "clay/1", "clay/2", "glaze/0"]);
    assert!(yard.store.get(&built.parts[0].task.key).unwrap().is_none());
}

#[test]
fn a_record_survives_its_file() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(Record::read(folder.path(), "test").unwrap(), Record::default());
    let mut yard = Yard::new();
    yard.build(POTS);
    yard.record.write(folder.path(), "test").unwrap();
    assert_eq!(Record::read(folder.path(), "test").unwrap(), yard.record);
    std::fs::write(folder.path().join("last/test.json"), "{").unwrap();
    assert_eq!(Record::read(folder.path(), "test").unwrap(), Record::default());
}

#[test]
fn a_part_of_a_plan_is_what_is_wanted_and_what_that_needs() {
    let names = |wanted: &[&str]| {
        let wanted: Vec<String> = wanted.iter().map(|name| name.to_string()).collect();
        let plan = select(fake::plan(POTS), &wanted)?;
        Ok::<_, Problem>(plan.stages.into_iter().map(|s| (s.id.0, s.keep)).collect::<Vec<_>>())
    };
    assert_eq!(names(&["glaze"]).unwrap(), [("glaze".to_string(), Keep::All)]);
    assert_eq!(names(&["pot", "clay"]).unwrap().len(), 3);
    assert_eq!(names(&[]).unwrap().len(), 4);
    assert_eq!(names(&["bowl"]).unwrap_err().code, "kiln::call::unknown_stage");
}
