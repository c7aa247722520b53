//! The scheduler, without thread, file or clock.

use crate::support::fake;
use crate::support::simulation::{Simulation, Trace, expected, told};
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

/// Builds `text`, answering in the order of the questions, and compares what is told.
fn check(text: &str, limits: Limits, expect: &str) {
    let told = told(&simulate(&fake::plan(text), limits, &|_| false).events);
    let lines = |text: &str| {
        text.lines()
            .map(|line| format!("{}\n", line.trim()))
            .collect::<String>()
    };
    assert_eq!(told, lines(expect.trim()));
}

#[test]
fn a_stage_waits_for_all_it_takes_from() {
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
         clay sealed
         glaze/0 done
         glaze sealed
         pot has 1
         pot/0 starts
         pot/0 done
         pot sealed
         0 hits, 4 ran, 0 failed",
    );
}

#[test]
fn equal_actions_run_once_and_serve_every_part() {
    check(
        "head: seed=embedding
         embedding:
         twins: parts=2 tied=1",
        LIMITS,
        "head has 1
         embedding has 1
         twins has 2
         head/0 starts
         twins/0 starts
         head/0 done
         head sealed
         embedding/0 hit
         embedding sealed
         twins/0 done
         twins/1 hit
         twins sealed
         2 hits, 2 ran, 0 failed",
    );
}

#[test]
fn a_later_twin_of_a_finished_part_is_a_hit() {
    check(
        "a: seed=x
         b: parts=0
         c: from=b seed=x",
        LIMITS,
        "a has 1
         b has 0
         b sealed
         a/0 starts
         a/0 done
         a sealed
         c has 1
         c/0 hit
         c sealed
         1 hits, 1 ran, 0 failed",
    );
}

#[test]
fn a_failure_starts_nothing_new_and_skips_what_follows() {
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

#[test]
fn a_greedy_part_waits_until_it_is_alone_and_small_ones_pass_it() {
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
         small sealed
         large/0 starts
         large/0 done
         large sealed
         0 hits, 4 ran, 0 failed",
    );
}

#[test]
fn a_part_above_the_budget_is_refused() {
    let refused = |line: &str| {
        let trace = simulate(&fake::plan(line), LIMITS, &|_| false);
        assert!(trace.runs.is_empty());
        let problem = trace.events.iter().find_map(|event| match event {
            Event::Failed { problem, .. } => Some(problem.clone()),
            _ => None,
        });
        let problem = problem.unwrap();
        assert_eq!(problem.message, "`huge/0` needs 101 B, the budget is 100 B");
        problem.help.unwrap()
    };
    let more = "give more with --memory BYTES, if this machine has it, or build on a larger one";
    assert_eq!(refused("huge: memory=101"), more);
    // The mildest way that fits is named; where none does, none is.
    for (least, fits) in [(30, 80), (60, 60), (100, 100)] {
        let help = format!("knead {fits} B at a time: that needs {fits} B; or {more}");
        assert_eq!(refused(&format!("huge: memory=101 smaller={least}")), help);
    }
    assert_eq!(refused("huge: memory=101 smaller=101"), more);
    // What is in the cache needs no memory.
    let plan = fake::plan("huge: memory=101");
    assert_eq!(
        simulate(&plan, LIMITS, &|_| true).completed,
        expected(&plan)
    );
}

#[test]
fn two_orders_of_one_name_are_a_problem() {
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
    let events: Vec<Event> = effects
        .into_iter()
        .filter_map(|effect| match effect {
            kiln::engine::Effect::Emit(event) => Some(event),
            _ => None,
        })
        .collect();
    assert_eq!(
        told(&events),
        "a failed: kiln::engine::same_order\n0 hits, 0 ran, 1 failed\n"
    );
}

#[test]
fn without_slots_nothing_runs_and_all_that_can_be_known_is_told() {
    check(
        "clay: parts=2
         pot: from=clay",
        Limits { jobs: 0, ..LIMITS },
        "clay has 2
         0 hits, 0 ran, 0 failed",
    );
}

#[test]
fn a_twin_that_would_run_names_the_part_that_says_why() {
    let dry = Limits { jobs: 0, ..LIMITS };
    let waiting = simulate(&fake::plan("twins: parts=2 tied=1"), dry, &|_| false).waiting;
    let same = Why::Same {
        part: "twins/0".into(),
    };
    assert_eq!(
        waiting,
        [
            ("twins/0".to_string(), vec![]),
            ("twins/1".to_string(), vec![same])
        ]
    );
}

/// The text of a random plan: each stage takes from some of those before it.
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
    // One number for all stages: of parts that share an action, only one stage's counts.
    (prop::collection::vec(stage, 0..8), 0..4u32).prop_map(|(stages, retries)| {
        let lines = stages.into_iter().enumerate().map(|(index, stage)| {
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
            line += &fail.map_or(String::new(), |fail| format!(" fail={fail}"));
            line += &seed.map_or(String::new(), |seed| format!(" seed=twin{seed}"));
            line += if tied { " tied=1" } else { "" };
            line += &flaky.map_or(String::new(), |flaky| format!(" flaky={flaky}"));
            line += if process { " process=1" } else { "" };
            line + "\n"
        });
        lines.collect()
    })
}

