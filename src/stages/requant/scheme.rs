//! The schemes by name.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::quant::{Int8Blocks, RowLayout};
use crate::model::weight::Element;

/// How a matrix is held. Vectors (norms, biases) are f32 values under every scheme.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Scheme {
    /// The block grid of the GGUF itself; values unchanged where it has none.
    #[default]
    Native,
    /// The same values without a negative scale: mirrored blocks, with an offset where that takes
    /// one.
    NativeSafe,
    /// Values as halves.
    F16,
    /// Signed bytes, with a half as scale for each 32 values of a row.
    Int8Block,
    /// Signed bytes, with a scale for each row that clips where that costs less.
    Int8Channel,
    /// Codes of 4 bits, with a scale for each row that clips where that costs less; rounded by a
    /// calibration, if there is one.
    Int4Channel,
    /// Codes of 4 bits, a scale for each row and an integer from 1 to 16 for each 16 values;
    /// rounded by a calibration, if there is one.
    #[serde(rename = "lpbq-16")]
    Lpbq16,
    /// The same, an integer for each 32 values.
    #[serde(rename = "lpbq-32")]
    Lpbq32,
    /// The same, an integer for each 64 values.
    #[serde(rename = "lpbq-64")]
    Lpbq64,
    /// The same, an integer for each 128 values.
    #[serde(rename = "lpbq-128")]
    Lpbq128,
    /// What the stage in slot `choice` says; `native` where it says nothing.
    Auto,
}

impl Scheme {
    /// As a plan spells it.
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
            Scheme::Auto => "auto",
        }
    }

    /// How it spells rows, if it rounds whole rows.
    pub(super) fn rows(self) -> Option<RowLayout> {
        let lpbq = |block| {
            Some(RowLayout {
                codes: Element::Int4,
                block: Some(block),
            })
        };
        match self {
            Scheme::Int8Channel => Some(RowLayout {
                codes: Element::Int8,
                block: None,
            }),
            Scheme::Int4Channel => Some(RowLayout {
                codes: Element::Int4,
                block: None,
            }),
            Scheme::Lpbq16 => lpbq(16),
            Scheme::Lpbq32 => lpbq(32),
            Scheme::Lpbq64 => lpbq(64),
            Scheme::Lpbq128 => lpbq(128),
            Scheme::Native
            | Scheme::NativeSafe
            | Scheme::F16
            | Scheme::Int8Block
            | Scheme::Auto => None,
        }
    }

    /// Whether a calibration changes what it makes.
    pub(super) fn listens(self) -> bool {
        self.rows()
            .is_some_and(|layout| layout.codes == Element::Int4)
    }

    /// A row's columns must be a multiple of this.
    pub(super) fn unit(self) -> u64 {
        let pair = |layout: RowLayout| if layout.codes == Element::Int4 { 2 } else { 1 };
        match self {
            Scheme::Int8Block => u64::from(Int8Blocks::LAYOUT.block),
            _ => self.rows().map_or(1, |layout| {
                u64::from(layout.block.unwrap_or_else(|| pair(layout)))
            }),
        }
    }
}
