//! A draft against the registry: every kind, slot, parameter and tool. Goes on after every mistake.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::parse::{Draft, DraftStage, TOOLS};
use super::source::{Entry, Node, Span, Tree};
use super::words::{closest, hint, quoted};
use super::{Keep, PlannedStage, StageId};
use crate::action::{InputSpec, ParamProblem, Registry, Stage, StageSpec};
use crate::base::Problem;

type Slots = BTreeMap<String, Vec<StageId>>;

/// Stages that are named, and where.
type Edges = Vec<(StageId, Span)>;

/// A stage that may be part of a plan, once the edges are looked at too.
pub struct Checked {
    /// Its `keep` is not filled in yet.
    pub stage: PlannedStage,
    /// What the plan says about keeping it.
    pub keep: Option<Keep>,
    /// Where the plan names it.
    pub at: Span,
    /// The stages it names, and where.
    pub edges: Edges,
}

/// The stages of `draft` that hold what their kind asks for.
pub fn check(draft: &Draft, registry: &Registry, problems: &mut Vec<Problem>) -> Vec<Checked> {
    draft.stages.iter().filter_map(|stage| Checker { draft, registry, problems, stage }.check()).collect()
}

/// Checks one stage.
struct Checker<'a> {
    draft: &'a Draft,
    registry: &'a Registry,
    problems: &'a mut Vec<Problem>,
    stage: &'a DraftStage,
}

impl<'a> Checker<'a> {
    fn check(mut self) -> Option<Checked> {
        let kind = self.kind();
        let keep = self.keep();
        let kind = kind?;
        let spec = kind.spec();
        let (slots, edges) = self.slots(spec);
        let params = self.params(spec);
        let filled: Vec<&str> = slots.keys().map(String::as_str).collect();
        let needs = self.ask_stage(kind, params.clone(), &filled);
        let tools = self.tools(spec, needs);
        let id = StageId(self.stage.id.clone());
        let stage = PlannedStage {
            id,
            kind: spec.kind.into(),
            params: Value::Object(params),
            slots,
            tools,
            keep: Keep::Nothing,
            timeout: None,
            retries: 0,
        };
        Some(Checked { stage, keep, at: self.stage.at.clone(), edges })
    }

    fn problem(&mut self, code: &str, message: String, span: &Span, label: &str, help: String) {
        let problem = Problem::new(&format!("kiln::plan::{code}"), message).at(span.clone(), label);
        self.problems.push(if help.is_empty() { problem } else { problem.help(help) });
    }

    fn wrong_type(&mut self, key: &str, node: &Node, expected: &str) {
        let message = format!("`{}.{key}` is {}, expected {expected}", self.stage.id, node.what());
        self.problem("wrong_type", message, &node.span, &format!("expected {expected}"), String::new());
    }

