//! Safe wrappers of Qualcomm's libraries: the QNN C API and libGenie. Raw pointers stay in this
//! module.

mod canonical;
mod context;
mod dump;
mod ffi;
mod genie;
mod graph;
mod ir;
mod library;
mod log;
mod profile;
mod proof;
mod quantize;
mod release;
mod simulator;
mod soc;
mod system;
mod tensors;

pub use canonical::without_time;
pub use context::{Backend, Context};
pub use genie::{Dialog, check_config};
pub use graph::{GraphOptions, HtpGraph};
pub use ir::{
    DataType, DeviceGraph, Encoding, Node, Param, Source, StaticData, Tensor, TensorId, TensorKind,
};
pub use profile::{Bounded, Estimate};
pub use proof::{DeviceEncoding, DeviceUse, LinearIo, Proof, prove, relative_rms_error};
pub use release::{how_to_get, release_in_wheel};
pub use simulator::Simulator;
pub use soc::{Chip, Numbers, Soc};
pub use system::{BinaryInfo, Dlc, System};
pub use tensors::{GraphInfo, GraphMemory, TensorInfo};
