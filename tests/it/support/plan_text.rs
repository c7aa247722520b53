//! Reads plans from texts, with the stage kinds of [`toy_stages`](super::toy_stages).

use std::path::Path;

use kiln::base::{Code, Problem};
use kiln::plan::{self, Plan, Source, SourceMap};

use super::toy_stages;

/// The first of `files` is the plan in the folder `/plans`; it may include the others.
fn source_map(files: &[(&str, &str)]) -> SourceMap {
    let (name, text) = files[0];
    let source = Source {
        name: name.into(),
        text: text.into(),
        folder: "/plans".into(),
    };
    SourceMap::gather(source, &mut |path| {
        let found = files
            .iter()
            .find(|(name, _)| Path::new("/plans").join(name) == path);
        let absent = || Problem::new(Code::PlanUnreadable, format!("no {}", path.display()));
        found.map(|(_, text)| text.to_string()).ok_or_else(absent)
    })
}

/// Reads these files with these variables set.
pub fn read(files: &[(&str, &str)], sets: &[(&str, &str)]) -> Result<Plan, Vec<Problem>> {
    let owned = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
    let sets: Vec<(String, String)> = sets.iter().map(owned).collect();
    plan::read(&source_map(files), &sets, &toy_stages::registry())
}

/// The problems as `code: message`, with their labelled source text and their help. A label in an
/// included file has the name of the file.
pub fn problems(files: &[(&str, &str)], sets: &[(&str, &str)]) -> String {
    let Err(problems) = read(files, sets) else {
        return "none".into();
    };
    let map = source_map(files);
    let mut out = String::new();
    for problem in problems {
        out += &format!(
            "{}: {}\n",
            problem.code.as_str().strip_prefix("kiln::plan::").unwrap(),
            problem.message
        );
        for (span, label) in problem.labels {
            let (source, at) = map.place(&span).unwrap();
            let file = if source.name == files[0].0 {
                String::new()
            } else {
                format!("{}: ", source.name)
            };
            out += &format!("  {file}{:?} {label}\n", &source.text[at]);
        }
        if let Some(help) = problem.help {
            out += &format!("  help: {help}\n");
        }
    }
    out
}
