//! Collects failures. Parts that fail the same way are one failure.

use std::collections::HashMap;

use super::{Event, Listener, PartId};
use crate::base::Problem;

/// Maximum number of groups of parts that are named besides the first part.
const MAX_NAMED: usize = 5;

/// What failed, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The first part, by name, that failed this way. Its name is empty if the stage failed as a
    /// whole.
    pub part: PartId,
    /// Its problem.
    pub problem: Problem,
    /// The other parts that failed the same way, sorted.
    pub others: Vec<PartId>,
}

/// All failures of a build, in the order in which they came.
#[derive(Debug, Default)]
pub struct Failures {
    all: Vec<Failure>,
    /// Index into `all` by the text that equal failures have in common.
    index_of: HashMap<String, usize>,
}

impl Failures {
    /// The failures so far.
    pub fn all(&self) -> &[Failure] {
        &self.all
    }

    /// The failures.
    pub fn into_vec(self) -> Vec<Failure> {
        self.all
    }
}

impl Listener for Failures {
    fn on_event(&mut self, event: &Event) {
        let Event::Failed { part, problem } = event else {
            return;
        };
        let next = self.all.len();
        let index = *self.index_of.entry(common(part, problem)).or_insert(next);
        if let Some(failure) = self.all.get_mut(index) {
            failure.add(part, problem);
            return;
        }
        self.all.push(Failure {
            part: part.clone(),
            problem: problem.clone(),
            others: vec![],
        });
    }
}

/// The text that equal failures have in common: code, message and causes without the name of the
/// part. Failures with files are only equal within a stage.
fn common(part: &PartId, problem: &Problem) -> String {
    let mut text = problem.to_string();
    if !part.part.is_empty() {
        text = text.replace(&part.part, "\0");
    }
    let stage = if problem.left.is_empty() {
        ""
    } else {
        &part.stage
    };
    format!("{stage}\0{}\0{text}\0{:?}", problem.code, problem.left)
}

impl Failure {
    /// Adds a part that failed the same way. Parts run at the same time: what is reported does not
    /// depend on which of them fails first.
    fn add(&mut self, part: &PartId, problem: &Problem) {
        let mut other = part.clone();
        if other < self.part {
            std::mem::swap(&mut other, &mut self.part);
            self.problem = problem.clone();
        }
        let at = self.others.partition_point(|known| *known < other);
        self.others.insert(at, other);
    }

    /// The problem as it is shown at the end of a build: with stage and part, and how many other
    /// parts failed the same way.
    pub fn report(&self) -> Problem {
        let mut problem = self.problem.clone();
        let stage = &self.part.stage;
        let place = match self.part.part.as_str() {
            "" => format!("stage `{stage}`"),
            part => format!("stage `{stage}`, part `{part}`"),
        };
        problem.message = format!("{place}: {}", problem.message);
        if !self.others.is_empty() {
            problem.message += &format!("\nthe same failure in {}", self.others_in_words());
        }
        problem
    }

    /// The stages that failed this way, each once.
    pub fn stages(&self) -> Vec<&str> {
        let mut stages = vec![self.part.stage.as_str()];
        for part in &self.others {
            if !stages.contains(&part.stage.as_str()) {
                stages.push(&part.stage);
            }
        }
        stages
    }

    /// `2 more parts of a, 1 part of b, stage c`.
    fn others_in_words(&self) -> String {
        let mut words = vec![];
        for stage in self.stages() {
            let mut count = 0;
            let mut is_stage = false;
            for part in &self.others {
                if part.stage == stage {
                    count += 1;
                    is_stage |= part.part.is_empty();
                }
            }
            let more = if stage == self.part.stage {
                "more "
            } else {
                ""
            };
            match count {
                0 => {}
                _ if is_stage => words.push(format!("stage `{stage}`")),
                1 => words.push(format!("1 {more}part of `{stage}`")),
                many => words.push(format!("{many} {more}parts of `{stage}`")),
            }
        }
        let hidden = words.len().saturating_sub(MAX_NAMED);
        words.truncate(MAX_NAMED);
        match hidden {
            0 => {}
            1 => words.push("1 more stage".into()),
            many => words.push(format!("{many} more stages")),
        }
        words.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Code;

    fn reports(failed: &[(&str, &str, &str)]) -> Vec<String> {
        let mut failures = Failures::default();
        for (stage, part, message) in failed {
            failures.on_event(&Event::Failed {
                part: PartId {
                    stage: stage.to_string(),
                    part: part.to_string(),
                },
                problem: Problem::new(Code::WeightsNotFinite, *message).within("failed to read"),
            });
        }
        let all = failures.into_vec();
        all.iter().map(|failure| failure.report().text()).collect()
    }

    #[test]
    fn parts_that_fail_the_same_way_are_one_failure() {
        assert_eq!(
            reports(&[
                ("weights", "blk.0.ffn_up", "`blk.0.ffn_up` has a NaN"),
                ("weights", "blk.1.ffn_up", "`blk.1.ffn_up` has a NaN"),
                ("weights", "blk.2.ffn_up", "the disk is full"),
                ("weights", "blk.3.ffn_up", "`blk.3.ffn_up` has a NaN"),
                ("others", "blk.0.ffn_up", "`blk.0.ffn_up` has a NaN"),
                ("model", "", "no such file"),
                ("graph", "", "no such file"),
            ]),
            [
                "stage `others`, part `blk.0.ffn_up`: failed to read\nthe same failure in 3 parts of \
                 `weights`\ncaused by: `blk.0.ffn_up` has a NaN",
                "stage `weights`, part `blk.2.ffn_up`: failed to read\ncaused by: the disk is full",
                "stage `graph`: failed to read\nthe same failure in stage `model`\ncaused by: no such \
                 file",
            ]
        );
    }

    #[test]
    fn a_few_stages_are_named_and_the_others_counted() {
        let stages = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let failed = stages.map(|stage| (stage, "", "no network"));
        assert_eq!(
            reports(&failed),
            [
                "stage `a`: failed to read\nthe same failure in stage `b`, stage `c`, stage `d`, \
                 stage `e`, stage `f`, 2 more stages\ncaused by: no network"
            ]
        );
    }
}
