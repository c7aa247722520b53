//! Floor 1: the device. The QNN C API behind safe faces; the only room with raw pointers.

mod ir;

pub use ir::{DataType, DeviceGraph, Encoding, Node, Param, Source, StaticData, Tensor, TensorId, TensorKind};
