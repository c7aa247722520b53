//! For people at a terminal: a bar for each running part, a counter below, finished stages above.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::plain::outcome;
use super::{Event, Listener, PartId, Summary};
use crate::base::{bytes, count};

/// How many running parts are shown.
const SHOWN: usize = 16;

/// Draws on standard error, which must be a terminal.
pub struct Bars {
    screen: MultiProgress,
    counter: ProgressBar,
    running: BTreeMap<PartId, ProgressBar>,
    summary: Summary,
}

impl Bars {
    /// An empty screen.
    pub fn new() -> Self {
        let screen = MultiProgress::new();
        let counter = screen.add(ProgressBar::no_length().with_style(style("{elapsed:>8}  {wide_msg}")));
        counter.enable_steady_tick(Duration::from_millis(200));
        Bars { screen, counter, running: BTreeMap::new(), summary: Summary::default() }
    }

    fn show(&mut self, part: &PartId) {
        if self.running.len() < SHOWN {
            let bar = ProgressBar::no_length().with_style(style("{elapsed:>8}  {prefix} {wide_msg}"));
            let bar = self.screen.insert_before(&self.counter, bar.with_prefix(part.to_string()));
            bar.tick();
            self.running.insert(part.clone(), bar);
        }
    }

    fn hide(&mut self, part: &PartId) {
        if let Some(bar) = self.running.remove(part) {
            bar.finish_and_clear();
            self.screen.remove(&bar);
        }
    }

    fn count(&self) {
        let total = |number: fn(&super::StageTally) -> usize| self.summary.total(number);
        let (parts, hits, ran, failed) = (
            total(|stage| stage.parts),
            total(|stage| stage.hits),
            total(|stage| stage.ran),
            total(|stage| stage.failed),
        );
        let failed = if failed > 0 { format!(", {failed} failed") } else { String::new() };
        self.counter.set_message(format!(
            "{} of {}: {hits} from the cache, {ran} ran{failed}",
            hits + ran,
            count(parts, "part")
        ));
    }
}

impl Default for Bars {
    fn default() -> Self {
        Bars::new()
    }
}

impl Listener for Bars {
    fn hear(&mut self, event: &Event) {
        self.summary.hear(event);
        if let Some(line) = outcome(event, &self.summary) {
            // A terminal that has gone away does not stop the build.
            let _ = self.screen.println(line);
        }
        match event {
            Event::Started { part, .. } => self.show(part),
            Event::Progress { part, done, total, unit } => {
                if let Some(bar) = self.running.get(part) {
                    bar.set_style(style(if *total > 0 {
                        "{elapsed:>8}  {prefix} {bar:24} {wide_msg}"
                    } else {
                        "{elapsed:>8}  {prefix} {wide_msg}"
                    }));
                    bar.set_length(*total);
                    bar.set_position(*done);
                    bar.set_message(amount(*done, *total, unit));
                }
            }
            Event::Done { part, .. } | Event::Failed { part, .. } => self.hide(part),
            Event::Finished { .. } => {
                self.counter.finish_and_clear();
                let _ = self.screen.clear();
            }
            _ => {}
        }
        self.count();
    }
}

fn style(template: &str) -> ProgressStyle {
    // Invariant: the templates above are well-formed; a broken one costs the bar, not the build.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("━╸ ")
}

/// `12.3 MB of 98.4 MB`, `3 of 8 windows`.
fn amount(done: u64, total: u64, unit: &str) -> String {
    let said = |count| if unit == "B" { bytes(count) } else { format!("{count}") };
    let unit = if unit == "B" { String::new() } else { format!(" {unit}") };
    if total == 0 { format!("{}{unit}", said(done)) } else { format!("{} of {}{unit}", said(done), said(total)) }
}
