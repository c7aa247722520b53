//! Variables and axes: `[vars]`, `[matrix]` and `--set`, and their use as `${name}`.

use std::collections::{BTreeMap, BTreeSet};

use super::common::{COMMAND, KIND, SDK};
use super::merge::Tables;
use super::source::{Entry, Node, Span, Tree};
use super::source_map::SourceMap;
use super::words::bad_name;
use crate::base::{Code, Problem, hint};

/// Cap on a string with its variables filled in. It is far above any argument, prompt or path.
const MAX_FILLED_BYTES: usize = 64 << 10;

/// Cap on all strings of a plan with variables filled in, because a short plan can repeat a long
/// text many times.
const MAX_ALL_FILLED_BYTES: usize = 16 << 20;

/// The coordinates of an instance of a stage: index of an axis -> index of its value. Axes are in
/// the order of the text.
pub(super) type Coordinates = BTreeMap<usize, usize>;

/// The variables and axes of a plan, and which of them are used.
#[derive(Default)]
pub(super) struct Vars {
    vars: Vec<Var>,
    axes: Vec<Axis>,
    /// Whether `--set` sets an axis.
    is_axis_set: bool,
    /// Variables and axes whose definition is invalid.
    invalid: Vec<String>,
    /// Variables of the environment that are used and not set.
    missing: Vec<Problem>,
    /// Total length of the strings that were filled in so far.
    filled_bytes: usize,
}

/// Where the values of names come from, besides `[vars]`.
#[derive(Clone, Copy)]
struct Sources<'a> {
    /// The coordinates of the instance, for axes.
    coordinates: &'a Coordinates,
    /// Whether names in capital letters are variables of the environment.
    takes_environment: bool,
}

struct Var {
    name: String,
    at: Span,
    value: Tree,
    used: bool,
}

struct Axis {
    name: String,
    at: Span,
    values: Vec<Tree>,
    used: bool,
}

impl Vars {
    /// The variables and axes of `tables`, with values replaced by those of `sets`.
    pub(super) fn read(
        tables: &Tables,
        map: &SourceMap,
        sets: &[(String, String)],
        problems: &mut Vec<Problem>,
    ) -> Vars {
        let mut vars = Vars::default();
        for entry in &tables.vars {
            match read_var(entry, map) {
                Ok(var) => vars.vars.push(var),
                Err(problem) => {
                    problems.push(problem);
                    vars.invalid.push(entry.key.clone());
                }
            }
        }
        for entry in &tables.axes {
            match read_axis(entry, problems) {
                Some(axis) => vars.axes.push(axis),
                None => vars.invalid.push(entry.key.clone()),
            }
        }
        for (name, text) in sets {
            vars.set(name, text, problems);
        }
        vars
    }

    /// The value and place of a variable, or the first value and the place of an axis.
    fn definition(&self, name: &str) -> Option<(Tree, Span)> {
        if let Some(var) = self.vars.iter().find(|var| var.name == name) {
            return Some((var.value.clone(), var.at.clone()));
        }
        let axis = self.axes.iter().find(|axis| axis.name == name)?;
        Some((axis.values.first()?.clone(), axis.at.clone()))
    }

    /// Sets a variable to the value of `--set`, which has the type of the value in the plan. An
    /// axis then has only this value.
    fn set(&mut self, name: &str, text: &str, problems: &mut Vec<Problem>) {
        let Some((old, at)) = self.definition(name) else {
            let message = format!("--set {name}: the plan has no such variable");
            let problem = Problem::new(Code::PlanUnknownVariable, message);
            problems.push(problem.help(hint(name, "variables", self.names())));
            return;
        };
        let Some(value) = parse_as(&old, text) else {
            let old = Node {
                tree: old,
                span: at.clone(),
            };
            let expected = old.what();
            problems.push(
                Problem::new(
                    Code::PlanWrongType,
                    format!("--set {name}={text}: expected {expected}"),
                )
                .at(at, format!("{expected} here"))
                .help("the value must have the type that it has in the plan"),
            );
            return;
        };
        if let Some(axis) = self.axes.iter_mut().find(|axis| axis.name == name) {
            if let Some(why) = bad_name(text) {
                let message = format!(
                    "--set {name}={}: the value of an axis becomes a part of names",
                    text.escape_debug()
                );
                problems.push(
                    Problem::new(Code::PlanBadName, message)
                        .at(at, "this axis")
                        .help(why),
                );
            }
            axis.values = vec![value];
            self.is_axis_set = true;
        } else if let Some(var) = self.vars.iter_mut().find(|var| var.name == name) {
            var.value = value;
        }
    }

    /// Whether `--set` sets an axis.
    pub(super) fn is_axis_set(&self) -> bool {
        self.is_axis_set
    }

