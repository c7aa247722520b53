//! Chooses which activations are stored in 16 bits, and on what grid, by the rounding error that a
//! calibration predicts.
//!
//! Values that are copies of each other's data share a grid; they are a class. A class is rounded
//! if its error is small and some operator computes on its codes. A class with a wide range stays
//! float (the residual stream: its largest element is a thousand times an ordinary one), and so do
//! values that only float operators read. With `float = "never"` every class is rounded.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::classes::Classes;
use super::window::Hidden;
use super::{Activations as Storage, Cache, Float};
use crate::base::{Code, Problem, Result};
use crate::model::calibration::{Activation, Activations, is_sums, wide_of};
use crate::model::decoder::inputs::{self, HostInput, in_window_mask, is_mask};
use crate::model::facts::of_all_heads;
use crate::model::onnx::proto::{GraphProto, ModelProto, NodeProto};
use crate::model::onnx::{Checked, Function, Grid, WeightCall};
use crate::model::weight::blob_owner;

/// The least distance of a masked score below the least visible one: its weight is then at most
/// e^-30. Genie masks with the least code, so the grid of the mask decides how deep the mask is.
const MASKED: f32 = 30.0;

/// The parameters of the choice.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    pub(super) activations: Storage,
    pub(super) cache: Cache,
    pub(super) float: Float,
    /// The least signal to rounding noise.
    pub(super) sqnr_db: f64,
    /// How far a grid extends beyond the calibrated range on both sides, as a fraction of it.
    pub(super) margin: f32,
}

/// The choice for a class, by one of its values: a line of `encodings.json`. All heads have one
/// line.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Chosen {
    /// Absent if the class stays float.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(super) grid: Option<Grid>,
    /// Signal to rounding noise on a grid of 16 bits, without outliers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sqnr_db: Option<f64>,
    /// Why the class stays float.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) float: Option<&'static str>,
}

/// The choice for a graph.
pub(super) struct Choice {
    /// The values that are rounded as soon as they are computed.
    pub(super) grids: BTreeMap<String, Grid>,
    /// Every class.
    pub(super) report: BTreeMap<String, Chosen>,
}

/// Whether a graph takes or returns keys or values under this name.
fn is_cache(name: &str) -> bool {
    inputs::Cache::named(name).is_some()
}

/// The choice for the float graph of `model`.
pub(super) fn choose(
    model: &ModelProto,
    calibration: &Activations,
    policy: Policy,
) -> Result<Choice> {
    let checked = Checked::new(model)?;
    let graph = checked.graph;
    let same_codes = policy.activations == Storage::U16 && policy.cache == Cache::U16;
    check(graph, calibration)?;
    let mut chooser = Chooser {
        checked,
        calibration,
        // A cache of other codes than the values it is made from is rounded again at the output.
        classes: Classes::new(graph, |value| !same_codes && is_cache(value)),
        policy,
        grids: BTreeMap::new(),
        report: BTreeMap::new(),
    };
    chooser.assign_grids();
    if policy.float == Float::WhereNeeded {
        chooser.drop_unused();
    }
    Ok(chooser.finish())
}

/// Refuses a calibration of another graph.
fn check(graph: &GraphProto, calibration: &Activations) -> Result<()> {
    let mut unknown = vec![];
    for output in graph.node.iter().flat_map(|node| &node.output) {
        // A wide value is another value and its sums.
        // The grids of masks follow from the scores.
        let is_known = calibration.contains_key(of_all_heads(output))
            || wide_of(output).is_some()
            || in_window_mask(output).is_some();
        if !is_known && unknown.len() < 4 {
            unknown.push(output.as_str());
        }
    }
    if unknown.is_empty() {
        return Ok(());
    }
    if unknown.iter().all(|name| is_sums(name)) {
        let message = format!(
            "the calibration lacks sums of blocks: {}",
            unknown.join(", ")
        );
        return Err(Problem::new(Code::GraphCalibration, message)
            .help("`lpbq-32-shifted` needs a calibration by this version of kiln: make it again"));
    }
    Err(Problem::new(
        Code::GraphCalibration,
        format!("the calibration does not know {}", unknown.join(", ")),
    )
    .help("calibrate a float graph of the same model, with the same exponents and `key_centre`"))
}

