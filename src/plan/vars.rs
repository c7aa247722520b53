//! `[vars]`, `[matrix]`, `--set` and `${name}`.

use std::collections::{BTreeMap, BTreeSet};

use super::merge::Tables;
use super::source::{Entry, Node, Span, Tree};
use super::source_map::SourceMap;
use super::words::bad_name;
use crate::base::{Code, Problem, hint};

/// Cap on a string with all its variables filled in: far above any argument, prompt or path.
const MAX_FILLED_BYTES: usize = 64 << 10;

/// Cap on all strings of a plan with variables filled in: a short plan may ask for a long text many
/// times.
const MAX_ALL_FILLED_BYTES: usize = 16 << 20;

/// Where an instance of a stage stands: axis -> which of its values. Axes are counted in the order
/// of the text.
pub type Coordinates = BTreeMap<usize, usize>;

/// The variables and axes of a plan, and which of them it uses.
#[derive(Default)]
pub struct Vars {
    vars: Vec<Var>,
    axes: Vec<Axis>,
    pinned: bool,
    /// Variables and axes whose definition is wrong.
    broken: Vec<String>,
    /// Bytes that were filled in so far.
    filled: usize,
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
    /// The variables and axes of `tables`, with the values of `sets` where the call gave some.
    pub fn read(
        tables: &Tables,
        map: &SourceMap,
        sets: &[(String, String)],
        problems: &mut Vec<Problem>,
    ) -> Vars {
        let mut vars = Vars::default();
        for entry in &tables.vars {
            match var(entry, map, problems) {
                Some(var) => vars.vars.push(var),
                None => vars.broken.push(entry.key.clone()),
            }
        }
        for entry in &tables.axes {
            match axis(entry, problems) {
                Some(axis) => vars.axes.push(axis),
                None => vars.broken.push(entry.key.clone()),
            }
        }
        for (name, text) in sets {
            vars.set(name, text, problems);
        }
        vars
    }

