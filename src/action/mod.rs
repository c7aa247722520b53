//! Floor 2: the contract between stages and the engine. An action is everything that may influence
//! an output, and nothing else. Knows no implementation.

#[allow(clippy::module_inception)]
mod action;
mod blob;
mod inputs;
mod io;
mod manifest;
mod params;
mod registry;
mod stage;
mod typed;

pub use action::{Action, ActionKey, Ingredient};
pub use blob::{Blob, Memory};
pub use inputs::Inputs;
pub use io::{BlobSink, Job, Workspace};
pub use manifest::{ArtifactKind, Content, Manifest, Outputs, Part, PartName, Window, stands_for};
pub use registry::Registry;
pub use stage::{
    ANY, Demand, Given, InputSpec, Isolation, MAY_BE, ParamProblem, Proof, Smaller, Stage,
    StageSpec, ToolFile, WorkOrder,
};
pub use typed::{Erased, Order, TypedStage};
