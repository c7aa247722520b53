//! Plans of a few texts, made of the stages of [`toy_stages`](super::toy_stages).

use std::path::Path;

use kiln::base::{Code, Problem};
use kiln::plan::{self, Plan, Source, SourceMap};

use super::toy_stages;

/// The first of `files` as a plan in the folder `/plans`; it may include the others.
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

/// The plan of these files with these variables set.
pub fn read(files: &[(&str, &str)], sets: &[(&str, &str)]) -> Result<Plan, Vec<Problem>> {
    let sets: Vec<(String, String)> = sets
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect();
    plan::read(&source_map(files), &sets, &toy_stages::registry())
}

/// The problems as `code: message`, the places they point to, and their help. A place in an
/// included file is told with the file's name.
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
        out += &problem
            .help
            .map(|help| format!("  help: {help}\n"))
            .unwrap_or_default();
    }
    out
}
