//! Collects what went wrong: parts of one stage that fail the same way are one failure.

use std::collections::HashMap;

use super::{Event, Listener, PartId};
use crate::base::Problem;

/// What went wrong in a stage.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The first part that failed so; its name is empty where it is the stage itself.
    pub part: PartId,
    /// Its problem.
    pub problem: Problem,
    /// How many more parts of the stage failed the same way.
    pub more: usize,
}

/// All failures of a build, in the order in which they came.
#[derive(Debug, Default)]
pub struct Failures {
    all: Vec<Failure>,
    /// Failure by its stage and its text without the part's name.
    known: HashMap<String, usize>,
}

impl Failures {
    /// Takes them out.
    pub fn into_vec(self) -> Vec<Failure> {
        self.all
    }

    /// What there is so far.
    pub fn all(&self) -> &[Failure] {
        &self.all
    }
}

impl Listener for Failures {
    fn on_event(&mut self, event: &Event) {
        let Event::Failed { part, problem } = event else {
            return;
        };
        let next = self.all.len();
        let index = *self.known.entry(kind(part, problem)).or_insert(next);
        if index < next {
            self.all[index].more += 1;
            return;
        }
        self.all.push(Failure {
            part: part.clone(),
            problem: problem.clone(),
            more: 0,
        });
    }
}

/// What failures have in common that are one: all but the name of the part. Files that are left are
/// each stage's own.
fn kind(part: &PartId, problem: &Problem) -> String {
    let text = problem.text();
    let text = match part.part.as_str() {
        "" => text,
        name => text.replace(name, "\0"),
    };
    format!(
        "{}\0{}\0{text}\0{:?}",
        part.stage, problem.code, problem.left
    )
}

impl Failure {
    /// The problem as people are told of it: with stage and part, and how many more there are.
    pub fn told(&self) -> Problem {
        let mut problem = self.problem.clone();
        let stage = &self.part.stage;
        let place = match self.part.part.as_str() {
            "" => format!("stage `{stage}`"),
            part => format!("stage `{stage}`, part `{part}`"),
        };
        problem.message = format!("{place}: {}", problem.message);
        if self.more > 0 {
            let (parts, fail) = match self.more {
                1 => ("part", "fails"),
                _ => ("parts", "fail"),
            };
            problem.message += &format!(
                "\nand {} more {parts} of `{stage}` {fail} the same way",
                self.more
            );
        }
        problem
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Code;

    fn told(failed: &[(&str, &str, &str)]) -> Vec<String> {
        let mut failures = Failures::default();
        for (stage, part, message) in failed {
            failures.on_event(&Event::Failed {
                part: PartId {
                    stage: stage.to_string(),
                    part: part.to_string(),
                },
                problem: Problem::new(Code::WeightsNotFinite, *message)
                    .within("failed to read a matrix"),
            });
        }
        let text = |failure: Failure| failure.told().text();
        failures.into_vec().into_iter().map(text).collect()
    }

    #[test]
    fn parts_of_a_stage_that_fail_alike_are_one_failure() {
        assert_eq!(
            told(&[
                ("weights", "blk.0.ffn_up", "`blk.0.ffn_up` has a NaN"),
                ("weights", "blk.1.ffn_up", "`blk.1.ffn_up` has a NaN"),
                ("weights", "blk.2.ffn_up", "the disk is full"),
                ("weights", "blk.3.ffn_up", "`blk.3.ffn_up` has a NaN"),
                ("others", "blk.0.ffn_up", "`blk.0.ffn_up` has a NaN"),
                ("others", "blk.1.ffn_up", "`blk.1.ffn_up` has a NaN"),
                ("model", "", "no such file"),
            ]),
            [
                "stage `weights`, part `blk.0.ffn_up`: failed to read a matrix\nand 2 more parts \
                 of `weights` fail the same way\ncaused by: `blk.0.ffn_up` has a NaN",
                "stage `weights`, part `blk.2.ffn_up`: failed to read a matrix\ncaused by: the \
                 disk is full",
                "stage `others`, part `blk.0.ffn_up`: failed to read a matrix\nand 1 more part of \
                 `others` fails the same way\ncaused by: `blk.0.ffn_up` has a NaN",
                "stage `model`: failed to read a matrix\ncaused by: no such file",
            ]
        );
    }
}
