//! Options and helpers that several subcommands share; printing of problems.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Read, Write, stderr, stdout};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{ColorChoice, ValueEnum};
use miette::{GraphicalReportHandler, GraphicalTheme, Report};
use serde_json::json;

use super::Exit;
use super::github::annotation;
use crate::action::Registry;
use crate::base::{
    Code, Context, Problem, Result, open_file, shown, shown_json, shown_line, without_commands,
};
use crate::plan::{self, MAX_TEXT_BYTES, Plan, Source, SourceMap};

const DEFAULT_CACHE: &str = "cache";

/// Options of every subcommand.
#[derive(clap::Args)]
pub struct Common {
    /// Folder of the local cache
    #[arg(long, global = true, value_name = "DIR", env = "KILN_CACHE", default_value = DEFAULT_CACHE,
        value_parser = OsStringValueParser::new().map(cache_folder))]
    pub cache: PathBuf,
    /// Print JSON lines instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// When to use colours; `auto`: on a terminal, unless NO_COLOR or CLICOLOR_FORCE say otherwise
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: ColorChoice,
}

/// The cache folder; an empty `KILN_CACHE` means the default.
fn cache_folder(value: OsString) -> PathBuf {
    if value.is_empty() {
        DEFAULT_CACHE.into()
    } else {
        value.into()
    }
}

/// The plan file, and values of variables that the command line sets.
#[derive(clap::Args)]
pub struct PlanArgs {
    /// The plan file
    #[arg(value_name = "PLAN.toml")]
    pub path: PathBuf,
    /// Set a variable of [vars], or restrict an axis of [matrix] to one value
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_setting)]
    pub set: Vec<(String, String)>,
}

