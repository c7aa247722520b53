//! Events of example builds, with their times.

use kiln::base::{Code, Problem};
use kiln::events::{Event, Listener, PartId, SCHEMA, TimedListener, Why};

pub fn part(stage: &str, part: &str) -> PartId {
    PartId {
        stage: stage.into(),
        part: part.into(),
    }
}

pub fn begun(stages: &[&str]) -> Event {
    Event::Begun {
        schema: SCHEMA,
        plan: "p".into(),
        stages: stages.iter().map(|stage| stage.to_string()).collect(),
    }
}

pub fn started(part: PartId) -> Event {
    Event::Started {
        part,
        why: vec![Why::FirstTime],
    }
}

/// One stage is unchanged, one is cached, one runs one of its two parts and succeeds at the second
/// attempt, one fails, and one is skipped because it depends on the failed one.
pub fn build_events() -> Vec<(u64, Event)> {
    let flaky = Problem::new(Code::of("kiln::fetch::http"), "no answer\nfrom there");
    let failed = Problem::new(Code::of("kiln::x"), "no such op\n\nand <more>")
        .help("another op")
        .within("failed to write");
    vec![
        (0, begun(&["text", "source", "weights", "graph", "dlc"])),
        (
            1,
            Event::Unchanged {
                stage: "text".into(),
                parts: 3,
            },
        ),
        (
            2,
            Event::Expanded {
                stage: "source".into(),
                parts: 1,
            },
        ),
        (
            3,
            Event::Hit {
                part: part("source", ""),
            },
        ),
        (
            3,
            Event::Completed {
                stage: "source".into(),
                as_before: false,
            },
        ),
        (
            4,
            Event::Expanded {
                stage: "weights".into(),
                parts: 2,
            },
        ),
        (
            5,
            Event::Hit {
                part: part("weights", "a"),
            },
        ),
        (
            6,
            Event::Started {
                part: part("weights", "b"),
                why: vec![Why::StageVersion { old: 1, new: 2 }],
            },
        ),
        (
            50,
            Event::Progress {
                part: part("weights", "b"),
                done: 1,
                total: 2,
                unit: "B".into(),
            },
        ),
        (
            60,
            Event::Retried {
                part: part("weights", "b"),
                attempt: 1,
                problem: flaky,
            },
        ),
        (
            11_506,
            Event::Done {
                part: part("weights", "b"),
                took_ms: 11_500,
                output_bytes: 10,
            },
        ),
        (
            11_506,
            Event::Completed {
                stage: "weights".into(),
                as_before: false,
            },
        ),
        (
            11_507,
            Event::Expanded {
                stage: "graph".into(),
                parts: 1,
            },
        ),
        (11_508, started(part("graph", ""))),
        (
            12_008,
            Event::Failed {
                part: part("graph", ""),
                problem: failed,
            },
        ),
        (
            12_008,
            Event::Skipped {
                stage: "dlc".into(),
            },
        ),
        (
            12_010,
            Event::Finished {
                hits: 5,
                ran: 1,
                failed: 1,
                cancelled: false,
            },
        ),
    ]
}

/// The events up to the retry of `weights/b`.
pub fn interrupted_build_events() -> Vec<(u64, Event)> {
    build_events()
        .into_iter()
        .take_while(|(at_ms, _)| *at_ms <= 60)
        .collect()
}

pub fn emit(listener: &mut dyn TimedListener, events: &[(u64, Event)]) {
    for (at_ms, event) in events {
        listener.on_event_at(*at_ms, event);
    }
}

/// Emits events without their times.
pub fn emit_untimed(listener: &mut dyn Listener, events: &[(u64, Event)]) {
    for (_, event) in events {
        listener.on_event(event);
    }
}
