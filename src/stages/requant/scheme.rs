//! The schemes of `requant`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::quant::{Int8Blocks, RowLayout};
use crate::model::weight::{Element, SumColumns};

/// How a matrix is stored. Vectors (norms, biases) are f32 values under every scheme.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Scheme {
    /// As in the GGUF: its own codes, scales and offsets, nothing rounded. F64 and integers become
    /// f32.
    #[default]
    Native,
    /// The values of `native` without negative scales, for a runtime that takes none: such blocks
    /// are mirrored, with an offset per block where a tensor needs one.
    NativeSafe,
    /// fp16 values.
    F16,
    /// 8-bit codes with an fp16 scale per 32 values of a row; rounded.
    Int8Block,
    /// 8-bit codes with a scale per row, which clips large values where that lowers the error;
    /// rounded, with a calibration if there is one.
    Int8Channel,
    /// 4-bit codes with a scale per row, which clips large values where that lowers the error;
    /// rounded, with a calibration if there is one.
    Int4Channel,
    /// 4-bit codes with a scale per row and an integer from 1 to 16 per 16 values; rounded, with a
    /// calibration if there is one.
    #[serde(rename = "lpbq-16")]
    Lpbq16,
    /// Like `lpbq-16`, with an integer per 32 values.
    #[serde(rename = "lpbq-32")]
    Lpbq32,
    /// Like `lpbq-16`, with an integer per 64 values.
    #[serde(rename = "lpbq-64")]
    Lpbq64,
    /// Like `lpbq-16`, with an integer per 128 values.
    #[serde(rename = "lpbq-128")]
    Lpbq128,
    /// Like `lpbq-32`, but the codes of each block are -8 to 7 or -7 to 8, as in Q4_0. Its layers
    /// read the sums of their inputs too. Not for embeddings.
    #[serde(rename = "lpbq-32-shifted")]
    Lpbq32Shifted,
    /// The scheme that `assignment` has for the tensor; `native` where it has none.
    Auto,
}

impl Scheme {
    /// Its name in a plan.
    pub(super) fn name(self) -> &'static str {
        match self {
            Scheme::Native => "native",
            Scheme::NativeSafe => "native-safe",
            Scheme::F16 => "f16",
            Scheme::Int8Block => "int8-block",
            Scheme::Int8Channel => "int8-channel",
            Scheme::Int4Channel => "int4-channel",
            Scheme::Lpbq16 => "lpbq-16",
            Scheme::Lpbq32 => "lpbq-32",
            Scheme::Lpbq64 => "lpbq-64",
            Scheme::Lpbq128 => "lpbq-128",
            Scheme::Lpbq32Shifted => "lpbq-32-shifted",
            Scheme::Auto => "auto",
        }
    }

    /// The layout of its rows, if it rounds whole rows.
    pub(super) fn rows(self) -> Option<RowLayout> {
        let layout = |codes, block, shifts| {
            Some(RowLayout {
                codes,
                block,
                shifts,
            })
        };
        let lpbq = |block| layout(Element::Int4, Some(block), false);
        match self {
            Scheme::Int8Channel => layout(Element::Int8, None, false),
            Scheme::Int4Channel => layout(Element::Int4, None, false),
            Scheme::Lpbq16 => lpbq(16),
            Scheme::Lpbq32 => lpbq(32),
            Scheme::Lpbq64 => lpbq(64),
            Scheme::Lpbq128 => lpbq(128),
            Scheme::Lpbq32Shifted => layout(Element::Int4, Some(SumColumns::BLOCK), true),
            Scheme::Native
            | Scheme::NativeSafe
            | Scheme::F16
            | Scheme::Int8Block
            | Scheme::Auto => None,
        }
    }

    /// Whether its result depends on a calibration.
    pub(super) fn uses_calibration(self) -> bool {
        self.rows().is_some()
    }

    /// The number of columns must be a multiple of this.
    pub(super) fn unit(self) -> u64 {
        if self == Scheme::Int8Block {
            return u64::from(Int8Blocks::LAYOUT.block);
        }
        match self.rows() {
            None => 1,
            Some(RowLayout {
                block: Some(block), ..
            }) => u64::from(block),
            // Two 4-bit codes share a byte.
            Some(layout) if layout.codes == Element::Int4 => 2,
            Some(_) => 1,
        }
    }
}