fn parse_setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    let mut value = value.to_string();
    // A relative path on the command line starts from the current folder; one in a plan starts
    // from the folder of the plan.
    if let Some(path) = value.strip_prefix("file:") {
        match std::path::absolute(path) {
            Ok(path) => value = format!("file:{}", path.display()),
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok((name.trim().into(), value))
}

impl PlanArgs {
    /// Reads and checks the plan.
    pub fn load(&self, registry: &Registry) -> Result<Plan, Failed> {
        Ok(self.load_with_texts(registry)?.0)
    }

    /// Reads and checks the plan. Also returns the source texts that its spans refer to.
    pub(super) fn load_with_texts(
        &self,
        registry: &Registry,
    ) -> Result<(Plan, Arc<SourceMap>), Failed> {
        let (mut plan, texts) = load_plan(self.source()?, &self.set, registry)?;
        plan.texts.push(self.path.clone());
        Ok((plan, texts))
    }

    fn source(&self) -> Result<Source> {
        let text = match read_text(&self.path) {
            Ok(text) => text,
            Err(problem) if self.path.exists() => return Err(problem),
            Err(problem) => {
                let help = "`kiln init hf:OWNER/REPO/FILE` writes a plan to start from";
                return Err(problem.help(help));
            }
        };
        Ok(Source {
            name: self.path.display().to_string(),
            text,
            folder: self.folder()?,
        })
    }

    /// The absolute path of the folder of the plan.
    pub(super) fn folder(&self) -> Result<PathBuf> {
        let path = std::path::absolute(&self.path).context(Code::PlanUnreadable, || {
            format!("find the folder of {}", self.path.display())
        })?;
        match path.parent() {
            Some(folder) => Ok(folder.into()),
            None => Ok(path),
        }
    }
}

/// Reads and checks the plan in `source`, including the files that it includes. Also returns all
/// source texts.
pub(super) fn load_plan(
    source: Source,
    sets: &[(String, String)],
    registry: &Registry,
) -> Result<(Plan, Arc<SourceMap>), Failed> {
    let mut texts = vec![];
    let map = SourceMap::gather(source, &mut |path| {
        texts.push(path.into());
        read_text(path)
    });
    let map = Arc::new(map);
    match plan::read(&map, sets, registry) {
        Ok(plan) => Ok((Plan { texts, ..plan }, map)),
        Err(problems) => Err(Failed {
            problems,
            source: Some(map),
        }),
    }
}

fn read_text(path: &Path) -> Result<String> {
    read_limited(path).context(Code::PlanUnreadable, || {
        format!("read the plan {}", path.display())
    })
}

/// Reads at most one byte more than the limit: the parser then refuses the text.
fn read_limited(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    open_file(path)?
        .take(MAX_TEXT_BYTES as u64 + 1)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// The problems that made a subcommand fail, and the texts of the plan that their labels refer to.
#[derive(Debug)]
pub struct Failed {
    /// At least one.
    pub problems: Vec<Problem>,
    /// The source texts of the labels, if the problems have labels.
    pub source: Option<Arc<SourceMap>>,
}

impl From<Problem> for Failed {
    fn from(problem: Problem) -> Self {
        Failed {
            problems: vec![problem],
            source: None,
        }
    }
}

impl Common {
    /// Writes `text` (JSON with `--json`) to standard output, without control characters or
    /// secrets.
    pub fn print(&self, text: &str) {
        if self.json {
            self.print_raw(&shown_json(text));
        } else {
            self.print_raw(&shown(text));
        }
    }

    /// Writes `text` to standard output unchanged. A closed pipe (`| head`) is no error.
    pub fn print_raw(&self, text: &str) {
        let mut out = stdout().lock();
        if out.write_all(text.as_bytes()).is_ok() {
            let _ = out.flush();
        }
    }

    /// Prints every problem and returns the exit code of the first one.
    /// Text is written to standard error; with `--json`, one `{"problem": ...}` per line to
    /// standard output. In GitHub Actions, an annotation per problem is added on standard error.
    pub fn report(&self, failed: &Failed) -> Exit {
        let is_on_github = std::env::var("GITHUB_ACTIONS").as_deref() == Ok("true");
        for problem in &failed.problems {
            if self.json {
                self.print(&format!(
                    "{}\n",
                    json_line(problem, failed.source.as_deref())
                ));
            } else {
                let _ = writeln!(stderr(), "{}", self.render(problem, failed.source.as_ref()));
            }
            if is_on_github {
                let _ = writeln!(
                    stderr(),
                    "{}",
                    annotation(problem, failed.source.as_deref())
                );
            }
        }
        match failed.problems.first() {
            Some(problem) => Exit::of(problem),
            None => Exit::StageFailed,
        }
    }

    /// A problem as text, with the lines of the plan that it points to.
    pub fn render(&self, problem: &Problem, source: Option<&Arc<SourceMap>>) -> String {
        let theme = if self.colors() {
            GraphicalTheme::unicode()
        } else {
            GraphicalTheme::unicode_nocolor()
        };
        let handler = GraphicalReportHandler::new_themed(theme)
            .with_links(false)
            .with_width(text_width(std::env::var("COLUMNS").ok().as_deref()))
            .with_break_words(false);
        let mut printed = problem.clone();
        for cause in printed.causes.drain(..) {
            printed.message.push_str("\ncaused by: ");
            printed.message.push_str(&cause);
        }
        printed.code = Code::of(&shown_line(printed.code.as_str()));
        printed.message = truncated(&shown(&printed.message));
        if let Some(help) = &mut printed.help {
            *help = truncated(&shown(help));
        }
        for (_, label) in &mut printed.labels {
            *label = truncated(&shown(label));
        }
        let mut report = Report::new(printed);
        if let Some(map) = source {
            report = report.with_source_code(Arc::clone(map));
        }
        let mut out = String::new();
        // Rendering fails only for a label outside of the text; print the message without it.
        if handler.render_report(&mut out, report.as_ref()).is_err() || out.len() > MAX_REPORT_BYTES
        {
            out = truncated(&shown(&problem.text()));
        }
        // Wrapping may have moved text to the beginning of a line.
        without_commands(&out).into_owned()
    }

    /// Whether to use colours on standard error.
    pub fn colors(&self) -> bool {
        match self.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => auto_colors(|name| std::env::var_os(name), stderr().is_terminal()),
        }
    }
}

/// Columns of a problem: the maximum, and the value if the width of the terminal is unknown.
const MAX_WIDTH: usize = 120;
/// With fewer columns, lines of a plan are not readable.
const MIN_WIDTH: usize = 60;

/// Columns of a problem, for a value of the environment variable `COLUMNS`.
fn text_width(columns: Option<&str>) -> usize {
    match columns.unwrap_or_default().parse::<usize>() {
        Ok(columns) => columns.clamp(MIN_WIDTH, MAX_WIDTH),
        Err(_) => MAX_WIDTH,
    }
}

/// Limit of a problem with lines of the plan: one line may be as long as the whole plan.
const MAX_REPORT_BYTES: usize = 32 << 10;
/// Limit of each text of a problem.
const MAX_PART_BYTES: usize = 16 << 10;

/// `text`, cut off at [`MAX_PART_BYTES`].
fn truncated(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_PART_BYTES);
    if end == text.len() {
        text.into()
    } else {
        format!("{} ... ({} bytes)", &text[..end], text.len())
    }
}

