//! The scheduler, without threads, files or clock.

use crate::support::fake;
use crate::support::simulation::{Simulation, Trace, event_lines, expected};
use kiln::base::hash_bytes;
use kiln::engine::{
    CompletedStage, History, Limits, PastRun, StageDetails, StageHistory, StageTimes, Task,
};
use kiln::events::{Event, Why};
use kiln::plan::Plan;
use proptest::prelude::*;

const LIMITS: Limits = Limits {
    jobs: 2,
    memory_bytes: 100,
    keep_going: false,
};

fn simulate(plan: &Plan, limits: Limits, cached: &dyn Fn(&Task) -> bool) -> Trace {
    let remembered = &|_: &str| false;
    Simulation {
        plan,
        limits,
        cached,
        remembered,
        history: History::default(),
        past: &|_| None,
        cancel_after: None,
    }
    .run(|_| 0)
}

/// Builds `text`, answers effects in their order, and compares the events.
fn check(text: &str, limits: Limits, expect: &str) {
    let found = event_lines(&simulate(&fake::plan(text), limits, &|_| false).events);
    let expected: Vec<&str> = expect.trim().lines().map(str::trim).collect();
    assert_eq!(found.trim_end(), expected.join("\n"));
}

#[test]
fn a_stage_waits_for_all_its_inputs() {
    check(
        "clay: parts=2
         glaze:
         pot: from=clay,glaze",
        LIMITS,
        "clay has 2
         glaze has 1
         clay/0 starts
         clay/1 starts
         clay/0 done
         glaze/0 starts
         clay/1 done
         clay completed
         glaze/0 done
         glaze completed
         pot has 1
         pot/0 starts
         pot/0 done
         pot completed
         0 hits, 4 ran, 0 failed",
    );
}

#[test]
fn equal_actions_run_once() {
    check(
        "head: seed=embedding
         embedding:
         pair: parts=2 tied=1",
        LIMITS,
        "head has 1
         embedding has 1
         pair has 2
         head/0 starts
         pair/0 starts
         head/0 done
         head completed
         embedding/0 hit
         embedding completed
         pair/0 done
         pair/1 hit
         pair completed
         2 hits, 2 ran, 0 failed",
    );
}

#[test]
fn an_action_equal_to_a_finished_one_is_a_hit() {
    check(
        "a: seed=x
         b: parts=0
         c: from=b seed=x",
        LIMITS,
        "a has 1
         b has 0
         b completed
         a/0 starts
         a/0 done
         a completed
         c has 1
         c/0 hit
         c completed
         1 hits, 1 ran, 0 failed",
    );
}

#[test]
fn a_failure_skips_dependents_and_starts_nothing_new() {
    check(
        "bad: fail=0
         other: parts=3
         pot: from=bad
         shelf: from=pot,other",
        LIMITS,
        "bad has 1
         other has 3
         bad/0 starts
         other/0 starts
         bad/0 failed: test::failed
         pot skipped
         shelf skipped
         other/0 done
         0 hits, 1 ran, 1 failed",
    );
}

/// `pot` must fail by `model` alone: `weights`, which it waits for, does not run.
#[test]
fn a_failure_is_foreseen_before_work_in_vain() {
    let text = "model:
         weights: from=model
         pot: from=model,weights refuses=model
         shelf: from=pot";
    check(
        text,
        LIMITS,
        "model has 1
         model/0 starts
         model/0 done
         model completed
         pot failed: test::refused
         shelf skipped
         0 hits, 1 ran, 1 failed",
    );
    // A build that has nothing to do does not ask.
    let plan = fake::plan(text);
    assert_eq!(
        simulate(&plan, LIMITS, &|_| true).completed,
        expected(&plan)
    );
}

#[test]
fn a_large_part_waits_and_small_ones_pass_it() {
    check(
        "small: parts=3 memory=30
         large: memory=90 threads=9",
        LIMITS,
        "small has 3
         large has 1
         small/0 starts
         small/1 starts
         small/0 done
         small/2 starts
         small/1 done
         small/2 done
         small completed
         large/0 starts
         large/0 done
         large completed
         0 hits, 4 ran, 0 failed",
    );
}

