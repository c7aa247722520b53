//! What a terminal shows while a build runs, as text: a line a stage at work, a few of the parts
//! that run longest, and a counter. Never more lines than fit, whatever is in flight.

use std::collections::BTreeMap;
use std::time::Duration;

use console::{Alignment, pad_str, truncate_str};

use super::{Event, PartId, StageTally, Summary, TimedListener};
use crate::base::{bytes, count, duration};

/// More lines than this are too many to read, however tall the terminal is.
const MAX_LINES: usize = 16;

/// How many of the parts that run longest are shown.
const PARTS: usize = 4;

/// Cells of a bar.
const BAR: usize = 16;

/// The longest name that others are aligned with.
const MAX_NAME: usize = 24;

/// Terminals narrower than this get no bars.
const WIDE: usize = 60;

/// The state of a build, as far as it is shown.
#[derive(Default)]
pub struct Board {
    summary: Summary,
    running: BTreeMap<PartId, Running>,
}

/// A part at work.
struct Running {
    since_ms: u64,
    /// Done, total, unit; a total of 0 is not known.
    progress: Option<(u64, u64, String)>,
    /// How often it failed before.
    retried: u32,
}

impl TimedListener for Board {
    fn on_event_at(&mut self, at_ms: u64, event: &Event) {
        self.summary.on_event_at(at_ms, event);
        match event {
            Event::Started { part, .. } => {
                self.running.entry(part.clone()).or_insert(Running {
                    since_ms: at_ms,
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
    /// What happened so far.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// The lines to show `now_ms` after the build began, none wider than `width`, and fewer than
    /// `height`, but for the counter, which is always there.
    pub fn lines(&self, now_ms: u64, width: usize, height: usize) -> Vec<String> {
        let room = height.saturating_sub(1).clamp(1, MAX_LINES) - 1;
        let mut lines = self.stage_lines(now_ms, width);
        if lines.len() > room {
            let shown = room.saturating_sub(1);
            let more = lines.len() - shown;
            lines.truncate(shown);
            lines.extend((room > 0).then(|| format!("and {} more", count(more, "stage"))));
        }
        let parts = PARTS.min(room - lines.len());
        lines.extend(
            self.longest()
                .take(parts)
                .map(|(part, running)| part_line(part, running, now_ms, width)),
        );
        lines.push(self.counter(now_ms));
        lines
            .iter()
            .map(|line| truncate_str(line.trim_end(), width, "…").into_owned())
            .collect()
    }

    /// The stages at work, those that have something running first.
    fn stage_lines(&self, now_ms: u64, width: usize) -> Vec<String> {
        let is_failing = self.summary.total(|tally| tally.failed) > 0;
        let mut running: BTreeMap<&str, usize> = BTreeMap::new();
        self.running
            .keys()
            .for_each(|part| *running.entry(&part.stage).or_default() += 1);
        let stages = self.summary.stages.iter().map(|(name, tally)| {
            let running = running.get(name.as_str()).copied().unwrap_or(0);
            (name, tally, running)
        });
        // After a failure nothing begins any more, so what waits is of no interest.
        let (mut busy, waiting): (Vec<_>, Vec<_>) = stages
            .filter(|(_, tally, running)| {
                *running > 0 || (tally.parts > 0 && !tally.completed && !is_failing)
            })
            .partition(|(_, _, running)| *running > 0);
        busy.extend(waiting);
        let names = busy
            .iter()
            .map(|(name, ..)| name.chars().count())
            .max()
            .unwrap_or(0)
            .min(MAX_NAME);
        let line = |(name, tally, running): &(&String, &StageTally, usize)| {
            let single = PartId {
                stage: name.to_string(),
                part: String::new(),
            };
            let name = pad_str(name, names, Alignment::Left, None);
            match self.running.get(&single) {
                Some(running) => format!("{name}  {}", running.said(now_ms, width)),
                None => format!("{name}  {}", counts(tally, *running, width)),
            }
        };
        busy.iter().map(line).collect()
    }

    /// The parts that run longest; one that is alone in its stage is shown there.
    fn longest(&self) -> impl Iterator<Item = (&PartId, &Running)> {
        let mut parts: Vec<_> = self
            .running
            .iter()
            .filter(|(part, _)| !part.part.is_empty())
            .collect();
        parts.sort_by_key(|(_, running)| running.since_ms);
        parts.into_iter()
    }

    fn counter(&self, now_ms: u64) -> String {
        let total = |number: fn(&StageTally) -> usize| self.summary.total(number);
        let (hits, ran, failed) = (
            total(|stage| stage.hits),
            total(|stage| stage.ran),
            total(|stage| stage.failed),
        );
        let failed = if failed > 0 {
            format!(", {failed} failed")
        } else {
            String::new()
        };
        let parts = count(total(|stage| stage.parts), "part");
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
    let bar = bar(done as u64, tally.parts as u64, width);
    let said = if running > 0 {
        format!("{running} running")
    } else {
        "waits for room".into()
    };
    let failed = if tally.failed > 0 {
        format!(", {} failed", tally.failed)
    } else {
        String::new()
    };
    format!("{bar}{done}/{}, {said}{failed}", tally.parts)
}

/// A part below its stage: indented, its name cut so that its state stays readable.
fn part_line(part: &PartId, running: &Running, now_ms: u64, width: usize) -> String {
    let said = running.said(now_ms, width);
    let room = width.saturating_sub(said.chars().count() + 4).max(8);
    format!("  {}  {said}", truncate_str(&part.to_string(), room, "…"))
}

impl Running {
    /// `━━━━╸     12.3 MB of 98.4 MB, 3.20 s`.
    fn said(&self, now_ms: u64, width: usize) -> String {
        let time = duration(Duration::from_millis(now_ms.saturating_sub(self.since_ms)));
        let again = if self.retried > 0 {
            format!(", attempt {}", self.retried.saturating_add(1))
        } else {
            String::new()
        };
        match &self.progress {
            None => format!("{time}{again}"),
            Some((done, total, unit)) => {
                format!(
                    "{}{}, {time}{again}",
                    bar(*done, *total, width),
                    amount(*done, *total, unit)
                )
            }
        }
    }
}

/// How much of `total` is done, as cells; nothing where that is not known or there is no room.
fn bar(done: u64, total: u64, width: usize) -> String {
    if total == 0 || width < WIDE {
        return String::new();
    }
    let full = (u128::from(done.min(total)) * BAR as u128 / u128::from(total)) as usize;
    let tip = if full < BAR { "╸" } else { "" };
    format!("{:BAR$}  ", "━".repeat(full) + tip)
}

/// `12.3 MB of 98.4 MB`, `3 of 8 windows`.
fn amount(done: u64, total: u64, unit: &str) -> String {
    let said = |count| {
        if unit == "B" {
            bytes(count)
        } else {
            format!("{count}")
        }
    };
    let unit = if unit == "B" {
        String::new()
    } else {
        format!(" {unit}")
    };
    if total == 0 {
        format!("{}{unit}", said(done))
    } else {
        format!("{} of {}{unit}", said(done), said(total))
    }
}