/// A problem as JSON. `files` has, for each of its labels, the file of the plan that the byte range
/// refers to.
fn json_line(problem: &Problem, source: Option<&SourceMap>) -> serde_json::Value {
    let Some(map) = source else {
        return json!({ "problem": problem });
    };
    let mut problem = problem.clone();
    let mut files = vec![];
    for (span, _) in &mut problem.labels {
        let Some((file, range)) = map.place(span) else {
            continue;
        };
        files.push(&file.name);
        *span = range;
    }
    json!({ "problem": problem, "files": files })
}

/// The meaning of `auto`: <https://no-color.org>, then <https://bixense.com/clicolors>.
fn auto_colors(variable: impl Fn(&str) -> Option<OsString>, is_terminal: bool) -> bool {
    let no_color = variable("NO_COLOR").unwrap_or_default();
    let force = variable("CLICOLOR_FORCE").unwrap_or_default();
    let is_forced = !force.is_empty() && force != "0";
    no_color.is_empty() && (is_forced || is_terminal)
}

/// The value of `--color` in the command line `arguments`, for help and usage errors, which are
/// printed before or instead of parsing.
pub(super) fn color_of(arguments: impl Iterator<Item = OsString>) -> ColorChoice {
    let mut choice = ColorChoice::Auto;
    let mut is_value = false;
    for argument in arguments {
        let Some(text) = argument.to_str() else {
            continue;
        };
        if text == "--" {
            break;
        }
        let value = match text.strip_prefix("--color=") {
            Some(value) => value,
            None if is_value => text,
            None => "",
        };
        is_value = !is_value && text == "--color";
        if let Ok(value) = ColorChoice::from_str(value, false) {
            choice = value;
        }
    }
    choice
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_relative_file_of_a_setting_starts_from_the_current_folder() {
        let here = std::env::current_dir().unwrap();
        let set = |text| parse_setting(text).unwrap().1;
        assert_eq!(
            set("source=file:a.gguf"),
            format!("file:{}/a.gguf", here.display())
        );
        assert_eq!(set("source=file:/a.gguf"), "file:/a.gguf");
        assert_eq!(set("soc= sm8650"), " sm8650");
    }

    #[test]
    fn no_color_has_precedence_over_clicolor_force() {
        let check = |set: &[(&str, &str)], is_terminal, expect| {
            let variables: BTreeMap<&str, &str> = set.iter().copied().collect();
            let variable = |name: &str| Some(variables.get(name)?.into());
            assert_eq!(auto_colors(variable, is_terminal), expect, "{set:?}");
        };
        check(&[], true, true);
        check(&[], false, false);
        check(&[("NO_COLOR", "1")], true, false);
        check(&[("NO_COLOR", "")], true, true);
        check(&[("CLICOLOR_FORCE", "1")], false, true);
        check(&[("CLICOLOR_FORCE", "0")], false, false);
        check(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], true, false);
    }

    #[test]
    fn problems_are_as_wide_as_the_terminal_within_limits() {
        for (columns, expected) in [
            (None, 120),
            (Some("100"), 100),
            (Some("20"), 60),
            (Some("400"), 120),
            (Some("wide"), 120),
        ] {
            assert_eq!(text_width(columns), expected);
        }
    }

    #[test]
    fn the_color_option_is_found_before_the_end_of_options() {
        let check = |command_line: &str, expect| {
            assert_eq!(
                color_of(command_line.split(' ').map(OsString::from)),
                expect,
                "{command_line}"
            );
        };
        check("kiln build --help", ColorChoice::Auto);
        check("kiln build --color never --help", ColorChoice::Never);
        check("kiln --color=always --help", ColorChoice::Always);
        check("kiln --color red", ColorChoice::Auto);
        check("kiln check -- --color always", ColorChoice::Auto);
    }
}
