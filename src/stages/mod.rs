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
pub mod sensitivity;
pub mod validate;

use crate::action::{Erased, Registry};

/// Every stage kind.
pub fn all() -> Registry {
    Registry::new(vec![
        Box::new(Erased(fetch::Fetch)),
        Box::new(Erased(inspect::Inspect)),
        Box::new(Erased(dequant::Dequant)),
        Box::new(Erased(requant::Requant)),
        Box::new(Erased(export_gguf::ExportGguf)),
        Box::new(Erased(graph::Graph)),
        Box::new(Erased(dlc::Dlc)),
        Box::new(Erased(context_bin::ContextBin)),
        Box::new(Erased(estimate::Estimate)),
        Box::new(Erased(reference::ReferenceStage)),
        Box::new(Erased(calibrate::Calibrate)),
        Box::new(Erased(evaluate::Evaluate)),
        Box::new(Erased(evaluate_layers::EvaluateLayers)),
        Box::new(Erased(sensitivity::Sensitivity)),
        Box::new(Erased(mixed_precision::MixedPrecision)),
        Box::new(Erased(package::Package)),
        Box::new(Erased(measure::Measure)),
        Box::new(Erased(validate::Validate)),
        Box::new(Erased(generate::Generate)),
        Box::new(Erased(command::Command)),
    ])
}
