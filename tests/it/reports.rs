//! The report files of a build: JUnit XML and a trace.

use std::collections::BTreeMap;

use crate::support::event_fixtures::{
    begun, build_events, emit, interrupted_build_events, part, started,
};
use kiln::base::Code;
use kiln::events::{Event, Junit, Report, Trace};
use proptest::prelude::*;
use serde_json::Value;

fn file(mut report: impl Report, events: &[(u64, Event)]) -> String {
    emit(&mut report, events);
    String::from_utf8(report.file().unwrap()).unwrap()
}

#[test]
fn junit_has_a_suite_per_stage_and_a_case_per_part() {
    let expected = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="p" tests="6" skipped="1" failures="1" errors="0" time="12.010">
    <testsuite name="text" tests="1" skipped="0" errors="0" failures="0" time="0.000">
        <testcase name="text" classname="text" time="0.000"/>
    </testsuite>
    <testsuite name="source" tests="1" skipped="0" errors="0" failures="0" time="0.000">
        <testcase name="source" classname="source" time="0.000"/>
    </testsuite>
    <testsuite name="weights" tests="2" skipped="0" errors="0" failures="0" time="11.500">
        <testcase name="a" classname="weights" time="0.000"/>
        <testcase name="b" classname="weights" time="11.500">
            <flakyFailure message="no answer" type="kiln::fetch::http">no answer
from there</flakyFailure>
        </testcase>
    </testsuite>
    <testsuite name="graph" tests="1" skipped="0" errors="0" failures="1" time="0.500">
        <testcase name="graph" classname="graph" time="0.500">
            <failure message="failed to write" type="kiln::x">failed to write
caused by: no such op

and &lt;more&gt;
help: another op</failure>
        </testcase>
    </testsuite>
    <testsuite name="dlc" tests="1" skipped="1" errors="0" failures="0" time="0.000">
        <testcase name="dlc" classname="dlc" time="0.000">
            <skipped message="a stage that it depends on failed"/>
        </testcase>
    </testsuite>
</testsuites>
"#;
    assert_eq!(file(Junit::default(), &build_events()), expected);
}

#[test]
fn unfinished_parts_are_reported_as_skipped() {
    let xml = file(Junit::default(), &interrupted_build_events());
    let report = quick_junit::Report::deserialize_from_str(&xml).unwrap();
    let mut skipped = vec![];
    for suite in &report.test_suites {
        for case in &suite.test_cases {
            if let quick_junit::TestCaseStatus::Skipped { message, .. } = &case.status {
                let message = message.as_ref().unwrap().as_str();
                skipped.push(format!("{} {message}", case.name.as_str()));
            }
        }
    }
    assert_eq!(
        skipped,
        [
            "b interrupted",
            "graph the build ended before it ran",
            "dlc the build ended before it ran"
        ]
    );
}

/// The events of a trace in one phase.
fn events_in_phase(trace: &Value, phase: &str) -> Vec<Value> {
    let mut events = trace["traceEvents"].as_array().unwrap().clone();
    events.retain(|event| event["ph"] == phase);
    events
}

fn trace_of(events: &[(u64, Event)]) -> Value {
    serde_json::from_str(&file(Trace::default(), events)).unwrap()
}

#[test]
fn a_trace_has_a_slice_for_each_part_that_ran() {
    let trace = trace_of(&build_events());
    let slices = events_in_phase(&trace, "X");
    let slice = serde_json::json!({
        "name": "weights/b", "cat": "weights", "ph": "X",
        "ts": 6000, "dur": 11_500_000, "pid": 1, "tid": 1,
        "args": {
            "why": ["stage version: 1 -> 2"],
            "took_ms": 11_500,
            "output_bytes": 10,
        },
    });
    assert_eq!(slices[0], slice);
    assert_eq!(slices.len(), 2);
    assert_eq!(slices[1]["args"]["failed"], "failed to write");
    let marks = events_in_phase(&trace, "i");
    let marks: Vec<&Value> = marks.iter().map(|mark| &mark["name"]).collect();
    assert_eq!(marks, ["retried weights/b", "failed graph"]);
    let counts = events_in_phase(&trace, "C");
    let running: Vec<&Value> = counts.iter().map(|count| &count["args"]["parts"]).collect();
    assert_eq!(running, [1, 0, 1, 0]);
}

#[test]
fn unfinished_parts_are_drawn_up_to_the_last_event() {
    let slices = events_in_phase(&trace_of(&interrupted_build_events()), "X");
    assert_eq!((slices.len(), &slices[0]["dur"]), (1, &54_000.into()));
    assert_eq!(slices[0]["args"]["unfinished"], true);
}

/// Checks the fields that viewers need:
/// <https://perfetto.dev/docs/getting-started/other-formats#chrome-json-format>.
fn check_fields(event: &Value) {
    assert!(
        event["name"].is_string() && event["pid"].is_u64() && event["tid"].is_u64(),
        "{event}"
    );
    assert!(event["ts"].is_u64() && event["args"].is_object(), "{event}");
    match event["ph"].as_str().unwrap() {
        "X" => assert!(event["dur"].is_u64() && event["cat"].is_string(), "{event}"),
        "i" => assert!(
            matches!(event["s"].as_str(), Some("g" | "p" | "t")),
            "{event}"
        ),
        "C" => assert!(
            event["args"]
                .as_object()
                .unwrap()
                .values()
                .all(Value::is_u64),
            "{event}"
        ),
        "M" => assert!(event["args"]["name"].is_string(), "{event}"),
        other => panic!("a phase {other}"),
    }
}

proptest! {
    // Each step advances the clock, and starts a part or completes or fails a running one.
    #[test]
    fn slices_in_a_lane_never_overlap(
        steps in prop::collection::vec((0..9usize, 0..3u64, any::<bool>()), 0..80)
    ) {
        let mut events = vec![(0, begun(&["s"]))];
        let (mut running, mut most, mut runs, mut now_ms) = (vec![], 0, 0, 0);
        for (index, (name, passed_ms, fails)) in steps.into_iter().enumerate() {
            now_ms += passed_ms;
            let event = match running.iter().position(|(known, _)| *known == name) {
                Some(at) => {
                    let part = running.remove(at).1;
                    let problem = kiln::base::Problem::new(Code::of("x"), "x");
                    if fails {
                        Event::Failed { part, problem }
                    } else {
                        Event::Done { part, took_ms: 0, output_bytes: 0 }
                    }
                }
                None => {
                    let part = part("s", &index.to_string());
                    running.push((name, part.clone()));
                    (most, runs) = (most.max(running.len()), runs + 1);
                    started(part)
                }
            };
            events.push((now_ms, event));
        }
        let trace = trace_of(&events);
        for event in trace["traceEvents"].as_array().unwrap() {
            check_fields(event);
        }
        let mut lanes: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
        let slices = events_in_phase(&trace, "X");
        prop_assert_eq!(slices.len(), runs);
        for slice in slices {
            let field = |name: &str| slice[name].as_u64().unwrap();
            let (ts, dur, tid) = (field("ts"), field("dur"), field("tid"));
            lanes.entry(tid).or_default().push((ts, ts + dur));
        }
        prop_assert!(lanes.len() <= most);
        for slices in lanes.values_mut() {
            slices.sort();
            for pair in slices.windows(2) {
                prop_assert!(pair[0].1 <= pair[1].0, "{:?}", slices);
            }
        }
    }
}
