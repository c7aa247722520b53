//! The name of a plan or a stage, which becomes a folder.

use std::borrow::Borrow;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use crate::action::PartName;
use crate::base::{Code, Problem, Result};

/// The name of a plan or a stage: one component of a path, never `..`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Name(String);

impl Name {
    /// Checks `text`.
    pub fn new(text: &str) -> Result<Name> {
        if PartName::new(text).is_ok() && !text.contains('/') {
            return Ok(Name(text.into()));
        }
        Err(Problem::new(
            Code::CallLock,
            format!("`{}` cannot name a plan or a stage", text.escape_debug()),
        ))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Name::new(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
