//! For profilers: a build in Chrome's trace event format, which Perfetto and `chrome://tracing`
//! open.
//!
//! Each part that ran is a complete event. Parts that ran at the same time lie on different lanes
//! (threads, to the viewer): a part takes the lowest lane that is free when it starts and keeps it
//! until it ends. <https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU>

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{Event, PartId, Report, TimedListener, Why};
use crate::base::{Code, Context, Result, shown_json};

/// The only process of a trace.
const PROCESS: u32 = 1;

/// What happened to no part that ran stands here.
const BUILD_LANE: usize = 0;

/// Collects a trace.
#[derive(Default)]
pub struct Trace {
    plan: String,
    events: Vec<Value>,
    running: BTreeMap<PartId, Slice>,
    free: BTreeSet<usize>,
    lanes: usize,
    last_ms: u64,
}

/// A part that has not ended yet.
#[derive(Clone)]
struct Slice {
    since_ms: u64,
    lane: usize,
    args: Map<String, Value>,
}

impl TimedListener for Trace {
    fn on_event_at(&mut self, at_ms: u64, event: &Event) {
        self.last_ms = at_ms;
        match event {
            Event::Begun { plan, .. } => self.plan.clone_from(plan),
            Event::Started { part, why } if !self.running.contains_key(part) => {
                let lane = self.free.pop_first().unwrap_or_else(|| {
                    self.lanes += 1;
                    self.lanes
                });
                let why: Vec<String> = why.iter().map(Why::to_string).collect();
                let args = Map::from_iter([("why".to_string(), json!(why))]);
                self.running.insert(
                    part.clone(),
                    Slice {
                        since_ms: at_ms,
                        lane,
                        args,
                    },
                );
                self.count();
            }
            Event::Retried {
                part,
                attempt,
                problem,
            } => {
                let lane = self
                    .running
                    .get(part)
                    .map_or(BUILD_LANE, |slice| slice.lane);
                let args = json!({"code": problem.code, "message": problem.to_string(), "attempt": attempt});
                self.instant(&format!("retried {part}"), part, lane, args);
            }
            Event::Done {
                part,
                took_ms,
                output_bytes,
            } => {
                self.end(
                    part,
                    [
                        ("took_ms", json!(took_ms)),
                        ("output_bytes", json!(output_bytes)),
                    ],
                );
            }
            Event::Failed { part, problem } => {
                let lane = self
                    .end(part, [("failed", json!(problem.message))])
                    .unwrap_or(BUILD_LANE);
                let args = json!({"code": problem.code, "message": problem.to_string()});
                self.instant(&format!("failed {part}"), part, lane, args);
            }
            _ => {}
        }
    }
}

impl Trace {
    /// Ends a part that runs; yields its lane.
    fn end<const N: usize>(&mut self, part: &PartId, args: [(&str, Value); N]) -> Option<usize> {
        let mut slice = self.running.remove(part)?;
        self.free.insert(slice.lane);
        slice
            .args
            .extend(args.map(|(name, value)| (name.to_string(), value)));
        self.events.push(complete(part, &slice, self.last_ms));
        self.count();
        Some(slice.lane)
    }

    fn instant(&mut self, name: &str, part: &PartId, lane: usize, args: Value) {
        self.events.push(json!({
            "name": name, "cat": part.stage, "ph": "i", "s": "p",
            "ts": micros(self.last_ms), "pid": PROCESS, "tid": lane, "args": args,
        }));
    }

    /// A counter of the parts that run.
    fn count(&mut self) {
        self.events.push(json!({
            "name": "running", "ph": "C", "ts": micros(self.last_ms), "pid": PROCESS, "tid": BUILD_LANE,
            "args": {"parts": self.running.len()},
        }));
    }
}

/// A part from its start to `end_ms`.
fn complete(part: &PartId, slice: &Slice, end_ms: u64) -> Value {
    json!({
        "name": part.to_string(), "cat": part.stage, "ph": "X", "ts": micros(slice.since_ms),
        "dur": micros(end_ms.saturating_sub(slice.since_ms)), "pid": PROCESS, "tid": slice.lane, "args": slice.args,
    })
}

/// The format counts in microseconds.
fn micros(ms: u64) -> u64 {
    ms.saturating_mul(1000)
}

fn name(what: &str, lane: usize, name: &str) -> Value {
    json!({"name": what, "ph": "M", "ts": 0, "pid": PROCESS, "tid": lane, "args": {"name": name}})
}

impl Report for Trace {
    /// What still runs is drawn until now, and says so.
    fn file(&self) -> Result<Vec<u8>> {
        let mut events = vec![
            name("process_name", BUILD_LANE, &format!("kiln {}", self.plan)),
            name("thread_name", BUILD_LANE, "build"),
        ];
        events.extend(
            (1..=self.lanes).map(|lane| name("thread_name", lane, &format!("lane {lane}"))),
        );
        events.extend(self.events.iter().cloned());
        events.extend(self.running.iter().map(|(part, slice)| {
            let mut slice = slice.clone();
            slice.args.insert("unfinished".into(), json!(true));
            complete(part, &slice, self.last_ms)
        }));
        let trace = json!({"displayTimeUnit": "ms", "traceEvents": events});
        let file = serde_json::to_string(&trace)
            .context(Code::ReportWrite, || "serialize the trace".into())?;
        Ok(format!("{}\n", shown_json(&file)).into_bytes())
    }
}
