//! The contract between stages and the engine. An action is everything that can influence an
//! output, and nothing else.

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

pub use action::{Action, ActionInput, ActionKey};
pub use blob::{Blob, BlobMemory};
pub use inputs::{Inputs, ToolFile};
pub use io::{BlobSink, Job, Workspace};
pub use manifest::{
    ArtifactKind, Content, Manifest, Outputs, Part, PartName, Window, matches_output,
};
pub use registry::Registry;
pub use stage::{
    ANY, Demand, InputSpec, InputStage, Isolation, OPTIONAL_TOOL, ParamProblem, Proof, Smaller,
    Stage, StageSpec, WorkOrder,
};
pub use typed::{Erased, Order, TypedStage};
