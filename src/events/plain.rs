//! Progress as plain lines, for logs: one when a stage starts with the reasons, one for each part
//! that takes long, and one when the stage ends.

use std::io::Write;
use std::time::Duration;

use super::{Event, Listener, Summary, in_short};
use crate::base::{duration, shown_line};

/// Parts that take this long have their own line.
const LONG_MS: u64 = 10_000;

/// Writes a few plain lines per stage.
pub struct Plain<W> {
    out: W,
    summary: Summary,
}

impl<W: Write> Plain<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Plain {
            out,
            summary: Summary::default(),
        }
    }
}

impl<W: Write> Listener for Plain<W> {
    fn on_event(&mut self, event: &Event) {
        self.summary.on_event(event);
        let Some(line) = line_for(event, &self.summary) else {
            return;
        };
        // A closed pipe does not stop the build.
        let _ = writeln!(self.out, "{}", shown_line(&line));
        let _ = self.out.flush();
    }
}

/// The line for an event, which `summary` includes already.
fn line_for(event: &Event, summary: &Summary) -> Option<String> {
    match event {
        Event::Started { part, why } => {
            if summary.stage(&part.stage)?.started > 1 {
                return None;
            }
            Some(format!("begin  {}: {}", part.stage, in_short(why)))
        }
        Event::Done { part, took_ms, .. } if !part.part.is_empty() && *took_ms >= LONG_MS => {
            let time = duration(Duration::from_millis(*took_ms));
            Some(format!("       {part}: {time}"))
        }
        event => outcome(event, summary),
    }
}

/// The line for an event that ends a stage or an attempt.
pub(super) fn outcome(event: &Event, summary: &Summary) -> Option<String> {
    match event {
        Event::Completed { stage, .. } | Event::Unchanged { stage, .. } => {
            Some(format!("done   {stage}: {}", summary.stage(stage)?))
        }
        // A message can be a whole report, which is shown at the end of the build.
        Event::Failed { part, problem } => {
            Some(format!("failed {part}: {}", first_line(&problem.message)))
        }
        Event::Retried {
            part,
            attempt,
            problem,
        } => Some(format!(
            "retry  {part}: attempt {attempt} failed: {}",
            first_line(&problem.message)
        )),
        Event::Skipped { stage } => {
            Some(format!("skip   {stage}: a stage that it depends on failed"))
        }
        _ => None,
    }
}

pub(super) fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
