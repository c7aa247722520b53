//! Reads the lines that [`JsonLines`](super::JsonLines) writes. Every line is checked.

use std::io::{BufRead, Read};

use serde::Deserialize;

use super::{Event, LoggedEvent, SCHEMA};
use crate::base::{Code, Problem, Result, count};

/// Cap on the length of a line. The failure of a `validate` contains its whole report.
const MAX_LINE_BYTES: u64 = 16 << 20;

/// Cap on the number of events other than progress, because reports keep them in memory. Builds of
/// the largest plans have some thousands.
const MAX_EVENTS: usize = 100_000;

/// Cap on the number of stages: that of a plan.
const MAX_STAGES: usize = 1000;

/// Iterates over the events of a log. Ends after `finished` or after the first problem.
pub struct LogReader<R> {
    text: R,
    line: usize,
    last_ms: u64,
    events: usize,
    stages: Vec<String>,
    is_finished: bool,
}

impl<R: BufRead> LogReader<R> {
    /// Reads from `text`.
    pub fn new(text: R) -> Self {
        LogReader {
            text,
            line: 0,
            last_ms: 0,
            events: 0,
            stages: vec![],
            is_finished: false,
        }
    }

    fn read(&mut self) -> Result<LoggedEvent> {
        self.line += 1;
        let mut line = vec![];
        let mut limited = self.text.by_ref().take(MAX_LINE_BYTES + 1);
        if let Err(error) = limited.read_until(b'\n', &mut line) {
            let problem = self.problem(Code::LogUnreadable, "cannot be read");
            return Err(problem.because(&error));
        }
        if line.is_empty() {
            let lines = count(self.line - 1, "line");
            let message = format!("the log ends after {lines}, before the build did");
            let help = "the build was killed or still runs; the events up to here were read";
            return Err(Problem::new(Code::LogCut, message).help(help));
        }
        if line.len() as u64 > MAX_LINE_BYTES {
            let message = format!("is longer than {MAX_LINE_BYTES} bytes");
            return Err(self.problem(Code::LogLine, &message));
        }
        if self.line == 1 {
            self.check_schema(&line)?;
        }
        let logged = match serde_json::from_slice(&line) {
            Ok(logged) => logged,
            Err(error) => {
                let help = if line.ends_with(b"\n") {
                    "a log is what `kiln build --log FILE` or `--json` writes; docs/events.md \
                     describes it"
                } else {
                    "the log is cut in the middle of this line; the lines before it were read"
                };
                let problem = self.problem(Code::LogLine, "is not an event");
                return Err(problem.because(&error).help(help));
            }
        };
        self.check(&logged)?;
        Ok(logged)
    }

    /// Reads only the version: a line of another schema may have any form.
    fn check_schema(&self, line: &[u8]) -> Result<()> {
        #[derive(Deserialize)]
        struct Head {
            schema: u32,
        }
        match serde_json::from_slice(line) {
            Ok(Head { schema }) if schema != SCHEMA => {
                let message = format!("has schema {schema}; this kiln reads {SCHEMA}");
                Err(self
                    .problem(Code::LogSchema, &message)
                    .help("use the kiln that wrote the log"))
            }
            _ => Ok(()),
        }
    }

    /// Checks that the event is valid at this place of the log.
    fn check(&mut self, logged: &LoggedEvent) -> Result<()> {
        let LoggedEvent { event, at_ms } = logged;
        if *at_ms < self.last_ms {
            let message = format!("goes back in time, from {} ms to {at_ms} ms", self.last_ms);
            return Err(self.problem(Code::LogLine, &message));
        }
        self.last_ms = *at_ms;
        self.events += usize::from(!matches!(event, Event::Progress { .. }));
        if self.events > MAX_EVENTS {
            let message = format!("is one too many: at most {MAX_EVENTS} events are read");
            return Err(self.problem(Code::LogTooLong, &message));
        }
        if matches!(event, Event::Begun { .. }) != (self.line == 1) {
            let message = "is out of place: a log begins with `begun`, and only once";
            return Err(self.problem(Code::LogLine, message));
        }
        if let Event::Begun { stages, .. } = event {
            if stages.len() > MAX_STAGES {
                let found = stages.len();
                let message = format!("names {found} stages; a plan has at most {MAX_STAGES}");
                return Err(self.problem(Code::LogLine, &message));
            }
            self.stages.clone_from(stages);
        }
        if let Some(stage) = event.stage()
            && !self.stages.iter().any(|name| name == stage)
        {
            let message = format!("is about a stage `{stage}` that `begun` does not name");
            return Err(self.problem(Code::LogLine, &message));
        }
        self.is_finished = matches!(event, Event::Finished { .. });
        Ok(())
    }

    /// `message` continues the sentence "line 3 of the log ...".
    fn problem(&self, code: Code, message: &str) -> Problem {
        Problem::new(code, format!("line {} of the log {message}", self.line))
    }
}

impl<R: BufRead> Iterator for LogReader<R> {
    type Item = Result<LoggedEvent>;

    fn next(&mut self) -> Option<Result<LoggedEvent>> {
        if self.is_finished {
            return None;
        }
        let next = self.read();
        self.is_finished |= next.is_err();
        Some(next)
    }
}
