//! A device graph as plain data. The lowering creates it; a backend compiles it (libQnnHtp) or
//! writes it as a DLC (libQnnIr).

use std::sync::Arc;

use crate::base::Result;

/// `Qnn_DataType_t`, with the values of the C header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
#[allow(missing_docs)]
pub enum DataType {
    Int32 = 0x32,
    Uint8 = 0x108,
    Uint32 = 0x132,
    Float16 = 0x216,
    Float32 = 0x232,
    SFixed8 = 0x308,
    SFixed32 = 0x332,
    UFixed8 = 0x408,
    UFixed16 = 0x416,
    Bool8 = 0x508,
}

impl DataType {
    /// Bytes of one element.
    pub fn size_bytes(self) -> u64 {
        match self {
            DataType::Uint8 | DataType::SFixed8 | DataType::UFixed8 | DataType::Bool8 => 1,
            DataType::Float16 | DataType::UFixed16 => 2,
            DataType::SFixed32 | DataType::Int32 | DataType::Uint32 | DataType::Float32 => 4,
        }
    }
}

/// How the codes of a tensor are converted to numbers.
#[derive(Clone, Debug, PartialEq)]
pub enum Encoding {
    /// The elements are numbers, not codes.
    None,
    /// `(code + offset) * scale`, one pair for the tensor.
    ScaleOffset {
        /// Step between codes.
        scale: f32,
        /// The negative of the zero point.
        offset: i32,
    },
    /// `QNN_QUANTIZATION_ENCODING_BW_FLOAT_BLOCK`: `(code + offset) * scale`, a pair for each
    /// block, ordered by output channel, then along the input dimension. Scales keep their
    /// sign; offsets are in units of the code.
    FloatBlock {
        /// Bits of a code: 4 or 8.
        bits: u32,
        /// Extent of a block in each dimension: `[1, 1, 32, 1]`.
        block: Vec<u32>,
        /// One for each block.
        scales: Vec<f32>,
        /// One for each block.
        offsets: Vec<f32>,
    },
    /// `code * scale`, a scale for each index of a dimension:
    /// `QNN_QUANTIZATION_ENCODING_AXIS_SCALE_OFFSET`, or `BW_AXIS_SCALE_OFFSET` for codes narrower
    /// than their type.
    Axis {
        /// Bits of a code, if they are fewer than those of its type.
        bits: Option<u32>,
        /// The dimension.
        axis: u32,
        /// One for each index.
        scales: Vec<f32>,
    },
    /// `QNN_QUANTIZATION_ENCODING_BLOCKWISE_EXPANSION`, LPBQ: `code * block_scale * scale`, codes
    /// of 4 bits, a scale above zero for each output channel, and for each of its blocks along
    /// the input dimension an integer from 1 to 16.
    Expansion {
        /// The dimension of the output channels.
        axis: u32,
        /// One for each channel.
        scales: Vec<f32>,
        /// `[channel][block]`.
        block_scales: Vec<u8>,
    },
}

/// Position of a tensor in [`DeviceGraph::tensors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId(pub u32);

/// The bytes of a static tensor in the layout of the API, and their encoding.
pub struct StaticData {
    /// Little-endian, row-major; one byte for each code, also for 4-bit codes.
    pub bytes: Vec<u8>,
    /// How the codes are converted to numbers.
    pub encoding: Encoding,
}

/// Computes the data of a static tensor when the backend reads it, so that a model is not in memory
/// twice.
pub type Source = Arc<dyn Fn() -> Result<StaticData> + Send + Sync>;

/// The kind of a tensor in its graph.
#[derive(Clone)]
pub enum TensorKind {
    /// Written by the application.
    Input,
    /// Read by the application; may feed nodes too.
    Output,
    /// Between nodes.
    Native,
    /// Constant.
    Static(Source),
}

/// One tensor.
#[derive(Clone)]
pub struct Tensor {
    /// Unique in its graph.
    pub name: String,
    /// Input, output, intermediate or constant.
    pub kind: TensorKind,
    /// Type of its elements.
    pub data_type: DataType,
    /// Outermost first; row-major.
    pub dims: Vec<u32>,
    /// Encoding of a tensor that is not static; that of a static tensor is in its data.
    pub encoding: Encoding,
    /// A description for messages: `f16`, `float-block 4 bit 32`.
    pub note: String,
}

/// A parameter of a node.
#[derive(Clone, Debug, PartialEq)]
pub enum Param {
    /// A scalar.
    U32(u32),
    /// A scalar.
    I32(i32),
    /// A scalar.
    F32(f32),
    /// A scalar.
    Bool(bool),
    /// A constant tensor of u32: dimensions, values.
    Uint32s(Vec<u32>, Vec<u32>),
    /// A constant tensor of i32: dimensions, values.
    Int32s(Vec<u32>, Vec<i32>),
}

/// One operation of package `qti.aisw`.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Unique in its graph.
    pub name: String,
    /// `Conv2d`, `RmsNorm`, ...
    pub op: &'static str,
    /// By name.
    pub params: Vec<(&'static str, Param)>,
    /// In the operation's order.
    pub inputs: Vec<TensorId>,
    /// In the operation's order.
    pub outputs: Vec<TensorId>,
}

/// A device graph; nodes are in topological order.
#[derive(Clone, Default)]
pub struct DeviceGraph {
    /// The name by which the runtime retrieves it.
    pub name: String,
    /// All tensors.
    pub tensors: Vec<Tensor>,
    /// All nodes.
    pub nodes: Vec<Node>,
}

impl DeviceGraph {
    /// The tensor `id`.
    pub fn tensor(&self, id: TensorId) -> &Tensor {
        &self.tensors[id.0 as usize]
    }

    /// Adds a tensor.
    pub fn add(&mut self, tensor: Tensor) -> TensorId {
        self.tensors.push(tensor);
        TensorId((self.tensors.len() - 1) as u32)
    }
}
