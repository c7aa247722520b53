//! For people at a terminal: the [`Board`] below, drawn again and again; finished stages scroll
//! away above it.

use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use console::Term;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use super::plain::outcome;
use super::{Board, Event, TimedListener};
use crate::base::shown_line;

/// How often the board is drawn anew while nothing happens.
const TICK: Duration = Duration::from_millis(200);

/// Draws on standard error, which must be a terminal. Without colours.
pub struct Bars {
    board: Arc<Mutex<Board>>,
    screen: ProgressBar,
}

impl Bars {
    /// An empty screen for a build that began at `begun`.
    pub fn new(begun: Instant) -> Self {
        let board = Arc::new(Mutex::new(Board::default()));
        let shown = Arc::clone(&board);
        let draw = move |_: &ProgressState, out: &mut dyn Write| {
            let (height, width) = Term::stderr().size();
            let now_ms = begun.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
            let board = shown.lock().unwrap_or_else(PoisonError::into_inner);
            // What cannot be drawn costs a picture, not the build.
            let lines = board.lines(now_ms, width.into(), height.into());
            let _ = out.write_str(
                &lines
                    .iter()
                    .map(|line| shown_line(line))
                    .collect::<Vec<_>>()
                    .join("\n"),
            );
        };
        // Invariant: the template is well-formed; a broken one would cost the board, not the build.
        let style = ProgressStyle::with_template("{board}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
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
        // Drawing takes the board too.
        drop(board);
        if let Some(line) = line {
            self.screen.println(shown_line(&line));
        }
        if matches!(event, Event::Finished { .. }) {
            self.screen.finish_and_clear();
        }
    }
}
