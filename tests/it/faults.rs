//! Builds with a store that fails at its n-th operation, for every n: the build writes the correct
//! manifests or reports the fault, and the next build with the same store succeeds.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::support::fake;
use crate::support::faulty::{FAULTS, FULL, Fault, Faulty, IO_ERROR, Store};
use kiln::action::{Action, Demand};
use kiln::base::{Code, Context, Problem, Result, hash_bytes};
use kiln::engine::{Build, Built, Limits, Record};
use kiln::events::{Event, Listener};
use kiln::execute::{Executor, RunOutput, Watch};
use kiln::plan::Plan;
use kiln::store::{BlobStore, Disk, Memory};

const PLAN: &str = "
    clay: parts=2
    glaze: file=GLAZE
    pot: from=clay,glaze parts=2
    shelf: from=pot
    copy: seed=shelf from=pot";

/// Reads the inputs of an action and writes its outputs.
struct FakeExecutor<'a>(&'a dyn BlobStore);

impl Executor for FakeExecutor<'_> {
    fn run(&self, action: &Action, _: &Demand, _: &dyn Watch) -> Result<RunOutput> {
        for input in action.inputs.values() {
            let gone = || {
                Problem::new(
                    Code::StoreGone,
                    format!("the blob {} is gone", input.digest),
                )
            };
            let blob = self.0.open(&input.digest)?.ok_or_else(gone)?;
            assert_eq!(
                hash_bytes(&blob),
                input.digest,
                "the store never returns other bytes"
            );
        }
        let mut sink = self.0.create()?;
        sink.write_all(action.canonical_text().as_bytes())
            .context(Code::Io, || "write a blob".into())?;
        sink.finish()?;
        Ok(RunOutput {
            outputs: fake::outputs(action)?,
            peak_memory_bytes: None,
        })
    }
}

#[derive(Default)]
struct Problems(Vec<Problem>);

impl Listener for Problems {
    fn on_event(&mut self, event: &Event) {
        if let Event::Failed { problem, .. } = event {
            self.0.push(problem.clone());
        }
    }
}

fn build(plan: &Plan, store: &dyn Store, jobs: u32) -> (Built, Vec<Problem>) {
    let build = Build {
        plan,
        stages: &fake::registry(),
        blobs: store,
        actions: store,
        stage_cache: Some(kiln::engine::StageCache {
            notes: store,
            program: hash_bytes(b"this"),
        }),
        notes: store,
        executor: &FakeExecutor(store),
        last: &Record::default(),
        limits: Limits {
            jobs,
            memory_bytes: 1 << 20,
            keep_going: false,
        },
        completed: &|_, _| (),
        cancel: &AtomicBool::new(false),
    };
    let mut problems = Problems::default();
    (build.run(&mut problems), problems.0)
}

/// Checks that the completed stages have the outputs of an undisturbed build, with all blobs.
fn assert_correct(expected: &Built, built: &Built, store: &dyn Store, must_be_complete: bool) {
    for (stage, completed) in &built.completed {
        assert_eq!(
            completed.output(),
            expected.completed[stage].output(),
            "{stage}"
        );
        for part in completed.details().unwrap().manifest.parts.values() {
            let blob = store
                .open(&part.content.digest)
                .unwrap()
                .expect("the blobs of a completed stage exist");
            assert_eq!(hash_bytes(&blob), part.content.digest);
        }
    }
    assert!(!must_be_complete || built.completed.len() == expected.completed.len());
}

/// Checks that the problems describe the fault.
fn assert_described(problems: &[Problem], fault: Fault) {
    for problem in problems {
        let has = |text: &str| problem.to_string().contains(text);
        match fault {
            Fault::Error => assert!(has(IO_ERROR), "{problem}"),
            Fault::Full => assert!(
                has(FULL) && problem.help.as_ref().unwrap().contains("cache gc"),
                "{problem}"
            ),
            Fault::Vanish => assert_eq!(problem.code, Code::StoreGone, "{problem}"),
        }
    }
}

/// Injects a fault at each operation of a build. The store from `make` has the results of a build
/// of `before`.
fn check<S: Store>(make: impl Fn(&Path) -> S, before: Option<&str>, jobs: u32) {
    let folder = tempfile::tempdir().unwrap();
    let glaze = folder.path().join("glaze");
    std::fs::write(&glaze, "blue").unwrap();
    let plan = |text: &str| fake::plan(&text.replace("GLAZE", glaze.to_str().unwrap()));
    let (before, plan) = (before.map(plan), plan(PLAN));
    let (expected, _) = build(&plan, &Memory::default(), jobs);
    assert_eq!(expected.completed.len(), plan.stages.len());
    for fault in FAULTS {
        let (mut failed, mut survived) = (0, 0);
        for at in 1.. {
            let store = make(&folder.path().join(format!("{fault:?}-{at}")));
            if let Some(before) = &before {
                assert_eq!(build(before, &store, jobs).1, []);
            }
            let faulty = Faulty::new(&store, fault, at);
            let (built, problems) = build(&plan, &faulty, jobs);
            assert_described(&problems, fault);
            assert_correct(&expected, &built, &store, problems.is_empty());
            let (second, problems_of_second) = build(&plan, &store, jobs);
            assert_eq!(
                problems_of_second,
                [],
                "{fault:?} at {at}: failures are not stored"
            );
            assert_correct(&expected, &second, &store, true);
            failed += usize::from(!problems.is_empty());
            survived += usize::from(problems.is_empty() && faulty.injected() > 0);
            if faulty.operations() < at {
                break;
            }
        }
        assert!(
            failed + survived > 5,
            "{fault:?} was injected into {failed} + {survived} builds"
        );
    }
}

#[test]
fn a_clean_build_survives_any_store_fault() {
    check(|_| Memory::default(), None, 1);
    check(|_| Memory::default(), None, 3);
    check(|path| Disk::open(path).unwrap(), None, 2);
}

#[test]
fn an_incremental_build_survives_any_store_fault() {
    let before = PLAN.replace("pot: ", "pot: v=other ");
    check(|_| Memory::default(), Some(&before), 2);
    check(|path| Disk::open(path).unwrap(), Some(&before), 2);
}
