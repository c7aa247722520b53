//! The report of `validate`: figures, the limits that they are compared with, and the verdict.

mod checks;
mod limits;
mod text;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::artifact::device::DeviceFigures;
use crate::artifact::estimate::ModelEstimate;
use crate::artifact::evaluation::{GreedyScore, Masks, Ranges, measured};
use crate::artifact::generation::Generation;
use crate::artifact::layer_evaluation::Computed;
use crate::base::{CanonJson, Result};
use crate::model::fidelity::Fidelity;
use crate::model::quant_report::QuantReport;
use checks::Check;
pub use limits::{KINDS, Limits};

/// The figures of a stage, and their limits.
#[derive(Clone, Serialize, Deserialize)]
pub struct Limited<T> {
    /// The figures.
    #[serde(flatten)]
    pub found: T,
    /// What they are compared with.
    #[serde(skip)]
    pub limits: Limits,
}

/// How close a candidate comes to the reference.
#[derive(Serialize)]
pub struct Candidate {
    /// How many windows were evaluated.
    pub windows: usize,
    /// Over all their predictions.
    pub fidelity: Fidelity,
    /// Logits that are infinite or NaN.
    pub non_finite: u64,
    /// The greedy continuation, if the reference has one.
    pub greedy: Option<GreedyScore>,
    /// The largest magnitudes by kind of inner tensor.
    pub ranges: BTreeMap<String, Range>,
    /// How far masked attention scores are below visible ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<Mask>,
}

/// How far masked attention scores are below visible ones.
#[derive(Clone, Serialize)]
pub struct Mask {
    /// The smallest measured distance.
    pub least: f32,
    /// The layer that has it.
    pub layer: u32,
    /// The smallest bound of a layer.
    pub bound: f32,
    /// The layer that has it.
    pub bound_layer: u32,
}

/// The largest magnitude among the tensors of one kind.
#[derive(Clone, Serialize)]
pub struct Range {
    /// That magnitude.
    pub largest: f32,
    /// The tensor that has it.
    pub tensor: String,
}

/// The size of an artifact.
#[derive(Clone, Copy, Serialize)]
pub struct Size {
    /// In bytes.
    pub bytes: u64,
}

/// The quantization errors of stored weights.
#[derive(Clone, Serialize)]
pub struct Storage {
    /// By tensor.
    pub quantization: QuantReport,
}

/// The figures that are reported, by stage.
#[derive(Default, Serialize)]
pub struct Found {
    /// Evaluations.
    pub candidates: BTreeMap<String, Limited<Candidate>>,
    /// Binaries, DLCs and bundles.
    pub sizes: BTreeMap<String, Limited<Size>>,
    /// Stored weights.
    pub storage: BTreeMap<String, Limited<Storage>>,
    /// Answers of bundles in Genie.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub generated: BTreeMap<String, Limited<Generation>>,
    /// Layers on the simulator.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub layers: BTreeMap<String, Limited<Computed>>,
    /// Bundles on devices.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub devices: BTreeMap<String, Limited<DeviceFigures>>,
    /// Graphs by the compiler's estimate.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub estimates: BTreeMap<String, Limited<ModelEstimate>>,
}

/// All figures, every check of a limit, and the verdict.
#[derive(Serialize)]
pub struct Report {
    passed: bool,
    #[serde(flatten)]
    found: Found,
    checks: Vec<Check>,
}

impl Mask {
    /// The minimum over all layers; `None` if there are no layers.
    pub fn of(masks: &Masks) -> Option<Mask> {
        let (layer, least) = masks
            .iter()
            .min_by(|a, b| a.1.least.total_cmp(&b.1.least))?;
        let (bound_layer, bound) = masks
            .iter()
            .min_by(|a, b| a.1.bound.total_cmp(&b.1.bound))?;
        Some(Mask {
            least: least.least,
            layer: *layer,
            bound: bound.bound,
            bound_layer: *bound_layer,
        })
    }
}

impl Range {
    /// The largest magnitude of each kind of tensor, and the tensor that has it.
    pub fn by_kind(ranges: &Ranges) -> BTreeMap<String, Range> {
        let mut kinds: BTreeMap<String, Range> = BTreeMap::new();
        for (tensor, &largest) in ranges {
            let Some(kind) = measured(tensor) else {
                continue;
            };
            if kinds.get(kind).is_none_or(|range| range.largest < largest) {
                let tensor = tensor.clone();
                kinds.insert(kind.into(), Range { largest, tensor });
            }
        }
        kinds
    }
}

impl Report {
    /// Compares the figures with their limits.
    pub fn new(found: Found) -> Self {
        let checks = checks::all(&found);
        Report {
            passed: checks.iter().all(|check| check.passed),
            found,
            checks,
        }
    }

    /// Whether every limit is kept.
    pub fn passed(&self) -> bool {
        self.passed
    }

    /// The canonical text of everything.
    pub fn json(&self) -> Result<String> {
        Ok(CanonJson::of(self)?.to_string())
    }
}
