//! `[vars]`, `--set` and `${name}`.

use super::source::{Node, Span, Table, Tree};
use super::words::hint;
use crate::base::Problem;

/// The variables of a plan, and which of them it uses.
#[derive(Default)]
pub struct Vars {
    vars: Vec<Var>,
}

struct Var {
    name: String,
    at: Span,
    value: Tree,
    used: bool,
}

impl Vars {
    /// The variables of the table `[vars]`, with the values of `sets` where the call gave some.
    pub fn read(table: &Table, sets: &[(String, String)], problems: &mut Vec<Problem>) -> Vars {
        let mut vars = Vars::default();
        for entry in &table.entries {
            let (name, at) = (entry.key.clone(), entry.key_span.clone());
            match &entry.node.tree {
                Tree::List(_) | Tree::Table(_) => problems.push(
                    Problem::new("kiln::plan::wrong_type", format!("the variable `{name}` is {}", entry.node.what()))
                        .at(entry.node.span.clone(), "expected a string, number or boolean"),
                ),
                Tree::String(text) if text.contains("${") => problems.push(
                    Problem::new("kiln::plan::variable", format!("the variable `{name}` refers to a variable"))
                        .at(entry.node.span.clone(), "taken as it stands")
                        .help("write `${...}` where the variable is used"),
                ),
                value => vars.vars.push(Var { name, at, value: value.clone(), used: false }),
            }
        }
        for (name, text) in sets {
            vars.set(name, text, problems);
        }
        vars
    }

    /// A value set by the call takes the type that the plan gave the variable.
    fn set(&mut self, name: &str, text: &str, problems: &mut Vec<Problem>) {
        let Some(var) = self.vars.iter_mut().find(|var| var.name == name) else {
            let known = self.vars.iter().map(|var| var.name.as_str());
            problems.push(
                Problem::new("kiln::plan::unknown_variable", format!("--set {name}: the plan has no such variable"))
                    .help(hint(name, "variables", known)),
            );
            return;
        };
        let value = match var.value {
            Tree::Integer(_) => text.parse().ok().map(Tree::Integer),
            Tree::Float(_) => text.parse().ok().filter(|number: &f64| number.is_finite()).map(Tree::Float),
            Tree::Bool(_) => text.parse().ok().map(Tree::Bool),
            _ => Some(Tree::String(text.into())),
        };
        match value {
            Some(value) => var.value = value,
            None => {
                let expected = Node { tree: var.value.clone(), span: var.at.clone() }.what();
                problems.push(
                    Problem::new("kiln::plan::wrong_type", format!("--set {name}={text}: expected {expected}"))
                        .at(var.at.clone(), format!("{expected} here"))
                        .help("a variable keeps the type that its value in [vars] has"),
                );
            }
        }
    }

    /// Fills in every `${name}` in the strings of `node`. `text` is the whole plan, for finding places.
    pub fn fill(&mut self, node: &mut Node, text: &str, problems: &mut Vec<Problem>) {
        match &mut node.tree {
            Tree::List(items) => items.iter_mut().for_each(|item| self.fill(item, text, problems)),
            Tree::Table(table) => {
                table.entries.iter_mut().for_each(|entry| self.fill(&mut entry.node, text, problems));
            }
            Tree::String(string) => {
                // An escaped string may spell the piece differently; then the whole string is shown.
                let raw = text.get(node.span.clone()).unwrap_or_default();
                let place = |piece: &str| match raw.find(piece) {
                    Some(at) => node.span.start + at..node.span.start + at + piece.len(),
                    None => node.span.clone(),
                };
                let mut complain = |problem: Problem, piece: &str| problems.push(problem.at(place(piece), "here"));
                if let Some(tree) = self.substitute(string, &mut complain) {
                    node.tree = tree;
                }
            }
            _ => {}
        }
    }

    /// `string` filled in, unless there is something to complain of: what is wrong, and with which piece.
    /// A string that is one `${name}` takes the variable's type.
    fn substitute(&mut self, string: &str, complain: &mut dyn FnMut(Problem, &str)) -> Option<Tree> {
        let mut out = String::new();
        let mut rest = string;
        while let Some(dollar) = rest.find("${") {
            let (before, after) = (&rest[..dollar], &rest[dollar + 2..]);
            if let Some(escaped) = before.strip_suffix('$') {
                out.push_str(escaped);
                out.push_str("${");
                rest = after;
                continue;
            }
            out.push_str(before);
            let Some((name, tail)) = after.split_once('}') else {
                let problem = Problem::new("kiln::plan::variable", "`${` without `}`")
                    .help("write `$${` for the characters `${` themselves");
                complain(problem, "${");
                return None;
            };
            let value = self.value(name, complain)?;
            if name.len() + 3 == string.len() {
                return Some(value);
            }
            match value {
                Tree::String(text) => out.push_str(&text),
                other => out.push_str(&scalar_text(&other)),
            }
            rest = tail;
        }
        out.push_str(rest);
        Some(Tree::String(out))
    }

    fn value(&mut self, name: &str, complain: &mut dyn FnMut(Problem, &str)) -> Option<Tree> {
        if let Some(var) = self.vars.iter_mut().find(|var| var.name == name) {
            var.used = true;
            return Some(var.value.clone());
        }
        let known = self.vars.iter().map(|var| var.name.as_str());
        let problem = Problem::new("kiln::plan::unknown_variable", format!("there is no variable `{name}`"))
            .help(hint(name, "variables", known));
        complain(problem, &format!("${{{name}}}"));
        None
    }

    /// A problem for each variable that nothing uses.
    pub fn unused(self) -> impl Iterator<Item = Problem> {
        self.vars.into_iter().filter(|var| !var.used).map(|var| {
            Problem::new("kiln::plan::unused_variable", format!("nothing uses the variable `{}`", var.name))
                .at(var.at, "set here")
                .help(format!("write `${{{}}}` where it belongs, or remove it", var.name))
        })
    }
}

fn scalar_text(value: &Tree) -> String {
    match value {
        Tree::Integer(number) => number.to_string(),
        Tree::Float(number) => number.to_string(),
        Tree::Bool(truth) => truth.to_string(),
        _ => String::new(),
    }
}
