//! The tables of a plan to a draft: its name and its stages, tools among them, with every `${name}`
//! filled in.

use super::matrix::{MAX_STAGES, Matrix, Written};
use super::merge::{Tables, merge};
use super::source::{Entry, Node, Span, Table, Tree};
use super::source_map::SourceMap;
use super::vars::{Coordinates, Vars};
use super::words::{MAX_NAME, bad_name};
use crate::action::Registry;
use crate::base::{Code, Problem, hint};

/// What the prefix of a tool's implicit stage is.
pub const TOOLS: &str = "tools.";

/// A plan that names its stages, but of which nobody knows yet whether they make sense.
#[derive(Default)]
pub struct Draft {
    pub name: String,
    pub stages: Vec<DraftStage>,
    /// Whether the call has left only one value to some axis.
    pub pinned: bool,
}

/// One table of the plan that becomes a stage, or one of the stages that it becomes.
pub struct DraftStage {
    /// Its own name: `npu.sm8650`; `tools.NAME` for a tool.
    pub id: String,
    /// Its name in the plan: `npu`.
    pub name: String,
    /// The values that it stands for.
    pub here: Coordinates,
    /// Where the plan names it.
    pub at: Span,
    pub table: Table,
}

impl Draft {
    /// The stages that `taker` means by `name`: those that stand where it stands, on every axis
    /// that both have.
    pub fn named<'d>(
        &'d self,
        name: &str,
        consumer: &DraftStage,
    ) -> impl Iterator<Item = &'d DraftStage> {
        let agrees = |(axis, value): (&usize, &usize)| {
            consumer.here.get(axis).is_none_or(|here| here == value)
        };
        let named = move |stage: &&DraftStage| stage.name == name && !stage.is_tool();
        self.stages
            .iter()
            .filter(named)
            .filter(move |stage| stage.here.iter().all(agrees))
    }
}

impl DraftStage {
    /// Whether it is the implicit stage of a tool.
    pub fn is_tool(&self) -> bool {
        self.id.starts_with(TOOLS)
    }
}

/// Reads `map`, with `sets` in place of its variables' own values. All mistakes go to `problems`.
pub fn parse(
    map: &SourceMap,
    sets: &[(String, String)],
    registry: &Registry,
    problems: &mut Vec<Problem>,
) -> Draft {
    let tables = merge(map, problems);
    let mut vars = Vars::read(&tables, map, sets, problems);
    let mut reader = Reader { map, problems };
    let draft = reader.draft(tables, &mut vars, registry);
    problems.extend(vars.unused());
    draft
}