#[test]
fn what_an_earlier_build_left_complete_is_not_looked_for() {
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
        told(&trace.events).starts_with("clay unchanged, 2\npot has 3\n"),
        "{}",
        told(&trace.events)
    );
    assert_eq!(trace.completed, expected(&plan));
}

#[test]
fn a_stage_that_gives_what_it_gave_before_is_said_to() {
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
    let told = told(&simulation.run(|_| 0).events);
    assert!(
        told.ends_with("clay sealed as before\n0 hits, 2 ran, 0 failed\n"),
        "{told}"
    );
}

#[test]
fn the_longest_road_is_begun_first() {
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
    // Both stages are looked for before the shorter road could be let in.
    let mut turn = 0;
    let trace = simulation.run(|count| {
        turn += 1;
        if turn <= 4 { 0 } else { count - 1 }
    });
    let begun: Vec<String> = trace
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Started { part, .. } => Some(part.stage.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(
        begun,
        ["long", "after", "short", "end"],
        "{}",
        told(&trace.events)
    );
}

#[test]
fn what_failed_is_tried_again_as_often_as_the_plan_says() {
    let trace = simulate(&fake::plan("clay: fail=0 retries=2"), LIMITS, &|_| false);
    assert_eq!(
        trace.retried,
        [("clay/0".to_string(), 1), ("clay/0".to_string(), 2)]
    );
    assert!(
        told(&trace.events).ends_with("clay/0 failed: test::failed\n0 hits, 0 ran, 1 failed\n")
    );
}

#[test]
fn a_part_that_fails_now_and_then_succeeds_in_the_end() {
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
        told(&trace.events).ends_with("0 hits, 2 ran, 0 failed\n"),
        "{}",
        told(&trace.events)
    );
    let trace = simulate(&fake::plan("clay: flaky=3 retries=2"), LIMITS, &|_| false);
    assert!(told(&trace.events).ends_with("clay/0 failed: test::flaky\n0 hits, 0 ran, 1 failed\n"));
}

/// Builds a part that asks for 60 of 100 B, and took `peak` when it ran last; yields whether it
/// runs.
fn runs_after(peak: u64, text: &str) -> bool {
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
fn what_a_part_took_when_it_ran_counts_more_than_what_it_asks_for() {
    for (peak, runs) in [(10, true), (95, true), (100, true), (101, false)] {
        assert_eq!(
            runs_after(peak, "clay: memory=60 process=1"),
            runs,
            "{peak} of 100 B"
        );
    }
    assert!(
        runs_after(50, "clay: memory=1000 process=1"),
        "it asks for more than it took"
    );
    assert!(
        runs_after(101, "clay: memory=60"),
        "what shares a process was not measured alone"
    );
}

#[test]
fn to_keep_going_is_to_build_all_that_does_not_need_what_failed() {
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
        told(&trace.events).ends_with("0 hits, 5 ran, 1 failed\n"),
        "{}",
        told(&trace.events)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    // `Simulation` itself checks that each action runs at most once and after its inputs, that the limits hold, that
    // nothing begins after a failure or an interruption, and that the build ends.
    #[test]
    fn any_order_of_answers_gives_the_same(
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
        let may_fail = |task: &Task| task.action.params["fail"] == true || task.action.params.get("flaky").is_some();
        let is_cached = |task: &Task| task.key.0.hash[0] < cached && !may_fail(task);
        let remembered = |stage: &str| hash_bytes(stage.as_bytes()).hash[0] < remembers;
        let times = took.iter().enumerate().map(|(index, &ms)| (format!("s{index}"), StageHistory { took: StageTimes { longest_ms: ms, total_ms: ms }, output: None }));
        let simulation = Simulation {
            plan: &plan,
            limits: Limits { jobs, memory_bytes, keep_going },
            cached: &is_cached,
            remembered: &remembered,
            history: History(times.collect()),
            past: &|task| {
                let peak = peaks[usize::from(task.key.0.hash[1]) % peaks.len()];
                Some(PastRun { took_ms: 7, peak_memory_bytes: peak })
            },
            cancel_after,
        };
        let mut turn = 0;
        let trace = simulation.run(|count| {
            turn += 1;
            order[turn % order.len()].index(count)
        });

        let expected = expected(&plan);
        for (stage, manifest) in &trace.completed {
            prop_assert_eq!(Some(manifest), expected.get(stage));
        }
        let Some(Event::Finished { hits, ran, failed, cancelled }) = trace.events.last() else { panic!("no end") };
        prop_assert_eq!(*ran + *failed >= trace.runs.len(), true);
        if *failed == 0 && !cancelled {
            prop_assert_eq!(trace.completed.len(), plan.stages.len());
            let parts: usize = trace.completed.values().map(|manifest| manifest.parts.len()).sum();
            prop_assert_eq!(hits + ran, parts);
            prop_assert_eq!(*ran, trace.runs.len());
        }
        if keep_going && !cancelled {
            prop_assert_eq!(trace.completed.len(), expected.len(), "all that can be built is");
        }
        if expected.len() < plan.stages.len() {
            prop_assert!(*failed > 0 || *cancelled);
        }
    }
}
