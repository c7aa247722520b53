//! For programs: each event as a line of JSON.

use std::io::Write;

use super::{Event, Listener};

/// Writes every event as it is heard. A reader that has gone away does not stop the build.
pub struct JsonLines<W>(pub W);

impl<W: Write> Listener for JsonLines<W> {
    fn hear(&mut self, event: &Event) {
        if let Ok(mut line) = serde_json::to_vec(event) {
            line.push(b'\n');
            let _ = self.0.write_all(&line).and_then(|()| self.0.flush());
        }
    }
}
