//! Events as lines of JSON, for programs.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use super::{Event, TimedListener};
use crate::base::shown_json;

/// An event with its time: a line of JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoggedEvent<E = Event> {
    /// What happened.
    #[serde(flatten)]
    pub event: E,
    /// Milliseconds since the build began.
    pub at_ms: u64,
}

/// Writes each event at once. A failure to write does not stop the build; after it, nothing is
/// written.
pub struct JsonLines<W> {
    out: W,
    error: Option<io::Error>,
}

impl<W: Write> JsonLines<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        JsonLines { out, error: None }
    }

    /// The error that stopped writing.
    pub fn failed(self) -> Option<io::Error> {
        self.error
    }

    fn write(&mut self, line: LoggedEvent<&Event>) -> io::Result<()> {
        let json = serde_json::to_string(&line)?;
        writeln!(self.out, "{}", shown_json(&json))?;
        self.out.flush()
    }
}

impl<W: Write> TimedListener for JsonLines<W> {
    fn on_event_at(&mut self, at_ms: u64, event: &Event) {
        if self.error.is_none() {
            self.error = self.write(LoggedEvent { event, at_ms }).err();
        }
    }
}
