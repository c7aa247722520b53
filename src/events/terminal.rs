//! Progress on a terminal: the [`Board`] at the bottom is redrawn, and lines of finished stages
//! scroll above it.

use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use console::Term;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use super::plain::outcome;
use super::{Board, Event, TimedListener};
use crate::base::shown_line;

/// Interval at which the board is redrawn without events.
const TICK: Duration = Duration::from_millis(200);

/// Draws on standard error, which must be a terminal. Without colours.
pub struct Bars {
    board: Arc<Mutex<Board>>,
    screen: ProgressBar,
}

impl Bars {
    /// An empty board for a build that began at `begun`.
    pub fn new(begun: Instant) -> Self {
        let board = Arc::new(Mutex::new(Board::default()));
        let shown = Arc::clone(&board);
        let draw = move |_: &ProgressState, out: &mut dyn Write| {
            let (height, width) = Term::stderr().size();
            let now_ms = begun.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
            let board = shown.lock().unwrap_or_else(PoisonError::into_inner);
            let lines = board.lines(now_ms, width.into(), height.into());
            let lines: Vec<_> = lines.iter().map(|line| shown_line(line)).collect();
            // A failure to draw does not stop the build.
            let _ = out.write_str(&lines.join("\n"));
        };
        // Invariant: the template is valid. Otherwise the default bar is shown.
        let style = ProgressStyle::with_template("{board}").unwrap_or(ProgressStyle::default_bar());
        let screen = ProgressBar::no_length().with_style(style.with_key("board", draw));
        screen.enable_steady_tick(TICK);
        Bars { board, screen }
    }
}

impl TimedListener for Bars {
    fn on_event_at(&mut self, at_ms: u64, event: &Event) {
        let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        board.on_event_at(at_ms, event);
        let line = outcome(event, board.summary());
        // Drawing locks the board too.
        drop(board);
        if let Some(line) = line {
            self.screen.println(shown_line(&line));
        }
        if matches!(event, Event::Finished { .. }) {
            self.screen.finish_and_clear();
        }
    }
}