    /// A value set by the call takes the type that the plan gave the variable. An axis has then
    /// only that value.
    fn set(&mut self, name: &str, text: &str, problems: &mut Vec<Problem>) {
        let var = self
            .vars
            .iter()
            .find(|var| var.name == name)
            .map(|var| (var.value.clone(), var.at.clone()));
        let axis = self.axes.iter().find(|axis| axis.name == name);
        let axis = axis.and_then(|axis| Some((axis.values.first()?.clone(), axis.at.clone())));
        let Some((old, at)) = var.or(axis) else {
            problems.push(
                Problem::new(
                    Code::PlanUnknownVariable,
                    format!("--set {name}: the plan has no such variable"),
                )
                .help(hint(name, "variables", self.names())),
            );
            return;
        };
        let value = match old {
            Tree::Integer(_) => text.parse().ok().map(Tree::Integer),
            Tree::Float(_) => text
                .parse()
                .ok()
                .filter(|number: &f64| number.is_finite())
                .map(Tree::Float),
            Tree::Bool(_) => text.parse().ok().map(Tree::Bool),
            _ => Some(Tree::String(text.into())),
        };
        let Some(value) = value else {
            let expected = Node {
                tree: old,
                span: at.clone(),
            }
            .what();
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
                    "--set {name}={}: it becomes a part of stages' names",
                    text.escape_debug()
                );
                problems.push(
                    Problem::new(Code::PlanBadName, message)
                        .at(at, "this axis")
                        .help(why),
                );
            }
            axis.values = vec![value];
            self.pinned = true;
        } else if let Some(var) = self.vars.iter_mut().find(|var| var.name == name) {
            var.value = value;
        }
    }

    /// Whether the call has set an axis.
    pub fn are_pinned(&self) -> bool {
        self.pinned
    }

    fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.vars
            .iter()
            .map(|var| var.name.as_str())
            .chain(self.axes())
    }

    /// The axes' names.
    pub fn axes(&self) -> impl Iterator<Item = &str> + Clone {
        self.axes.iter().map(|axis| axis.name.as_str())
    }

    /// How many values an axis has.
    pub fn extent(&self, axis: usize) -> usize {
        self.axes.get(axis).map_or(0, |axis| axis.values.len())
    }

    /// `name` and the values at `here`: `report.sm8650.native`.
    pub fn instance(&self, name: &str, here: &Coordinates) -> String {
        let value =
            |(axis, index): (&usize, &usize)| self.axes.get(*axis)?.values.get(*index)?.text();
        [name.to_string()]
            .into_iter()
            .chain(here.iter().filter_map(value))
            .collect::<Vec<_>>()
            .join(".")
    }

    /// The axes that the strings of `node` use.
    pub fn axes_in(&self, node: &Node) -> BTreeSet<usize> {
        match &node.tree {
            Tree::String(string) => {
                let axis = |piece: &Piece| match piece {
                    Piece::Name(name) => self.axes().position(|axis| axis == *name),
                    _ => None,
                };
                pieces(string).iter().filter_map(axis).collect()
            }
            Tree::List(items) => items.iter().flat_map(|item| self.axes_in(item)).collect(),
            Tree::Table(table) => table
                .entries
                .iter()
                .flat_map(|entry| self.axes_in(&entry.node))
                .collect(),
            _ => BTreeSet::new(),
        }
    }

    /// Fills in every `${name}` in the strings of `node`, an axis with its value at `here`.
    pub fn fill(
        &mut self,
        node: &mut Node,
        here: &Coordinates,
        map: &SourceMap,
        problems: &mut Vec<Problem>,
    ) {
        match &mut node.tree {
            Tree::List(items) => items
                .iter_mut()
                .for_each(|item| self.fill(item, here, map, problems)),
            Tree::Table(table) => {
                table
                    .entries
                    .iter_mut()
                    .for_each(|entry| self.fill(&mut entry.node, here, map, problems));
            }
            Tree::String(string) => {
                // An escaped string may spell the piece differently; then the whole string is
                // shown.
                let raw = map.text(&node.span);
                let place = |piece: &str| match raw.find(piece) {
                    Some(at) => node.span.start + at..node.span.start + at + piece.len(),
                    None => node.span.clone(),
                };
                match self.substitute(string, here, &place) {
                    Ok(tree) => node.tree = tree,
                    Err(problem) => problems.push(problem),
                }
            }
            _ => {}
        }
    }

    /// `string` filled in, or what is wrong, at the place of the piece that it is about.
    /// A string that is one `${name}` takes the variable's type.
    fn substitute(
        &mut self,
        string: &str,
        here: &Coordinates,
        place: &dyn Fn(&str) -> Span,
    ) -> Result<Tree, Problem> {
        let pieces = pieces(string);
        let at = |name: &str| {
            let span = place(&format!("${{{name}}}"));
            move |problem: Problem| problem.at(span, "here")
        };
        if let [Piece::Name(name)] = pieces.as_slice() {
            let value = self.value(name, here).map_err(at(name))?;
            self.count(value.text().map_or(0, |text| text.len()))
                .map_err(at(name))?;
            return Ok(value);
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
                    let value = self.value(name, here).map_err(at(name))?;
                    out.push_str(&value.text().unwrap_or_default());
                    has_variables = true;
                }
                Piece::Open => {
                    return Err(Problem::new(Code::PlanVariable, "`${` without `}`")
                        .at(place("${"), "here")
                        .help("write `$${` for the characters `${` themselves"));
                }
            }
        }
        if has_variables {
            self.count(out.len())
                .map_err(|problem| problem.at(place("${"), "here"))?;
        }
        Ok(Tree::String(out))
    }

    /// Counts what is filled in.
    fn count(&mut self, bytes: usize) -> Result<(), Problem> {
        self.filled = self.filled.saturating_add(bytes);
        if self.filled <= MAX_ALL_FILLED_BYTES {
            return Ok(());
        }
        let message = format!(
            "with all variables filled in, the plan has more than {MAX_ALL_FILLED_BYTES} bytes"
        );
        Err(Problem::new(Code::PlanTooLarge, message)
            .help("put a long text into a file, and `fetch` it"))
    }

    fn value(&mut self, name: &str, here: &Coordinates) -> Result<Tree, Problem> {
        if let Some(var) = self.vars.iter_mut().find(|var| var.name == name) {
            var.used = true;
            return Ok(var.value.clone());
        }
        if let Some((index, axis)) = self
            .axes
            .iter_mut()
            .enumerate()
            .find(|(_, axis)| axis.name == name)
        {
            axis.used = true;
            return here
                .get(&index)
                .and_then(|at| axis.values.get(*at))
                .cloned()
                .ok_or_else(|| {
                    Problem::new(
                        Code::PlanAxis,
                        format!("the axis `{name}` has no single value here"),
                    )
                    .help(
                        "only a stage that is not `across` the axis can use it: all else exists \
                         once",
                    )
                });
        }
        if self.broken.iter().any(|broken| broken == name) {
            let message = format!("`{name}` has no valid value");
            return Err(Problem::new(Code::PlanVariable, message).help("correct its definition"));
        }
        Err(Problem::new(
            Code::PlanUnknownVariable,
            format!("there is no variable `{name}`"),
        )
        .help(hint(name, "variables", self.names())))
    }

    /// A problem for each variable and axis that nothing uses.
    pub fn unused(self) -> impl Iterator<Item = Problem> {
        let vars = self
            .vars
            .into_iter()
            .filter(|var| !var.used)
            .map(|var| ("variable", var.name, var.at));
        let axes = self
            .axes
            .into_iter()
            .filter(|axis| !axis.used)
            .map(|axis| ("axis", axis.name, axis.at));
        vars.chain(axes).map(|(what, name, at)| {
            Problem::new(
                Code::PlanUnusedVariable,
                format!("nothing uses the {what} `{name}`"),
            )
            .at(at, "set here")
            .help(format!(
                "write `${{{name}}}` where it belongs, or remove it"
            ))
        })
    }
}

