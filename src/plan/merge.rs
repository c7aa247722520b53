//! Merges the tables of a plan and of the files that it includes.

use std::collections::BTreeMap;

use super::source::{Entry, Span, Table, Tree};
use super::source_map::{FileId, SourceMap};
use crate::base::{Code, Problem, hint};

/// The tables of all files of a plan. Each list is in the order of the text, included files first.
#[derive(Default)]
pub(super) struct Tables {
    /// `[plan]` of the outermost file.
    pub plan: Option<Entry>,
    /// `[vars]`: one value per name.
    pub vars: Vec<Entry>,
    /// `[matrix]`: one axis per name. No name is also that of a variable.
    pub axes: Vec<Entry>,
    /// `[tools]`.
    pub tools: Vec<Entry>,
    /// `[stage.*]`.
    pub stages: Vec<Entry>,
}

/// A variable or an axis as one file defines it.
struct Definition {
    file: FileId,
    is_axis: bool,
    entry: Entry,
}

/// Merges the tables of `map`. Mistakes are added to `problems`.
pub(super) fn merge(map: &SourceMap, problems: &mut Vec<Problem>) -> Tables {
    const TABLES: [&str; 6] = ["include", "plan", "vars", "matrix", "tools", "stage"];
    let mut tables = Tables::default();
    let mut definitions: Vec<Definition> = vec![];
    for (file, tree) in map.trees() {
        for table in &tree.entries {
            match table.key.as_str() {
                "include" => {}
                "plan" if map.is_outermost(file) => tables.plan = Some(table.clone()),
                "plan" => problems.push(
                    Problem::new(Code::PlanInclude, "an included file has no `[plan]`")
                        .at(table.key_span.clone(), "here")
                        .help(
                            "the plan that includes it has the name: move what both need into a \
                             file of its own",
                        ),
                ),
                "vars" | "matrix" => {
                    for entry in entries(table, problems) {
                        definitions.push(Definition {
                            file,
                            is_axis: table.key == "matrix",
                            entry: entry.clone(),
                        });
                    }
                }
                "tools" => tables.tools.extend_from_slice(entries(table, problems)),
                "stage" => tables.stages.extend_from_slice(entries(table, problems)),
                other => problems.push(
                    Problem::new(Code::PlanUnknownKey, format!("a plan has no `{other}`"))
                        .at(table.key_span.clone(), "here")
                        .help(hint(other, "its tables", TABLES)),
                ),
            }
        }
    }
    remove_duplicates("tool", &mut tables.tools, problems);
    remove_duplicates("stage", &mut tables.stages, problems);
    for definition in select(&definitions, map, problems) {
        let entry = definition.entry.clone();
        if definition.is_axis {
            tables.axes.push(entry);
        } else {
            tables.vars.push(entry);
        }
    }
    tables
}

/// The entries of `entry`, which must be a table.
fn entries<'e>(entry: &'e Entry, problems: &mut Vec<Problem>) -> &'e [Entry] {
    if let Tree::Table(Table { entries }) = &entry.node.tree {
        return entries;
    }
    let message = format!("`{}` is {}, expected a table", entry.key, entry.node.what());
    let problem = Problem::new(Code::PlanWrongType, message);
    problems.push(problem.at(entry.node.span.clone(), "expected a table"));
    &[]
}

/// Keeps the first entry of each name and reports the others.
fn remove_duplicates(what: &str, entries: &mut Vec<Entry>, problems: &mut Vec<Problem>) {
    let mut first_spans: BTreeMap<String, Span> = BTreeMap::new();
    entries.retain(|entry| {
        let Some(first) = first_spans.get(&entry.key) else {
            first_spans.insert(entry.key.clone(), entry.key_span.clone());
            return true;
        };
        let message = format!("the {what} `{}` is defined twice", entry.key);
        problems.push(
            Problem::new(Code::PlanDefinedTwice, message)
                .at(entry.key_span.clone(), "here")
                .at(first.clone(), "and here")
                .help("give one of them another name, or remove it"),
        );
        false
    });
}

/// Selects one definition per name: a file overrides the files that it includes. Reports names that
/// have two definitions, neither of which overrides the other.
fn select<'d>(
    definitions: &'d [Definition],
    map: &SourceMap,
    problems: &mut Vec<Problem>,
) -> Vec<&'d Definition> {
    let mut by_name: BTreeMap<&str, Vec<&Definition>> = BTreeMap::new();
    for definition in definitions {
        let name = definition.entry.key.as_str();
        by_name.entry(name).or_default().push(definition);
    }
    let mut effective: Vec<&Definition> = vec![];
    let mut selected: BTreeMap<&str, &Definition> = BTreeMap::new();
    for definition in definitions {
        let name = definition.entry.key.as_str();
        let overrides = |other: &&Definition| map.overrides(other.file, definition.file);
        if by_name[name].iter().any(overrides) {
            continue;
        }
        let Some(first) = selected.get(name) else {
            selected.insert(name, definition);
            effective.push(definition);
            continue;
        };
        let message = if first.is_axis == definition.is_axis {
            format!("`{name}` is defined twice")
        } else {
            format!("`{name}` is both a variable and an axis")
        };
        problems.push(
            Problem::new(Code::PlanDefinedTwice, message)
                .at(definition.entry.key_span.clone(), "here")
                .at(first.entry.key_span.clone(), "and here")
                .help("remove one of them, or define it in the file that includes both"),
        );
    }
    effective
}
