//! The stage kinds, one file each. A new kind is a file and a line in [`all`].

pub mod calibrate;
pub mod command;
pub mod context_bin;
pub mod dequant;
pub mod dlc;
pub mod estimate;
pub mod evaluate;
pub mod evaluate_layers;
pub mod export_gguf;
pub mod fetch;
pub mod generate;
pub mod graph;
pub mod inspect;
pub mod measure;
pub mod mixed_precision;
pub mod package;
pub mod reference;
pub mod requant;
pub mod rotate;
pub mod sensitivity;
pub mod validate;

use crate::action::{Erased, Registry};

/// Every stage kind.
pub fn all() -> Registry {
    Registry::new(vec![
        Box::new(Erased::new(fetch::Fetch)),
        Box::new(Erased::new(inspect::Inspect)),
        Box::new(Erased::new(dequant::Dequant)),
        Box::new(Erased::new(requant::Requant)),
        Box::new(Erased::new(rotate::Rotate)),
        Box::new(Erased::new(export_gguf::ExportGguf)),
        Box::new(Erased::new(graph::Graph)),
        Box::new(Erased::new(dlc::Dlc)),
        Box::new(Erased::new(context_bin::ContextBin)),
        Box::new(Erased::new(reference::ReferenceStage)),
        Box::new(Erased::new(calibrate::Calibrate)),
        Box::new(Erased::new(evaluate::Evaluate)),
        Box::new(Erased::new(evaluate_layers::EvaluateLayers)),
        Box::new(Erased::new(estimate::Estimate)),
        Box::new(Erased::new(sensitivity::Sensitivity)),
        Box::new(Erased::new(mixed_precision::MixedPrecision)),
        Box::new(Erased::new(package::Package)),
        Box::new(Erased::new(measure::Measure)),
        Box::new(Erased::new(validate::Validate)),
        Box::new(Erased::new(generate::Generate)),
        Box::new(Erased::new(command::Command)),
    ])
}
