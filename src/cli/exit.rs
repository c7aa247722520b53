//! The exit codes.

use std::process::ExitCode;

use crate::base::{Class, Problem};

/// The documented exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Success.
    Done = 0,
    /// A stage failed.
    StageFailed = 1,
    /// The plan or the command line is wrong; clap exits with the same code.
    BadCall = 2,
    /// A file or output does not have the expected digest.
    DigestDiffers = 3,
    /// A tool, or a file of a tool, is missing.
    ToolMissing = 4,
    /// Stopped by Ctrl-C, SIGTERM or SIGHUP.
    Interrupted = 130,
}

/// The exit codes, for `--help`.
pub(super) const HELP: &str = "\
Exit codes: 0 success, 1 a stage failed, 2 the plan or the command line is wrong, 3 a digest \
differs, 4 a tool is missing, 130 interrupted";

impl Exit {
    /// The exit code of another kiln process.
    pub(super) fn from_code(code: i32) -> Exit {
        for exit in [
            Exit::Done,
            Exit::BadCall,
            Exit::DigestDiffers,
            Exit::ToolMissing,
            Exit::Interrupted,
        ] {
            if exit as i32 == code {
                return exit;
            }
        }
        Exit::StageFailed
    }

    /// The exit code for a problem, by the class of its code.
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
