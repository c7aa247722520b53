//! The progress display of a terminal as text: a line per running stage, the parts that have been
//! running longest, and a counter. It never has more lines than fit on the terminal.

use std::collections::BTreeMap;
use std::time::Duration;

use console::{Alignment, pad_str, truncate_str};

use super::{Event, PartId, StageTally, Summary, TimedListener};
use crate::base::{bytes, count, duration};

/// Maximum number of lines on a terminal of any height.
const MAX_LINES: usize = 16;

/// Maximum number of running parts.
const MAX_PARTS: usize = 4;

/// Width of a bar in cells.
const BAR_WIDTH: usize = 16;

/// Maximum width of the column of names.
const MAX_NAME_WIDTH: usize = 24;

/// Minimum width of a terminal for bars.
const MIN_WIDTH_OF_BARS: usize = 60;

/// The state of a build that is displayed.
#[derive(Default)]
pub struct Board {
    summary: Summary,
    running: BTreeMap<PartId, Running>,
}

/// A running part.
struct Running {
    start_ms: u64,
    /// Done, total and unit. The total is 0 if it is not known.
    progress: Option<(u64, u64, String)>,
    /// The number of failed attempts.
    retried: u32,
}

impl TimedListener for Board {
    fn on_event_at(&mut self, at_ms: u64, event: &Event) {
        self.summary.on_event_at(at_ms, event);
        match event {
            Event::Started { part, .. } => {
                self.running.entry(part.clone()).or_insert(Running {
                    start_ms: at_ms,
                    progress: None,
                    retried: 0,
                });
            }
            Event::Progress {
                part,
                done,
                total,
                unit,
            } => {
                if let Some(running) = self.running.get_mut(part) {
                    running.progress = Some((*done, *total, unit.clone()));
                }
            }
            Event::Retried { part, attempt, .. } => {
                if let Some(running) = self.running.get_mut(part) {
                    (running.progress, running.retried) = (None, *attempt);
                }
            }
            Event::Done { part, .. } | Event::Failed { part, .. } => _ = self.running.remove(part),
            _ => {}
        }
    }
}

impl Board {
    /// The counts of all stages.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// The lines at `now_ms` after the build began. Each has at most `width` columns. There are
    /// fewer lines than `height`, except that the counter is always there.
    pub fn lines(&self, now_ms: u64, width: usize, height: usize) -> Vec<String> {
        let max_lines = height.saturating_sub(1).clamp(1, MAX_LINES) - 1;
        let mut lines = self.stage_lines(now_ms, width);
        if lines.len() > max_lines {
            let shown = max_lines.saturating_sub(1);
            let more = lines.len() - shown;
            lines.truncate(shown);
            if max_lines > 0 {
                lines.push(format!("and {}", count(more, "more stage")));
            }
        }
        let max_parts = MAX_PARTS.min(max_lines - lines.len());
        for (part, running) in self.oldest_parts().into_iter().take(max_parts) {
            lines.push(part_line(part, running, now_ms, width));
        }
        lines.push(self.counter(now_ms));
        for line in &mut lines {
            *line = truncate_str(line.trim_end(), width, "…").into_owned();
        }
        lines
    }

    /// The lines of stages that are not completed, those with running parts first.
    fn stage_lines(&self, now_ms: u64, width: usize) -> Vec<String> {
        let mut running_parts: BTreeMap<&str, usize> = BTreeMap::new();
        for part in self.running.keys() {
            *running_parts.entry(&part.stage).or_default() += 1;
        }
        // After a failure no part starts, so that waiting stages are not shown.
        let has_failed = self.summary.total(|tally| tally.failed) > 0;
        let (mut stages, mut waiting) = (vec![], vec![]);
        for (name, tally) in &self.summary.stages {
            let running = running_parts.get(name.as_str()).copied().unwrap_or(0);
            if running > 0 {
                stages.push((name, tally, running));
            } else if tally.parts > 0 && !tally.completed && !has_failed {
                waiting.push((name, tally, running));
            }
        }
        stages.extend(waiting);
        let mut name_width = 0;
        for (name, ..) in &stages {
            name_width = name_width.max(name.chars().count());
        }
        name_width = name_width.min(MAX_NAME_WIDTH);
        let mut lines = vec![];
        for (name, tally, running) in stages {
            let single_part = PartId {
                stage: name.clone(),
                part: String::new(),
            };
            let state = match self.running.get(&single_part) {
                Some(running) => running.state(now_ms, width),
                None => counts(tally, running, width),
            };
            let name = pad_str(name, name_width, Alignment::Left, None);
            lines.push(format!("{name}  {state}"));
        }
        lines
    }