fn var(entry: &Entry, map: &SourceMap, problems: &mut Vec<Problem>) -> Option<Var> {
    let (name, at) = (entry.key.clone(), entry.key_span.clone());
    let Node { tree, span } = &entry.node;
    match tree {
        Tree::List(_) | Tree::Table(_) => problems.push(
            Problem::new(
                Code::PlanWrongType,
                format!("the variable `{name}` is {}", entry.node.what()),
            )
            .at(span.clone(), "expected a string, number or boolean"),
        ),
        Tree::String(text) if text.contains("${") => problems.push(
            Problem::new(
                Code::PlanVariable,
                format!("the variable `{name}` refers to a variable"),
            )
            .at(span.clone(), "not filled in here")
            .help("write `${...}` where the variable is used"),
        ),
        Tree::String(text) => {
            let text = map.located(text, span).unwrap_or_else(|| text.clone());
            return Some(Var {
                name,
                at,
                value: Tree::String(text),
                used: false,
            });
        }
        value => {
            return Some(Var {
                name,
                at,
                value: value.clone(),
                used: false,
            });
        }
    }
    None
}

fn axis(entry: &Entry, problems: &mut Vec<Problem>) -> Option<Axis> {
    let (name, at) = (entry.key.clone(), entry.key_span.clone());
    let items = match &entry.node.tree {
        Tree::List(items) if !items.is_empty() => items.as_slice(),
        _ => {
            let what = if let Tree::List(_) = entry.node.tree {
                "an empty list"
            } else {
                entry.node.what()
            };
            problems.push(
                Problem::new(Code::PlanWrongType, format!("the axis `{name}` is {what}")).at(
                    entry.node.span.clone(),
                    "expected a list of strings, numbers or booleans",
                ),
            );
            return None;
        }
    };
    let mut seen = BTreeMap::new();
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
        if let Some(first) = seen.insert(text.clone(), item.span.clone()) {
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

enum Piece<'a> {
    Text(&'a str),
    /// What stands in `${...}`.
    Name(&'a str),
    /// `${` without `}`, and all that follows.
    Open,
}

fn pieces(string: &str) -> Vec<Piece<'_>> {
    let mut pieces = vec![];
    let mut rest = string;
    while let Some(dollar) = rest.find("${") {
        let (before, after) = (&rest[..dollar], &rest[dollar + 2..]);
        if before.ends_with('$') {
            // `$${`: the first `$` goes, the others stay.
            pieces.extend([Piece::Text(&rest[..dollar - 1]), Piece::Text("${")]);
            rest = after;
            continue;
        }
        pieces.extend((!before.is_empty()).then_some(Piece::Text(before)));
        let Some((name, tail)) = after.split_once('}') else {
            pieces.push(Piece::Open);
            return pieces;
        };
        pieces.push(Piece::Name(name));
        rest = tail;
    }
    pieces.extend((!rest.is_empty()).then_some(Piece::Text(rest)));
    pieces
}
