//! Options that several subcommands share, and how problems are printed.

use std::ffi::OsString;
use std::io::{IsTerminal, Read, Write, stderr, stdout};
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

/// What every subcommand understands.
#[derive(clap::Args)]
pub struct Common {
    /// The local cache
    #[arg(long, global = true, value_name = "DIR", env = "KILN_CACHE", default_value = DEFAULT_CACHE,
        value_parser = OsStringValueParser::new().map(cache_folder))]
    pub cache: PathBuf,
    /// Print JSON lines instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Colours; `auto` heeds NO_COLOR, CLICOLOR_FORCE, and whether the output is a terminal
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: ColorChoice,
}

/// A variable that is set to nothing is as good as none.
fn cache_folder(named: OsString) -> PathBuf {
    if named.is_empty() {
        DEFAULT_CACHE.into()
    } else {
        named.into()
    }
}

/// Which plan, and the variables set from outside.
#[derive(clap::Args)]
pub struct PlanArgs {
    /// The plan
    #[arg(value_name = "PLAN.toml")]
    pub path: PathBuf,
    /// Set a variable of the plan's [vars], or leave an axis of its [matrix] one value
    #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
    pub set: Vec<(String, String)>,
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    // A relative path in the call starts where the call is made; in a plan, where the plan lies.
    let value = match value.strip_prefix("file:").map(std::path::absolute) {
        Some(path) => format!(
            "file:{}",
            path.map_err(|error| error.to_string())?.display()
        ),
        None => value.into(),
    };
    Ok((name.trim().into(), value))
}

impl PlanArgs {
    /// Reads and checks the plan.
    pub fn load(&self, registry: &Registry) -> Result<Plan, Failed> {
        Ok(self.load_with_texts(registry)?.0)
    }

    /// Reads and checks the plan; also yields the texts that its stages stand in.
    pub(super) fn load_with_texts(
        &self,
        registry: &Registry,
    ) -> Result<(Plan, Arc<SourceMap>), Failed> {
        let (mut plan, texts) = understood(self.source()?, &self.set, registry)?;
        plan.texts.push(self.path.clone());
        Ok((plan, texts))
    }

    fn source(&self) -> Result<Source> {
        let text = read(&self.path).map_err(|problem| match self.path.exists() {
            true => problem,
            false => problem.help("`kiln init hf:OWNER/REPO/FILE` writes a plan to start from"),
        })?;
        Ok(Source {
            name: self.path.display().to_string(),
            text,
            folder: self.folder()?,
        })
    }

    /// The absolute folder that the plan lies in.
    pub(super) fn folder(&self) -> Result<PathBuf> {
        let path = std::path::absolute(&self.path).context(Code::PlanUnreadable, || {
            format!("find the folder of {}", self.path.display())
        })?;
        Ok(path.parent().map_or(path.clone(), PathBuf::from))
    }
}

