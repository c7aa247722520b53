//! Parses the tables of a plan into a draft: its name, and its stages and tools with every
//! `${name}` filled in.

use super::common::SDK;
use super::matrix::{MAX_STAGES, Matrix, StageTable};
use super::merge::{Tables, merge};
use super::source::{Entry, Node, Span, Table, Tree};
use super::source_map::SourceMap;
use super::vars::{Coordinates, Vars};
use super::words::{MAX_NAME, bad_name};
use crate::action::Registry;
use crate::base::{Code, Problem, hint};

/// Prefix of the ids of tools.
pub(super) const TOOLS: &str = "tools.";

/// A plan whose stages are not checked yet.
#[derive(Default)]
pub(super) struct Draft {
    pub name: String,
    pub stages: Vec<DraftStage>,
    /// Whether `--set` sets an axis, so that some instances do not exist.
    pub is_axis_set: bool,
}

/// An instance of a stage, or a tool.
pub(super) struct DraftStage {
    /// `npu.sm8650`; `tools.NAME` for a tool.
    pub id: String,
    /// Its name in the plan: `npu`.
    pub name: String,
    /// Its values on the axes that it exists along.
    pub coordinates: Coordinates,
    /// Where the plan names it.
    pub at: Span,
    pub table: Table,
}

impl Draft {
    /// The instances that `consumer` means by `name`: those with the same value on every axis that
    /// both have.
    pub(super) fn named(&self, name: &str, consumer: &DraftStage) -> Vec<&DraftStage> {
        let mut named = vec![];
        for stage in &self.stages {
            if stage.name == name && !stage.is_tool() && stage.agrees_with(consumer) {
                named.push(stage);
            }
        }
        named
    }
}

impl DraftStage {
    /// Whether it is the implicit stage of a tool.
    pub(super) fn is_tool(&self) -> bool {
        self.id.starts_with(TOOLS)
    }

    /// Whether both have the same value on every axis that both have.
    fn agrees_with(&self, other: &DraftStage) -> bool {
        for (axis, value) in &self.coordinates {
            if let Some(of_other) = other.coordinates.get(axis)
                && of_other != value
            {
                return false;
            }
        }
        true
    }
}

/// Parses the files of `map`. `sets` are the values of `--set`. Mistakes are added to `problems`.
pub(super) fn parse(
    map: &SourceMap,
    sets: &[(String, String)],
    registry: &Registry,
    problems: &mut Vec<Problem>,
) -> Draft {
    let tables = merge(map, problems);
    let mut vars = Vars::read(&tables, map, sets, problems);
    let mut parser = Parser { map, problems };
    let draft = parser.parse(tables, &mut vars, registry);
    problems.extend(vars.problems());
    draft
}

struct Parser<'a> {
    map: &'a SourceMap,
    problems: &'a mut Vec<Problem>,
}