/// The grid of values that are all 0.
fn zeros(bits: u32) -> Grid {
    Grid {
        bits,
        scale: 1.0,
        zero_point: 1 << (bits - 1),
    }
}

/// Most weights that a problem names.
const NAMED: usize = 4;

/// Refuses a graph with linear layers whose weights cannot multiply codes.
pub(super) fn check_linear_layers(model: &ModelProto) -> Result<()> {
    let checked = Checked::new(model)?;
    let mut refused = BTreeSet::new();
    for node in &checked.graph.node {
        if let Some(Function::Linear { .. }) = Function::of(node)
            && let Ok(call) = WeightCall::of(&checked, node)
            && !call.encoding.multiplies_codes()
        {
            let name = blob_owner(&call.main().name);
            refused.insert(format!("`{name}` ({})", call.encoding));
        }
    }
    if refused.is_empty() {
        return Ok(());
    }
    let count = refused.len();
    let mut names: Vec<String> = refused.into_iter().take(NAMED).collect();
    if count > names.len() {
        names.push(format!("{} more", count - names.len()));
    }
    Err(Problem::new(
        Code::GraphWeights,
        format!(
            "`float = \"never\"`: {count} of the weights of linear layers cannot multiply codes: \
             {}",
            names.join(", ")
        ),
    )
    .help("choose `int8-channel`, `int4-channel` or `lpbq-*` for them in the `requant` stage"))
}

struct Chooser<'a> {
    checked: Checked<'a>,
    calibration: &'a Activations,
    classes: Classes<'a>,
    policy: Policy,
    /// By class.
    grids: BTreeMap<usize, Grid>,
    /// By class.
    report: BTreeMap<usize, Chosen>,
}

/// How the operators and the host use the classes.
#[derive(Default)]
struct Uses {
    /// The second operand of a MatMul.
    symmetric: BTreeSet<usize>,
    /// The output of Softmax or Sigmoid.
    unit: BTreeSet<usize>,
    /// The output of Tanh.
    signed_unit: BTreeSet<usize>,
    /// Scores with the mask added: by class, the class of the scores.
    masked: BTreeMap<usize, usize>,
    cache: BTreeSet<usize>,
    /// Cosines and sines.
    rotary: BTreeSet<usize>,
    masks: BTreeSet<usize>,
    /// What windows hide.
    hidden: BTreeMap<usize, Hidden>,
    /// The rows of an embedding.
    looked_up: BTreeSet<usize>,
}

impl Uses {
    fn of(graph: &GraphProto, classes: &Classes) -> Self {
        let mut uses = Uses::default();
        for input in &graph.input {
            let class = classes.of(&input.name);
            match HostInput::named(&input.name) {
                Some(HostInput::RotaryCos(_) | HostInput::RotarySin(_)) => {
                    uses.rotary.extend(class)
                }
                Some(HostInput::Past(..)) => uses.cache.extend(class),
                // It is found where it is added.
                Some(HostInput::Mask) => {}
                Some(HostInput::TokenIds | HostInput::Embeddings) | None => {}
            }
        }
        for node in &graph.node {
            let class = |names: &[String], index: usize| classes.of(names.get(index)?);
            let output = class(&node.output, 0);
            if let Some(Function::Embedding { .. }) = Function::of(node) {
                uses.looked_up.extend(output);
            }
            let hidden = node.output.first().and_then(|name| Hidden::named(name));
            if let (Some(output), Some(hidden)) = (output, hidden) {
                uses.hidden.insert(output, hidden);
            }
            let (first, second) = (class(&node.input, 0), class(&node.input, 1));
            match node.op_type.as_str() {
                "MatMul" => uses.symmetric.extend(second),
                "Softmax" | "Sigmoid" => uses.unit.extend(output),
                "Tanh" => uses.signed_unit.extend(output),
                "Add" if node.input.get(1).is_some_and(|name| is_mask(name)) => {
                    uses.masks.extend(second);
                    if let (Some(output), Some(scores)) = (output, first) {
                        uses.masked.insert(output, scores);
                    }
                }
                _ => {}
            }
        }
        uses
    }
}

