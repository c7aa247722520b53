//! Which activations are held in 16 bits, and on what grid: chosen by the error that a calibration
//! promises.
//!
//! Values that are one another's data, moved, share a grid; they are a class. A class is rounded if
//! its error is small and somebody computes on its codes. What is wide (the residual stream, whose
//! largest element is a thousand times an ordinary one) stays float, and so does all that only
//! float operators read.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::classes::Classes;
use super::{Activations as Held, Cache};
use crate::base::{Code, Problem, Result};
use crate::model::calibration::{Activation, Activations};
use crate::model::decoder::inputs::{self, HostInput};
use crate::model::onnx::proto::{GraphProto, NodeProto};
use crate::model::onnx::{Function, Grid};

/// How far below the least score a masked one lies at least: e^-30 of its weight is left. Genie
/// gives the least code to what is masked, so that the grid of the mask decides how deep it is.
const MASKED: f32 = 30.0;

/// What the plan says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    pub(super) activations: Held,
    pub(super) cache: Cache,
    /// Signal to rounding noise, at least.
    pub(super) sqnr_db: f64,
    /// How much wider a grid is than what was seen.
    pub(super) margin: f32,
}

/// What became of a class, by one of its values: a line of `encodings.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Chosen {
    /// Absent where it stays float.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(super) grid: Option<Grid>,
    /// Signal to rounding noise on a grid of 16 bits, of what is no outlier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sqnr_db: Option<f64>,
    /// Why it stays float.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) float: Option<&'static str>,
}

/// The values that are rounded as soon as they are made, and what became of every class.
pub(super) struct Choice {
    pub(super) grids: BTreeMap<String, Grid>,
    pub(super) report: BTreeMap<String, Chosen>,
}

/// Whether keys or values go in or come out under this name.
fn is_cache(name: &str) -> bool {
    inputs::Cache::named(name).is_some()
}

/// The choice for the float graph `graph`.
pub(super) fn choose(
    graph: &GraphProto,
    calibration: &Activations,
    policy: Policy,
) -> Result<Choice> {
    let whole = policy.activations == Held::U16 && policy.cache == Cache::U16;
    // A cache of other codes than what it is made of begins anew where the graph gives it out.
    let begins_anew = |value: &str| !whole && is_cache(value);
    let classes = Classes::new(graph, begins_anew);
    check(graph, calibration)?;
    let mut chooser = Chooser {
        graph,
        calibration,
        classes,
        policy,
        grids: BTreeMap::new(),
        report: BTreeMap::new(),
    };
    chooser.offer();
    chooser.drop_idle();
    Ok(chooser.finish())
}

/// A calibration of another graph is of no use.
fn check(graph: &GraphProto, calibration: &Activations) -> Result<()> {
    let outputs = graph.node.iter().flat_map(|node| &node.output);
    let unknown: Vec<&str> = outputs
        .map(String::as_str)
        .filter(|name| !calibration.contains_key(*name))
        .take(4)
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    Err(Problem::new(
        Code::GraphCalibration,
        format!("the calibration does not know {}", unknown.join(", ")),
    )
    .help("calibrate a float graph of the same model, with the same exponents"))
}

struct Chooser<'a> {
    graph: &'a GraphProto,
    calibration: &'a Activations,
    classes: Classes<'a>,
    policy: Policy,
    /// By class.
    grids: BTreeMap<usize, Grid>,
    report: BTreeMap<usize, Chosen>,
}

/// What a class is to the operators around it.
#[derive(Default)]
struct Roles {
    /// The second operand of a MatMul.
    symmetric: BTreeSet<usize>,
    /// Given by Softmax or Sigmoid.
    unit: BTreeSet<usize>,
    /// Scores with the mask added: by class, the class of the scores.
    masked: BTreeMap<usize, usize>,
    cache: BTreeSet<usize>,
    /// Given by the host, between -1 and 1.
    turns: BTreeSet<usize>,
    mask: Option<usize>,
}

