//! For programs: each event as a line of JSON.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use super::{Event, TimedListener};
use crate::base::shown_json;

/// An event and when it was: a line of JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoggedEvent<E = Event> {
    /// What happened.
    #[serde(flatten)]
    pub event: E,
    /// Milliseconds since the build began.
    pub at_ms: u64,
}

/// Writes every event as it is heard. What cannot be written does not stop the build; after it,
/// nothing is written.
pub struct JsonLines<W> {
    out: W,
    failed: Option<io::Error>,
}

impl<W: Write> JsonLines<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        JsonLines { out, failed: None }
    }

    /// Why something could not be written.
    pub fn failed(self) -> Option<io::Error> {
        self.failed
    }
}

impl<W: Write> TimedListener for JsonLines<W> {
    fn on_event_at(&mut self, at_ms: u64, event: &Event) {
        if self.failed.is_some() {
            return;
        }
        let line = serde_json::to_string(&LoggedEvent { event, at_ms }).map_err(io::Error::from);
        let write = |line: String| {
            self.out
                .write_all(format!("{}\n", shown_json(&line)).as_bytes())
                .and_then(|()| self.out.flush())
        };
        self.failed = line.and_then(write).err();
    }
}