struct Reader<'a> {
    map: &'a SourceMap,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    fn problem(&mut self, code: Code, message: String, span: &Span, label: &str, help: String) {
        let problem = Problem::new(code, message).at(span.clone(), label);
        self.problems.push(if help.is_empty() {
            problem
        } else {
            problem.help(help)
        });
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

    fn table<'t>(&mut self, entry: &'t Entry) -> Option<&'t Table> {
        match &entry.node.tree {
            Tree::Table(table) => Some(table),
            _ => {
                self.wrong_type(entry, "a table");
                None
            }
        }
    }

    fn draft(&mut self, tables: Tables, vars: &mut Vars, registry: &Registry) -> Draft {
        let mut draft = Draft {
            pinned: vars.are_pinned(),
            ..Draft::default()
        };
        let once = Coordinates::new();
        if let Some(mut plan) = tables.plan {
            vars.fill(&mut plan.node, &once, self.map, self.problems);
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
        let tools = tables.tools.len();
        if self.too_many(tools.saturating_add(tables.stages.len())) {
            return draft;
        }
        let written: Vec<Written> = tables
            .stages
            .iter()
            .filter_map(|stage| self.stage(stage))
            .collect();
        let matrix = Matrix::of(&written, vars, self.map, registry, self.problems);
        if self.too_many(matrix.counts().fold(tools, usize::saturating_add)) {
            return draft;
        }
        for mut tool in tables.tools {
            vars.fill(&mut tool.node, &once, self.map, self.problems);
            draft.stages.extend(self.tool(&tool));
        }
        for (index, stage) in written.into_iter().enumerate() {
            for here in matrix.places(index) {
                let mut node = Node {
                    tree: Tree::Table(stage.table.clone()),
                    span: stage.at.clone(),
                };
                vars.fill(&mut node, &here, self.map, self.problems);
                let Tree::Table(mut table) = node.tree else {
                    continue;
                };
                self.locate(&mut table);
                let id = vars.instance(&stage.name, &here);
                self.check_instance(&id, &stage, &draft);
                draft.stages.push(DraftStage {
                    id,
                    name: stage.name.clone(),
                    here,
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

    /// What an instance is called must be a name too, and nobody else's.
    fn check_instance(&mut self, id: &str, stage: &Written, draft: &Draft) {
        // A letter that is wrong in a value of the matrix was named there; here, only the whole can
        // be too long.
        if let Some(why) = bad_name(id).filter(|_| id != stage.name && id.len() > MAX_NAME) {
            self.problem(
                Code::PlanBadName,
                format!("`{id}` cannot name a stage"),
                &stage.at,
                "a stage of these",
                why.into(),
            );
        }
        if let Some(other) = draft.stages.iter().find(|other| other.id == id) {
            let problem = Problem::new(
                Code::PlanMatrix,
                format!("two stages would be called `{id}`"),
            );
            let problem = problem
                .at(stage.at.clone(), "this stage")
                .at(other.at.clone(), "and this stage");
            self.problems
                .push(problem.help("give one of them, or a value of the matrix, another name"));
        }
    }

    fn name(&mut self, entry: &Entry) -> Option<String> {
        let table = self.table(entry)?;
        for other in table.entries.iter().filter(|other| other.key != "name") {
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
        match &name.node.tree {
            Tree::String(text) => {
                self.check_name(text, "plan", &name.node.span);
                Some(text.clone())
            }
            _ => {
                self.wrong_type(name, "a string");
                None
            }
        }
    }

    fn check_name(&mut self, name: &str, what: &str, span: &Span) {
        if let Some(why) = bad_name(name) {
            let message = format!("`{}` cannot name a {what}", name.escape_debug());
            self.problem(Code::PlanBadName, message, span, "here", why.into());
        } else if what == "stage" && name.starts_with(TOOLS) {
            let message = format!("`{name}` cannot name a stage");
            let help = format!("names that begin with `{TOOLS}` belong to what [tools] declares");
            self.problem(Code::PlanBadName, message, span, "here", help);
        }
    }

    fn stage(&mut self, entry: &Entry) -> Option<Written> {
        self.check_name(&entry.key, "stage", &entry.key_span);
        let table = self.table(entry)?.clone();
        Some(Written {
            name: entry.key.clone(),
            at: entry.key_span.clone(),
            table,
        })
    }

    /// A tool is a stage of kind `fetch` whose archive is unpacked.
    fn tool(&mut self, entry: &Entry) -> Option<DraftStage> {
        const KEYS: [&str; 5] = ["pypi", "url", "sha256", "timeout", "retries"];
        self.check_name(&entry.key, "tool", &entry.key_span);
        let written = self.table(entry)?;
        for other in written
            .entries
            .iter()
            .filter(|other| !KEYS.contains(&other.key.as_str()))
        {
            let message = format!("a tool has no `{}`", other.key);
            self.problem(
                Code::PlanUnknownKey,
                message,
                &other.key_span,
                "here",
                hint(&other.key, "its keys", KEYS),
            );
        }
        if written.get("pypi").is_some() == written.get("url").is_some() {
            let name = &entry.key;
            let (message, help) = match written.get("url").is_some() {
                true => (
                    format!("the tool `{name}` has both `pypi` and `url`"),
                    "remove one of them".into(),
                ),
                false => (
                    format!("the tool `{name}` needs either `pypi` or `url`"),
                    "for example `pypi = \"onnxruntime==1.32.0\"`, or `url` with the address of a \
                     wheel"
                        .into(),
                ),
            };
            self.problem(
                Code::PlanToolSource,
                message,
                &entry.key_span,
                "this tool",
                help,
            );
        }
        let mut table = Table { entries: vec![] };
        for key in &written.entries {
            let mut param = key.clone();
            if key.key == "pypi" {
                param.key = "url".into();
                match &mut param.node.tree {
                    Tree::String(requirement) => requirement.insert_str(0, "pypi:"),
                    _ => self.wrong_type(key, "a string"),
                }
            }
            table
                .entries
                .extend(KEYS.contains(&key.key.as_str()).then_some(param));
        }
        let implied = |key: &str, tree| {
            let key_span = entry.key_span.clone();
            Entry {
                key: key.into(),
                node: Node {
                    tree,
                    span: key_span.clone(),
                },
                key_span,
            }
        };
        table
            .entries
            .push(implied("kind", Tree::String("fetch".into())));
        table.entries.push(implied("unpack", Tree::Bool(true)));
        self.locate(&mut table);
        let id = format!("{TOOLS}{}", entry.key);
        Some(DraftStage {
            name: id.clone(),
            id,
            here: Coordinates::new(),
            at: entry.key_span.clone(),
            table,
        })
    }

    /// A relative `file:` URL starts from the folder of its file.
    fn locate(&self, table: &mut Table) {
        for entry in table
            .entries
            .iter_mut()
            .filter(|entry| ["url", "parts"].contains(&entry.key.as_str()))
        {
            if let Tree::List(items) = &mut entry.node.tree {
                items.iter_mut().for_each(|item| self.locate_node(item));
            } else {
                self.locate_node(&mut entry.node);
            }
        }
    }

    fn locate_node(&self, node: &mut Node) {
        if let Tree::String(url) = &mut node.tree
            && let Some(located) = self.map.located(url, &node.span)
        {
            *url = located;
        }
    }
}
