//! Element types of blobs.

use serde::{Deserialize, Serialize};

/// The type of the elements of a blob. Blobs are little-endian and row-major, like ONNX external
/// data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Element {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// One byte, two's complement.
    Int8,
    /// One byte, unsigned.
    Uint8,
    /// Two in a byte, the even element in the low nibble, two's complement.
    Int4,
    /// Two in a byte, the even element in the low nibble, unsigned.
    Uint4,
}

impl Element {
    /// Bits of one element.
    pub fn bits(self) -> u64 {
        match self {
            Element::F32 => 32,
            Element::F16 | Element::Bf16 => 16,
            Element::Int8 | Element::Uint8 => 8,
            Element::Int4 | Element::Uint4 => 4,
        }
    }

    /// Whether it is a floating-point number.
    pub fn is_float(self) -> bool {
        matches!(self, Element::F32 | Element::F16 | Element::Bf16)
    }

    /// Its name in facts and messages: `int4`.
    pub fn name(self) -> &'static str {
        match self {
            Element::F32 => "f32",
            Element::F16 => "f16",
            Element::Bf16 => "bf16",
            Element::Int8 => "int8",
            Element::Uint8 => "uint8",
            Element::Int4 => "int4",
            Element::Uint4 => "uint4",
        }
    }
}
