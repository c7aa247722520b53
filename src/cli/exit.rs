//! What the exit code says.

use std::process::ExitCode;

use crate::base::Problem;

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
        match problem.code.as_str() {
            "kiln::cancelled" => Exit::Interrupted,
            "kiln::tool_missing" | "kiln::tool_file_missing" => Exit::ToolMissing,
            "kiln::fetch::digest"
            | "kiln::store::corrupt"
            | "kiln::store::window"
            | "kiln::bundle::digest" => Exit::DigestDiffers,
            "kiln::lock::differs" | "kiln::check::differs" | "kiln::verify::differs" => {
                Exit::DigestDiffers
            }
            "kiln::fetch::unpinned" => Exit::BadCall,
            code if ["kiln::plan::", "kiln::call::", "kiln::log::"]
                .iter()
                .any(|room| code.starts_with(room)) =>
            {
                Exit::BadCall
            }
            _ => Exit::StageFailed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}
