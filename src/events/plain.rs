//! For logs: a line when a stage begins to work and why, one for each part that takes long, and one
//! when it ends.

use std::io::Write;
use std::time::Duration;

use super::{Event, Listener, Summary, in_short};
use crate::base::{duration, shown_line};

/// A part that took so long has a line of its own.
const LONG_MS: u64 = 10_000;

/// Writes plain lines, no more than a few a stage.
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
        let Some(line) = line(event, &self.summary) else {
            return;
        };
        // A reader that has gone away does not stop the build.
        let _ = writeln!(self.out, "{}", shown_line(&line)).and_then(|()| self.out.flush());
    }
}

/// What an event adds to a log; `summary` has heard it already.
fn line(event: &Event, summary: &Summary) -> Option<String> {
    match event {
        Event::Started { part, why } => {
            let tally = summary.stage(&part.stage)?;
            (tally.started == 1).then(|| format!("begin  {}: {}", part.stage, in_short(why)))
        }
        Event::Done { part, took_ms, .. } if !part.part.is_empty() && *took_ms >= LONG_MS => {
            Some(format!(
                "       {part}: {}",
                duration(Duration::from_millis(*took_ms))
            ))
        }
        event => outcome(event, summary),
    }
}

/// What an event says of the end of something.
pub(super) fn outcome(event: &Event, summary: &Summary) -> Option<String> {
    match event {
        Event::CompletedStage { stage, .. } | Event::Unchanged { stage, .. } => {
            Some(format!("done   {stage}: {}", summary.stage(stage)?))
        }
        // A message may hold a whole report; it is shown at the end.
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
        Event::Skipped { stage } => Some(format!("skip   {stage}: a stage it waits for failed")),
        _ => None,
    }
}

pub(super) fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
