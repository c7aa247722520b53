//! What people see of a build while it runs.

use std::io::{IsTerminal, stderr, stdout};

use super::Common;
use crate::base::Problem;
use crate::events::{Bars, Event, JsonLines, Listener, Plain, Summary};

/// Counts, collects problems, and shows what happens in the way the call asks for. A build in which
/// nothing happens shows nothing.
pub(super) struct Screen {
    summary: Summary,
    problems: Vec<Problem>,
    view: View,
}

enum View {
    /// Nothing has begun yet; these events wait.
    Waiting(Vec<Event>),
    Shown(Box<dyn Listener>),
}

impl Screen {
    pub(super) fn new(common: &Common) -> Self {
        let view = match common.json {
            true => View::Shown(Box::new(JsonLines(stdout()))),
            false => View::Waiting(vec![]),
        };
        Screen { summary: Summary::default(), problems: vec![], view }
    }

    /// What happened, and what went wrong.
    pub(super) fn into_summary(self) -> (Summary, Vec<Problem>) {
        (self.summary, self.problems)
    }
}

impl Listener for Screen {
    fn hear(&mut self, event: &Event) {
        self.summary.hear(event);
        if let Event::Failed { problem, .. } = event
            && !self.problems.contains(problem)
        {
            self.problems.push(problem.clone());
        }
        match &mut self.view {
            View::Shown(listener) => listener.hear(event),
            View::Waiting(heard) => {
                heard.push(event.clone());
                if matches!(event, Event::Started { .. } | Event::Failed { .. }) {
                    let mut listener: Box<dyn Listener> = match stderr().is_terminal() {
                        true => Box::new(Bars::new()),
                        false => Box::new(Plain::new(stderr())),
                    };
                    heard.iter().for_each(|event| listener.hear(event));
                    self.view = View::Shown(listener);
                }
            }
        }
    }
}
