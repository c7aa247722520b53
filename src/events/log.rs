//! Reads the lines of [`JsonLines`](super::JsonLines) back, trusting none of them.

use std::io::{BufRead, Read};

use serde::Deserialize;

use super::{Event, LoggedEvent, SCHEMA};
use crate::base::{Code, Problem, Result, count};

/// The longest line that is read. A failed `validate` tells its whole report in one.
const MAX_LINE_BYTES: u64 = 16 << 20;

/// So many events are read, those that only tell of progress apart: reports hold all of them. A
/// build of the largest plans here has some thousands.
const MAX_EVENTS: usize = 100_000;

/// As many as a plan may have.
const MAX_STAGES: usize = 1000;

/// The events of a log, as far as they can be trusted: it ends after `finished`, or after a
/// problem.
pub struct LogReader<R> {
    text: R,
    line: usize,
    last_ms: u64,
    events: usize,
    stages: Vec<String>,
    is_over: bool,
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
            is_over: false,
        }
    }

    fn read(&mut self) -> Result<LoggedEvent> {
        self.line += 1;
        let mut line = vec![];
        let read = self
            .text
            .by_ref()
            .take(MAX_LINE_BYTES + 1)
            .read_until(b'\n', &mut line);
        read.map_err(|error| {
            self.problem(Code::LogUnreadable, "cannot be read")
                .because(&error)
        })?;
        if line.is_empty() {
            let message = format!(
                "the log ends after {}, before the build did",
                count(self.line - 1, "line")
            );
            let help = "the build was killed or still runs; what the log has was read";
            return Err(Problem::new(Code::LogCut, message).help(help));
        }
        if line.len() as u64 > MAX_LINE_BYTES {
            return Err(self.problem(
                Code::LogLine,
                &format!("is longer than {MAX_LINE_BYTES} bytes"),
            ));
        }
        if self.line == 1 {
            self.check_schema(&line)?;
        }
        let logged = serde_json::from_slice(&line).map_err(|error| {
            let help = match line.ends_with(b"\n") {
                true => {
                    "a log is what `kiln build --log FILE` or `--json` writes; docs/events.md \
                     describes it"
                }
                false => {
                    "the log was cut in the middle of this line; what comes before it was read"
                }
            };
            self.problem(Code::LogLine, "is not an event")
                .because(&error)
                .help(help)
        })?;
        self.check(&logged)?;
        Ok(logged)
    }

    /// Looks at nothing but the number: the rest of another schema may be of any form.
    fn check_schema(&self, line: &[u8]) -> Result<()> {
        #[derive(Deserialize)]
        struct Head {
            schema: u32,
        }
        match serde_json::from_slice(line) {
            Ok(Head { schema }) if schema != SCHEMA => {
                let said =
                    format!("says that the log has schema {schema}; this kiln reads {SCHEMA}");
                Err(self
                    .problem(Code::LogSchema, &said)
                    .help("use the kiln that wrote the log"))
            }
            _ => Ok(()),
        }
    }

    /// Whether `heard` can come here.
    fn check(&mut self, logged: &LoggedEvent) -> Result<()> {
        if logged.at_ms < self.last_ms {
            let said = format!(
                "goes back in time, from {} ms to {} ms",
                self.last_ms, logged.at_ms
            );
            return Err(self.problem(Code::LogLine, &said));
        }
        self.last_ms = logged.at_ms;
        self.events += usize::from(!matches!(logged.event, Event::Progress { .. }));
        if self.events > MAX_EVENTS {
            return Err(self.problem(
                Code::LogTooLong,
                &format!("is one too many: at most {MAX_EVENTS} events are read"),
            ));
        }
        let begins = matches!(logged.event, Event::Begun { .. });
        if begins != (self.line == 1) {
            return Err(self.problem(
                Code::LogLine,
                "is out of place: a log begins with `begun`, and only once",
            ));
        }
        match &logged.event {
            Event::Begun { stages, .. } if stages.len() > MAX_STAGES => {
                let said = format!(
                    "names {} stages; a plan has at most {MAX_STAGES}",
                    stages.len()
                );
                return Err(self.problem(Code::LogLine, &said));
            }
            Event::Begun { stages, .. } => self.stages.clone_from(stages),
            event => {
                if let Some(stage) = event
                    .stage()
                    .filter(|stage| !self.stages.iter().any(|known| known == stage))
                {
                    return Err(self.problem(
                        Code::LogLine,
                        &format!("tells of a stage `{stage}` that `begun` does not name"),
                    ));
                }
            }
        }
        self.is_over = matches!(logged.event, Event::Finished { .. });
        Ok(())
    }

    fn problem(&self, code: Code, said: &str) -> Problem {
        Problem::new(code, format!("line {} of the log {said}", self.line))
    }
}

impl<R: BufRead> Iterator for LogReader<R> {
    type Item = Result<LoggedEvent>;

    fn next(&mut self) -> Option<Result<LoggedEvent>> {
        if self.is_over {
            return None;
        }
        let next = self.read();
        self.is_over |= next.is_err();
        Some(next)
    }
}
