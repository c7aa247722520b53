//! The text of a file as a tree in which everything knows where it stands.

use std::ops::Range;
use std::path::PathBuf;

use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::base::{Code, Problem};

/// The text of a plan, or of a file that it includes, and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// What problems call it: its path as the call gave it.
    pub name: String,
    /// The TOML text.
    pub text: String,
    /// The absolute folder that relative `file:` URLs start from.
    pub folder: PathBuf,
}

/// A range of bytes of all texts of a plan, one after the other: see
/// [`SourceMap`](super::SourceMap).
pub type Span = Range<usize>;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub struct Node {
    pub tree: Tree,
    pub span: Span,
}

/// What TOML can say, dates excepted.
#[derive(Clone, Debug)]
pub enum Tree {
    String(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    List(Vec<Node>),
    Table(Table),
}

/// The entries of a table in the order of the text; keys are unique.
#[derive(Clone, Debug, Default)]
pub struct Table {
    pub entries: Vec<Entry>,
}

/// One `key = value`, or one `[key]` with its table.
#[derive(Clone, Debug)]
pub struct Entry {
    pub key: String,
    pub key_span: Span,
    pub node: Node,
}

impl Source {
    /// The tree of the text, its places counted from `base`, or every mistake in its syntax.
    pub fn tree(&self, base: usize) -> Result<Table, Vec<Problem>> {
        let (table, errors) = DeTable::parse_recoverable(&self.text);
        let syntax = |error: &toml::de::Error| {
            let span = error.span().unwrap_or(self.text.len()..self.text.len());
            Problem::new(
                Code::PlanSyntax,
                format!("not valid TOML: {}", error.message()),
            )
            .at(shifted(span, base), "here")
        };
        let mut problems: Vec<Problem> = errors.iter().map(syntax).collect();
        let table = Planter {
            base,
            problems: &mut problems,
        }
        .table(table.get_ref());
        if problems.is_empty() {
            Ok(table)
        } else {
            Err(problems)
        }
    }
}

fn shifted(span: Span, base: usize) -> Span {
    span.start + base..span.end + base
}

/// Makes trees of what the parser found.
struct Planter<'a> {
    base: usize,
    problems: &'a mut Vec<Problem>,
}

impl Planter<'_> {
    fn table(&mut self, table: &DeTable) -> Table {
        let mut entries = vec![];
        for (key, value) in table {
            if let Some(node) = self.node(value) {
                let key_span = shifted(key.span(), self.base);
                entries.push(Entry {
                    key: key.get_ref().to_string(),
                    key_span,
                    node,
                });
            }
        }
        entries.sort_by_key(|entry| entry.key_span.start);
        Table { entries }
    }

    fn node(&mut self, value: &Spanned<DeValue>) -> Option<Node> {
        let span = shifted(value.span(), self.base);
        let tree = match value.get_ref() {
            DeValue::String(text) => Some(Tree::String(text.to_string())),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .ok()
                .map(Tree::Integer),
            DeValue::Float(number) => number
                .as_str()
                .parse()
                .ok()
                .filter(|n: &f64| n.is_finite())
                .map(Tree::Float),
            DeValue::Boolean(truth) => Some(Tree::Bool(*truth)),
            DeValue::Datetime(_) => None,
            DeValue::Array(items) => Some(Tree::List(
                items.iter().filter_map(|item| self.node(item)).collect(),
            )),
            DeValue::Table(table) => Some(Tree::Table(self.table(table))),
        };
        if tree.is_none() {
            let (what, help) = match value.get_ref() {
                DeValue::Datetime(_) => {
                    ("a date", "if it is meant as text, write it between quotes")
                }
                _ => (
                    "a number out of range",
                    "integers have 64 bits, with a sign; other numbers are finite",
                ),
            };
            let problem = Problem::new(Code::PlanSyntax, format!("a plan cannot hold {what}"));
            self.problems
                .push(problem.at(span.clone(), what).help(help));
        }
        tree.map(|tree| Node { tree, span })
    }
}

impl Table {
    /// The entry called `key`.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// The table as JSON.
    pub fn json(&self) -> Map<String, Value> {
        self.entries
            .iter()
            .map(|entry| (entry.key.clone(), entry.node.json()))
            .collect()
    }
}

impl Tree {
    /// A scalar as it stands in a longer string; a list or a table has no such text.
    pub fn text(&self) -> Option<String> {
        match self {
            Tree::String(text) => Some(text.clone()),
            Tree::Integer(number) => Some(number.to_string()),
            Tree::Float(number) => Some(number.to_string()),
            Tree::Bool(truth) => Some(truth.to_string()),
            Tree::List(_) | Tree::Table(_) => None,
        }
    }
}

impl Node {
    /// The text, if it is a string.
    pub fn string(&self) -> Option<&str> {
        match &self.tree {
            Tree::String(text) => Some(text),
            _ => None,
        }
    }

    /// What it is, in words.
    pub fn what(&self) -> &'static str {
        match self.tree {
            Tree::String(_) => "a string",
            Tree::Integer(_) => "an integer",
            Tree::Float(_) => "a float",
            Tree::Bool(_) => "a boolean",
            Tree::List(_) => "a list",
            Tree::Table(_) => "a table",
        }
    }

    /// What stands at `path` (`override/0/scheme` in steps), or the deepest node on the way to it.
    pub fn find(&self, path: &[&str]) -> &Node {
        let Some((step, rest)) = path.split_first() else {
            return self;
        };
        let next = match &self.tree {
            Tree::Table(table) => table.get(step).map(|entry| &entry.node),
            Tree::List(items) => step
                .parse::<usize>()
                .ok()
                .and_then(|index| items.get(index)),
            _ => None,
        };
        next.map_or(self, |node| node.find(rest))
    }

    /// The same value as JSON.
    pub fn json(&self) -> Value {
        match &self.tree {
            Tree::String(text) => text.as_str().into(),
            Tree::Integer(number) => (*number).into(),
            Tree::Float(number) => (*number).into(),
            Tree::Bool(truth) => (*truth).into(),
            Tree::List(items) => items.iter().map(Node::json).collect(),
            Tree::Table(table) => Value::Object(table.json()),
        }
    }
}
