//! The list of ggml's storage types: id, name, block size and decoder.

use std::fmt;

use super::{Q4_0, Q4_1, Q6K, Q8_0, plain, wide};
use super::{
    iq1_m, iq1_s, iq2_s, iq2_xs, iq2_xxs, iq3_s, iq3_xxs, iq4_nl, iq4_xs, mxfp4, nvfp4, q1_0, q2_0,
    q2_k, q3_k, q4_k, q5_0, q5_1, q5_k, q8_k, tq1_0, tq2_0,
};
use crate::base::{Code, Problem, Result};
use crate::model::quant::QuantFormat;

/// One of ggml's storage types. A row consists of whole blocks.
pub struct GgmlType {
    /// The number that GGUF files use.
    pub id: u32,
    /// ggml's name: `Q4_0`.
    pub name: &'static str,
    /// Values of one block.
    pub block_len: u64,
    /// Bytes of one block.
    pub block_bytes: u64,
    /// Decoder.
    pub format: &'static dyn QuantFormat,
}

const fn ggml(
    id: u32,
    name: &'static str,
    block_len: u64,
    block_bytes: u64,
    format: &'static dyn QuantFormat,
) -> GgmlType {
    GgmlType {
        id,
        name,
        block_len,
        block_bytes,
        format,
    }
}

/// Every type a GGUF may hold, after `enum ggml_type` of ggml.h (llama.cpp 0.5.0) and
/// `GGML_QUANT_SIZES` of gguf-py's `constants.py`.
static TYPES: [GgmlType; 34] = [
    ggml(0, "F32", 1, 4, &plain::F32),
    ggml(1, "F16", 1, 2, &plain::F16),
    ggml(2, "Q4_0", 32, 18, &Q4_0),
    ggml(3, "Q4_1", 32, 20, &Q4_1),
    ggml(6, "Q5_0", 32, 22, &q5_0::Q5_0),
    ggml(7, "Q5_1", 32, 24, &q5_1::Q5_1),
    ggml(8, "Q8_0", 32, 34, &Q8_0),
    ggml(10, "Q2_K", 256, 84, &q2_k::Q2_K),
    ggml(11, "Q3_K", 256, 110, &q3_k::Q3_K),
    ggml(12, "Q4_K", 256, 144, &q4_k::Q4_K),
    ggml(13, "Q5_K", 256, 176, &q5_k::Q5_K),
    ggml(14, "Q6_K", 256, 210, &Q6K),
    ggml(15, "Q8_K", 256, 292, &q8_k::Q8_K),
    ggml(16, "IQ2_XXS", 256, 66, &iq2_xxs::IQ2_XXS),
    ggml(17, "IQ2_XS", 256, 74, &iq2_xs::IQ2_XS),
    ggml(18, "IQ3_XXS", 256, 98, &iq3_xxs::IQ3_XXS),
    ggml(19, "IQ1_S", 256, 50, &iq1_s::IQ1_S),
    ggml(20, "IQ4_NL", 32, 18, &iq4_nl::IQ4_NL),
    ggml(21, "IQ3_S", 256, 110, &iq3_s::IQ3_S),
    ggml(22, "IQ2_S", 256, 82, &iq2_s::IQ2_S),
    ggml(23, "IQ4_XS", 256, 136, &iq4_xs::IQ4_XS),
    ggml(24, "I8", 1, 1, &wide::I8),
    ggml(25, "I16", 1, 2, &wide::I16),
    ggml(26, "I32", 1, 4, &wide::I32),
    ggml(27, "I64", 1, 8, &wide::I64),
    ggml(28, "F64", 1, 8, &wide::F64),
    ggml(29, "IQ1_M", 256, 56, &iq1_m::IQ1_M),
    ggml(30, "BF16", 1, 2, &plain::Bf16),
    ggml(34, "TQ1_0", 256, 54, &tq1_0::TQ1_0),
    ggml(35, "TQ2_0", 256, 66, &tq2_0::TQ2_0),
    ggml(39, "MXFP4", 32, 17, &mxfp4::MXFP4),
    ggml(40, "NVFP4", 64, 36, &nvfp4::NVFP4),
    ggml(41, "Q1_0", 128, 18, &q1_0::Q1_0),
    ggml(42, "Q2_0", 64, 18, &q2_0::Q2_0),
];

/// Types that ggml removed.
const REMOVED: [(u32, &str); 8] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
];

/// The id of Q8_1. ggml uses it for activations only, and its sources disagree on the block size.
const Q8_1: u32 = 9;

impl GgmlType {
    /// The type with number `id`.
    pub fn by_id(id: u32) -> Result<&'static GgmlType> {
        if let Some(ggml) = TYPES.iter().find(|ggml| ggml.id == id) {
            return Ok(ggml);
        }
        let removed = REMOVED.iter().find(|(removed, _)| *removed == id);
        let (what, help) = match removed {
            Some((_, name)) => (
                format!("type {name} (id {id}) was removed from ggml"),
                "quantize the model again with a present llama.cpp",
            ),
            None if id == Q8_1 => (
                format!("type Q8_1 (id {id}) is never stored in a file"),
                "the file is damaged, or made by a fork of llama.cpp",
            ),
            None => (
                format!("unknown type id {id}"),
                "kiln knows ggml's own types (ids 0 to 42), not those of its forks",
            ),
        };
        Err(Problem::new(Code::ModelGgmlType, what).help(help))
    }

    /// The type called `name`.
    pub fn by_name(name: &str) -> Result<&'static GgmlType> {
        for ggml in &TYPES {
            if ggml.name == name {
                return Ok(ggml);
            }
        }
        let message = format!("ggml has no type `{}`", name.escape_debug());
        Err(Problem::new(Code::ModelGgmlType, message))
    }

    /// All types, by id.
    pub fn all() -> impl Iterator<Item = &'static GgmlType> {
        TYPES.iter()
    }

    /// The bytes of `values` values; `None` if they are not whole blocks, or on overflow.
    pub fn bytes(&self, values: u64) -> Option<u64> {
        if !values.is_multiple_of(self.block_len) {
            return None;
        }
        (values / self.block_len).checked_mul(self.block_bytes)
    }

    /// The bytes of `values` values in memory, whole blocks.
    pub(in crate::model::quant) fn block_bytes_of(&self, values: usize) -> usize {
        values / self.block_len as usize * self.block_bytes as usize
    }
}

impl fmt::Debug for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for GgmlType {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for GgmlType {}
