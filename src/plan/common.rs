//! The keys that a stage of any kind may have: `kind`, `keep`, `optional`, `across`, `timeout`,
//! `retries`.

use std::time::Duration;

use super::Keep;
use super::source::{Node, Table, Tree};
use crate::action::{Registry, StageSpec};

/// The kind of a stage.
pub(super) const KIND: &str = "kind";
/// Which of its parts are written out.
pub(super) const KEEP: &str = "keep";
/// The axes that it gathers.
pub(super) const ACROSS: &str = "across";
/// How long one of its actions may take.
pub(super) const TIMEOUT: &str = "timeout";
/// How often a failed action is run again.
pub(super) const RETRIES: &str = "retries";
/// Whether it is built only if the call names it, or a stage that depends on it.
pub(super) const OPTIONAL: &str = "optional";

/// The key of a tool with the folder of an SDK.
pub(super) const SDK: &str = "sdk";
/// The kind of stages that run programs of this machine.
pub(super) const COMMAND: &str = "command";

/// All keys that a stage of any kind may have.
pub(super) const COMMON: [&str; 6] = [KIND, KEEP, ACROSS, TIMEOUT, RETRIES, OPTIONAL];

/// Cap on `timeout`: longer than any action, and short enough for every clock.
pub(super) const MAX_TIMEOUT_HOURS: u64 = 1000;
/// Cap on `retries`.
pub(super) const MAX_RETRIES: u32 = 100;
/// The form of a timeout.
pub(super) const TIMEOUT_PATTERN: &str = "^[0-9]+(s|min|h)$";

/// The specification of the kind of `table`, if the kind exists.
pub(super) fn spec_of<'r>(table: &Table, registry: &'r Registry) -> Option<&'r StageSpec> {
    let kind = table.get(KIND)?.node.string()?;
    Some(registry.get(kind)?.spec())
}

/// The items of a list. A value that is not a list is the only item.
pub(super) fn items(node: &Node) -> &[Node] {
    match &node.tree {
        Tree::List(items) => items,
        _ => std::slice::from_ref(node),
    }
}

/// Those of its items that are strings.
pub(super) fn strings(node: &Node) -> impl Iterator<Item = &str> {
    items(node).iter().filter_map(Node::string)
}

/// The value of `keep`, if it is valid.
pub(super) fn keep(node: &Node) -> Option<Keep> {
    match &node.tree {
        Tree::Bool(false) => Some(Keep::Nothing),
        Tree::Bool(true) => Some(Keep::All),
        Tree::List(items) => {
            let mut parts = vec![];
            for item in items {
                parts.push(item.string()?.to_string());
            }
            Some(Keep::Parts(parts))
        }
        _ => None,
    }
}

/// The value of `timeout`, if it is valid: `90s`, `20min`, `2h`.
pub(super) fn timeout(node: &Node) -> Option<Duration> {
    let text = node.string()?;
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (count, unit) = text.split_at(digits);
    let unit_seconds: u64 = match unit {
        "s" => 1,
        "min" => 60,
        "h" => 3600,
        _ => return None,
    };
    let seconds = count.parse::<u64>().ok()?.checked_mul(unit_seconds)?;
    if seconds == 0 || seconds > MAX_TIMEOUT_HOURS * 3600 {
        return None;
    }
    Some(Duration::from_secs(seconds))
}

/// The value of `retries`, if it is valid.
pub(super) fn retries(node: &Node) -> Option<u32> {
    match node.tree {
        Tree::Integer(count) if (0..=i64::from(MAX_RETRIES)).contains(&count) => Some(count as u32),
        _ => None,
    }
}

/// The value of `optional`, if it is valid.
pub(super) fn optional(node: &Node) -> Option<bool> {
    match node.tree {
        Tree::Bool(optional) => Some(optional),
        _ => None,
    }
}