/// The plan that `source` is, with what it includes, and all its texts.
pub(super) fn understood(
    source: Source,
    sets: &[(String, String)],
    registry: &Registry,
) -> Result<(Plan, Arc<SourceMap>), Failed> {
    let mut texts = vec![];
    let map = SourceMap::gather(source, &mut |path| {
        texts.push(path.into());
        read(path)
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

fn read(path: &Path) -> Result<String> {
    let mut text = String::new();
    // One byte above the cap is enough for it to be refused.
    open_file(path)
        .and_then(|file| {
            file.take(MAX_TEXT_BYTES as u64 + 1)
                .read_to_string(&mut text)
        })
        .context(Code::PlanUnreadable, || {
            format!("read the plan {}", path.display())
        })?;
    Ok(text)
}

/// Why a subcommand gave up: all its problems, and the texts of the plan that their labels point
/// into.
#[derive(Debug)]
pub struct Failed {
    /// At least one.
    pub problems: Vec<Problem>,
    /// The plan that they point into, if they do.
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
    /// Writes `text`, which is JSON if the call asks for that, to standard output as a terminal may
    /// have it.
    pub fn print(&self, text: &str) {
        match self.json {
            true => self.print_as_it_is(&shown_json(text)),
            false => self.print_as_it_is(&shown(text)),
        }
    }

    /// Writes `text`, which is kiln's own, to standard output; a reader that has gone away (`|
    /// head`) is no error.
    pub fn print_as_it_is(&self, text: &str) {
        let mut out = stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    /// Prints every problem and says how to leave: as the first one demands.
    /// Graphical on standard error; with `--json`, one `{"problem": ...}` a line on standard
    /// output. On GitHub, each is an annotation besides, on standard error.
    pub fn report(&self, failed: &Failed) -> Exit {
        for problem in &failed.problems {
            if self.json {
                self.print(&format!("{}\n", json(problem, failed.source.as_deref())));
            } else {
                let _ = writeln!(stderr(), "{}", self.render(problem, failed.source.as_ref()));
            }
            if std::env::var("GITHUB_ACTIONS").is_ok_and(|value| value == "true") {
                let _ = writeln!(
                    stderr(),
                    "{}",
                    annotation(problem, failed.source.as_deref())
                );
            }
        }
        failed.problems.first().map_or(Exit::StageFailed, Exit::of)
    }

    /// A problem as people read it, with the plan's lines it points to.
    pub fn render(&self, problem: &Problem, source: Option<&Arc<SourceMap>>) -> String {
        let theme = if self.colors() {
            GraphicalTheme::unicode()
        } else {
            GraphicalTheme::unicode_nocolor()
        };
        let handler = GraphicalReportHandler::new_themed(theme)
            .with_links(false)
            .with_width(width(std::env::var("COLUMNS").ok().as_deref()))
            .with_break_words(false);
        let mut whole = problem.clone();
        for cause in whole.causes.drain(..) {
            whole.message.push_str("\ncaused by: ");
            whole.message.push_str(&cause);
        }
        whole.code = Code::of(&shown_line(whole.code.as_str()));
        whole.message = abridged(&shown(&whole.message));
        whole.help = whole.help.map(|help| abridged(&shown(&help)));
        whole
            .labels
            .iter_mut()
            .for_each(|(_, label)| *label = abridged(&shown(label)));
        let mut report = Report::new(whole);
        if let Some(map) = source {
            report = report.with_source_code(Arc::clone(map));
        }
        let mut out = String::new();
        // Only a label outside the text can fail here; the message itself must still reach the
        // reader.
        if handler.render_report(&mut out, report.as_ref()).is_err() || out.len() > MAX_SHOWN_BYTES
        {
            out = abridged(&shown(&problem.text()));
        }
        // Its lines are broken anew.
        without_commands(&out).into_owned()
    }

    /// Whether standard error takes colours.
    pub fn colors(&self) -> bool {
        match self.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => auto_colors(|name| std::env::var_os(name), stderr().is_terminal()),
        }
    }
}

/// How wide problems are where nothing says how wide the terminal is; no wider, so that they can be
/// read.
const MAX_WIDTH: usize = 120;
/// Narrower, there is no room for the plan's lines.
const MIN_WIDTH: usize = 60;

/// How wide problems are, by what `COLUMNS` says.
fn width(columns: Option<&str>) -> usize {
    let columns = columns.and_then(|columns| columns.parse().ok());
    columns.map_or(MAX_WIDTH, |columns: usize| {
        columns.clamp(MIN_WIDTH, MAX_WIDTH)
    })
}

/// Cap on a problem with the plan's lines: a line may be as long as the plan.
const MAX_SHOWN_BYTES: usize = 32 << 10;
/// Cap on each of its texts.
const MAX_TEXT_SHOWN_BYTES: usize = 16 << 10;

/// The beginning of a text that is too long to be read.
fn abridged(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_TEXT_SHOWN_BYTES);
    if end == text.len() {
        text.into()
    } else {
        format!("{} ... ({} bytes)", &text[..end], text.len())
    }
}

/// A problem for machines; `files` says for each of its labels in which file of the plan its range
/// of bytes lies.
fn json(problem: &Problem, source: Option<&SourceMap>) -> serde_json::Value {
    let Some(map) = source else {
        return json!({ "problem": problem });
    };
    let mut problem = problem.clone();
    let mut files = vec![];
    for (span, _) in &mut problem.labels {
        let Some((file, at)) = map.place(span) else {
            continue;
        };
        files.push(&file.name);
        *span = at;
    }
    json!({ "problem": problem, "files": files })
}

/// What `auto` means: <https://no-color.org>, then <https://bixense.com/clicolors>.
fn auto_colors(env: impl Fn(&str) -> Option<OsString>, is_terminal: bool) -> bool {
    let set = |name| env(name).filter(|value| !value.is_empty());
    let is_forced = set("CLICOLOR_FORCE").is_some_and(|value| value != "0");
    set("NO_COLOR").is_none() && (is_forced || is_terminal)
}

/// What a call says of colours, before it is parsed: help and mistakes of the call are coloured
/// too.
pub(super) fn color_of(call: impl Iterator<Item = OsString>) -> ColorChoice {
    let mut words = call
        .filter_map(|word| word.into_string().ok())
        .take_while(|word| word != "--");
    let mut choice = ColorChoice::Auto;
    while let Some(word) = words.next() {
        let when = match word.split_once('=') {
            Some(("--color", when)) => Some(when.to_string()),
            _ if word == "--color" => words.next(),
            _ => None,
        };
        choice = when
            .and_then(|when| ColorChoice::from_str(&when, false).ok())
            .unwrap_or(choice);
    }
    choice
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_set_by_the_call_lies_where_the_call_is_made() {
        let here = std::env::current_dir().unwrap();
        let set = |text| setting(text).unwrap().1;
        assert_eq!(
            set("source=file:a.gguf"),
            format!("file:{}/a.gguf", here.display())
        );
        assert_eq!(set("source=file:/a.gguf"), "file:/a.gguf");
        assert_eq!(set("soc= sm8650"), " sm8650");
    }

    #[test]
    fn colours_are_forbidden_before_they_are_forced() {
        let check = |set: &[(&str, &str)], is_terminal, expect| {
            let env = |name: &str| {
                set.iter()
                    .find(|(known, _)| *known == name)
                    .map(|(_, value)| value.into())
            };
            assert_eq!(auto_colors(env, is_terminal), expect, "{set:?}");
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
    fn problems_are_as_wide_as_the_terminal_within_reason() {
        for (columns, expected) in [
            (None, 120),
            (Some("100"), 100),
            (Some("20"), 60),
            (Some("400"), 120),
            (Some("wide"), 120),
        ] {
            assert_eq!(width(columns), expected);
        }
    }

    #[test]
    fn a_call_names_its_colours_anywhere_before_the_end_of_options() {
        let check = |call: &str, expect| {
            assert_eq!(
                color_of(call.split(' ').map(OsString::from)),
                expect,
                "{call}"
            );
        };
        check("kiln build --help", ColorChoice::Auto);
        check("kiln build --color never --help", ColorChoice::Never);
        check("kiln --color=always --help", ColorChoice::Always);
        check("kiln --color red", ColorChoice::Auto);
        check("kiln check -- --color always", ColorChoice::Auto);
    }
}
