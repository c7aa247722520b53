//! The outputs of a stage's parts become its manifest.

use std::collections::BTreeSet;

use super::Task;
use crate::action::{Manifest, Outputs, PartName};
use crate::base::{Problem, Result};

/// Joins outputs under their orders' names: `ORDER/OUTPUT`, or `OUTPUT` where the order has no name.
pub(super) fn seal<'a>(parts: impl Iterator<Item = (&'a str, &'a Outputs)>) -> Result<Manifest> {
    let mut manifest = Manifest::default();
    for (order, outputs) in parts {
        for (output, part) in outputs {
            let name = match order {
                "" => output.clone(),
                order => PartName::new(format!("{order}/{output}"))?,
            };
            if manifest.parts.contains_key(&name) {
                return Err(Problem::new("kiln::engine::same_part", format!("two outputs are called `{name}`"))
                    .help("a mistake of the stage kind: each output of a stage needs a name of its own"));
            }
            manifest.parts.insert(name, part.clone());
        }
    }
    Ok(manifest)
}

/// Refuses two orders of one name: reasons and records are kept by name.
pub(super) fn check_names(tasks: &[Task]) -> Result<()> {
    let mut names = BTreeSet::new();
    match tasks.iter().find(|task| !names.insert(task.name.as_str())) {
        Some(task) => Err(Problem::new("kiln::engine::same_order", format!("two orders are called `{}`", task.name))
            .help("a mistake of the stage kind: each order of a stage needs a name of its own")),
        None => Ok(()),
    }
}
