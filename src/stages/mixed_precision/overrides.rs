//! The chosen schemes as overrides of a `requant` stage, and as text for a plan.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::Params;
use crate::artifact::assignment::{AssignmentFacts, ChosenScheme};
use crate::artifact::sensitivity::Cost;
use crate::base::{self, bytes};

/// For each kind of tensor its most frequent scheme as a pattern over all layers, then the layers
/// that differ.
pub(super) fn overrides(picked: &[(&str, &Cost)]) -> Vec<ChosenScheme> {
    let mut kinds: BTreeMap<String, Vec<(&str, &str)>> = BTreeMap::new();
    for (tensor, cost) in picked {
        let tensors = kinds.entry(layer_pattern(tensor)).or_default();
        tensors.push((tensor, &cost.scheme));
    }
    let mut overrides = vec![];
    for (pattern, mut tensors) in kinds {
        tensors.sort_by_key(|(tensor, _)| base::natural_order(tensor));
        let usual = most_frequent(&tensors);
        overrides.push(ChosenScheme {
            pattern,
            scheme: usual.into(),
        });
        for (tensor, scheme) in tensors {
            if scheme != usual {
                overrides.push(ChosenScheme {
                    pattern: tensor.into(),
                    scheme: scheme.into(),
                });
            }
        }
    }
    overrides
}

/// The scheme of most of `tensors`; among equals, the first by name.
fn most_frequent<'a>(tensors: &[(&str, &'a str)]) -> &'a str {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, scheme) in tensors {
        *counts.entry(scheme).or_default() += 1;
    }
    let (mut most_frequent, mut most) = ("", 0);
    for (scheme, count) in counts {
        if count > most {
            (most_frequent, most) = (scheme, count);
        }
    }
    most_frequent
}

/// The pattern of a tensor in all layers: `blk.*.attn_q.weight` for `blk.3.attn_q.weight`.
fn layer_pattern(tensor: &str) -> String {
    let mut components = vec![];
    for component in tensor.split('.') {
        let is_number = component.parse::<u32>().is_ok();
        components.push(if is_number { "*" } else { component });
    }
    components.join(".")
}

/// The overrides as text for a plan.
pub(super) fn render(assignment: &AssignmentFacts, budget: Params) -> String {
    let mut text = format!("# {}", bytes(assignment.bytes));
    if let Some(budget) = budget.bytes {
        let _ = write!(text, " of {}", bytes(budget));
    }
    let _ = writeln!(
        text,
        "; expected KL divergence {:.2e} nats, the sum of what each tensor was measured to cost.",
        assignment.kld
    );
    if let (Some(us), Some(budget)) = (assignment.decode_us, budget.decode_ms) {
        let _ = writeln!(
            text,
            "# {:.3} of {budget} ms a decode call, expected by the estimates of the layers.",
            us / 1000.0
        );
    }
    text += "# These lines can stand under a `requant` stage, pinned and edited; the last that \
             matches a tensor wins.\noverride = [\n";
    for ChosenScheme { pattern, scheme } in &assignment.overrides {
        let _ = writeln!(text, "    {{ match = {pattern:?}, scheme = {scheme:?} }},");
    }
    text + "]\n"
}
