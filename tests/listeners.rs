//! What listeners make of one and the same build.

use kiln::base::Problem;
use kiln::events::{Event, JsonLines, Listener, PartId, Plain, StageTally, Summary, Why};

fn part(stage: &str, part: &str) -> PartId {
    PartId { stage: stage.into(), part: part.into() }
}

/// One stage from the cache, one that runs a part of two, one that fails, one that waits for it.
fn build() -> Vec<Event> {
    vec![
        Event::Begun { plan: "p".into(), stages: ["source", "weights", "graph", "dlc"].map(String::from).into() },
        Event::Expanded { stage: "source".into(), parts: 1 },
        Event::Hit { part: part("source", "") },
        Event::Sealed { stage: "source".into() },
        Event::Expanded { stage: "weights".into(), parts: 2 },
        Event::Hit { part: part("weights", "a") },
        Event::Started { part: part("weights", "b"), why: vec![Why::StageVersion { old: 1, new: 2 }] },
        Event::Progress { part: part("weights", "b"), done: 1, total: 2, unit: "B".into() },
        Event::Done { part: part("weights", "b"), took_ms: 11_500, output_bytes: 10 },
        Event::Sealed { stage: "weights".into() },
        Event::Expanded { stage: "graph".into(), parts: 1 },
        Event::Started { part: part("graph", ""), why: vec![Why::FirstTime] },
        Event::Failed {
            part: part("graph", ""),
            problem: Problem::new("kiln::x", "no such op\n\nand more").help("another op"),
        },
        Event::Skipped { stage: "dlc".into() },
        Event::Finished { hits: 2, ran: 1, failed: 1, cancelled: false },
    ]
}

#[test]
fn a_log_has_a_few_lines_a_stage() {
    let mut text = vec![];
    let mut plain = Plain::new(&mut text);
    build().iter().for_each(|event| plain.hear(event));
    let expected = "\
done   source: 1 part, from the cache
begin  weights
       weights/b: 11.50 s
done   weights: 2 parts, 1 from the cache, 1 ran in 11.50 s
begin  graph
failed graph: no such op
skip   dlc: a stage it waits for failed
";
    assert_eq!(String::from_utf8(text).unwrap(), expected);
}

#[test]
fn json_lines_read_back_as_the_same_events() {
    let mut text = vec![];
    let mut lines = JsonLines(&mut text);
    build().iter().for_each(|event| lines.hear(event));
    let text = String::from_utf8(text).unwrap();
    assert!(text.lines().any(|line| line == r#"{"event":"hit","part":{"stage":"weights","part":"a"}}"#), "{text}");
    let back: Vec<Event> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(back, build());
}

#[test]
fn the_summary_counts_by_stage_in_the_plans_order() {
    let mut summary = Summary::default();
    build().iter().for_each(|event| summary.hear(event));
    let names: Vec<&str> = summary.stages.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["source", "weights", "graph", "dlc"]);
    let weights = StageTally {
        parts: 2,
        hits: 1,
        started: 1,
        ran: 1,
        sealed: true,
        took_ms: 11_500,
        output_bytes: 10,
        ..Default::default()
    };
    assert_eq!(summary.stage("weights"), Some(&weights));
    assert_eq!(summary.total(|stage| stage.failed), 1);
    assert!(summary.stage("dlc").unwrap().skipped);
}
