//! For CI systems: a build as JUnit XML. A stage is a suite, a part a case.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quick_junit as junit;
use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestRerun, TestSuite};

use super::plain::first_line;
use super::{Event, PartId, Report, TimedListener};
use crate::base::{Code, Context, Result, shown};

/// Collects the cases of a report.
#[derive(Default)]
pub struct Junit {
    plan: String,
    /// In the order of the plan.
    stages: Vec<(String, Vec<TestCase>)>,
    running: BTreeMap<PartId, Attempts>,
    /// Sealed, skipped or failed: nothing more is to be said of them.
    settled: BTreeSet<String>,
    last_ms: u64,
}

/// What is known of a part that has not ended yet.
struct Attempts {
    since_ms: u64,
    failed: Vec<TestRerun>,
}

impl TimedListener for Junit {
    fn on_event_at(&mut self, at_ms: u64, event: &Event) {
        self.last_ms = at_ms;
        match event {
            Event::Begun { plan, stages, .. } => {
                self.plan.clone_from(plan);
                self.stages = stages.iter().map(|stage| (stage.clone(), vec![])).collect();
            }
            Event::Unchanged { stage, .. } => {
                self.add(whole(stage), TestCaseStatus::success(), Duration::ZERO);
                self.settled.insert(stage.clone());
            }
            Event::Hit { part } => {
                self.add(part.clone(), TestCaseStatus::success(), Duration::ZERO)
            }
            Event::Started { part, .. } => {
                self.running.entry(part.clone()).or_insert(Attempts {
                    since_ms: at_ms,
                    failed: vec![],
                });
            }
            Event::Retried { part, problem, .. } => {
                if let Some(attempts) = self.running.get_mut(part) {
                    let mut rerun = TestRerun::new(NonSuccessKind::Failure);
                    rerun
                        .set_type(problem.code.as_str())
                        .set_message(first_line(&problem.message))
                        .set_description(problem.text());
                    attempts.failed.push(rerun);
                }
            }
            Event::Done { part, took_ms, .. } => {
                let failed = self
                    .running
                    .remove(part)
                    .map(|attempts| attempts.failed)
                    .unwrap_or_default();
                let mut status = TestCaseStatus::success();
                status.add_reruns(failed);
                self.add(part.clone(), status, Duration::from_millis(*took_ms));
            }
            Event::Failed { part, problem } => {
                let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                status
                    .set_type(problem.code.as_str())
                    .set_message(first_line(&problem.message))
                    .set_description(problem.text());
                let mut took_ms = 0;
                if let Some(attempts) = self.running.remove(part) {
                    status.add_reruns(attempts.failed);
                    took_ms = at_ms.saturating_sub(attempts.since_ms);
                }
                self.add(part.clone(), status, Duration::from_millis(took_ms));
                self.settled.insert(part.stage.clone());
            }
            Event::CompletedStage { stage, .. } => _ = self.settled.insert(stage.clone()),
            Event::Skipped { stage } => {
                self.add(
                    whole(stage),
                    skipped("a stage it waits for failed"),
                    Duration::ZERO,
                );
                self.settled.insert(stage.clone());
            }
            Event::Expanded { .. } | Event::Progress { .. } | Event::Finished { .. } => {}
        }
    }
}

impl Junit {
    fn add(&mut self, part: PartId, status: TestCaseStatus, time: Duration) {
        let case = case(&part, status, time);
        if let Some((_, cases)) = self
            .stages
            .iter_mut()
            .find(|(stage, _)| *stage == part.stage)
        {
            cases.push(case);
        }
    }

    /// What a stage's suite says of what did not come to an end.
    fn open_cases(&self, stage: &str) -> Vec<TestCase> {
        let running = self
            .running
            .iter()
            .filter(|(part, _)| part.stage == stage)
            .map(|(part, attempts)| {
                let time = Duration::from_millis(self.last_ms.saturating_sub(attempts.since_ms));
                case(part, skipped("interrupted"), time)
            });
        let mut cases: Vec<TestCase> = running.collect();
        if cases.is_empty() && !self.settled.contains(stage) {
            cases.push(case(
                &whole(stage),
                skipped("the build ended before it"),
                Duration::ZERO,
            ));
        }
        cases
    }
}

/// The part that stands for a whole stage.
fn whole(stage: &str) -> PartId {
    PartId {
        stage: stage.into(),
        part: String::new(),
    }
}

/// A case is called what its part is called; the suite's name is the class, for readers that know
/// no suites.
fn case(part: &PartId, status: TestCaseStatus, time: Duration) -> TestCase {
    let name = if part.part.is_empty() {
        &part.stage
    } else {
        &part.part
    };
    let mut case = TestCase::new(name.as_str(), status);
    case.set_classname(part.stage.as_str()).set_time(time);
    case
}

fn skipped(why: &str) -> TestCaseStatus {
    let mut status = TestCaseStatus::skipped();
    status.set_message(why);
    status
}

impl Report for Junit {
    fn file(&self) -> Result<Vec<u8>> {
        let mut report = junit::Report::new(self.plan.as_str());
        report.set_time(Duration::from_millis(self.last_ms));
        for (stage, cases) in &self.stages {
            let mut suite = TestSuite::new(stage.as_str());
            suite.add_test_cases(cases.iter().cloned().chain(self.open_cases(stage)));
            let times = suite.test_cases.iter().filter_map(|case| case.time);
            suite.set_time(times.fold(Duration::ZERO, Duration::saturating_add));
            report.add_test_suite(suite);
        }
        let mut file = vec![];
        report
            .serialize(&mut file)
            .context(Code::ReportWrite, || "serialize the JUnit report".into())?;
        // Neither is a character of XML.
        let text = String::from_utf8_lossy(&file).replace(['\u{fffe}', '\u{ffff}'], "\u{fffd}");
        Ok(shown(&text).into_bytes())
    }
}
