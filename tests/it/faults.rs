//! A build over a store that fails at its n-th operation, for every n: it gives the right manifests
//! or a problem that names what happened, and the next build over the same store goes on as if
//! nothing had been.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::support::fake;
use crate::support::faulty::{FAULTS, FULL, Fault, Faulty, Store, TIRED};
use kiln::action::{Action, Demand};
use kiln::base::{Code, Context, Problem, Result, hash_bytes};
use kiln::engine::{Build, Built, Limits, Record};
use kiln::events::{Event, Listener};
use kiln::execute::{Executor, RunOutput, Watch};
use kiln::plan::Plan;
use kiln::store::{BlobStore, Disk, Memory};

const POTS: &str = "
    clay: parts=2
    glaze: file=GLAZE
    pot: from=clay,glaze parts=2
    shelf: from=pot
    twin: seed=shelf from=pot";

/// Reads what an action declares, and writes what it gives.
struct Wheel<'a>(&'a dyn BlobStore);

impl Executor for Wheel<'_> {
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
                "no other bytes are ever handed out"
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
        executor: &Wheel(store),
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

/// What was built is what an undisturbed build gives, with all its bytes, as far as it came.
fn assert_right(expected: &Built, built: &Built, store: &dyn Store, must_be_whole: bool) {
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
                .expect("what a stage gave is there");
            assert_eq!(hash_bytes(&blob), part.content.digest);
        }
    }
    assert!(!must_be_whole || built.completed.len() == expected.completed.len());
}

fn assert_named(problems: &[Problem], fault: Fault) {
    for problem in problems {
        let says = |text: &str| problem.to_string().contains(text);
        match fault {
            Fault::Error => assert!(says(TIRED), "{problem}"),
            Fault::Full => assert!(
                says(FULL) && problem.help.as_ref().unwrap().contains("cache gc"),
                "{problem}"
            ),
            Fault::Vanish => assert_eq!(problem.code, Code::StoreGone, "{problem}"),
        }
    }
}

/// Lets each operation of a build go wrong, over a store that `make` makes and that has seen a
/// build of `before`.
fn check<S: Store>(make: impl Fn(&Path) -> S, before: Option<&str>, jobs: u32) {
    let folder = tempfile::tempdir().unwrap();
    let glaze = folder.path().join("glaze");
    std::fs::write(&glaze, "blue").unwrap();
    let plan = |text: &str| fake::plan(&text.replace("GLAZE", glaze.to_str().unwrap()));
    let (before, plan) = (before.map(plan), plan(POTS));
    let (expected, _) = build(&plan, &Memory::default(), jobs);
    assert_eq!(expected.completed.len(), plan.stages.len());
    for fault in FAULTS {
        let (mut failed, mut survived) = (0, 0);
        for at in 1.. {
            let store = make(&folder.path().join(format!("{fault:?}-{at}")));
            before
                .iter()
                .for_each(|before| assert_eq!(build(before, &store, jobs).1, []));
            let faulty = Faulty::new(&store, fault, at);
            let (built, problems) = build(&plan, &faulty, jobs);
            assert_named(&problems, fault);
            assert_right(&expected, &built, &store, problems.is_empty());
            let (again, problems_again) = build(&plan, &store, jobs);
            assert_eq!(
                problems_again,
                [],
                "{fault:?} at {at}: a failure is never kept"
            );
            assert_right(&expected, &again, &store, true);
            failed += usize::from(!problems.is_empty());
            survived += usize::from(problems.is_empty() && faulty.struck() > 0);
            if faulty.done() < at {
                break;
            }
        }
        assert!(
            failed + survived > 5,
            "{fault:?} struck {failed} + {survived} builds"
        );
    }
}

#[test]
fn a_first_build_survives_any_fault_of_its_store() {
    check(|_| Memory::default(), None, 1);
    check(|_| Memory::default(), None, 3);
    check(|path| Disk::open(path).unwrap(), None, 2);
}

#[test]
fn a_build_that_finds_some_of_it_survives_any_fault_of_its_store() {
    let before = POTS.replace("pot: ", "pot: v=other ");
    check(|_| Memory::default(), Some(&before), 2);
    check(|path| Disk::open(path).unwrap(), Some(&before), 2);
}
