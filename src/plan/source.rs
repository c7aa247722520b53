//! The TOML text of a file as a tree of values with their places in the text.

use std::ops::Range;
use std::path::PathBuf;

use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::base::{Code, Problem};

/// The text of a plan or of a file that it includes.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// Its name in problems: the path in the call, or relative to it.
    pub name: String,
    /// The TOML text.
    pub text: String,
    /// The absolute folder that relative `file:` URLs refer to.
    pub folder: PathBuf,
}

/// A range of bytes in the concatenated texts of a plan: see [`SourceMap`](super::SourceMap).
pub(super) type Span = Range<usize>;

/// A value and its place.
#[derive(Clone, Debug)]
pub struct Node {
    pub tree: Tree,
    pub span: Span,
}

/// A TOML value that is not a date.
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
    /// Parses the text. Its places start at `base`. The error has all mistakes in the syntax.
    pub fn parse(&self, base: usize) -> Result<Table, Vec<Problem>> {
        let (table, errors) = DeTable::parse_recoverable(&self.text);
        let mut problems = vec![];
        for error in errors {
            let span = error.span().unwrap_or(self.text.len()..self.text.len());
            let message = format!("not valid TOML: {}", error.message());
            let problem = Problem::new(Code::PlanSyntax, message);
            problems.push(problem.at(shifted(span, base), "here"));
        }
        let mut builder = TreeBuilder {
            base,
            problems: &mut problems,
        };
        let table = builder.build_table(table.get_ref());
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

/// Converts the parser's values to trees.
struct TreeBuilder<'a> {
    base: usize,
    problems: &'a mut Vec<Problem>,
}

impl TreeBuilder<'_> {
    fn build_table(&mut self, table: &DeTable) -> Table {
        let mut entries = vec![];
        for (key, value) in table {
            if let Some(node) = self.build_node(value) {
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

    fn build_node(&mut self, value: &Spanned<DeValue>) -> Option<Node> {
        let span = shifted(value.span(), self.base);
        let tree = match value.get_ref() {
            DeValue::String(text) => Tree::String(text.to_string()),
            DeValue::Boolean(value) => Tree::Bool(*value),
            DeValue::Integer(digits) => {
                match i64::from_str_radix(digits.as_str(), digits.radix()) {
                    Ok(number) => Tree::Integer(number),
                    Err(_) => return self.out_of_range(span),
                }
            }
            DeValue::Float(digits) => match digits.as_str().parse::<f64>() {
                Ok(number) if number.is_finite() => Tree::Float(number),
                _ => return self.out_of_range(span),
            },
            DeValue::Datetime(_) => {
                let help = "if it is meant as text, write it between quotes";
                return self.not_allowed(span, "a date", help);
            }
            DeValue::Array(values) => {
                let mut items = vec![];
                for value in values {
                    items.extend(self.build_node(value));
                }
                Tree::List(items)
            }
            DeValue::Table(table) => Tree::Table(self.build_table(table)),
        };
        Some(Node { tree, span })
    }

    fn out_of_range(&mut self, span: Span) -> Option<Node> {
        let help = "integers have 64 bits, with a sign; other numbers are finite";
        self.not_allowed(span, "a number out of range", help)
    }

    fn not_allowed(&mut self, span: Span, what: &str, help: &str) -> Option<Node> {
        let problem = Problem::new(Code::PlanSyntax, format!("a plan cannot have {what}"));
        self.problems.push(problem.at(span, what).help(help));
        None
    }
}

impl Table {
    /// The entry called `key`.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// The table as JSON.
    pub fn json(&self) -> Map<String, Value> {
        let mut map = Map::new();
        for entry in &self.entries {
            map.insert(entry.key.clone(), entry.node.json());
        }
        map
    }
}

impl Tree {
    /// The text of a scalar, for use in a longer string.
    pub fn text(&self) -> Option<String> {
        match self {
            Tree::String(text) => Some(text.clone()),
            Tree::Integer(number) => Some(number.to_string()),
            Tree::Float(number) => Some(number.to_string()),
            Tree::Bool(value) => Some(value.to_string()),
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

    /// Its type in words: `a string`.
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

    /// The node at `path` (the steps of `override/0/scheme`), or the deepest node on the way to it.
    pub fn find(&self, path: &[&str]) -> &Node {
        let Some((step, rest)) = path.split_first() else {
            return self;
        };
        let next = match &self.tree {
            Tree::Table(table) => table.get(step).map(|entry| &entry.node),
            Tree::List(items) => match step.parse::<usize>() {
                Ok(index) => items.get(index),
                Err(_) => None,
            },
            _ => None,
        };
        match next {
            Some(node) => node.find(rest),
            None => self,
        }
    }

    /// The same value as JSON.
    pub fn json(&self) -> Value {
        match &self.tree {
            Tree::String(text) => text.as_str().into(),
            Tree::Integer(number) => (*number).into(),
            Tree::Float(number) => (*number).into(),
            Tree::Bool(value) => (*value).into(),
            Tree::List(items) => items.iter().map(Node::json).collect(),
            Tree::Table(table) => Value::Object(table.json()),
        }
    }
}
