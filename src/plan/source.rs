//! The text of a plan as a tree in which everything knows where it stands.

use std::ops::Range;
use std::path::PathBuf;

use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::base::Problem;

/// Cap on a plan's text: far above any plan that a person writes, far below what could hurt.
pub const MAX_TEXT_BYTES: usize = 1 << 20;

/// The text of a plan and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// What problems call it: its path as the call gave it.
    pub name: String,
    /// The TOML text.
    pub text: String,
    /// The absolute folder that relative `file:` URLs start from.
    pub folder: PathBuf,
}

/// A range of bytes of the text.
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
    /// The tree of the text, or every mistake in its syntax.
    pub fn tree(&self) -> Result<Table, Vec<Problem>> {
        if self.text.len() > MAX_TEXT_BYTES {
            let message = format!("the plan has {} bytes, at most {MAX_TEXT_BYTES} are read", self.text.len());
            return Err(vec![Problem::new("kiln::plan::too_large", message).help("split it into several plans")]);
        }
        let (table, errors) = DeTable::parse_recoverable(&self.text);
        let syntax = |error: &toml::de::Error| {
            let span = error.span().unwrap_or(self.text.len()..self.text.len());
            Problem::new("kiln::plan::syntax", format!("not TOML: {}", error.message())).at(span, "here")
        };
        let mut problems: Vec<Problem> = errors.iter().map(syntax).collect();
        let table = table_of(table.get_ref(), &mut problems);
        if problems.is_empty() { Ok(table) } else { Err(problems) }
    }
}

fn table_of(table: &DeTable, problems: &mut Vec<Problem>) -> Table {
    let mut entries = vec![];
    for (key, value) in table {
        if let Some(node) = node_of(value, problems) {
            entries.push(Entry { key: key.get_ref().to_string(), key_span: key.span(), node });
        }
    }
    entries.sort_by_key(|entry| entry.key_span.start);
    Table { entries }
}

fn node_of(value: &Spanned<DeValue>, problems: &mut Vec<Problem>) -> Option<Node> {
    let tree = match value.get_ref() {
        DeValue::String(text) => Some(Tree::String(text.to_string())),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok().map(Tree::Integer),
        DeValue::Float(number) => number.as_str().parse().ok().filter(|n: &f64| n.is_finite()).map(Tree::Float),
        DeValue::Boolean(truth) => Some(Tree::Bool(*truth)),
        DeValue::Datetime(_) => None,
        DeValue::Array(items) => Some(Tree::List(items.iter().filter_map(|item| node_of(item, problems)).collect())),
        DeValue::Table(table) => Some(Tree::Table(table_of(table, problems))),
    };
    if tree.is_none() {
        let (what, help) = match value.get_ref() {
            DeValue::Datetime(_) => ("a date", "if it is meant as text, write it between quotes"),
            _ => ("a number out of range", "integers have 64 bits, with a sign; other numbers are finite"),
        };
        problems.push(
            Problem::new("kiln::plan::syntax", format!("a plan cannot hold {what}")).at(value.span(), what).help(help),
        );
    }
    tree.map(|tree| Node { tree, span: value.span() })
}

impl Table {
    /// The entry called `key`.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// The table as JSON.
    pub fn json(&self) -> Map<String, Value> {
        self.entries.iter().map(|entry| (entry.key.clone(), entry.node.json())).collect()
    }
}

impl Node {
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
        let Some((step, rest)) = path.split_first() else { return self };
        let next = match &self.tree {
            Tree::Table(table) => table.get(step).map(|entry| &entry.node),
            Tree::List(items) => step.parse::<usize>().ok().and_then(|index| items.get(index)),
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