impl Uses {
    /// The grid of `class` that does not depend on its own statistics, if it has one. Masks are of
    /// this depth.
    fn fixed(&self, class: usize, bits: u32, mask_depth: f32) -> Option<Grid> {
        match self.hidden.get(&class) {
            // A calibration begins with an empty context, where a window hides nothing.
            Some(Hidden::Sign) => Grid::symmetric(bits, 1.0),
            Some(Hidden::Share) => Some(Grid::unit(bits)),
            Some(Hidden::Depth) => Grid::over(bits, -mask_depth, 0.0),
            None if self.masks.contains(&class) => Grid::over(bits, -mask_depth, 0.0),
            None if self.unit.contains(&class) => Some(Grid::unit(bits)),
            None if self.signed_unit.contains(&class) => Some(Grid::signed_unit(bits)),
            None => None,
        }
    }
}

impl<'a> Chooser<'a> {
    /// Assigns a grid to every class whose rounding error is small.
    fn assign_grids(&mut self) {
        let uses = Uses::of(self.checked.graph, &self.classes);
        let mut mask_depth = 0.0f32;
        for scores in uses.masked.values() {
            if let Some(scores) = self.statistics(*scores) {
                mask_depth = mask_depth.max(self.high(&scores) - self.low(&scores) + MASKED);
            }
        }
        for class in 0..self.classes.count() {
            let is_cache = uses.cache.contains(&class);
            let bits = match (is_cache, self.policy.cache, self.policy.activations) {
                (true, Cache::U8, _) => 8,
                (true, Cache::U16, _) => 16,
                (false, _, Storage::U16) => 16,
                _ => continue,
            };
            let is_float_allowed = self.policy.float == Float::WhereNeeded;
            if is_float_allowed && uses.looked_up.contains(&class) {
                // A table of 16-bit codes takes two to four times the bytes of a quantized one.
                self.keep_float(class, None, "looked up");
                continue;
            }
            if let Some(grid) = uses.fixed(class, bits, mask_depth) {
                self.insert(class, grid, None);
                continue;
            }
            // The mask does not count as a value of masked scores.
            let measured = uses.masked.get(&class).copied().unwrap_or(class);
            let Some(statistics) = self.statistics(measured) else {
                if !is_float_allowed && self.classes.names(class).next().is_some() {
                    self.insert(class, zeros(bits), None);
                }
                continue;
            };
            let grid = match self.grid(class, bits, &statistics, &uses) {
                Some(grid) => grid,
                None if is_float_allowed => continue,
                None => zeros(bits),
            };
            let sqnr_db = if is_cache {
                None
            } else {
                let sqnr_db = 10.0 * (statistics.bulk_square / grid.noise()).log10();
                Some((sqnr_db * 100.0).round() / 100.0)
            };
            let is_close = sqnr_db.is_none_or(|sqnr_db| sqnr_db >= self.policy.sqnr_db);
            if is_close || !is_float_allowed {
                self.insert(class, grid, sqnr_db);
            } else {
                self.keep_float(class, sqnr_db, "wide");
            }
        }
    }

    /// Leaves `class` in floating point, for the reason `why`.
    fn keep_float(&mut self, class: usize, sqnr_db: Option<f64>, why: &'static str) {
        let chosen = Chosen {
            grid: None,
            sqnr_db,
            float: Some(why),
        };
        self.report.insert(class, chosen);
    }

    /// Rounds `class` to `grid`.
    fn insert(&mut self, class: usize, grid: Grid, sqnr_db: Option<f64>) {
        self.grids.insert(class, grid);
        let chosen = Chosen {
            grid: Some(grid),
            sqnr_db,
            float: None,
        };
        self.report.insert(class, chosen);
    }

    /// The grid for the values of `class`; `None` if they are all 0.
    fn grid(&self, class: usize, bits: u32, statistics: &Activation, uses: &Uses) -> Option<Grid> {
        let (low, high) = (self.low(statistics), self.high(statistics));
        if uses.rotary.contains(&class) {
            // RoPE may multiply them by a number above 1.
            Grid::symmetric(bits, statistics.max.max(-statistics.min).max(1.0))
        } else if bits == 8 {
            // There are few codes: one in ten thousand values is clipped.
            Grid::symmetric(bits, statistics.p99_99)
        } else if uses.cache.contains(&class) || uses.symmetric.contains(&class) {
            Grid::symmetric(bits, high.max(-low))
        } else if uses.masked.contains_key(&class) {
            Grid::over(bits, low - MASKED, high)
        } else {
            Grid::over(bits, low, high)
        }
    }