    /// The names of variables and axes.
    fn names(&self) -> Vec<&str> {
        let mut names = vec![];
        for var in &self.vars {
            names.push(var.name.as_str());
        }
        names.extend(self.axes());
        names
    }

    /// The names of the axes.
    pub(super) fn axes(&self) -> impl Iterator<Item = &str> + Clone {
        self.axes.iter().map(|axis| axis.name.as_str())
    }

    /// The number of values of an axis.
    pub(super) fn extent(&self, axis: usize) -> usize {
        match self.axes.get(axis) {
            Some(axis) => axis.values.len(),
            None => 0,
        }
    }

    /// The id of an instance of the stage `name`: `report.sm8650.native`.
    pub(super) fn instance(&self, name: &str, coordinates: &Coordinates) -> String {
        let mut id = name.to_string();
        for (axis, index) in coordinates {
            if let Some(axis) = self.axes.get(*axis)
                && let Some(value) = axis.values.get(*index)
                && let Some(text) = value.text()
            {
                id += ".";
                id += &text;
            }
        }
        id
    }

    /// The axes that the strings of `node` use.
    pub(super) fn axes_in(&self, node: &Node) -> BTreeSet<usize> {
        let mut axes = BTreeSet::new();
        self.add_axes_in(node, &mut axes);
        axes
    }

    fn add_axes_in(&self, node: &Node, axes: &mut BTreeSet<usize>) {
        match &node.tree {
            Tree::String(string) => {
                for piece in pieces(string) {
                    if let Piece::Name(name) = piece {
                        axes.extend(self.axes().position(|axis| axis == name));
                    }
                }
            }
            Tree::List(items) => {
                for item in items {
                    self.add_axes_in(item, axes);
                }
            }
            Tree::Table(table) => {
                for entry in &table.entries {
                    self.add_axes_in(&entry.node, axes);
                }
            }
            _ => {}
        }
    }

    /// Fills in every `${name}` in the strings of `node`, axes with their values at `coordinates`.
    pub(super) fn fill(
        &mut self,
        node: &mut Node,
        coordinates: &Coordinates,
        map: &SourceMap,
        problems: &mut Vec<Problem>,
    ) {
        self.fill_from(
            Sources {
                coordinates,
                takes_environment: takes_environment(node),
            },
            node,
            map,
            problems,
        );
    }

    fn fill_from(
        &mut self,
        sources: Sources,
        node: &mut Node,
        map: &SourceMap,
        problems: &mut Vec<Problem>,
    ) {
        match &mut node.tree {
            Tree::List(items) => {
                for item in items {
                    self.fill_from(sources, item, map, problems);
                }
            }
            Tree::Table(table) => {
                for entry in &mut table.entries {
                    let mut sources = sources;
                    sources.takes_environment |= entry.key == SDK;
                    self.fill_from(sources, &mut entry.node, map, problems);
                }
            }
            Tree::String(string) => {
                // In a string with escapes, the text may not contain `${name}` literally. The place
                // is then the whole string.
                let raw = map.text(&node.span);
                let place = |text: &str| match raw.find(text) {
                    Some(at) => node.span.start + at..node.span.start + at + text.len(),
                    None => node.span.clone(),
                };
                match self.substitute(string, sources, &place) {
                    Ok(tree) => node.tree = tree,
                    Err(problem) => problems.push(problem),
                }
            }
            _ => {}
        }
    }