impl Parser<'_> {
    fn problem(&mut self, code: Code, message: String, span: &Span, label: &str, help: String) {
        let mut problem = Problem::new(code, message).at(span.clone(), label);
        if !help.is_empty() {
            problem = problem.help(help);
        }
        self.problems.push(problem);
    }

    fn wrong_type(&mut self, entry: &Entry, expected: &str) {
        let message = format!(
            "`{}` is {}, expected {expected}",
            entry.key,
            entry.node.what()
        );
        self.problem(
            Code::PlanWrongType,
            message,
            &entry.node.span,
            &format!("expected {expected}"),
            String::new(),
        );
    }

    fn expect_table<'t>(&mut self, entry: &'t Entry) -> Option<&'t Table> {
        if let Tree::Table(table) = &entry.node.tree {
            return Some(table);
        }
        self.wrong_type(entry, "a table");
        None
    }

    fn parse(&mut self, tables: Tables, vars: &mut Vars, registry: &Registry) -> Draft {
        let mut draft = Draft {
            is_axis_set: vars.is_axis_set(),
            ..Draft::default()
        };
        let no_axes = Coordinates::new();
        if let Some(mut plan) = tables.plan {
            vars.fill(&mut plan.node, &no_axes, self.map, self.problems);
            draft.name = self.name(&plan).unwrap_or_default();
        } else {
            let help = "begin the plan with `[plan]` and `name = \"...\"`".to_string();
            self.problem(
                Code::PlanMissingName,
                "the plan has no [plan] table".into(),
                &(0..0),
                "here",
                help,
            );
        }
        let tool_count = tables.tools.len();
        if self.too_many(tool_count.saturating_add(tables.stages.len())) {
            return draft;
        }
        let mut stages = vec![];
        for entry in &tables.stages {
            stages.extend(self.stage(entry));
        }
        let matrix = Matrix::of(&stages, vars, self.map, registry, self.problems);
        if self.too_many(tool_count.saturating_add(matrix.instance_count())) {
            return draft;
        }
        for mut tool in tables.tools {
            vars.fill(&mut tool.node, &no_axes, self.map, self.problems);
            draft.stages.extend(self.tool(&tool));
        }
        for (index, stage) in stages.iter().enumerate() {
            for coordinates in matrix.instances(index) {
                let mut node = Node {
                    tree: Tree::Table(stage.table.clone()),
                    span: stage.at.clone(),
                };
                vars.fill(&mut node, &coordinates, self.map, self.problems);
                let Tree::Table(mut table) = node.tree else {
                    continue;
                };
                self.locate(&mut table);
                let id = vars.instance(&stage.name, &coordinates);
                self.check_id(&id, stage, &draft);
                draft.stages.push(DraftStage {
                    id,
                    name: stage.name.clone(),
                    coordinates,
                    at: stage.at.clone(),
                    table,
                });
            }
        }
        draft
    }

    fn too_many(&mut self, count: usize) -> bool {
        if count > MAX_STAGES {
            let message =
                format!("the plan has {count} stages and tools, at most {MAX_STAGES} are built");
            self.problem(
                Code::PlanTooLarge,
                message,
                &(0..0),
                "here",
                "split it into several plans".into(),
            );
        }
        count > MAX_STAGES
    }

    /// Reports an id that is too long or not unique.
    fn check_id(&mut self, id: &str, stage: &StageTable, draft: &Draft) {
        // Wrong characters are reported at the value of the axis.
        if id != stage.name
            && id.len() > MAX_NAME
            && let Some(why) = bad_name(id)
        {
            self.problem(
                Code::PlanBadName,
                format!("`{id}` cannot name a stage"),
                &stage.at,
                "an instance of this stage",
                why.into(),
            );
        }
        if let Some(other) = draft.stages.iter().find(|other| other.id == id) {
            let message = format!("two stages would be called `{id}`");
            let problem = Problem::new(Code::PlanMatrix, message)
                .at(stage.at.clone(), "this stage")
                .at(other.at.clone(), "and this stage")
                .help("give one of them, or a value of the matrix, another name");
            self.problems.push(problem);
        }
    }

    /// The `name` in `[plan]`.
    fn name(&mut self, entry: &Entry) -> Option<String> {
        let table = self.expect_table(entry)?;
        for other in &table.entries {
            if other.key == "name" {
                continue;
            }
            let message = format!("[plan] has no `{}`", other.key);
            self.problem(
                Code::PlanUnknownKey,
                message,
                &other.key_span,
                "here",
                "[plan] has only `name`".into(),
            );
        }
        let Some(name) = table.get("name") else {
            let help = "add `name = \"...\"`".to_string();
            self.problem(
                Code::PlanMissingName,
                "the plan has no name".into(),
                &entry.key_span,
                "no `name`",
                help,
            );
            return None;
        };
        let Tree::String(text) = &name.node.tree else {
            self.wrong_type(name, "a string");
            return None;
        };
        self.check_name(text, "plan", &name.node.span);
        Some(text.clone())
    }

    fn check_name(&mut self, name: &str, what: &str, span: &Span) {
        if let Some(why) = bad_name(name) {
            let message = format!("`{}` cannot name a {what}", name.escape_debug());
            self.problem(Code::PlanBadName, message, span, "here", why.into());
        } else if what == "stage" && name.starts_with(TOOLS) {
            let message = format!("`{name}` cannot name a stage");
            let help = format!("names that begin with `{TOOLS}` are for the tools in [tools]");
            self.problem(Code::PlanBadName, message, span, "here", help);
        }
    }

    fn stage(&mut self, entry: &Entry) -> Option<StageTable> {
        self.check_name(&entry.key, "stage", &entry.key_span);
        let table = self.expect_table(entry)?.clone();
        Some(StageTable {
            name: entry.key.clone(),
            at: entry.key_span.clone(),
            table,
        })
    }

    /// The implicit stage of a tool: a `fetch` that unpacks an archive.
    fn tool(&mut self, entry: &Entry) -> Option<DraftStage> {
        const KEYS: [&str; 6] = ["pypi", "url", SDK, "sha256", "timeout", "retries"];
        self.check_name(&entry.key, "tool", &entry.key_span);
        let source = self.expect_table(entry)?;
        self.check_tool_source(entry, source);
        let mut table = Table::default();
        for key in &source.entries {
            if !KEYS.contains(&key.key.as_str()) {
                let message = format!("a tool has no `{}`", key.key);
                let help = hint(&key.key, "its keys", KEYS);
                self.problem(Code::PlanUnknownKey, message, &key.key_span, "here", help);
                continue;
            }
            let mut param = key.clone();
            if key.key == "pypi" {
                param.key = "url".into();
                match &mut param.node.tree {
                    Tree::String(requirement) => requirement.insert_str(0, "pypi:"),
                    _ => self.wrong_type(key, "a string"),
                }
            }
            table.entries.push(param);
        }
        let mut added = vec![("kind", Tree::String("fetch".into()))];
        if source.get(SDK).is_none() {
            added.push(("unpack", Tree::Bool(true)));
        }
        for (key, tree) in added {
            let span = entry.key_span.clone();
            table.entries.push(Entry {
                key: key.into(),
                key_span: span.clone(),
                node: Node { tree, span },
            });
        }
        self.locate(&mut table);
        let id = format!("{TOOLS}{}", entry.key);
        Some(DraftStage {
            name: id.clone(),
            id,
            coordinates: Coordinates::new(),
            at: entry.key_span.clone(),
            table,
        })
    }

    /// A tool has one of `pypi`, `url` and `sdk`.
    fn check_tool_source(&mut self, entry: &Entry, table: &Table) {
        let name = &entry.key;
        let mut sources = vec!["pypi", "url", SDK];
        sources.retain(|key| table.get(key).is_some());
        let (message, help) = match sources[..] {
            [_] => return,
            [] => (
                format!("the tool `{name}` needs `pypi`, `url` or `{SDK}`"),
                "for example `pypi = \"onnxruntime==1.32.0\"`, `url` with the address of a wheel, \
                 or `sdk` with the folder of Qualcomm's SDK",
            ),
            [first, second, ..] => (
                format!("the tool `{name}` has both `{first}` and `{second}`"),
                "remove one of them",
            ),
        };
        self.problem(
            Code::PlanToolSource,
            message,
            &entry.key_span,
            "this tool",
            help.into(),
        );
    }

    /// Makes relative `file:` URLs absolute: they refer to the folder of their file.
    fn locate(&self, table: &mut Table) {
        for entry in &mut table.entries {
            if entry.key != "url" && entry.key != "parts" {
                continue;
            }
            if let Tree::List(items) = &mut entry.node.tree {
                for item in items {
                    self.locate_url(item);
                }
            } else {
                self.locate_url(&mut entry.node);
            }
        }
    }

    fn locate_url(&self, node: &mut Node) {
        if let Tree::String(url) = &mut node.tree
            && let Some(located) = self.map.located(url, &node.span)
        {
            *url = located;
        }
    }
}
