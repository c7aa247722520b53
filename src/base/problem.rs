//! The error type of all modules: what went wrong, where, why, and how to fix it.

use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::ops::Range;

use miette::{Diagnostic, LabeledSpan};
use serde::{Deserialize, Serialize};

use super::{Class, Code, Digest};

/// Help for a full disk.
const DISK_FULL: &str = "free some space (`kiln cache gc` removes what no last build needs) and \
                         run the same command again: finished work is kept";

/// The result of a function that can fail.
pub type Result<T, E = Problem> = std::result::Result<T, E>;

/// A problem: a code for programs, a message and a help line for people, places in the text of the
/// plan, and causes. A child process sends it to its parent as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Problem {
    /// Stable, like `kiln::plan::unknown_key`.
    pub code: Code,
    /// What happened, with all its facts: names, expected and found.
    pub message: String,
    /// Places in the plan text (byte ranges) with a few words each.
    #[serde(default)]
    pub labels: Box<[(Range<usize>, String)]>,
    /// How to fix it.
    #[serde(default)]
    pub help: Option<String>,
    /// Its causes, outermost first.
    #[serde(default)]
    pub causes: Vec<String>,
    /// Files that are written out although the work failed, for example a report: name -> blob.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub left: Box<BTreeMap<String, Digest>>,
}

impl Problem {
    /// A problem without place, help and causes.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Problem {
            code,
            message: message.into(),
            labels: Box::default(),
            help: None,
            causes: vec![],
            left: Box::default(),
        }
    }

    /// The problem of work that was interrupted.
    pub fn cancelled() -> Self {
        Problem::new(Code::Cancelled, "interrupted")
    }

    /// Whether it is the problem of work that was interrupted.
    pub fn is_cancelled(&self) -> bool {
        self.code.class() == Class::Interrupted
    }

    /// Sets how to fix it.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds a place in the plan text.
    pub fn at(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        let mut labels = self.labels.into_vec();
        labels.push((span, label.into()));
        self.labels = labels.into();
        self
    }

    /// Adds `error` and its sources as causes. If a disk is full, adds help.
    pub fn because(mut self, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            self.causes.push(error.to_string());
            if is_disk_full(error) && self.help.is_none() {
                self.help = Some(DISK_FULL.into());
            }
            next = error.source();
        }
        self
    }

    /// Adds context: `context` becomes the message, and the old message the first cause.
    pub fn within(mut self, context: impl Into<String>) -> Self {
        let message = std::mem::replace(&mut self.message, context.into());
        self.causes.insert(0, message);
        self
    }

    /// Message, causes and help, each on its own line.
    pub fn text(&self) -> String {
        let mut text = self.message.clone();
        for cause in &self.causes {
            text += &format!("\ncaused by: {cause}");
        }
        if let Some(help) = &self.help {
            text += &format!("\nhelp: {help}");
        }
        text
    }
}

fn is_disk_full(error: &(dyn std::error::Error + 'static)) -> bool {
    match error.downcast_ref::<std::io::Error>() {
        Some(error) => matches!(
            error.kind(),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
        ),
        None => false,
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for cause in &self.causes {
            write!(f, ": {cause}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}

impl Diagnostic for Problem {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(&self.code))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        let help = self.help.as_ref()?;
        Some(Box::new(help))
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        if self.labels.is_empty() {
            return None;
        }
        let labels = self.labels.iter();
        Some(Box::new(labels.map(|(span, text)| {
            LabeledSpan::new_with_span(Some(text.clone()), span.start..span.end)
        })))
    }
}

/// Turns an error into a problem with a code and a message.
pub trait Context<T> {
    /// `context` completes the sentence "failed to ...", with names and paths.
    fn context(self, code: Code, context: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: std::error::Error + 'static> Context<T> for std::result::Result<T, E> {
    fn context(self, code: Code, context: impl FnOnce() -> String) -> Result<T> {
        match self {
            Ok(value) => Ok(value),
            Err(error) => Err(failed_to(code, context(), &error)),
        }
    }
}

/// A function of its own, because the method above is compiled for each type and each call.
#[cold]
fn failed_to(code: Code, what: String, error: &(dyn std::error::Error + 'static)) -> Problem {
    Problem::new(code, format!("failed to {what}")).because(error)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_full_disk_has_a_help_line() {
        let help = |error: io::Error| {
            Err::<(), _>(error)
                .context(Code::Io, || "write".into())
                .unwrap_err()
                .help
        };
        assert!(
            help(ErrorKind::StorageFull.into())
                .unwrap()
                .contains("kiln cache gc")
        );
        assert_eq!(help(ErrorKind::NotFound.into()), None);
    }
}
