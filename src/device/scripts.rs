//! The scripts that run on a device, in the language of its shell.

use crate::base::Result;

/// What scripts print if there is no runner.
pub(super) const NO_RUNNER: &str = "kiln no runner";
/// What scripts print if a file is complete.
pub(super) const COMPLETE: &str = "kiln complete";
/// Suffix of a file until it is complete.
pub(super) const PART: &str = ".kiln-part";
/// The bundle's configuration, with a limit for the length of the answer.
pub(super) const LIMITED_CONFIG: &str = "kiln-config.json";
/// Where the runner writes its profile.
pub(super) const PROFILE: &str = "kiln-profile.json";
/// What the runner prints.
pub(super) const ANSWER: &str = "kiln-answer.txt";

/// Writes scripts. `runner` is the folder of Genie's program, `folder` that of a bundle.
pub(super) trait Scripts {
    /// The default of `runner`.
    fn default_runner(&self) -> &'static str;

    /// Genie's program.
    fn program(&self) -> &'static str;

    /// Whether files can be written by `cat`. Otherwise they are sent by SFTP.
    fn has_cat(&self) -> bool;

    /// The command line that runs `script`, for whatever shell the device has.
    fn command_line(&self, script: &str) -> Result<String>;

    /// Makes `folder` and prints the sha256 of the files `names` in it, as `sha256sum` does; or
    /// [`NO_RUNNER`].
    fn probe(&self, runner: &str, folder: &str, names: &[&str]) -> String;

    /// Renames the sent file `NAME.kiln-part` to `name` if it has this sha256, and prints
    /// [`COMPLETE`].
    fn accept(&self, folder: &str, name: &str, sha256: &str) -> String;

    /// Runs the bundle, and samples the process and the battery meanwhile. With `prompt`, Genie is
    /// given this text, otherwise the bundle's `prompt.txt`.
    fn run(&self, runner: &str, folder: &str, prompt: Option<&str>) -> String;
}