#[test]
fn a_part_above_the_memory_budget_is_rejected() {
    let is_failure = |event: &&Event| matches!(event, Event::Failed { .. });
    let help = |line: &str| {
        let trace = simulate(&fake::plan(line), LIMITS, &|_| false);
        assert!(trace.runs.is_empty());
        let Some(Event::Failed { problem, .. }) = trace.events.iter().find(is_failure) else {
            panic!("no failure");
        };
        assert_eq!(problem.message, "`huge/0` needs 101 B, the budget is 100 B");
        problem.help.clone().unwrap()
    };
    let more = "give more with --memory BYTES, if this machine has it, or build on a larger one";
    assert_eq!(help("huge: memory=101"), more);
    // The largest suggestion that fits is named, if any.
    for (least, fits) in [(30, 80), (60, 60), (100, 100)] {
        let expected = format!("process {fits} B at a time: that needs {fits} B; or {more}");
        assert_eq!(help(&format!("huge: memory=101 smaller={least}")), expected);
    }
    assert_eq!(help("huge: memory=101 smaller=101"), more);
    // A cache hit needs no memory.
    let plan = fake::plan("huge: memory=101");
    assert_eq!(
        simulate(&plan, LIMITS, &|_| true).completed,
        expected(&plan)
    );
}

#[test]
fn duplicate_order_names_are_rejected() {
    let plan = fake::plan("a:");
    let mut scheduler = kiln::engine::Scheduler::new(&plan, LIMITS, History::default());
    scheduler.step(kiln::engine::Input::Begin);
    let task = fake::tasks(&plan.stages[0], &Default::default())
        .unwrap()
        .remove(0);
    let tasks = Ok(vec![task.clone(), task]);
    let effects = scheduler.step(kiln::engine::Input::Expanded {
        stage: 0.into(),
        tasks,
    });
    let mut events = vec![];
    for effect in effects {
        if let kiln::engine::Effect::Emit(event) = effect {
            events.push(event);
        }
    }
    assert_eq!(
        event_lines(&events),
        "a failed: kiln::engine::same_order\n0 hits, 0 ran, 1 failed\n"
    );
}

#[test]
fn with_zero_jobs_nothing_runs_and_known_parts_are_reported() {
    check(
        "clay: parts=2
         pot: from=clay",
        Limits { jobs: 0, ..LIMITS },
        "clay has 2
         0 hits, 0 ran, 0 failed",
    );
}

#[test]
fn a_duplicate_part_in_a_dry_run_names_the_first_part() {
    let dry = Limits { jobs: 0, ..LIMITS };
    let waiting = simulate(&fake::plan("pair: parts=2 tied=1"), dry, &|_| false).waiting;
    let same = Why::Same {
        part: "pair/0".into(),
    };
    assert_eq!(
        waiting,
        [
            ("pair/0".to_string(), vec![]),
            ("pair/1".to_string(), vec![same])
        ]
    );
}

/// The text of a random plan: each stage has some of the earlier ones as inputs.
fn random_plan() -> impl Strategy<Value = String> {
    let stage = (
        prop::collection::vec(any::<prop::sample::Index>(), 0..3),
        0..4u64,
        0..5u32,
        1..60u64,
        prop::option::weighted(0.1, 0..4u64),
        prop::option::weighted(0.3, 0..2u32),
        prop::bool::weighted(0.2),
        prop::option::weighted(0.3, 1..4u64),
        any::<bool>(),
    );
    // `retries` is the same for all stages, since parts of several stages can share an action.
    (prop::collection::vec(stage, 0..8), 0..4u32).prop_map(|(stages, retries)| {
        let mut text = String::new();
        for (index, stage) in stages.into_iter().enumerate() {
            let (from, parts, threads, memory, fail, seed, tied, flaky, process) = stage;
            let mut line = format!(
                "s{index}: parts={parts} threads={threads} memory={memory} retries={retries}"
            );
            if index > 0 && !from.is_empty() {
                let producers: Vec<String> = from
                    .iter()
                    .map(|producer| format!("s{}", producer.index(index)))
                    .collect();
                line += &format!(" from={}", producers.join(","));
            }
            if let Some(fail) = fail {
                line += &format!(" fail={fail}");
            }
            if let Some(seed) = seed {
                line += &format!(" seed=shared{seed}");
            }
            if let Some(flaky) = flaky {
                line += &format!(" flaky={flaky}");
            }
            line += if tied { " tied=1" } else { "" };
            line += if process { " process=1" } else { "" };
            text += &(line + "\n");
        }
        text
    })
}