    /// Fills in `string`. A string that is a single `${name}` takes the type of the variable.
    /// `place` returns where a text is in the plan.
    fn substitute(
        &mut self,
        string: &str,
        sources: Sources,
        place: &dyn Fn(&str) -> Span,
    ) -> Result<Tree, Problem> {
        let pieces = pieces(string);
        if let [Piece::Name(name)] = pieces.as_slice() {
            let value = self.value_at(name, sources, place);
            let filled = value.and_then(|value| self.count_filled(value));
            return filled.map_err(|problem| problem.at(place(&format!("${{{name}}}")), "here"));
        }
        let (mut out, mut has_variables) = (String::new(), false);
        for piece in pieces {
            if has_variables && out.len() > MAX_FILLED_BYTES {
                let message = format!(
                    "with its variables filled in, it has more than {MAX_FILLED_BYTES} bytes"
                );
                let problem = Problem::new(Code::PlanTooLarge, message).at(place("${"), "here");
                return Err(problem.help("put a long text into a file, and `fetch` it"));
            }
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Name(name) => {
                    match self.value_at(name, sources, place) {
                        Ok(value) => out.push_str(&value.text().unwrap_or_default()),
                        Err(problem) => {
                            return Err(problem.at(place(&format!("${{{name}}}")), "here"));
                        }
                    }
                    has_variables = true;
                }
                Piece::Open => {
                    return Err(Problem::new(Code::PlanVariable, "`${` without `}`")
                        .at(place("${"), "here")
                        .help("write `$${` for the characters `${` themselves"));
                }
            }
        }
        let tree = Tree::String(out);
        if !has_variables {
            return Ok(tree);
        }
        self.count_filled(tree)
            .map_err(|problem| problem.at(place("${"), "here"))
    }

    /// Adds the length of `tree` to the total, which has a cap.
    fn count_filled(&mut self, tree: Tree) -> Result<Tree, Problem> {
        let bytes = tree.text().unwrap_or_default().len();
        self.filled_bytes = self.filled_bytes.saturating_add(bytes);
        if self.filled_bytes <= MAX_ALL_FILLED_BYTES {
            return Ok(tree);
        }
        let message = format!(
            "with all variables filled in, the plan has more than {MAX_ALL_FILLED_BYTES} bytes"
        );
        Err(Problem::new(Code::PlanTooLarge, message)
            .help("put a long text into a file, and `fetch` it"))
    }

    /// The value of a name: of a variable of the environment where such are taken, otherwise of a
    /// variable or an axis. A missing variable of the environment is reported once, and stands for
    /// some path meanwhile.
    fn value_at(
        &mut self,
        name: &str,
        sources: Sources,
        place: &dyn Fn(&str) -> Span,
    ) -> Result<Tree, Problem> {
        let is_environment = sources.takes_environment && is_environment_name(name);
        if !is_environment || self.names().contains(&name) {
            return self.value(name, sources);
        }
        if let Ok(value) = std::env::var(name)
            && !value.is_empty()
        {
            return Ok(Tree::String(value));
        }
        if !self.invalid.iter().any(|invalid| invalid == name) {
            self.invalid.push(name.into());
            let message = format!("the environment variable `{name}` is not set");
            self.missing.push(
                Problem::new(Code::PlanVariable, message)
                    .at(place(&format!("${{{name}}}")), "here")
                    .help(format!("set it: `export {name}=/path/to/it`")),
            );
        }
        Ok(Tree::String(format!("/{name}")))
    }

    /// The value of a variable or an axis. Marks it as used.
    fn value(&mut self, name: &str, sources: Sources) -> Result<Tree, Problem> {
        if let Some(var) = self.vars.iter_mut().find(|var| var.name == name) {
            var.used = true;
            return Ok(var.value.clone());
        }
        let index = self.axes().position(|axis| axis == name);
        if let Some(index) = index {
            let axis = &mut self.axes[index];
            axis.used = true;
            if let Some(at) = sources.coordinates.get(&index)
                && let Some(value) = axis.values.get(*at)
            {
                return Ok(value.clone());
            }
            let message = format!("the axis `{name}` has no single value here");
            return Err(Problem::new(Code::PlanAxis, message).help(
                "only a stage that is not `across` the axis can use it: all else exists once",
            ));
        }
        if self.invalid.iter().any(|invalid| invalid == name) {
            let message = format!("`{name}` has no valid value");
            return Err(Problem::new(Code::PlanVariable, message).help("correct its definition"));
        }
        let message = format!("there is no variable `{name}`");
        Err(Problem::new(Code::PlanUnknownVariable, message).help(hint(
            name,
            "variables",
            self.names(),
        )))
    }

    /// A problem for each variable and axis that is not used, and each variable of the environment
    /// that is missing.
    pub(super) fn problems(self) -> Vec<Problem> {
        let mut problems = self.missing;
        for var in self.vars {
            if !var.used {
                problems.push(unused("variable", &var.name, var.at));
            }
        }
        for axis in self.axes {
            if !axis.used {
                problems.push(unused("axis", &axis.name, axis.at));
            }
        }
        problems
    }
}

fn unused(what: &str, name: &str, at: Span) -> Problem {
    let message = format!("nothing uses the {what} `{name}`");
    Problem::new(Code::PlanUnusedVariable, message)
        .at(at, "set here")
        .help(format!(
            "write `${{{name}}}` where it belongs, or remove it"
        ))
}

/// Whether `stage` is one of the kind `command`, which runs programs of this machine.
fn takes_environment(stage: &Node) -> bool {
    match &stage.tree {
        Tree::Table(table) => {
            let kind = table.get(KIND).and_then(|entry| entry.node.string());
            kind == Some(COMMAND)
        }
        _ => false,
    }
}

/// Words in the names of variables of an environment that a plan cannot use: their values would be
/// kept in the cache.
const SECRETS: [&str; 5] = ["TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL"];