    fn kind(&mut self) -> Option<&'a dyn Stage> {
        let Some(entry) = self.stage.table.get("kind") else {
            let kinds: Vec<&str> = self.registry.kinds().collect();
            let message = format!("the stage `{}` has no `kind`", self.stage.id);
            self.problem("missing_kind", message, &self.stage.at, "this stage", format!("kinds: {}", kinds.join(", ")));
            return None;
        };
        let Tree::String(kind) = &entry.node.tree else {
            self.wrong_type("kind", &entry.node, "a string");
            return None;
        };
        let stage = self.registry.get(kind);
        if stage.is_none() {
            let help = hint(kind, "kinds", self.registry.kinds().collect::<Vec<_>>());
            self.problem("unknown_kind", format!("there is no stage kind `{kind}`"), &entry.node.span, "here", help);
        }
        stage
    }

    fn keep(&mut self) -> Option<Keep> {
        let node = &self.stage.table.get("keep")?.node;
        let text = |node: &Node| match &node.tree {
            Tree::String(text) => Some(text.clone()),
            _ => None,
        };
        let keep = match &node.tree {
            Tree::Bool(false) => Some(Keep::Nothing),
            Tree::Bool(true) => Some(Keep::All),
            Tree::List(parts) => parts.iter().map(text).collect::<Option<Vec<_>>>().map(Keep::Parts),
            _ => None,
        };
        if keep.is_none() {
            self.wrong_type("keep", node, "true, false or a list of parts");
        }
        keep
    }

    fn slots(&mut self, spec: &StageSpec) -> (Slots, Edges) {
        let (mut slots, mut edges) = (Slots::new(), Edges::new());
        for slot in spec.inputs {
            let Some(entry) = self.stage.table.get(slot.name) else {
                if slot.required {
                    let message = format!("`{}` needs the input `{}`", self.stage.id, slot.name);
                    let help = format!("write `{} = \"...\"`; {}", slot.name, self.givers(slot));
                    self.problem("missing_input", message, &self.stage.at, "this stage", help);
                }
                continue;
            };
            let named = self.references(slot, entry);
            named.iter().for_each(|(name, span)| self.check_edge(slot, name, span));
            let ids = named.iter().map(|(name, _)| StageId(name.to_string()));
            slots.insert(slot.name.to_string(), ids.clone().collect());
            edges.extend(ids.zip(named.iter().map(|(_, span)| span.clone())));
        }
        (slots, edges)
    }

    /// The stages that the value of a slot names, and where.
    fn references<'e>(&mut self, slot: &InputSpec, entry: &'e Entry) -> Vec<(&'e str, Span)> {
        let nodes = match &entry.node.tree {
            Tree::List(items) if slot.many => items.as_slice(),
            _ => std::slice::from_ref(&entry.node),
        };
        let mut named = vec![];
        for node in nodes {
            match &node.tree {
                Tree::String(name) => named.push((name.as_str(), node.span.clone())),
                _ if slot.many => self.wrong_type(slot.name, node, "the names of stages"),
                _ => self.wrong_type(slot.name, node, "the name of a stage"),
            }
        }
        named
    }

    fn check_edge(&mut self, slot: &InputSpec, name: &str, span: &Span) {
        let stages = self.draft.stages.iter().filter(|stage| !stage.id.starts_with(TOOLS));
        let Some(giver) = stages.clone().find(|stage| stage.id == name) else {
            let help = hint(name, "stages", stages.map(|stage| stage.id.as_str()));
            self.problem("unknown_stage", format!("there is no stage `{name}`"), span, "here", help);
            return;
        };
        let gives = spec_of(giver, self.registry).map(|spec| spec.gives);
        if let Some(gives) = gives.filter(|gives| !slot.takes(gives)) {
            let takes = slot.accepts.join("` or `");
            let message = format!("`{}.{}` takes `{takes}`, `{name}` gives `{gives}`", self.stage.id, slot.name);
            let help = self.givers(slot);
            self.problem("wrong_artifact", message, span, &format!("gives `{gives}`"), help);
        }
    }

    /// Who could fill a slot.
    fn givers(&self, slot: &InputSpec) -> String {
        let accepted = |spec: Option<&StageSpec>| spec.is_some_and(|spec| slot.takes(spec.gives));
        let fits = |stage: &&DraftStage| !stage.id.starts_with(TOOLS) && accepted(spec_of(stage, self.registry));
        let here: Vec<String> = self.draft.stages.iter().filter(fits).map(|stage| format!("`{}`", stage.id)).collect();
        let takes = slot.accepts.join("` or `");
        if !here.is_empty() {
            return format!("`{takes}` is given by {}", here.join(", "));
        }
        let kinds: Vec<&str> =
            self.registry.kinds().filter(|kind| accepted(self.registry.get(kind).map(|s| s.spec()))).collect();
        match kinds.as_slice() {
            [] => format!("no stage kind gives `{takes}`"),
            kinds => format!("add a stage of kind `{}`, which gives `{takes}`", kinds.join("` or `")),
        }
    }

    /// The parameters: whatever is neither `kind`, `keep` nor a slot. Unknown ones are left out.
    fn params(&mut self, spec: &StageSpec) -> Map<String, Value> {
        let mut params = Map::new();
        for entry in &self.stage.table.entries {
            let key = entry.key.as_str();
            if matches!(key, "kind" | "keep") || spec.inputs.iter().any(|slot| slot.name == key) {
                continue;
            }
            if spec.params.contains(&key) {
                params.insert(key.into(), entry.node.json());
                continue;
            }
            let slots = spec.inputs.iter().map(|slot| slot.name);
            let known: Vec<&str> = slots.chain(spec.params.iter().copied()).chain(["kind", "keep"]).collect();
            let message = format!("a stage of kind `{}` has no `{key}`", spec.kind);
            self.problem("unknown_parameter", message, &entry.key_span, "here", hint(key, "it has", known));
        }
        params
    }

    /// Asks the stage about its parameters. Serde stops at its first mistake, so what it complains of
    /// is put aside and it is asked again, until it has no more to say.
    fn ask_stage(&mut self, kind: &dyn Stage, mut params: Map<String, Value>, slots: &[&str]) -> Vec<String> {
        let mut aside: Vec<String> = vec![];
        loop {
            let mistakes = match kind.check(&Value::Object(params.clone()), slots) {
                Ok(tools) => return tools,
                Err(mistakes) => mistakes,
            };
            let before = aside.len();
            for mistake in &mistakes {
                let follows = mistake.path.is_empty() && aside.iter().any(|key| mentions(&mistake.problem, key));
                if !follows {
                    self.param_problem(mistake);
                }
                let key = mistake.path.split('/').next().unwrap_or_default();
                if params.remove(key).is_some() {
                    aside.push(key.into());
                }
            }
            // Without the parameter that decides which tools are needed, none is asked for.
            if aside.len() == before {
                return vec![];
            }
        }
    }

    fn param_problem(&mut self, mistake: &ParamProblem) {
        let mut problem = mistake.problem.clone();
        let steps: Vec<&str> = mistake.path.split('/').filter(|step| !step.is_empty()).collect();
        let name = [&[self.stage.id.as_str()], steps.as_slice()].concat().join(".");
        problem.message = format!("`{name}`: {}", problem.message);
        let words = quoted(&mistake.problem.message);
        let unknown = mistake.problem.message.starts_with("unknown ");
        if let (true, None, [found, expected @ ..]) = (unknown, &problem.help, words.as_slice()) {
            problem.help = closest(found, expected.iter().copied()).map(|word| format!("did you mean `{word}`?"));
        }
        let span = self.place(&steps, unknown_field(&mistake.problem));
        self.problems.push(problem.at(span, "here"));
    }

    /// Where the parameter at `path` stands: its value, or its key if it is the unknown `field`.
    fn place(&self, path: &[&str], field: Option<&str>) -> Span {
        let Some((first, mut rest)) = path.split_first() else { return self.stage.at.clone() };
        if let Some((_, table)) = rest.split_last().filter(|(last, _)| field == Some(last)) {
            rest = table;
        }
        let Some(entry) = self.stage.table.get(first) else { return self.stage.at.clone() };
        let node = entry.node.find(rest);
        match (&node.tree, field) {
            (Tree::Table(table), Some(field)) => table.get(field).map_or(&node.span, |entry| &entry.key_span).clone(),
            _ => node.span.clone(),
        }
    }

    fn tools(&mut self, spec: &StageSpec, needs: Vec<String>) -> BTreeMap<String, StageId> {
        let mut tools = BTreeMap::new();
        for tool in needs {
            let id = StageId(format!("{TOOLS}{tool}"));
            if !self.draft.stages.iter().any(|stage| stage.id == id.0) {
                let message = format!("`{}` of kind `{}` needs the tool `{tool}`", self.stage.id, spec.kind);
                let given = self.draft.stages.iter().filter_map(|stage| stage.id.strip_prefix(TOOLS));
                let help = match closest(&tool, given) {
                    Some(given) => format!("[tools] has `{given}`; did you mean `{tool}`?"),
                    None => format!("add it to [tools]: `{tool} = {{ pypi = \"...\", sha256 = \"...\" }}`"),
                };
                self.problem("missing_tool", message, &self.stage.at.clone(), "this stage", help);
            }
            tools.insert(tool, id);
        }
        tools
    }
}

fn spec_of<'r>(stage: &DraftStage, registry: &'r Registry) -> Option<&'r StageSpec> {
    match &stage.table.get("kind")?.node.tree {
        Tree::String(kind) => registry.get(kind).map(|stage| stage.spec()),
        _ => None,
    }
}

/// Whether `problem` is about the absence of `key`.
fn mentions(problem: &Problem, key: &str) -> bool {
    quoted(&problem.message).contains(&key)
}

/// The field that serde does not know.
fn unknown_field(problem: &Problem) -> Option<&str> {
    problem.message.strip_prefix("unknown field `")?.split('`').next()
}