    /// Removes the grid of classes whose codes no operator computes on, until all remaining classes
    /// are used.
    fn drop_unused(&mut self) {
        loop {
            let mut used: BTreeSet<usize> = BTreeSet::new();
            for node in &self.checked.graph.node {
                used.extend(self.classes_used_by(node));
            }
            let mut unused = vec![];
            for class in self.grids.keys() {
                if !used.contains(class) && !self.classes.names(*class).any(is_cache) {
                    unused.push(*class);
                }
            }
            if unused.is_empty() {
                return;
            }
            for class in unused {
                self.grids.remove(&class);
                if let Some(chosen) = self.report.get_mut(&class) {
                    (chosen.grid, chosen.float) = (None, Some("read by float operators only"));
                }
            }
        }
    }

    /// The classes whose codes `node` computes on: those that it reads, for a linear layer that
    /// multiplies codes also what it computes. A linear layer in f16 reads codes, too; other
    /// operators only if all their values have codes.
    fn classes_used_by(&self, node: &'a NodeProto) -> Vec<usize> {
        let inputs = self.classes.of_all(&node.input);
        let outputs = self.classes.of_all(&node.output);
        let all_have_codes = || {
            let mut classes = inputs.iter().chain(&outputs);
            classes.all(|class| self.grids.contains_key(class))
        };
        match Function::of(node) {
            Some(Function::Linear { .. }) if self.multiplies_codes(node) && all_have_codes() => {
                [inputs, outputs].concat()
            }
            Some(Function::Linear { .. }) => inputs,
            Some(Function::RmsNorm | Function::Embedding { .. }) => vec![],
            None if Classes::moves(node) || !all_have_codes() => vec![],
            None => inputs,
        }
    }

    /// Whether the weight of a linear layer can multiply codes.
    fn multiplies_codes(&self, node: &'a NodeProto) -> bool {
        match WeightCall::of(&self.checked, node) {
            Ok(call) => call.encoding.multiplies_codes(),
            Err(_) => false,
        }
    }

    /// The statistics of the values of a class together: the largest range, the smallest
    /// `bulk_square`. `None` if all of them are always 0.
    fn statistics(&self, class: usize) -> Option<Activation> {
        let mut all: Option<Activation> = None;
        for name in self.classes.names(class) {
            let Some(value) = self.calibration.get(of_all_heads(name)) else {
                continue;
            };
            if value.zeros >= value.count {
                continue;
            }
            match &mut all {
                None => all = Some(value.clone()),
                Some(all) => {
                    all.min = all.min.min(value.min);
                    all.max = all.max.max(value.max);
                    all.bulk_square = all.bulk_square.min(value.bulk_square);
                }
            }
        }
        all
    }

    fn low(&self, statistics: &Activation) -> f32 {
        statistics.min - self.policy.margin * (statistics.max - statistics.min)
    }

    fn high(&self, statistics: &Activation) -> f32 {
        statistics.max + self.policy.margin * (statistics.max - statistics.min)
    }

