//! ggml's storage types: id, name, and the size of a block.

use crate::base::{Problem, Result};

use super::{Q4_0, Q4_1, Q6K, Q8_0, QuantFormat, plain};

/// One of ggml's storage types. A row is a whole number of blocks.
#[derive(Debug, PartialEq, Eq)]
pub struct GgmlType {
    /// The number in a GGUF.
    pub id: u32,
    /// ggml's name: `Q4_0`.
    pub name: &'static str,
    /// Values of one block.
    pub block_len: u64,
    /// Bytes of one block.
    pub block_bytes: u64,
}

const fn ggml(id: u32, name: &'static str, block_len: u64, block_bytes: u64) -> GgmlType {
    GgmlType { id, name, block_len, block_bytes }
}

/// Every type a GGUF may hold, after `GGML_QUANT_SIZES` of gguf-py's `constants.py`.
///
/// Left out: Q8_1 (id 9), which ggml makes on the fly and never stores, and of whose size the sources disagree.
static TYPES: [GgmlType; 35] = [
    ggml(0, "F32", 1, 4),
    ggml(1, "F16", 1, 2),
    ggml(2, "Q4_0", 32, 18),
    ggml(3, "Q4_1", 32, 20),
    ggml(6, "Q5_0", 32, 22),
    ggml(7, "Q5_1", 32, 24),
    ggml(8, "Q8_0", 32, 34),
    ggml(10, "Q2_K", 256, 84),
    ggml(11, "Q3_K", 256, 110),
    ggml(12, "Q4_K", 256, 144),
    ggml(13, "Q5_K", 256, 176),
    ggml(14, "Q6_K", 256, 210),
    ggml(15, "Q8_K", 256, 292),
    ggml(16, "IQ2_XXS", 256, 66),
    ggml(17, "IQ2_XS", 256, 74),
    ggml(18, "IQ3_XXS", 256, 98),
    ggml(19, "IQ1_S", 256, 50),
    ggml(20, "IQ4_NL", 32, 18),
    ggml(21, "IQ3_S", 256, 110),
    ggml(22, "IQ2_S", 256, 82),
    ggml(23, "IQ4_XS", 256, 136),
    ggml(24, "I8", 1, 1),
    ggml(25, "I16", 1, 2),
    ggml(26, "I32", 1, 4),
    ggml(27, "I64", 1, 8),
    ggml(28, "F64", 1, 8),
    ggml(29, "IQ1_M", 256, 56),
    ggml(30, "BF16", 1, 2),
    ggml(34, "TQ1_0", 256, 54),
    ggml(35, "TQ2_0", 256, 66),
    ggml(39, "MXFP4", 32, 17),
    ggml(40, "NVFP4", 64, 36),
    ggml(41, "Q1_0", 128, 18),
    ggml(42, "Q2_0", 64, 18),
    ggml(9, "Q8_1", 32, 36),
];

/// Ids that ggml gave up: Q4_2, Q4_3, Q4_0_4_4 and its kin, IQ4_NL_4_4 and its kin.
const REMOVED: [u32; 8] = [4, 5, 31, 32, 33, 36, 37, 38];

const Q8_1: u32 = 9;

impl GgmlType {
    /// The type with number `id`.
    pub fn by_id(id: u32) -> Result<&'static GgmlType> {
        let problem = |message: String| Err(Problem::new("kiln::model::ggml_type", message));
        match TYPES.iter().find(|ggml| ggml.id == id) {
            Some(ggml) if id == Q8_1 => problem(format!("type {} (id {id}) is never stored in a file", ggml.name)),
            Some(ggml) => Ok(ggml),
            None if REMOVED.contains(&id) => problem(format!("type id {id} was removed from ggml"))
                .map_err(|problem| problem.help("quantize the model again with a present llama.cpp")),
            None => problem(format!("unknown type id {id}"))
                .map_err(|problem| problem.help("kiln knows ggml's own types (ids 0 to 42), not those of its forks")),
        }
    }

    /// The type called `name`.
    pub fn by_name(name: &str) -> Result<&'static GgmlType> {
        TYPES.iter().find(|ggml| ggml.name == name).ok_or_else(|| {
            Problem::new("kiln::model::ggml_type", format!("ggml has no type `{}`", name.escape_debug()))
        })
    }

    /// The bytes of `values` values, a whole number of blocks; `None` if it is not, or beyond 64 bits.
    pub fn bytes(&self, values: u64) -> Option<u64> {
        if !values.is_multiple_of(self.block_len) {
            return None;
        }
        (values / self.block_len).checked_mul(self.block_bytes)
    }

    /// How to decode it; the types that kiln knows only by name are refused.
    pub fn format(&self) -> Result<&'static dyn QuantFormat> {
        Ok(match self.name {
            "F32" => &plain::F32,
            "F16" => &plain::F16,
            "BF16" => &plain::Bf16,
            "Q4_0" => &Q4_0,
            "Q4_1" => &Q4_1,
            "Q8_0" => &Q8_0,
            "Q6_K" => &Q6K,
            other => {
                return Err(Problem::new("kiln::model::undecodable", format!("kiln does not decode {other}")).help(
                    "take a file of F32, F16, BF16, Q4_0, Q4_1, Q8_0 or Q6_K, or requantize with llama-quantize",
                ));
            }
        })
    }
}
