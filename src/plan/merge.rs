//! The tables of a plan and of all that it includes, as one.

use std::collections::BTreeMap;

use super::source::{Entry, Table, Tree};
use super::source_map::{FileId, SourceMap};
use crate::base::{Code, Problem, hint};

/// What the files of a plan say together; each list in the order of the text, included files first.
#[derive(Default)]
pub struct Tables {
    /// `[plan]` of the outermost file.
    pub plan: Option<Entry>,
    /// `[vars]`: one value a name.
    pub vars: Vec<Entry>,
    /// `[matrix]`: one axis a name, and no name that is a variable's too.
    pub axes: Vec<Entry>,
    /// `[tools]`.
    pub tools: Vec<Entry>,
    /// `[stage.*]`.
    pub stages: Vec<Entry>,
}

/// One value that a `${name}` may have.
struct Value {
    file: FileId,
    is_axis: bool,
    entry: Entry,
}

/// All tables of `map`. All mistakes go to `problems`.
pub fn merge(map: &SourceMap, problems: &mut Vec<Problem>) -> Tables {
    const TABLES: [&str; 6] = ["include", "plan", "vars", "matrix", "tools", "stage"];
    let mut tables = Tables::default();
    let mut values: Vec<Value> = vec![];
    for (file, entry) in map
        .trees()
        .flat_map(|(file, tree)| tree.entries.iter().map(move |entry| (file, entry)))
    {
        let named = |is_axis: bool| {
            move |entry: &Entry| Value {
                file,
                is_axis,
                entry: entry.clone(),
            }
        };
        match entry.key.as_str() {
            "include" => {}
            "plan" if map.is_outermost(file) => tables.plan = Some(entry.clone()),
            "plan" => problems.push(
                Problem::new(Code::PlanInclude, "an included file has no `[plan]`")
                    .at(entry.key_span.clone(), "here")
                    .help(
                        "the plan that includes it has the name: move what both need into a file \
                         of its own",
                    ),
            ),
            "vars" => values.extend(entries(entry, problems).iter().map(named(false))),
            "matrix" => values.extend(entries(entry, problems).iter().map(named(true))),
            "tools" => tables.tools.extend_from_slice(entries(entry, problems)),
            "stage" => tables.stages.extend_from_slice(entries(entry, problems)),
            other => problems.push(
                Problem::new(Code::PlanUnknownKey, format!("a plan has no `{other}`"))
                    .at(entry.key_span.clone(), "here")
                    .help(hint(other, "its tables", TABLES)),
            ),
        }
    }
    once("tool", &mut tables.tools, problems);
    once("stage", &mut tables.stages, problems);
    for value in outermost(values, map, problems) {
        if value.is_axis {
            &mut tables.axes
        } else {
            &mut tables.vars
        }
        .push(value.entry);
    }
    tables
}

/// The entries of `entry`, which should be a table.
fn entries<'e>(entry: &'e Entry, problems: &mut Vec<Problem>) -> &'e [Entry] {
    match &entry.node.tree {
        Tree::Table(Table { entries }) => entries,
        _ => {
            let message = format!("`{}` is {}, expected a table", entry.key, entry.node.what());
            let problem = Problem::new(Code::PlanWrongType, message);
            problems.push(problem.at(entry.node.span.clone(), "expected a table"));
            &[]
        }
    }
}

/// Keeps the first of those that have the same name.
fn once(what: &str, named: &mut Vec<Entry>, problems: &mut Vec<Problem>) {
    let mut seen = BTreeMap::new();
    named.retain(|entry| match seen.get(&entry.key) {
        None => seen
            .insert(entry.key.clone(), entry.key_span.clone())
            .is_none(),
        Some(first) => {
            let message = format!("the {what} `{}` is defined twice", entry.key);
            problems.push(
                Problem::new(Code::PlanDefinedTwice, message)
                    .at(entry.key_span.clone(), "here")
                    .at(first.clone(), "and here")
                    .help("give one of them another name, or remove it"),
            );
            false
        }
    });
}

/// One value a name: that of the file which includes the others.
fn outermost(values: Vec<Value>, map: &SourceMap, problems: &mut Vec<Problem>) -> Vec<Value> {
    let mut places: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (index, value) in values.iter().enumerate() {
        places
            .entry(value.entry.key.clone())
            .or_default()
            .push(index);
    }
    let mut stays = vec![false; values.len()];
    for (name, all) in &places {
        let is_last = |&&index: &&usize| {
            !all.iter()
                .any(|other| map.overrides(values[*other].file, values[index].file))
        };
        let last: Vec<usize> = all.iter().filter(is_last).copied().collect();
        last.iter().take(1).for_each(|index| stays[*index] = true);
        if let [first, second, ..] = last.as_slice() {
            let (first, second) = (&values[*first], &values[*second]);
            let message = match first.is_axis == second.is_axis {
                true => format!("`{name}` is given two values"),
                false => format!("`{name}` is both a variable and an axis"),
            };
            problems.push(
                Problem::new(Code::PlanDefinedTwice, message)
                    .at(second.entry.key_span.clone(), "here")
                    .at(first.entry.key_span.clone(), "and here")
                    .help("remove one of them, or define it in the file that includes both"),
            );
        }
    }
    values
        .into_iter()
        .zip(stays)
        .filter_map(|(value, stays)| stays.then_some(value))
        .collect()
}
