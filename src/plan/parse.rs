//! The tree of a plan to a draft: its name and its stages, tools among them, with every `${name}` filled in.

use super::source::{Entry, Node, Source, Span, Table, Tree};
use super::vars::Vars;
use super::words::{bad_name, hint};
use crate::base::Problem;

/// Cap on the stages of a plan, tools included; far above any plan that a person writes.
pub const MAX_STAGES: usize = 1000;

/// What the prefix of a tool's implicit stage is.
pub const TOOLS: &str = "tools.";

/// A plan that names its stages, but of which nobody knows yet whether they make sense.
pub struct Draft {
    pub name: String,
    pub stages: Vec<DraftStage>,
}

/// One table of the plan that becomes a stage.
pub struct DraftStage {
    /// Its name in the plan; `tools.NAME` for a tool.
    pub id: String,
    /// Where the plan names it.
    pub at: Span,
    pub table: Table,
}

/// Reads `source`, with `sets` in place of its variables' own values. All mistakes go to `problems`.
pub fn parse(source: &Source, sets: &[(String, String)], problems: &mut Vec<Problem>) -> Draft {
    let mut reader = Reader { source, problems };
    let Some(mut root) = reader.tree() else { return Draft { name: String::new(), stages: vec![] } };

    let table = root.get("vars").and_then(|entry| reader.table(entry)).cloned().unwrap_or_default();
    let mut vars = Vars::read(&table, sets, reader.problems);
    for entry in root.entries.iter_mut().filter(|entry| entry.key != "vars") {
        vars.fill(&mut entry.node, &source.text, reader.problems);
    }
    reader.problems.extend(vars.unused());
    reader.draft(&root)
}

struct Reader<'a> {
    source: &'a Source,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    fn tree(&mut self) -> Option<Table> {
        self.source.tree().map_err(|mistakes| self.problems.extend(mistakes)).ok()
    }

    fn problem(&mut self, code: &str, message: String, span: &Span, label: &str, help: String) {
        let problem = Problem::new(&format!("kiln::plan::{code}"), message).at(span.clone(), label);
        self.problems.push(if help.is_empty() { problem } else { problem.help(help) });
    }

    fn wrong_type(&mut self, entry: &Entry, expected: &str) {
        let message = format!("`{}` is {}, expected {expected}", entry.key, entry.node.what());
        self.problem("wrong_type", message, &entry.node.span, &format!("expected {expected}"), String::new());
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

    fn draft(&mut self, root: &Table) -> Draft {
        const TABLES: [&str; 4] = ["plan", "vars", "tools", "stage"];
        let mut draft = Draft { name: String::new(), stages: vec![] };
        for entry in &root.entries {
            match entry.key.as_str() {
                "plan" => draft.name = self.name(entry).unwrap_or_default(),
                "vars" => {}
                "tools" => draft.stages.extend(self.entries(entry).filter_map(|tool| self.tool(tool))),
                "stage" => draft.stages.extend(self.entries(entry).filter_map(|stage| self.stage(stage))),
                other => {
                    let message = format!("a plan has no `{other}`");
                    self.problem("unknown_key", message, &entry.key_span, "here", hint(other, "its tables", TABLES));
                }
            }
        }
        if root.get("plan").is_none() {
            let help = "begin the plan with `[plan]` and `name = \"...\"`".to_string();
            self.problem("missing_name", "the plan has no [plan] table".into(), &(0..0), "here", help);
        }
        if draft.stages.len() > MAX_STAGES {
            let message =
                format!("the plan has {} stages and tools, at most {MAX_STAGES} are built", draft.stages.len());
            self.problem("too_large", message, &(0..0), "here", "split it into several plans".into());
            draft.stages.clear();
        }
        draft
    }

    fn entries<'t>(&mut self, entry: &'t Entry) -> std::slice::Iter<'t, Entry> {
        self.table(entry).map_or([].iter(), |table| table.entries.iter())
    }

    fn name(&mut self, entry: &Entry) -> Option<String> {
        let table = self.table(entry)?;
        for other in table.entries.iter().filter(|other| other.key != "name") {
            let message = format!("[plan] has no `{}`", other.key);
            self.problem("unknown_key", message, &other.key_span, "here", "[plan] has only `name`".into());
        }
        let Some(name) = table.get("name") else {
            let help = "add `name = \"...\"`".to_string();
            self.problem("missing_name", "the plan has no name".into(), &entry.key_span, "no `name`", help);
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
            self.problem("bad_name", message, span, "here", why.into());
        } else if what == "stage" && name.starts_with(TOOLS) {
            let message = format!("`{name}` cannot name a stage");
            let help = format!("names that begin with `{TOOLS}` belong to what [tools] declares");
            self.problem("bad_name", message, span, "here", help);
        }
    }

    fn stage(&mut self, entry: &Entry) -> Option<DraftStage> {
        self.check_name(&entry.key, "stage", &entry.key_span);
        let mut table = self.table(entry)?.clone();
        self.locate(&mut table);
        Some(DraftStage { id: entry.key.clone(), at: entry.key_span.clone(), table })
    }

    /// A tool is a stage of kind `fetch` whose archive is unpacked.
    fn tool(&mut self, entry: &Entry) -> Option<DraftStage> {
        const KEYS: [&str; 3] = ["pypi", "url", "sha256"];
        self.check_name(&entry.key, "tool", &entry.key_span);
        let written = self.table(entry)?;
        for other in written.entries.iter().filter(|other| !KEYS.contains(&other.key.as_str())) {
            let message = format!("a tool has no `{}`", other.key);
            self.problem("unknown_key", message, &other.key_span, "here", hint(&other.key, "its keys", KEYS));
        }
        if written.get("pypi").is_some() == written.get("url").is_some() {
            let message = format!("the tool `{}` needs either `pypi` or `url`", entry.key);
            let help = "for example `pypi = \"onnxruntime==1.32.0\"`, or `url` with the address of a wheel".into();
            self.problem("tool_source", message, &entry.key_span, "this one", help);
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
            table.entries.extend(KEYS.contains(&key.key.as_str()).then_some(param));
        }
        let implied = |key: &str, tree| {
            let key_span = entry.key_span.clone();
            Entry { key: key.into(), node: Node { tree, span: key_span.clone() }, key_span }
        };
        table.entries.push(implied("kind", Tree::String("fetch".into())));
        table.entries.push(implied("unpack", Tree::Bool(true)));
        self.locate(&mut table);
        Some(DraftStage { id: format!("{TOOLS}{}", entry.key), at: entry.key_span.clone(), table })
    }

    /// A relative `file:` URL starts from the plan's folder, so that a plan means the same wherever it is built from.
    fn locate(&self, table: &mut Table) {
        if let Some(entry) = table.entries.iter_mut().find(|entry| entry.key == "url")
            && let Tree::String(url) = &mut entry.node.tree
            && let Some(path) = url.strip_prefix("file:")
            && !path.starts_with('/')
        {
            *url = format!("file:{}", self.source.folder.join(path).display());
        }
    }
}
