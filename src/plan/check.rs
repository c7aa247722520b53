//! A draft against the registry: every kind, slot, parameter and tool. Goes on after every mistake.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::common::{
    self, COMMON, KEEP, KIND, MAX_RETRIES, MAX_TIMEOUT_HOURS, OPTIONAL, RETRIES, TIMEOUT, items,
    spec_of, strings,
};
use super::parse::{Draft, DraftStage, TOOLS};
use super::source::{Entry, Node, Span, Table, Tree};
use super::{Keep, PlannedStage, StageId};
use crate::action::{
    InputSpec, InputStage, OPTIONAL_TOOL, ParamProblem, Registry, Stage, StageSpec,
};
use crate::base::{Code, Problem, closest, hint};

type Slots = BTreeMap<String, Vec<StageId>>;

/// Stages that are named, and where.
type Edges = Vec<(StageId, Span)>;

/// A stage that may be part of a plan, once the edges are looked at too.
pub struct Checked {
    /// Its `keep` is not filled in yet.
    pub stage: PlannedStage,
    /// What the plan says about keeping it.
    pub keep: Option<Keep>,
    /// The stages it names, and where.
    pub edges: Edges,
}

/// The stages of `draft` that hold what their kind asks for.
pub fn check(draft: &Draft, registry: &Registry, problems: &mut Vec<Problem>) -> Vec<Checked> {
    draft
        .stages
        .iter()
        .filter_map(|stage| {
            Checker {
                draft,
                registry,
                problems,
                stage,
            }
            .check()
        })
        .collect()
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
        let keep = self.common(KEEP, common::keep, "true, false or a list of parts");
        let expected =
            format!("a time like \"90s\", \"20min\" or \"2h\", at most {MAX_TIMEOUT_HOURS}h");
        let timeout = self.common(TIMEOUT, common::timeout, &expected);
        let retries = self.common(
            RETRIES,
            common::retries,
            &format!("a number from 0 to {MAX_RETRIES}"),
        );
        let optional = self.common(OPTIONAL, common::optional, "true or false");
        let kind = kind?;
        let spec = kind.spec();
        self.check_retries(spec);
        let (slots, edges) = self.slots(spec);
        let (params, meant) = self.params(spec, &slots);
        let needs = self.ask_stage(kind, params.clone(), meant, &self.given(&slots));
        let tools = self.tools(spec, needs);
        let stage = PlannedStage {
            id: StageId(self.stage.id.clone()),
            name: self.stage.name.clone(),
            kind: spec.kind.into(),
            params: Value::Object(params),
            slots,
            tools,
            keep: Keep::Nothing,
            timeout,
            retries: retries.unwrap_or(0),
            optional: optional.unwrap_or(false),
            at: self.stage.at.clone(),
        };
        Some(Checked { stage, keep, edges })
    }

    fn problem(&mut self, code: Code, message: String, span: &Span, label: &str, help: String) {
        let problem = Problem::new(code, message).at(span.clone(), label);
        self.problems.push(if help.is_empty() {
            problem
        } else {
            problem.help(help)
        });
    }

    fn wrong_type(&mut self, key: &str, node: &Node, expected: &str) {
        let message = format!(
            "`{}.{key}` is {}, expected {expected}",
            self.stage.name,
            node.what()
        );
        self.problem(
            Code::PlanWrongType,
            message,
            &node.span,
            &format!("expected {expected}"),
            String::new(),
        );
    }

    fn kind(&mut self) -> Option<&'a dyn Stage> {
        let Some(entry) = self.stage.table.get(KIND) else {
            let kinds: Vec<&str> = self.registry.kinds().collect();
            let message = format!("the stage `{}` has no `kind`", self.stage.name);
            self.problem(
                Code::PlanMissingKind,
                message,
                &self.stage.at,
                "this stage",
                format!("kinds: {}", kinds.join(", ")),
            );
            return None;
        };
        let Tree::String(kind) = &entry.node.tree else {
            self.wrong_type(KIND, &entry.node, "a string");
            return None;
        };
        let stage = self.registry.get(kind);
        if stage.is_none() {
            let help = hint(kind, "kinds", self.registry.kinds().collect::<Vec<_>>());
            self.problem(
                Code::PlanUnknownKind,
                format!("there is no stage kind `{kind}`"),
                &entry.node.span,
                "here",
                help,
            );
        }
        stage
    }

    /// The value of a key that every stage may have.
    fn common<T>(&mut self, key: &str, read: fn(&Node) -> Option<T>, expected: &str) -> Option<T> {
        let node = &self.stage.table.get(key)?.node;
        let value = read(node);
        if value.is_none() {
            self.wrong_type(key, node, expected);
        }
        value
    }

    fn check_retries(&mut self, spec: &StageSpec) {
        if let Some(entry) = self
            .stage
            .table
            .get(RETRIES)
            .filter(|_| !spec.reaches_outside)
        {
            let message = format!("a stage of kind `{}` has no `{RETRIES}`", spec.kind);
            let help =
                "only kinds that use the network or a device are retried; remove it".to_string();
            self.problem(
                Code::PlanUnknownParameter,
                message,
                &entry.key_span,
                "here",
                help,
            );
        }
    }

    fn slots(&mut self, spec: &StageSpec) -> (Slots, Edges) {
        let (mut slots, mut edges) = (Slots::new(), Edges::new());
        for slot in spec.inputs {
            let Some(entry) = self.stage.table.get(slot.name) else {
                if slot.required {
                    let message = format!("`{}` needs the input `{}`", self.stage.name, slot.name);
                    let help = format!("write `{} = \"...\"`; {}", slot.name, self.producers(slot));
                    self.problem(
                        Code::PlanMissingInput,
                        message,
                        &self.stage.at,
                        "this stage",
                        help,
                    );
                }
                continue;
            };
            let mut producers = vec![];
            for (name, span) in self.references(slot, entry) {
                self.check_edge(slot, name, &span);
                let ids = self
                    .draft
                    .named(name, self.stage)
                    .map(|producer| StageId(producer.id.clone()));
                producers.extend(ids.map(|id| (id, span.clone())));
            }
            slots.insert(
                slot.name.to_string(),
                producers.iter().map(|(id, _)| id.clone()).collect(),
            );
            edges.extend(producers);
        }
        (slots, edges)
    }

    /// The stages in `slots`, and what they give.
    fn given(&self, slots: &Slots) -> Vec<InputStage> {
        let mut given = vec![];
        for (slot, stages) in slots {
            for id in stages {
                let stage = self.draft.stages.iter().find(|stage| stage.id == id.0);
                let spec = stage.and_then(|stage| spec_of(&stage.table, self.registry));
                given.push(InputStage {
                    slot: slot.clone(),
                    stage: id.0.clone(),
                    artifact: spec.map_or("", |spec| spec.output),
                });
            }
        }
        given
    }

    /// The stages that the value of a slot names, and where.
    fn references<'e>(&mut self, slot: &InputSpec, entry: &'e Entry) -> Vec<(&'e str, Span)> {
        let nodes = if slot.many {
            items(&entry.node)
        } else {
            std::slice::from_ref(&entry.node)
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
        let mut producers = self.draft.named(name, self.stage);
        let (producer, others) = (producers.next(), producers.count());
        let Some(producer) = producer else {
            let stages = self.draft.stages.iter().filter(|stage| !stage.is_tool());
            let help = hint(name, "stages", names(stages));
            self.problem(
                Code::PlanUnknownStage,
                format!("there is no stage `{name}`"),
                span,
                "here",
                help,
            );
            return;
        };
        if others > 0 && !slot.many {
            let message = format!(
                "`{}.{}` takes one stage, `{name}` is {}",
                self.stage.name,
                slot.name,
                others + 1
            );
            let help = format!(
                "`across` gathers only where an input takes many: `{}` does not",
                slot.name
            );
            self.problem(Code::PlanMatrix, message, span, "one for each value", help);
        }
        let output = spec_of(&producer.table, self.registry).map(|spec| spec.output);
        if let Some(output) = output.filter(|output| !slot.is_compatible(output)) {
            let takes = slot.accepts.join("` or `");
            let message = format!(
                "`{}.{}` takes `{takes}`, but `{name}` outputs `{output}`",
                self.stage.name, slot.name
            );
            let help = self.producers(slot);
            self.problem(
                Code::PlanWrongArtifact,
                message,
                span,
                &format!("outputs `{output}`"),
                help,
            );
        }
    }

    /// Who could fill a slot.
    fn producers(&self, slot: &InputSpec) -> String {
        let accepted =
            |spec: Option<&StageSpec>| spec.is_some_and(|spec| slot.is_compatible(spec.output));
        let fits = |stage: &&DraftStage| {
            !stage.is_tool() && accepted(spec_of(&stage.table, self.registry))
        };
        let here = names(self.draft.stages.iter().filter(fits));
        let here: Vec<String> = here.into_iter().map(|name| format!("`{name}`")).collect();
        let takes = slot.accepts.join("` or `");
        if !here.is_empty() {
            return format!("`{takes}` is the output of {}", here.join(", "));
        }
        let kinds: Vec<&str> = self
            .registry
            .kinds()
            .filter(|kind| accepted(self.registry.get(kind).map(|s| s.spec())))
            .collect();
        match kinds.as_slice() {
            [] => format!("no stage kind has the output `{takes}`"),
            kinds => format!(
                "add a stage of kind `{}`, which outputs `{takes}`",
                kinds.join("` or `")
            ),
        }
    }

    /// The parameters: whatever is neither common to all stages nor a slot. Unknown ones are left
    /// out; beside it, the keys that they may be meant for.
    fn params(&mut self, spec: &StageSpec, slots: &Slots) -> (Map<String, Value>, Vec<String>) {
        let (mut params, mut meant) = (Map::new(), vec![]);
        for entry in &self.stage.table.entries {
            let key = entry.key.as_str();
            if COMMON.contains(&key) || spec.inputs.iter().any(|slot| slot.name == key) {
                continue;
            }
            if spec.params.contains(&key) {
                let slot = spec
                    .keyed
                    .iter()
                    .find(|(param, _)| *param == key)
                    .map(|(_, slot)| *slot);
                let value = match (&entry.node.tree, slot) {
                    (Tree::Table(table), Some(slot)) => {
                        self.by_stage(key, table, slot, slots.get(slot).map_or(&[], Vec::as_slice))
                    }
                    _ => entry.node.json(),
                };
                params.insert(key.into(), value);
                continue;
            }
            let slots = spec.inputs.iter().map(|slot| slot.name);
            let known: Vec<&str> = slots
                .chain(spec.params.iter().copied())
                .chain(COMMON)
                .collect();
            meant.extend(closest(key, known.iter().copied()).map(String::from));
            let message = format!("a stage of kind `{}` has no `{key}`", spec.kind);
            self.problem(
                Code::PlanUnknownParameter,
                message,
                &entry.key_span,
                "here",
                hint(key, "it has", known),
            );
        }
        // Whether it has a source was looked at already.
        if self.stage.is_tool() && !params.contains_key("url") {
            meant.push("url".into());
        }
        meant.retain(|key| !params.contains_key(key));
        (params, meant)
    }

    /// A table by the names of the stages of a slot: what it says of a stage, it says of each of
    /// its instances in the slot, unless it names that one itself.
    fn by_stage(&mut self, param: &str, table: &Table, slot: &str, producers: &[StageId]) -> Value {
        let (mut values, mut own) = (Map::new(), Map::new());
        for entry in &table.entries {
            let (key, value) = (&entry.key, entry.node.json());
            let named = self
                .draft
                .named(key, self.stage)
                .filter(|producer| producers.iter().any(|id| id.0 == producer.id));
            values.extend(named.map(|producer| (producer.id.clone(), value.clone())));
            if producers.iter().any(|id| id.0 == *key) {
                own.insert(key.clone(), value);
            } else if !self.is_of(slot, key) {
                let message = format!(
                    "`{}.{param}` has `{key}`, which is not in `{slot}`",
                    self.stage.name
                );
                let known: Vec<&str> = self
                    .stage
                    .table
                    .get(slot)
                    .map_or(vec![], |entry| strings(&entry.node).collect());
                let help = hint(key, &format!("stages of `{slot}`"), known);
                self.problem(
                    Code::PlanUnknownStage,
                    message,
                    &entry.key_span,
                    "here",
                    help,
                );
            }
        }
        values.extend(own);
        Value::Object(values)
    }

    /// Whether the slot names `key`, or a stage of which `key` is an instance: that of another
    /// place, or one that the call has left out.
    fn is_of(&self, slot: &str, key: &str) -> bool {
        let Some(entry) = self.stage.table.get(slot) else {
            return false;
        };
        strings(&entry.node).any(|name| {
            let instance = key
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('.'));
            let exists = || {
                self.draft
                    .stages
                    .iter()
                    .any(|stage| stage.name == name && stage.id == key)
            };
            name == key || instance && (self.draft.pinned || exists())
        })
    }

    /// Asks the stage about its parameters. What it complains of is put aside and it is asked
    /// again, until it has no more to say; nothing is said of what is `aside` already. Yields the
    /// tools that it needs.
    fn ask_stage(
        &mut self,
        kind: &dyn Stage,
        mut params: Map<String, Value>,
        mut aside: Vec<String>,
        given: &[InputStage],
    ) -> Vec<String> {
        loop {
            let mistakes = match kind.check(&Value::Object(params.clone()), given) {
                Ok(tools) => return tools,
                Err(mistakes) => mistakes,
            };
            let before = aside.len();
            for mistake in &mistakes {
                let key = mistake.path.split('/').next().unwrap_or_default();
                // A parameter that was put aside is missing now: that is not a mistake of the plan,
                // and rules about several parameters cannot be checked without it.
                let follows = match key {
                    "" => before > 0,
                    key => aside[..before].iter().any(|aside| aside == key),
                };
                if !follows {
                    self.param_problem(mistake);
                }
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
        let steps = self.written(
            mistake
                .path
                .split('/')
                .filter(|step| !step.is_empty())
                .collect(),
        );
        let name = [&[self.stage.name.as_str()], steps.as_slice()]
            .concat()
            .join(".");
        problem.message = format!("`{name}`: {}", problem.message);
        let is_key = problem.code == Code::PlanUnknownParameter;
        let (span, label) = self.place(&steps, is_key);
        self.problems.push(problem.at(span, label));
    }

    /// A path as the plan spells it: the row of a table by stages may be that of all instances of a
    /// stage.
    fn written<'s>(&'s self, mut steps: Vec<&'s str>) -> Vec<&'s str> {
        if let [param, row, ..] = steps.as_mut_slice()
            && let Some(Tree::Table(table)) =
                self.stage.table.get(param).map(|entry| &entry.node.tree)
            && table.get(row).is_none()
            && let Some(instance) = self.draft.stages.iter().find(|stage| stage.id == **row)
        {
            *row = &instance.name;
        }
        steps
    }

    /// Where the parameter at `path` stands: its value, or its key. One that is not there: where it
    /// should be.
    fn place(&self, path: &[&str], is_key: bool) -> (Span, &'static str) {
        let stage = (self.stage.at.clone(), "this stage");
        let Some((first, rest)) = path.split_first() else {
            return stage;
        };
        let Some(entry) = self.stage.table.get(first) else {
            return stage;
        };
        let parent = rest.split_last().filter(|_| is_key);
        if let Some((last, path)) = parent
            && let Tree::Table(table) = &entry.node.find(path).tree
            && let Some(entry) = table.get(last)
        {
            return (entry.key_span.clone(), "here");
        }
        (entry.node.find(rest).span.clone(), "here")
    }

    fn tools(&mut self, spec: &StageSpec, needs: Vec<String>) -> BTreeMap<String, StageId> {
        let mut tools = BTreeMap::new();
        for tool in needs {
            let (tool, is_needed) = tool
                .strip_suffix(OPTIONAL_TOOL)
                .map_or((tool.as_str(), true), |tool| (tool, false));
            let id = StageId(format!("{TOOLS}{tool}"));
            if !self.draft.stages.iter().any(|stage| stage.id == id.0) {
                if !is_needed {
                    continue;
                }
                let message = format!(
                    "`{}` of kind `{}` needs the tool `{tool}`",
                    self.stage.name, spec.kind
                );
                let given = self
                    .draft
                    .stages
                    .iter()
                    .filter_map(|stage| stage.id.strip_prefix(TOOLS));
                let help = match closest(tool, given) {
                    Some(given) => format!("[tools] has `{given}`; did you mean `{tool}`?"),
                    None => format!(
                        "add it to [tools]: `{tool} = {{ pypi = \"...\", sha256 = \"...\" }}`"
                    ),
                };
                self.problem(
                    Code::PlanMissingTool,
                    message,
                    &self.stage.at.clone(),
                    "this stage",
                    help,
                );
            }
            tools.insert(tool.into(), id);
        }
        tools
    }
}

/// What the plan calls `stages`, each once.
fn names<'d>(stages: impl Iterator<Item = &'d DraftStage>) -> Vec<&'d str> {
    let mut names: Vec<&str> = stages.map(|stage| stage.name.as_str()).collect();
    names.dedup();
    names
}