    fn finish(self) -> Choice {
        let mut choice = Choice {
            grids: BTreeMap::new(),
            report: BTreeMap::new(),
        };
        for (class, grid) in &self.grids {
            for name in self.classes.sources(*class) {
                choice.grids.insert(name.into(), *grid);
            }
        }
        for (class, chosen) in self.report {
            if let Some(name) = self.classes.names(class).next() {
                choice.report.insert(of_all_heads(name).into(), chosen);
            }
        }
        choice
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::onnx::proto::element;
    use crate::model::onnx::{Builder, External, float, gain, int};
    use crate::model::weight::WeightForm;

    /// A feed-forward layer over `x`, and an attention without heads. The weights multiply codes.
    fn graph() -> ModelProto {
        let mut g = Builder::default();
        let dims = [1, 1, 2, 2];
        let mask = g.input("attention_mask", element::FLOAT, &dims);
        let past = g.input("past_key_0_in", element::FLOAT, &dims);
        let x = g.input("x", element::FLOAT, &dims);
        let [codes, scales] = [
            ("codes", element::INT8, [2, 2]),
            ("scales", element::FLOAT, [2, 1]),
        ]
        .map(|(name, element, dims)| {
            g.external(&External {
                name: &format!("w/{name}"),
                location: format!("w/{name}"),
                element,
                dims: &dims,
                size_bytes: 1,
            })
        });
        let linear = Function::Linear {
            weight: WeightForm::Block,
            bias: false,
        };
        let attributes = || vec![int("block", 2), gain(0)];
        let norm = g.call(
            Function::RmsNorm,
            "norm",
            &[&x],
            vec![float("epsilon", 1e-6)],
            dims.into(),
        );
        let gate = g.call(
            linear,
            "gate",
            &[&norm, &codes, &scales],
            attributes(),
            dims.into(),
        );
        let sigmoid = g.sigmoid("sigmoid", &gate);
        let silu = g.elementwise("Mul", "silu", &gate, &sigmoid);
        let down = g.call(
            linear,
            "down",
            &[&silu, &codes, &scales],
            attributes(),
            dims.into(),
        );
        let residual = g.elementwise("Add", "residual", &x, &down);
        let key = g.elementwise("Add", "key", &gate, &gate);
        let key = g.transpose("past_key_0_out", &key, [0, 1, 3, 2]);
        let keys = g.concat("keys", &[&past, &key], 3);
        let scores = g.matmul("scores", &gate, &keys);
        let masked = g.elementwise("Add", "masked", &scores, &mask);
        let p = g.softmax("p", &masked);
        let last = g.call(
            linear,
            "last",
            &[&p, &codes, &scales],
            attributes(),
            dims.into(),
        );
        for output in [&residual, &key, &last] {
            g.output(output);
        }
        g.finish("g")
    }

    /// Statistics of the range -1 to `max` with a bulk of 1.
    fn statistics(max: f32) -> Activation {
        Activation {
            count: 9,
            zeros: 0,
            min: -1.0,
            max,
            mean_square: 1.0,
            bulk_square: 1.0,
            p99: 1.0,
            p99_9: 1.0,
            p99_99: 1.0,
        }
    }

    /// Checks the report if the values in `wide` have a range of -1 to 30,000, all others of -1 to
    /// 3.
    #[track_caller]
    fn check(wide: &[&str], activations: Storage, cache: Cache, expected: &[&str]) {
        let model = graph();
        let float = model.graph.as_ref().unwrap();
        let mut calibration = Activations::new();
        for input in &float.input {
            calibration.insert(input.name.clone(), statistics(3.0));
        }
        for output in float.node.iter().flat_map(|node| &node.output) {
            calibration.insert(output.clone(), statistics(3.0));
        }
        for name in wide {
            calibration.insert(name.to_string(), statistics(30_000.0));
        }
        let policy = Policy {
            activations,
            cache,
            float: Float::WhereNeeded,
            sqnr_db: 60.0,
            margin: 0.0,
        };
        let choice = choose(&model, &calibration, policy).unwrap();
        let mut report = vec![];
        for (name, chosen) in choice.report {
            report.push(match chosen.grid {
                Some(grid) => format!("{name} u{} from {}", grid.bits, grid.zero_point),
                None => format!("{name} {}", chosen.float.unwrap_or_default()),
            });
        }
        assert_eq!(report, expected);
    }

    #[test]
    fn wide_values_stay_float_with_what_only_float_operators_read() {
        check(
            &["x", "residual"],
            Storage::U16,
            Cache::U16,
            &[
                "attention_mask u16 from 65535",
                "down u16 from 16384",
                "gate u16 from 16384",
                "last u16 from 16384",
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
    fn values_from_a_float_cache_are_rounded_after_their_matmul() {
        check(
            &["x", "residual", "silu"],
            Storage::U16,
            Cache::F16,
            &[
                "attention_mask u16 from 65535",
                "down read by float operators only",
                "gate u16 from 16384",
                "key read by float operators only",
                "last u16 from 16384",
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
        check(&[], Storage::F16, Cache::U8, &["past_key_0_in u8 from 128"]);
    }

    #[test]
    fn a_calibration_of_another_graph_is_refused() {
        let policy = Policy {
            activations: Storage::U16,
            cache: Cache::F16,
            float: Float::WhereNeeded,
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
