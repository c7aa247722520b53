//! What went wrong, where, why, and the way out. The only error type that crosses rooms.

use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::ops::Range;

use miette::{Diagnostic, LabeledSpan};
use serde::{Deserialize, Serialize};

use super::{Class, Code, Digest};

/// The way out of a full disk.
const MAKE_ROOM: &str = "make room (`kiln cache gc` removes what no last build needs) and run the \
                         same command again: what is done is kept";

/// What every fallible function of kiln returns.
pub type Result<T, E = Problem> = std::result::Result<T, E>;

/// One problem: a code for machines, a message and a help line for people, labels into the plan
/// text, and what caused it. Serializable, so that it survives the way out of a child process.
/// Small enough to be handed up by value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Problem {
    /// Stable, like `kiln::plan::unknown_key`.
    pub code: Code,
    /// What happened, with all its facts: names, expected and found.
    pub message: String,
    /// Places in the plan text (byte ranges) with a few words each.
    #[serde(default)]
    pub labels: Box<[(Range<usize>, String)]>,
    /// The way out.
    #[serde(default)]
    pub help: Option<String>,
    /// What led to it, outermost first.
    #[serde(default)]
    pub causes: Vec<String>,
    /// Files for people that the failed work leaves all the same, a report for one: blobs by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub left: Box<BTreeMap<String, Digest>>,
}

impl Problem {
    /// A problem with neither place nor advice yet.
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

    /// What ends work that is being stopped.
    pub fn cancelled() -> Self {
        Problem::new(Code::Cancelled, "interrupted")
    }

    /// Whether it only says that work was stopped.
    pub fn is_cancelled(&self) -> bool {
        self.code.class() == Class::Interrupted
    }

    /// Adds the way out.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds a place in the plan text.
    pub fn at(mut self, span: Range<usize>, label: impl Into<String>) -> Self {
        self.labels = self
            .labels
            .into_iter()
            .chain([(span, label.into())])
            .collect();
        self
    }

    /// Adds what led to it: the whole chain of `error`. Where a disk is full, that is the way out.
    pub fn because(mut self, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            self.causes.push(error.to_string());
            let is_full = error.downcast_ref::<std::io::Error>().is_some_and(|error| {
                matches!(
                    error.kind(),
                    ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
                )
            });
            if is_full && self.help.is_none() {
                self.help = Some(MAKE_ROOM.into());
            }
            next = error.source();
        }
        self
    }

    /// Says what was being done when it happened: `context` becomes the message, the old message
    /// the first cause.
    pub fn within(mut self, context: impl Into<String>) -> Self {
        let message = std::mem::replace(&mut self.message, context.into());
        self.causes.insert(0, message);
        self
    }

    /// Message, causes and help, each on lines of its own.
    pub fn text(&self) -> String {
        let causes = self
            .causes
            .iter()
            .map(|cause| format!("\ncaused by: {cause}"));
        let help = self.help.iter().map(|help| format!("\nhelp: {help}"));
        self.message.clone() + &causes.chain(help).collect::<String>()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.causes
            .iter()
            .try_for_each(|cause| write!(f, ": {cause}"))
    }
}

impl std::error::Error for Problem {}

impl Diagnostic for Problem {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(&self.code))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help
            .as_ref()
            .map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        if self.labels.is_empty() {
            return None;
        }
        Some(Box::new(self.labels.iter().map(|(span, text)| {
            LabeledSpan::new_with_span(Some(text.clone()), span.start..span.end)
        })))
    }
}

/// Gives a foreign error a code and says what was being done.
pub trait Context<T> {
    /// `context` completes the sentence "failed to ...", with names and paths.
    fn context(self, code: Code, context: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: std::error::Error + 'static> Context<T> for std::result::Result<T, E> {
    fn context(self, code: Code, context: impl FnOnce() -> String) -> Result<T> {
        match self {
            Ok(value) => Ok(value),
            Err(error) => Err(failed_to(code.into(), context(), &error)),
        }
    }
}

/// Apart from the trait, whose methods are compiled once for each type and each call.
#[cold]
fn failed_to(code: Code, what: String, error: &(dyn std::error::Error + 'static)) -> Problem {
    Problem::new(code, format!("failed to {what}")).because(error)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_full_disk_has_a_way_out() {
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
