//! Checks a draft against the registry: kinds, inputs, parameters and tools. It does not stop at
//! the first mistake.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::common::{
    self, COMMON, KEEP, KIND, MAX_RETRIES, MAX_TIMEOUT_HOURS, OPTIONAL, RETRIES, SDK, TIMEOUT,
    items, spec_of, strings,
};
use super::parse::{Draft, DraftStage, TOOLS};
use super::source::{Entry, Node, Span, Table, Tree};
use super::{Keep, PlannedStage, StageId};
use crate::action::{
    InputSpec, InputStage, OPTIONAL_TOOL, ParamProblem, Registry, Stage, StageSpec,
};
use crate::base::{Code, Problem, closest, hint};

type Slots = BTreeMap<String, Vec<StageId>>;

/// The stages that a stage names, and where.
type Edges = Vec<(StageId, Span)>;

/// A checked stage. Cycles are not checked yet.
pub(super) struct Checked {
    /// Its `keep` is not filled in yet.
    pub stage: PlannedStage,
    /// The value of `keep`, if the plan has one.
    pub keep: Option<Keep>,
    /// The stages that it names, and where.
    pub edges: Edges,
}

/// Checks the stages of `draft`. Stages of an unknown kind are left out.
pub(super) fn check(
    draft: &Draft,
    registry: &Registry,
    problems: &mut Vec<Problem>,
) -> Vec<Checked> {
    let mut all = vec![];
    for stage in &draft.stages {
        let checker = Checker {
            draft,
            registry,
            problems,
            stage,
        };
        all.extend(checker.check());
    }
    all
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
        let kind = self.find_kind();
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
        let (slots, edges) = self.read_slots(spec);
        let (params, misspelled) = self.read_params(spec, &slots);
        let producers = self.producers_in(&slots);
        let tool_names = self.check_params(kind, params.clone(), misspelled, &producers);
        let tools = self.find_tools(spec, tool_names);
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
        let mut problem = Problem::new(code, message).at(span.clone(), label);
        if !help.is_empty() {
            problem = problem.help(help);
        }
        self.problems.push(problem);
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

    fn find_kind(&mut self) -> Option<&'a dyn Stage> {
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

    /// The value of a key that a stage of any kind may have.
    fn common<T>(&mut self, key: &str, read: fn(&Node) -> Option<T>, expected: &str) -> Option<T> {
        let node = &self.stage.table.get(key)?.node;
        let value = read(node);
        if value.is_none() {
            self.wrong_type(key, node, expected);
        }
        value
    }

    fn check_retries(&mut self, spec: &StageSpec) {
        if spec.reaches_outside {
            return;
        }
        if let Some(entry) = self.stage.table.get(RETRIES) {
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

    /// The stages of each slot, and where they are named.
    fn read_slots(&mut self, spec: &StageSpec) -> (Slots, Edges) {
        let (mut slots, mut edges) = (Slots::new(), Edges::new());
        for slot in spec.inputs {
            let Some(entry) = self.stage.table.get(slot.name) else {
                if slot.required {
                    let message = format!("`{}` needs the input `{}`", self.stage.name, slot.name);
                    let help = format!("write `{} = \"...\"`; {}", slot.name, self.help_for(slot));
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
                for producer in self.draft.named(name, self.stage) {
                    let id = StageId(producer.id.clone());
                    producers.push(id.clone());
                    edges.push((id, span.clone()));
                }
            }
            slots.insert(slot.name.to_string(), producers);
        }
        (slots, edges)
    }

    /// The stages in `slots` with their outputs.
    fn producers_in(&self, slots: &Slots) -> Vec<InputStage> {
        let mut producers = vec![];
        for (slot, ids) in slots {
            for id in ids {
                let mut producer = InputStage {
                    slot: slot.clone(),
                    stage: id.0.clone(),
                    ..InputStage::default()
                };
                if let Some(stage) = self.draft.stages.iter().find(|stage| stage.id == id.0) {
                    producer.artifact = self.output_of(stage).unwrap_or_default();
                    for entry in &stage.table.entries {
                        let value = entry.node.json();
                        producer.table.insert(entry.key.clone(), value);
                    }
                }
                producers.push(producer);
            }
        }
        producers
    }

    /// The kind of artifact that a stage outputs, if its own kind exists.
    fn output_of(&self, stage: &DraftStage) -> Option<&'static str> {
        Some(spec_of(&stage.table, self.registry)?.output)
    }

    /// The stages that the value of a slot names, and where.
    fn references<'e>(&mut self, slot: &InputSpec, entry: &'e Entry) -> Vec<(&'e str, Span)> {
        let nodes = if slot.many {
            items(&entry.node)
        } else {
            std::slice::from_ref(&entry.node)
        };
        let mut names = vec![];
        for node in nodes {
            match &node.tree {
                Tree::String(name) => names.push((name.as_str(), node.span.clone())),
                _ if slot.many => self.wrong_type(slot.name, node, "the names of stages"),
                _ => self.wrong_type(slot.name, node, "the name of a stage"),
            }
        }
        names
    }

    /// Checks that the stage `name`, which is in `slot`, exists and has the right output.
    fn check_edge(&mut self, slot: &InputSpec, name: &str, span: &Span) {
        let producers = self.draft.named(name, self.stage);
        let Some(producer) = producers.first() else {
            let help = hint(name, "stages", self.stage_names(|_| true));
            self.problem(
                Code::PlanUnknownStage,
                format!("there is no stage `{name}`"),
                span,
                "here",
                help,
            );
            return;
        };
        if producers.len() > 1 && !slot.many {
            let message = format!(
                "`{}.{}` takes one stage, `{name}` is {}",
                self.stage.name,
                slot.name,
                producers.len()
            );
            let help = format!(
                "`across` gathers only where an input takes many: `{}` does not",
                slot.name
            );
            self.problem(Code::PlanMatrix, message, span, "one for each value", help);
        }
        if let Some(output) = self.output_of(producer)
            && !slot.is_compatible(output)
        {
            let accepted = slot.accepts.join("` or `");
            let message = format!(
                "`{}.{}` takes `{accepted}`, but `{name}` outputs `{output}`",
                self.stage.name, slot.name
            );
            let help = self.help_for(slot);
            self.problem(
                Code::PlanWrongArtifact,
                message,
                span,
                &format!("outputs `{output}`"),
                help,
            );
        }
    }

    /// The names in the plan of the stages that `filter` accepts, without tools.
    fn stage_names(&self, filter: impl Fn(&DraftStage) -> bool) -> Vec<&'a str> {
        let mut names = vec![];
        for stage in &self.draft.stages {
            if !stage.is_tool() && filter(stage) {
                names.push(stage.name.as_str());
            }
        }
        // The instances of a stage follow each other.
        names.dedup();
        names
    }

    /// Which stages, or which kinds of stages, could fill a slot.
    fn help_for(&self, slot: &InputSpec) -> String {
        let accepted = slot.accepts.join("` or `");
        let stages = self.stage_names(|stage| match self.output_of(stage) {
            Some(output) => slot.is_compatible(output),
            None => false,
        });
        if !stages.is_empty() {
            return format!("`{accepted}` is the output of `{}`", stages.join("`, `"));
        }
        let mut kinds = vec![];
        for kind in self.registry.kinds() {
            if let Some(stage) = self.registry.get(kind)
                && slot.is_compatible(stage.spec().output)
            {
                kinds.push(kind);
            }
        }
        if kinds.is_empty() {
            return format!("no stage kind has the output `{accepted}`");
        }
        format!(
            "add a stage of kind `{}`, which outputs `{accepted}`",
            kinds.join("` or `")
        )
    }

    /// The parameters: all keys that are neither common nor slots. Unknown ones are left out; the
    /// keys that they are probably meant for are returned too.
    fn read_params(
        &mut self,
        spec: &StageSpec,
        slots: &Slots,
    ) -> (Map<String, Value>, Vec<String>) {
        let (mut params, mut misspelled) = (Map::new(), vec![]);
        let mut keys: Vec<&str> = spec.inputs.iter().map(|slot| slot.name).collect();
        keys.extend(spec.params);
        keys.extend(COMMON);
        for entry in &self.stage.table.entries {
            let key = entry.key.as_str();
            if spec.params.contains(&key) {
                let slot = spec.keyed.iter().find(|(param, _)| *param == key);
                let value = match (&entry.node.tree, slot) {
                    (Tree::Table(table), Some((_, slot))) => self.by_stage(key, table, slot, slots),
                    _ => entry.node.json(),
                };
                params.insert(key.into(), value);
                continue;
            }
            if keys.contains(&key) {
                continue;
            }
            misspelled.extend(closest(key, keys.iter().copied()).map(String::from));
            let message = format!("a stage of kind `{}` has no `{key}`", spec.kind);
            self.problem(
                Code::PlanUnknownParameter,
                message,
                &entry.key_span,
                "here",
                hint(key, "it has", keys.iter().copied()),
            );
        }
        // A tool without a source was reported already.
        if self.stage.is_tool() && !params.contains_key("url") && !params.contains_key(SDK) {
            misspelled.push("url".into());
        }
        misspelled.retain(|key| !params.contains_key(key));
        (params, misspelled)
    }

    /// A table by the names of the stages of a slot. A value for a stage is a value for each of its
    /// instances in the slot; a value for an instance replaces it.
    fn by_stage(&mut self, param: &str, table: &Table, slot: &str, slots: &Slots) -> Value {
        let no_producers = vec![];
        let producers = slots.get(slot).unwrap_or(&no_producers);
        let (mut by_name, mut by_id) = (Map::new(), Map::new());
        for entry in &table.entries {
            let (key, value) = (&entry.key, entry.node.json());
            for producer in self.draft.named(key, self.stage) {
                if producers.contains(&StageId(producer.id.clone())) {
                    by_name.insert(producer.id.clone(), value.clone());
                }
            }
            if producers.contains(&StageId(key.clone())) {
                by_id.insert(key.clone(), value);
            } else if !self.is_in_slot(slot, key) {
                let message = format!(
                    "`{}.{param}` has `{key}`, which is not in `{slot}`",
                    self.stage.name
                );
                let names: Vec<&str> = match self.stage.table.get(slot) {
                    Some(entry) => strings(&entry.node).collect(),
                    None => vec![],
                };
                let help = hint(key, &format!("stages of `{slot}`"), names);
                self.problem(
                    Code::PlanUnknownStage,
                    message,
                    &entry.key_span,
                    "here",
                    help,
                );
            }
        }
        by_name.extend(by_id);
        Value::Object(by_name)
    }

    /// Whether the slot names `key`, or a stage of which `key` is an instance. The instance may
    /// have other coordinates, or not exist because of `--set`.
    fn is_in_slot(&self, slot: &str, key: &str) -> bool {
        let Some(entry) = self.stage.table.get(slot) else {
            return false;
        };
        for name in strings(&entry.node) {
            if name == key {
                return true;
            }
            let Some(rest) = key.strip_prefix(name) else {
                continue;
            };
            let is_key = |stage: &DraftStage| stage.name == name && stage.id == key;
            if rest.starts_with('.')
                && (self.draft.is_axis_set || self.draft.stages.iter().any(is_key))
            {
                return true;
            }
        }
        false
    }

    /// Lets the stage check its parameters. Parameters with a problem are removed, and the others
    /// are checked again, until there are no new problems. Problems of parameters in `removed` are
    /// not reported. Returns the tools that the stage needs.
    fn check_params(
        &mut self,
        kind: &dyn Stage,
        mut params: Map<String, Value>,
        mut removed: Vec<String>,
        producers: &[InputStage],
    ) -> Vec<String> {
        loop {
            let problems = match kind.check(&Value::Object(params.clone()), producers) {
                Ok(tools) => return tools,
                Err(problems) => problems,
            };
            let before = removed.len();
            for problem in &problems {
                let key = problem.path.split('/').next().unwrap_or_default();
                // A removed parameter is missing now. That is not a mistake of the plan, and rules
                // about several parameters cannot be checked without it.
                let is_consequence = match key {
                    "" => before > 0,
                    key => removed[..before].iter().any(|removed| removed == key),
                };
                if !is_consequence {
                    self.param_problem(problem);
                }
                if params.remove(key).is_some() {
                    removed.push(key.into());
                }
            }
            if removed.len() == before {
                return vec![];
            }
        }
    }

    fn param_problem(&mut self, mistake: &ParamProblem) {
        let mut path: Vec<&str> = mistake.path.split('/').collect();
        path.retain(|step| !step.is_empty());
        let path = self.path_in_plan(path);
        let name = [&[self.stage.name.as_str()], path.as_slice()].concat();
        let mut problem = mistake.problem.clone();
        problem.message = format!("`{}`: {}", name.join("."), problem.message);
        let is_key = problem.code == Code::PlanUnknownParameter;
        let (span, label) = self.place(&path, is_key);
        self.problems.push(problem.at(span, label));
    }

    /// `path` with the keys of the plan: in a table by stages, one key may stand for all instances
    /// of a stage.
    fn path_in_plan<'s>(&'s self, mut path: Vec<&'s str>) -> Vec<&'s str> {
        if let [param, key, ..] = path.as_mut_slice()
            && let Some(entry) = self.stage.table.get(param)
            && let Tree::Table(table) = &entry.node.tree
            && table.get(key).is_none()
            && let Some(instance) = self.draft.stages.iter().find(|stage| stage.id == **key)
        {
            *key = &instance.name;
        }
        path
    }

    /// The place of the parameter at `path`: its value, or its key if `is_key`. The place of a
    /// missing one is its table or the stage.
    fn place(&self, path: &[&str], is_key: bool) -> (Span, &'static str) {
        let stage = (self.stage.at.clone(), "this stage");
        let Some((first, rest)) = path.split_first() else {
            return stage;
        };
        let Some(entry) = self.stage.table.get(first) else {
            return stage;
        };
        if is_key
            && let Some((last, parent)) = rest.split_last()
            && let Tree::Table(table) = &entry.node.find(parent).tree
            && let Some(entry) = table.get(last)
        {
            return (entry.key_span.clone(), "here");
        }
        (entry.node.find(rest).span.clone(), "here")
    }

    /// The stages of the tools `names`. Those that end in [`OPTIONAL_TOOL`] are optional.
    fn find_tools(&mut self, spec: &StageSpec, names: Vec<String>) -> BTreeMap<String, StageId> {
        let mut tools = BTreeMap::new();
        for name in names {
            let (tool, is_required) = match name.strip_suffix(OPTIONAL_TOOL) {
                Some(tool) => (tool, false),
                None => (name.as_str(), true),
            };
            let id = StageId(format!("{TOOLS}{tool}"));
            let exists = self.draft.stages.iter().any(|stage| stage.id == id.0);
            if !exists && !is_required {
                continue;
            }
            if !exists {
                self.missing_tool(spec, tool);
            }
            tools.insert(tool.into(), id);
        }
        tools
    }

    fn missing_tool(&mut self, spec: &StageSpec, tool: &str) {
        let message = format!(
            "`{}` of kind `{}` needs the tool `{tool}`",
            self.stage.name, spec.kind
        );
        let mut names = vec![];
        for stage in &self.draft.stages {
            names.extend(stage.id.strip_prefix(TOOLS));
        }
        let help = match closest(tool, names) {
            Some(other) => format!("[tools] has `{other}`; did you mean `{tool}`?"),
            None => format!("add it to [tools]: `{tool} = {{ pypi = \"...\", sha256 = \"...\" }}`"),
        };
        self.problem(
            Code::PlanMissingTool,
            message,
            &self.stage.at,
            "this stage",
            help,
        );
    }
}