/// Whether `name` is written like the variables of an environment that plans can use:
/// `QNN_SDK_ROOT`.
fn is_environment_name(name: &str) -> bool {
    !SECRETS.iter().any(|secret| name.contains(secret))
        && name.starts_with(|first: char| first.is_ascii_uppercase())
        && name
            .bytes()
            .all(|byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_'))
}

/// `text` as a value of the type of `old`, if it is one.
fn parse_as(old: &Tree, text: &str) -> Option<Tree> {
    match old {
        Tree::Integer(_) => Some(Tree::Integer(text.parse().ok()?)),
        Tree::Float(_) => match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Some(Tree::Float(number)),
            _ => None,
        },
        Tree::Bool(_) => Some(Tree::Bool(text.parse().ok()?)),
        _ => Some(Tree::String(text.into())),
    }
}

/// The variable that `entry` defines.
fn read_var(entry: &Entry, map: &SourceMap) -> Result<Var, Problem> {
    let name = entry.key.clone();
    let Node { tree, span } = &entry.node;
    let value = match tree {
        Tree::List(_) | Tree::Table(_) => {
            let message = format!("the variable `{name}` is {}", entry.node.what());
            let problem = Problem::new(Code::PlanWrongType, message);
            return Err(problem.at(span.clone(), "expected a string, number or boolean"));
        }
        Tree::String(text) if text.contains("${") => {
            let message = format!("the variable `{name}` refers to a variable");
            return Err(Problem::new(Code::PlanVariable, message)
                .at(span.clone(), "not filled in here")
                .help("write `${...}` where the variable is used"));
        }
        Tree::String(text) => match map.located(text, span) {
            Some(url) => Tree::String(url),
            None => tree.clone(),
        },
        other => other.clone(),
    };
    Ok(Var {
        name,
        at: entry.key_span.clone(),
        value,
        used: false,
    })
}

/// The axis that `entry` defines, without invalid values.
fn read_axis(entry: &Entry, problems: &mut Vec<Problem>) -> Option<Axis> {
    let (name, at) = (entry.key.clone(), entry.key_span.clone());
    let items = match &entry.node.tree {
        Tree::List(items) if !items.is_empty() => items.as_slice(),
        _ => {
            let what = match entry.node.tree {
                Tree::List(_) => "an empty list",
                _ => entry.node.what(),
            };
            let message = format!("the axis `{name}` is {what}");
            let problem = Problem::new(Code::PlanWrongType, message);
            let expected = "expected a list of strings, numbers or booleans";
            problems.push(problem.at(entry.node.span.clone(), expected));
            return None;
        }
    };
    let mut spans = BTreeMap::new();
    let mut values = vec![];
    for item in items {
        let Some(text) = item.tree.text() else {
            let message = format!("the axis `{name}` has {}", item.what());
            let problem = Problem::new(Code::PlanWrongType, message);
            problems.push(problem.at(item.span.clone(), "expected a string, number or boolean"));
            continue;
        };
        if let Some(why) = bad_name(&text) {
            let message = format!(
                "`{}` cannot be a value of an axis: it becomes a part of names",
                text.escape_debug()
            );
            problems.push(
                Problem::new(Code::PlanBadName, message)
                    .at(item.span.clone(), "here")
                    .help(why),
            );
        }
        if let Some(first) = spans.insert(text.clone(), item.span.clone()) {
            let message = format!("the axis `{name}` has `{text}` twice");
            let problem = Problem::new(Code::PlanMatrix, message).at(first, "here");
            problems.push(
                problem
                    .at(item.span.clone(), "and here")
                    .help("remove one of them"),
            );
            continue;
        }
        values.push(item.tree.clone());
    }
    Some(Axis {
        name,
        at,
        values,
        used: false,
    })
}

/// A piece of a string with variables.
enum Piece<'a> {
    Text(&'a str),
    /// The name in `${name}`.
    Name(&'a str),
    /// `${` without `}`, and the rest of the string.
    Open,
}

fn pieces(string: &str) -> Vec<Piece<'_>> {
    let mut pieces = vec![];
    let mut rest = string;
    while let Some(dollar) = rest.find("${") {
        let (before, after) = (&rest[..dollar], &rest[dollar + 2..]);
        if before.ends_with('$') {
            // `$${` is an escaped `${`.
            pieces.extend([Piece::Text(&rest[..dollar - 1]), Piece::Text("${")]);
            rest = after;
            continue;
        }
        if !before.is_empty() {
            pieces.push(Piece::Text(before));
        }
        let Some((name, tail)) = after.split_once('}') else {
            pieces.push(Piece::Open);
            return pieces;
        };
        pieces.push(Piece::Name(name));
        rest = tail;
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest));
    }
    pieces
}