    /// The running parts, oldest first. The only part of a stage is shown in the line of the stage.
    fn oldest_parts(&self) -> Vec<(&PartId, &Running)> {
        let mut parts: Vec<_> = self.running.iter().collect();
        parts.retain(|(part, _)| !part.part.is_empty());
        parts.sort_by_key(|(_, running)| running.start_ms);
        parts
    }

    fn counter(&self, now_ms: u64) -> String {
        let hits = self.summary.total(|stage| stage.hits);
        let ran = self.summary.total(|stage| stage.ran);
        let parts = count(self.summary.total(|stage| stage.parts), "part");
        let failed = match self.summary.total(|stage| stage.failed) {
            0 => String::new(),
            failed => format!(", {failed} failed"),
        };
        let time = duration(Duration::from_millis(now_ms));
        format!(
            "{} of {parts}: {hits} from the cache, {ran} ran{failed}; {time}",
            hits.saturating_add(ran)
        )
    }
}

/// `━━━━╸     120/272, 4 running`.
fn counts(tally: &StageTally, running: usize, width: usize) -> String {
    let done = tally.hits.saturating_add(tally.ran);
    let cells = bar(done as u64, tally.parts as u64, width);
    let state = if running > 0 {
        format!("{running} running")
    } else {
        "waiting".into()
    };
    let failed = match tally.failed {
        0 => String::new(),
        failed => format!(", {failed} failed"),
    };
    format!("{cells}{done}/{}, {state}{failed}", tally.parts)
}

/// The line of a part. Its name is truncated so that its state is visible.
fn part_line(part: &PartId, running: &Running, now_ms: u64, width: usize) -> String {
    let state = running.state(now_ms, width);
    let name_width = width.saturating_sub(state.chars().count() + 4).max(8);
    let name = part.to_string();
    format!("  {}  {state}", truncate_str(&name, name_width, "…"))
}

impl Running {
    /// `━━━━╸     12.3 MB of 98.4 MB, 3.20 s`.
    fn state(&self, now_ms: u64, width: usize) -> String {
        let time = duration(Duration::from_millis(now_ms.saturating_sub(self.start_ms)));
        let attempt = match self.retried {
            0 => String::new(),
            retried => format!(", attempt {}", retried.saturating_add(1)),
        };
        let Some((done, total, unit)) = &self.progress else {
            return format!("{time}{attempt}");
        };
        let cells = bar(*done, *total, width);
        let done = amount(*done, *total, unit);
        format!("{cells}{done}, {time}{attempt}")
    }
}

/// A progress bar. Empty if the total is not known or the terminal is too narrow.
fn bar(done: u64, total: u64, width: usize) -> String {
    if total == 0 || width < MIN_WIDTH_OF_BARS {
        return String::new();
    }
    let full = (u128::from(done.min(total)) * BAR_WIDTH as u128 / u128::from(total)) as usize;
    let tip = if full < BAR_WIDTH { "╸" } else { "" };
    format!("{:BAR_WIDTH$}  ", "━".repeat(full) + tip)
}

/// `12.3 MB of 98.4 MB`, `3 of 8 windows`.
fn amount(done: u64, total: u64, unit: &str) -> String {
    let (done, known_total, unit) = if unit == "B" {
        (bytes(done), bytes(total), String::new())
    } else {
        (done.to_string(), total.to_string(), format!(" {unit}"))
    };
    if total == 0 {
        format!("{done}{unit}")
    } else {
        format!("{done} of {known_total}{unit}")
    }
}
