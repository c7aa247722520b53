//! A build as JUnit XML, for CI systems. A stage is a suite and a part is a case.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quick_junit as junit;
use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestRerun, TestSuite};

use super::plain::first_line;
use super::{Event, PartId, Report, TimedListener};
use crate::base::{Code, Context, Result, shown};

/// Collects the test cases of a report.
#[derive(Default)]
pub struct Junit {
    plan: String,
    /// By stage, in the order of the plan.
    stages: Vec<(String, Vec<TestCase>)>,
    running: BTreeMap<PartId, Attempts>,
    /// Stages that are completed, skipped or failed.
    ended: BTreeSet<String>,
    last_ms: u64,
}

/// A running part.
struct Attempts {
    start_ms: u64,
    failed: Vec<TestRerun>,
}

impl TimedListener for Junit {
    fn on_event_at(&mut self, at_ms: u64, event: &Event) {
        self.last_ms = at_ms;
        match event {
            Event::Begun { plan, stages, .. } => {
                self.plan.clone_from(plan);
                self.stages.clear();
                for stage in stages {
                    self.stages.push((stage.clone(), vec![]));
                }
            }
            Event::Unchanged { stage, .. } => {
                self.add(stage_case(stage), TestCaseStatus::success(), Duration::ZERO);
                self.ended.insert(stage.clone());
            }
            Event::Hit { part } => {
                self.add(part.clone(), TestCaseStatus::success(), Duration::ZERO)
            }
            Event::Started { part, .. } => {
                self.running.entry(part.clone()).or_insert(Attempts {
                    start_ms: at_ms,
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
                let mut status = TestCaseStatus::success();
                if let Some(attempts) = self.running.remove(part) {
                    status.add_reruns(attempts.failed);
                }
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
                    took_ms = at_ms.saturating_sub(attempts.start_ms);
                }
                self.add(part.clone(), status, Duration::from_millis(took_ms));
                self.ended.insert(part.stage.clone());
            }
            Event::Completed { stage, .. } => _ = self.ended.insert(stage.clone()),
            Event::Skipped { stage } => {
                let status = skipped("a stage that it depends on failed");
                self.add(stage_case(stage), status, Duration::ZERO);
                self.ended.insert(stage.clone());
            }
            Event::Expanded { .. } | Event::Progress { .. } | Event::Finished { .. } => {}
        }
    }
}

impl Junit {
    fn add(&mut self, part: PartId, status: TestCaseStatus, time: Duration) {
        for (stage, cases) in &mut self.stages {
            if *stage == part.stage {
                cases.push(case(&part, status, time));
                return;
            }
        }
    }

    /// The cases of a stage that did not end: its running parts, or the stage itself.
    fn open_cases(&self, stage: &str) -> Vec<TestCase> {
        let mut cases = vec![];
        for (part, attempts) in &self.running {
            if part.stage == stage {
                let time_ms = self.last_ms.saturating_sub(attempts.start_ms);
                let time = Duration::from_millis(time_ms);
                cases.push(case(part, skipped("interrupted"), time));
            }
        }
        if cases.is_empty() && !self.ended.contains(stage) {
            let status = skipped("the build ended before it ran");
            cases.push(case(&stage_case(stage), status, Duration::ZERO));
        }
        cases
    }
}

/// The case of a stage without the names of its parts.
fn stage_case(stage: &str) -> PartId {
    PartId {
        stage: stage.into(),
        part: String::new(),
    }
}

/// A case has the name of its part. The stage is also the class, for readers that ignore suites.
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
            suite.add_test_cases(cases.clone());
            suite.add_test_cases(self.open_cases(stage));
            let mut time = Duration::ZERO;
            for case in &suite.test_cases {
                time = time.saturating_add(case.time.unwrap_or_default());
            }
            suite.set_time(time);
            report.add_test_suite(suite);
        }
        let mut file = vec![];
        report
            .serialize(&mut file)
            .context(Code::ReportWrite, || "serialize the JUnit report".into())?;
        // XML allows neither character.
        let text = String::from_utf8_lossy(&file).replace(['\u{fffe}', '\u{ffff}'], "\u{fffd}");
        Ok(shown(&text).into_bytes())
    }
}