#[test]
fn a_completed_stage_is_not_probed() {
    let plan = fake::plan(
        "clay: parts=2
         pot: from=clay parts=3",
    );
    let remembered = &|stage: &str| stage == "clay";
    let cached = &|_: &Task| false;
    let simulation = Simulation {
        plan: &plan,
        limits: LIMITS,
        cached,
        remembered,
        history: History::default(),
        past: &|_| None,
        cancel_after: None,
    };
    let trace = simulation.run(|_| 0);
    assert!(
        event_lines(&trace.events).starts_with("clay unchanged, 2\npot has 3\n"),
        "{}",
        event_lines(&trace.events)
    );
    assert_eq!(trace.completed, expected(&plan));
}

#[test]
fn an_unchanged_output_is_reported_as_before() {
    let plan = fake::plan("clay: parts=2");
    let details = StageDetails {
        manifest: expected(&plan).remove("clay").unwrap(),
        parts: vec![],
        tools: [].into(),
    };
    let output = Some(CompletedStage::new(details).unwrap().output());
    let history = History(
        [(
            "clay".to_string(),
            StageHistory {
                output,
                ..StageHistory::default()
            },
        )]
        .into(),
    );
    let (cached, remembered) = (&|_: &Task| false, &|_: &str| false);
    let simulation = Simulation {
        plan: &plan,
        limits: LIMITS,
        cached,
        remembered,
        history,
        past: &|_| None,
        cancel_after: None,
    };
    let lines = event_lines(&simulation.run(|_| 0).events);
    assert!(
        lines.ends_with("clay completed as before\n0 hits, 2 ran, 0 failed\n"),
        "{lines}"
    );
}

#[test]
fn the_longest_critical_path_starts_first() {
    let text = "short:
         long:
         after: from=long
         end: from=after,short";
    let plan = fake::plan(text);
    let took = |ms| StageHistory {
        took: StageTimes {
            longest_ms: ms,
            total_ms: ms,
        },
        output: None,
    };
    let history = History([("after".to_string(), took(5)), ("end".to_string(), took(1))].into());
    let limits = Limits { jobs: 1, ..LIMITS };
    let simulation = Simulation {
        plan: &plan,
        limits,
        cached: &|_| false,
        remembered: &|_| false,
        history,
        past: &|_| None,
        cancel_after: None,
    };
    // Both stages are probed before one can start.
    let mut answers = 0;
    let trace = simulation.run(|count| {
        answers += 1;
        if answers <= 4 { 0 } else { count - 1 }
    });
    let mut started = vec![];
    for event in &trace.events {
        if let Event::Started { part, .. } = event {
            started.push(part.stage.clone());
        }
    }
    assert_eq!(
        started,
        ["long", "after", "short", "end"],
        "{}",
        event_lines(&trace.events)
    );
}

#[test]
fn a_failed_part_is_retried_as_configured() {
    let trace = simulate(&fake::plan("clay: fail=0 retries=2"), LIMITS, &|_| false);
    assert_eq!(
        trace.retried,
        [("clay/0".to_string(), 1), ("clay/0".to_string(), 2)]
    );
    assert!(
        event_lines(&trace.events)
            .ends_with("clay/0 failed: test::failed\n0 hits, 0 ran, 1 failed\n")
    );
}

#[test]
fn a_flaky_part_succeeds_after_retries() {
    let trace = simulate(
        &fake::plan("clay: flaky=2 retries=2\n pot: from=clay"),
        LIMITS,
        &|_| false,
    );
    assert_eq!(
        trace.retried,
        [("clay/0".to_string(), 1), ("clay/0".to_string(), 2)]
    );
    assert!(
        event_lines(&trace.events).ends_with("0 hits, 2 ran, 0 failed\n"),
        "{}",
        event_lines(&trace.events)
    );
    let trace = simulate(&fake::plan("clay: flaky=3 retries=2"), LIMITS, &|_| false);
    assert!(
        event_lines(&trace.events)
            .ends_with("clay/0 failed: test::flaky\n0 hits, 0 ran, 1 failed\n")
    );
}

/// Builds `text`, whose part had this peak memory in its last run. Returns whether it runs.
fn runs_after_peak(peak: u64, text: &str) -> bool {
    let plan = fake::plan(text);
    let past = &|_: &Task| {
        Some(PastRun {
            took_ms: 7,
            peak_memory_bytes: Some(peak),
        })
    };
    let (cached, remembered) = (&|_: &Task| false, &|_: &str| false);
    let history = History::default();
    let simulation = Simulation {
        plan: &plan,
        limits: LIMITS,
        cached,
        remembered,
        history,
        past,
        cancel_after: None,
    };
    !simulation.run(|_| 0).runs.is_empty()
}

