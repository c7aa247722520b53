//! What every stage may say, whatever its kind: `kind`, `keep`, `optional`, `across`, `timeout`,
//! `retries`.

use std::time::Duration;

use super::Keep;
use super::source::{Node, Table, Tree};
use crate::action::{Registry, StageSpec};

/// Which kind a stage is of.
pub const KIND: &str = "kind";
/// What of it is written out.
pub const KEEP: &str = "keep";
/// The axes that it gathers over.
pub const ACROSS: &str = "across";
/// How long one of its actions may take.
pub const TIMEOUT: &str = "timeout";
/// How often an action that failed is tried again.
pub const RETRIES: &str = "retries";

/// Whether it is built only where it is asked for.
pub const OPTIONAL: &str = "optional";

/// All of them.
pub const COMMON: [&str; 6] = [KIND, KEEP, ACROSS, TIMEOUT, RETRIES, OPTIONAL];

/// Cap on `timeout`: longer than any action, and far from what a clock cannot count.
pub const MAX_TIMEOUT_HOURS: u64 = 1000;
/// Cap on `retries`.
pub const MAX_RETRIES: u32 = 100;
/// What a timeout looks like.
pub const TIMEOUT_PATTERN: &str = "^[0-9]+(s|min|h)$";

/// What `kind` says, if there is such a kind.
pub fn spec_of<'r>(table: &Table, registry: &'r Registry) -> Option<&'r StageSpec> {
    registry
        .get(table.get(KIND)?.node.string()?)
        .map(|stage| stage.spec())
}

/// The items of a list, or the one value that is no list.
pub fn items(node: &Node) -> &[Node] {
    match &node.tree {
        Tree::List(items) => items,
        _ => std::slice::from_ref(node),
    }
}

/// Those of its items that are strings.
pub fn strings(node: &Node) -> impl Iterator<Item = &str> {
    items(node).iter().filter_map(Node::string)
}

/// The value of `keep`, if it is one.
pub fn keep(node: &Node) -> Option<Keep> {
    match &node.tree {
        Tree::Bool(false) => Some(Keep::Nothing),
        Tree::Bool(true) => Some(Keep::All),
        Tree::List(parts) => parts
            .iter()
            .map(|part| part.string().map(String::from))
            .collect::<Option<_>>()
            .map(Keep::Parts),
        _ => None,
    }
}

/// The value of `timeout`, if it is one: `90s`, `20min`, `2h`.
pub fn timeout(node: &Node) -> Option<Duration> {
    let text = node.string()?;
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (count, unit) = text.split_at(digits);
    let seconds: u64 = match unit {
        "s" => 1,
        "min" => 60,
        "h" => 3600,
        _ => return None,
    };
    let seconds = count.parse::<u64>().ok()?.checked_mul(seconds)?;
    (1..=MAX_TIMEOUT_HOURS * 3600)
        .contains(&seconds)
        .then(|| Duration::from_secs(seconds))
}

/// The value of `retries`, if it is one.
pub fn retries(node: &Node) -> Option<u32> {
    match node.tree {
        Tree::Integer(count) => u32::try_from(count)
            .ok()
            .filter(|count| *count <= MAX_RETRIES),
        _ => None,
    }
}

/// The value of `optional`, if it is one.
pub fn optional(node: &Node) -> Option<bool> {
    match node.tree {
        Tree::Bool(optional) => Some(optional),
        _ => None,
    }
}