impl Chooser<'_> {
    fn roles(&self) -> Roles {
        let mut roles = Roles::default();
        let class = |name: &str| self.classes.of(name);
        for name in self.graph.input.iter().map(|input| input.name.as_str()) {
            match HostInput::named(name) {
                Some(HostInput::Mask) => roles.mask = class(name),
                Some(HostInput::RotaryCos | HostInput::RotarySin) => {
                    roles.turns.extend(class(name))
                }
                Some(HostInput::Past(..)) => roles.cache.extend(class(name)),
                Some(HostInput::TokenIds | HostInput::Embeddings) | None => {}
            }
        }
        for node in &self.graph.node {
            let output = node.output.first().and_then(|name| class(name));
            let input = |index: usize| node.input.get(index).and_then(|name| class(name));
            match node.op_type.as_str() {
                "MatMul" => roles.symmetric.extend(input(1)),
                "Softmax" | "Sigmoid" => roles.unit.extend(output),
                "Add" if roles.mask.is_some() && input(1) == roles.mask => {
                    roles.masked.extend(output.zip(input(0)));
                }
                _ => {}
            }
        }
        roles
    }

    /// Gives a grid to every class whose error would be small.
    fn offer(&mut self) {
        let roles = self.roles();
        let scores = roles.masked.values().filter_map(|class| self.seen(*class));
        let depth = scores
            .map(|scores| self.high(&scores) - self.low(&scores) + MASKED)
            .fold(0.0, f32::max);
        for class in 0..self.classes.count() {
            let cached = roles.cache.contains(&class);
            let bits = match (cached, self.policy.cache, self.policy.activations) {
                (true, Cache::U8, _) => 8,
                (true, Cache::U16, _) => 16,
                (false, _, Held::U16) => 16,
                _ => continue,
            };
            let seen = roles
                .masked
                .get(&class)
                .map_or_else(|| self.seen(class), |scores| self.seen(*scores));
            let Some(seen) = seen else { continue };
            let largest = self.high(&seen).max(-self.low(&seen));
            let grid = if roles.unit.contains(&class) {
                Some(Grid::unit(bits))
            } else if roles.mask == Some(class) {
                Grid::over(bits, -depth, 0.0)
            } else if roles.turns.contains(&class) {
                Grid::symmetric(bits, 1.0)
            } else if bits == 8 {
                // Steps are dear: what one in ten thousand exceeds is cut off.
                Grid::symmetric(bits, seen.p99_99)
            } else if cached || roles.symmetric.contains(&class) {
                Grid::symmetric(bits, largest)
            } else if roles.masked.contains_key(&class) {
                Grid::over(bits, self.low(&seen) - MASKED, self.high(&seen))
            } else {
                Grid::over(bits, self.low(&seen), self.high(&seen))
            };
            let Some(grid) = grid else { continue };
            let sqnr_db = 10.0 * (seen.bulk_square / grid.noise()).log10();
            let given = cached || roles.unit.contains(&class) || roles.mask == Some(class);
            let sqnr_db = (!given).then(|| (sqnr_db * 100.0).round() / 100.0);
            if sqnr_db.is_none_or(|sqnr| sqnr >= self.policy.sqnr_db) {
                self.grids.insert(class, grid);
                self.report.insert(
                    class,
                    Chosen {
                        grid: Some(grid),
                        sqnr_db,
                        float: None,
                    },
                );
            } else {
                self.report.insert(
                    class,
                    Chosen {
                        grid: None,
                        sqnr_db,
                        float: Some("wide"),
                    },
                );
            }
        }
    }

    /// Takes the grid from classes whose codes nobody computes on, until all that are left are
    /// used.
    fn drop_idle(&mut self) {
        loop {
            let mut used: BTreeSet<usize> = BTreeSet::new();
            for node in &self.graph.node {
                used.extend(self.uses(node));
            }
            let holds_cache = |class: &usize| self.classes.names(*class).any(is_cache);
            let idle: Vec<usize> = self
                .grids
                .keys()
                .copied()
                .filter(|class| !used.contains(class) && !holds_cache(class))
                .collect();
            if idle.is_empty() {
                return;
            }
            for class in idle {
                self.grids.remove(&class);
                if let Some(chosen) = self.report.get_mut(&class) {
                    (chosen.grid, chosen.float) = (None, Some("read by float operators only"));
                }
            }
        }
    }

    /// The classes whose codes `node` computes on.
    fn uses(&self, node: &NodeProto) -> Vec<usize> {
        let is_linear = matches!(Function::of(node), Some(Function::Linear { .. }));
        let inputs: Vec<usize> = node
            .input
            .iter()
            .filter_map(|name| self.classes.of(name))
            .collect();
        let outputs: Vec<usize> = node
            .output
            .iter()
            .filter_map(|name| self.classes.of(name))
            .collect();
        let on_codes = node.domain.is_empty() && !Classes::moves(node);
        let all = inputs
            .iter()
            .chain(&outputs)
            .all(|class| self.grids.contains_key(class));
        if is_linear || (on_codes && all) {
            inputs
        } else {
            vec![]
        }
    }

    /// The values of a class together: the range of all, the bulk of the least.
    fn seen(&self, class: usize) -> Option<Activation> {
        let seen = self
            .classes
            .names(class)
            .filter_map(|name| self.calibration.get(name));
        let seen = seen.filter(|activation| activation.zeros < activation.count);
        seen.cloned().reduce(|a, b| Activation {
            min: a.min.min(b.min),
            max: a.max.max(b.max),
            bulk_square: a.bulk_square.min(b.bulk_square),
            ..a
        })
    }

    fn low(&self, seen: &Activation) -> f32 {
        seen.min - self.policy.margin * (seen.max - seen.min)
    }

    fn high(&self, seen: &Activation) -> f32 {
        seen.max + self.policy.margin * (seen.max - seen.min)
    }

    fn finish(self) -> Choice {
        let mut grids = BTreeMap::new();
        for (class, grid) in &self.grids {
            grids.extend(
                self.classes
                    .sources(*class)
                    .map(|name| (name.to_string(), *grid)),
            );
        }
        let named = |(class, chosen)| Some((self.classes.names(class).next()?.to_string(), chosen));
        Choice {
            grids,
            report: self.report.into_iter().filter_map(named).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::onnx::proto::element;
    use crate::model::onnx::{Builder, Value, float, gain};
    use crate::model::weight::WeightForm;

    /// A feed-forward layer over `x`, and an attention without heads.
    fn graph() -> GraphProto {
        let mut g = Builder::default();
        let dims = [1, 1, 2, 2];
        let mask = g.input("attention_mask", element::FLOAT, &dims);
        let past = g.input("past_key_0_in", element::FLOAT, &dims);
        let x = g.input("x", element::FLOAT, &dims);
        let w = Value {
            name: "w/values".into(),
            dims: vec![2, 2],
        };
        let linear = Function::Linear {
            weight: WeightForm::Plain,
            bias: false,
        };
        let norm = g.call(
            Function::RmsNorm,
            "norm",
            &[&x],
            vec![float("epsilon", 1e-6)],
            dims.into(),
        );
        let gate = g.call(linear, "gate", &[&norm, &w], vec![gain(0)], dims.into());
        let sigmoid = g.sigmoid("sigmoid", &gate);
        let silu = g.elementwise("Mul", "silu", &gate, &sigmoid);
        let down = g.call(linear, "down", &[&silu, &w], vec![gain(0)], dims.into());
        let residual = g.elementwise("Add", "residual", &x, &down);
        let key = g.elementwise("Add", "key", &gate, &gate);
        let key = g.transpose("past_key_0_out", &key, [0, 1, 3, 2]);
        let keys = g.concat("keys", &past, &key, 3);
        let scores = g.matmul("scores", &gate, &keys);
        let masked = g.elementwise("Add", "masked", &scores, &mask);
        let p = g.softmax("p", &masked);
        let last = g.call(linear, "last", &[&p, &w], vec![gain(0)], dims.into());
        [&residual, &key, &last]
            .into_iter()
            .for_each(|output| g.output(output));
        g.finish("g").graph.unwrap()
    }

    /// What becomes of the graph's values, each with a range of -1 to 3 and a bulk of 1 but for
    /// `wide` ones.
    #[track_caller]
    fn check(wide: &[&str], activations: Held, cache: Cache, expected: &[&str]) {
        let graph = graph();
        let seen = |name: &String| {
            let max = if wide.contains(&name.as_str()) {
                30_000.0
            } else {
                3.0
            };
            let [p99, p99_9, p99_99] = [1.0; 3];
            let (mean_square, bulk_square) = (1.0, 1.0);
            (
                name.clone(),
                Activation {
                    count: 9,
                    zeros: 0,
                    min: -1.0,
                    max,
                    mean_square,
                    bulk_square,
                    p99,
                    p99_9,
                    p99_99,
                },
            )
        };
        let inputs = graph.input.iter().map(|input| &input.name);
        let calibration = inputs
            .chain(graph.node.iter().flat_map(|node| &node.output))
            .map(seen)
            .collect();
        let policy = Policy {
            activations,
            cache,
            sqnr_db: 60.0,
            margin: 0.0,
        };
        let choice = choose(&graph, &calibration, policy).unwrap();
        let line = |(name, chosen): (&String, &Chosen)| match (chosen.grid, chosen.float) {
            (Some(grid), _) => format!("{name} u{} from {}", grid.bits, grid.zero_point),
            (None, why) => format!("{name} {}", why.unwrap_or_default()),
        };
        assert_eq!(choice.report.iter().map(line).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_is_wide_stays_float_with_all_that_only_it_reads() {
        check(
            &["x", "residual"],
            Held::U16,
            Cache::U16,
            &[
                "attention_mask u16 from 65535",
                "down read by float operators only",
                "gate u16 from 16384",
                "last read by float operators only",
                "masked u16 from 59753",
                "norm u16 from 16384",
                "p u16 from 0",
                "past_key_0_in u16 from 32768",
                "residual wide",
                "scores u16 from 16384",
                "sigmoid u16 from 0",
                "silu u16 from 16384",
                "x wide",
            ],
        );
    }

    #[test]
    fn what_a_float_cache_gives_is_rounded_after_its_matmul() {
        check(
            &["x", "residual", "silu"],
            Held::U16,
            Cache::F16,
            &[
                "attention_mask u16 from 65535",
                "down read by float operators only",
                "gate read by float operators only",
                "key read by float operators only",
                "last read by float operators only",
                "masked u16 from 59753",
                "norm u16 from 16384",
                "p u16 from 0",
                "residual wide",
                "scores u16 from 16384",
                "sigmoid read by float operators only",
                "silu wide",
                "x wide",
            ],
        );
    }

    #[test]
    fn a_cache_of_codes_needs_nothing_else() {
        check(&[], Held::F16, Cache::U8, &["past_key_0_in u8 from 128"]);
    }

    #[test]
    fn a_calibration_of_another_graph_is_refused() {
        let policy = Policy {
            activations: Held::U16,
            cache: Cache::F16,
            sqnr_db: 60.0,
            margin: 0.0,
        };
        let problem = choose(&graph(), &Activations::new(), policy).err().unwrap();
        assert_eq!(
            problem.message,
            "the calibration does not know norm, gate, sigmoid, silu"
        );
    }
}