#[test]
fn measured_peak_memory_overrides_the_demand() {
    for (peak, runs) in [(10, true), (95, true), (100, true), (101, false)] {
        assert_eq!(
            runs_after_peak(peak, "clay: memory=60 process=1"),
            runs,
            "{peak} of 100 B"
        );
    }
    assert!(
        runs_after_peak(50, "clay: memory=1000 process=1"),
        "a demand above the measured peak does not matter"
    );
    assert!(
        runs_after_peak(101, "clay: memory=60"),
        "the peak of a part on a thread is not its own"
    );
}

#[test]
fn keep_going_builds_everything_that_does_not_depend_on_a_failure() {
    let plan = fake::plan(
        "bad: fail=0 parts=3
         other: parts=2
         pot: from=other
         shelf: from=bad,pot",
    );
    let trace = simulate(
        &plan,
        Limits {
            keep_going: true,
            ..LIMITS
        },
        &|_| false,
    );
    assert_eq!(trace.completed, expected(&plan));
    assert!(
        event_lines(&trace.events).ends_with("0 hits, 5 ran, 1 failed\n"),
        "{}",
        event_lines(&trace.events)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    // `Simulation` itself checks that each action runs at most once and after its inputs, that the
    // limits hold, that nothing starts after a failure or a cancellation, and that the build ends.
    #[test]
    fn results_do_not_depend_on_the_order_of_answers(
        text in random_plan(),
        jobs in 1..5u32,
        memory_bytes in 60..200u64,
        cached in any::<u8>(),
        order in prop::collection::vec(any::<prop::sample::Index>(), 1..64),
        cancel_after in prop::option::weighted(0.3, 0..40usize),
        keep_going in any::<bool>(),
        remembers in any::<u8>(),
        took in prop::collection::vec(0..100u64, 8),
        peaks in prop::collection::vec(prop::option::of(0..60u64), 1..9),
    ) {
        let plan = fake::plan(&text);
        let may_fail = |task: &Task| {
            let params = &task.action.params;
            params["fail"] == true || params.get("flaky").is_some()
        };
        let is_cached = |task: &Task| task.key.0.hash[0] < cached && !may_fail(task);
        let remembered = |stage: &str| hash_bytes(stage.as_bytes()).hash[0] < remembers;
        let mut history = History::default();
        for (index, &ms) in took.iter().enumerate() {
            let took = StageTimes { longest_ms: ms, total_ms: ms };
            history.0.insert(format!("s{index}"), StageHistory { took, output: None });
        }
        let simulation = Simulation {
            plan: &plan,
            limits: Limits { jobs, memory_bytes, keep_going },
            cached: &is_cached,
            remembered: &remembered,
            history,
            past: &|task| {
                let peak = peaks[usize::from(task.key.0.hash[1]) % peaks.len()];
                Some(PastRun { took_ms: 7, peak_memory_bytes: peak })
            },
            cancel_after,
        };
        let mut answers = 0;
        let trace = simulation.run(|count| {
            answers += 1;
            order[answers % order.len()].index(count)
        });

        let expected = expected(&plan);
        for (stage, manifest) in &trace.completed {
            prop_assert_eq!(Some(manifest), expected.get(stage));
        }
        let Some(Event::Finished { hits, ran, failed, cancelled }) = trace.events.last() else {
            panic!("no `Finished`")
        };
        prop_assert_eq!(*ran + *failed >= trace.runs.len(), true);
        if *failed == 0 && !cancelled {
            prop_assert_eq!(trace.completed.len(), plan.stages.len());
            let count = |manifest: &kiln::action::Manifest| manifest.parts.len();
            let parts: usize = trace.completed.values().map(count).sum();
            prop_assert_eq!(hits + ran, parts);
            prop_assert_eq!(*ran, trace.runs.len());
        }
        if keep_going && !cancelled {
            prop_assert_eq!(trace.completed.len(), expected.len(), "everything that does not depend on a failure is built");
        }
        if expected.len() < plan.stages.len() {
            prop_assert!(*failed > 0 || *cancelled);
        }
    }
}
