//! A build in Chrome's trace event format, for Perfetto and `chrome://tracing`.
//!
//! Each part that ran is a complete event. Parts that ran at the same time are on different lanes
//! (threads in the viewer): a part takes the lowest lane that is free when it starts and keeps it
//! until it ends. <https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU>

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{Event, PartId, Report, TimedListener, Why};
use crate::base::{Code, Context, Result, shown_json};

/// The only process of a trace.
const PROCESS: u32 = 1;

/// The lane of events that belong to no running part.
const BUILD_LANE: usize = 0;

/// Collects the events of a trace.
#[derive(Default)]
pub struct Trace {
    plan: String,
    events: Vec<Value>,
    running: BTreeMap<PartId, Slice>,
    free_lanes: BTreeSet<usize>,
    lane_count: usize,
    last_ms: u64,
}

/// A running part.
#[derive(Clone)]
struct Slice {
    start_ms: u64,
    lane: usize,
    args: Map<String, Value>,
}

impl TimedListener for Trace {
    fn on_event_at(&mut self, at_ms: u64, event: &Event) {
        self.last_ms = at_ms;
        match event {
            Event::Begun { plan, .. } => self.plan.clone_from(plan),
            Event::Started { part, why } if !self.running.contains_key(part) => {
                let why: Vec<String> = why.iter().map(Why::to_string).collect();
                let slice = Slice {
                    start_ms: at_ms,
                    lane: self.free_lane(),
                    args: Map::from_iter([("why".to_string(), json!(why))]),
                };
                self.running.insert(part.clone(), slice);
                self.count_running();
            }
            Event::Retried {
                part,
                attempt,
                problem,
            } => {
                let lane = match self.running.get(part) {
                    Some(slice) => slice.lane,
                    None => BUILD_LANE,
                };
                let args = json!({
                    "code": problem.code,
                    "message": problem.to_string(),
                    "attempt": attempt,
                });
                self.instant(&format!("retried {part}"), part, lane, args);
            }
            Event::Done {
                part,
                took_ms,
                output_bytes,
            } => {
                let args = json!({"took_ms": took_ms, "output_bytes": output_bytes});
                self.end(part, args);
            }
            Event::Failed { part, problem } => {
                let lane = self.end(part, json!({"failed": problem.message}));
                let lane = lane.unwrap_or(BUILD_LANE);
                let args = json!({"code": problem.code, "message": problem.to_string()});
                self.instant(&format!("failed {part}"), part, lane, args);
            }
            _ => {}
        }
    }
}

impl Trace {
    /// Takes the lowest free lane.
    fn free_lane(&mut self) -> usize {
        if let Some(lane) = self.free_lanes.pop_first() {
            return lane;
        }
        self.lane_count += 1;
        self.lane_count
    }

    /// Ends a running part and returns its lane.
    fn end(&mut self, part: &PartId, args: Value) -> Option<usize> {
        let mut slice = self.running.remove(part)?;
        self.free_lanes.insert(slice.lane);
        if let Value::Object(args) = args {
            slice.args.extend(args);
        }
        self.events.push(complete(part, &slice, self.last_ms));
        self.count_running();
        Some(slice.lane)
    }

    fn instant(&mut self, name: &str, part: &PartId, lane: usize, args: Value) {
        self.events.push(json!({
            "name": name, "cat": part.stage, "ph": "i", "s": "p",
            "ts": micros(self.last_ms), "pid": PROCESS, "tid": lane, "args": args,
        }));
    }

    /// Records the number of running parts.
    fn count_running(&mut self) {
        self.events.push(json!({
            "name": "running", "ph": "C", "ts": micros(self.last_ms),
            "pid": PROCESS, "tid": BUILD_LANE, "args": {"parts": self.running.len()},
        }));
    }
}

/// A part from its start to `end_ms`.
fn complete(part: &PartId, slice: &Slice, end_ms: u64) -> Value {
    json!({
        "name": part.to_string(), "cat": part.stage, "ph": "X", "ts": micros(slice.start_ms),
        "dur": micros(end_ms.saturating_sub(slice.start_ms)),
        "pid": PROCESS, "tid": slice.lane, "args": slice.args,
    })
}

/// Milliseconds as the microseconds of the format.
fn micros(ms: u64) -> u64 {
    ms.saturating_mul(1000)
}

/// A metadata event that names a process or a lane.
fn name(what: &str, lane: usize, name: &str) -> Value {
    json!({"name": what, "ph": "M", "ts": 0, "pid": PROCESS, "tid": lane, "args": {"name": name}})
}

impl Report for Trace {
    /// Parts that are still running end at the last event and have the argument `unfinished`.
    fn file(&self) -> Result<Vec<u8>> {
        let mut events = vec![
            name("process_name", BUILD_LANE, &format!("kiln {}", self.plan)),
            name("thread_name", BUILD_LANE, "build"),
        ];
        for lane in 1..=self.lane_count {
            events.push(name("thread_name", lane, &format!("lane {lane}")));
        }
        events.extend_from_slice(&self.events);
        for (part, slice) in &self.running {
            let mut slice = slice.clone();
            slice.args.insert("unfinished".into(), json!(true));
            events.push(complete(part, &slice, self.last_ms));
        }
        let trace = json!({"displayTimeUnit": "ms", "traceEvents": events});
        let file = serde_json::to_string(&trace)
            .context(Code::ReportWrite, || "serialize the trace".into())?;
        Ok(format!("{}\n", shown_json(&file)).into_bytes())
    }
}
