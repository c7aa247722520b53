//! What the exit code says.

use std::process::ExitCode;

use crate::base::{Class, Problem};

/// The documented exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything asked for is there.
    Done = 0,
    /// A stage failed.
    StageFailed = 1,
    /// The plan or the call is wrong; clap leaves with the same code.
    BadCall = 2,
    /// Bytes do not have the digest they must have.
    DigestDiffers = 3,
    /// A tool, or a file of a tool, is not there.
    ToolMissing = 4,
    /// Ended by Ctrl-C or SIGTERM.
    Interrupted = 130,
}

/// The same table for `--help`.
pub const HELP: &str = "Exit codes: 0 done, 1 a stage failed, 2 the plan or the call is wrong, 3 \
                        a digest differs, 4 a tool is missing, 130 interrupted";

impl Exit {
    /// The one that a kiln in another process left with.
    pub(super) fn from_code(code: i32) -> Exit {
        let all = [
            Exit::Done,
            Exit::BadCall,
            Exit::DigestDiffers,
            Exit::ToolMissing,
            Exit::Interrupted,
        ];
        all.into_iter()
            .find(|exit| *exit as i32 == code)
            .unwrap_or(Exit::StageFailed)
    }

    /// The code that says what sort of problem this is.
    pub fn of(problem: &Problem) -> Exit {
        match problem.code.class() {
            Class::Plan => Exit::BadCall,
            Class::Stage | Class::Store => Exit::StageFailed,
            Class::Digest => Exit::DigestDiffers,
            Class::Tool => Exit::ToolMissing,
            Class::Interrupted => Exit::Interrupted,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}
