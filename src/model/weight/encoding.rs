//! The encodings of weights, and the table of the parts of each.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Element, SumColumns};

/// How the values of a weight are stored. `requant` and `dequant` write it to the facts of every
/// part; in a graph it follows from the function of the dialect that is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum WeightEncoding {
    /// The values themselves. The only encoding that a vector can have.
    Plain {
        /// A floating-point type.
        element: Element,
    },
    /// `code * scale`, with a scale for each `block` columns of a row.
    Block {
        /// Type of the codes.
        codes: Element,
        /// Columns that share a scale.
        block: u32,
        /// Type of the scales, a floating-point type.
        scales: Element,
    },
    /// `code * scale + offset`, with a scale and an offset for each `block` columns of a row.
    BlockOffset {
        /// Type of the codes.
        codes: Element,
        /// Columns that share a scale and an offset.
        block: u32,
        /// Type of the scales, a floating-point type.
        scales: Element,
        /// Type of the offsets, a floating-point type.
        offsets: Element,
    },
    /// `code * scale`, with signed codes and one f32 scale for each row (output channel).
    Channel {
        /// Type of the codes: int8 or int4.
        codes: Element,
    },
    /// LPBQ: `code * (channel_scale * block_scale)`, with int4 codes, an integer from 1 to 16 for
    /// each `block` columns of a row, and an f32 scale for each row.
    Lpbq {
        /// Columns that share an integer.
        block: u32,
    },
    /// LPBQ whose blocks have the codes -8..7 or, shifted, -7..8. The parts are those of LPBQ over
    /// the columns of the weight and [`SumColumns`]: a linear layer over it reads the sums of its
    /// inputs too.
    LpbqShifted {
        /// Columns that share an integer.
        block: u32,
    },
}

/// Which parts a weight has. A function of the ONNX dialect has one input for each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WeightForm {
    /// Values.
    Plain,
    /// Codes and scales.
    Block,
    /// Codes, scales and offsets.
    BlockOffset,
    /// Codes, integers of blocks and scales of rows.
    Lpbq,
}

/// A part of a weight. Each is one blob, `NAME/codes` and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightPart {
    /// One number for each value.
    Values,
    /// One code for each value.
    Codes,
    /// One scale for each block of a row.
    Scales,
    /// One offset for each block of a row.
    Offsets,
    /// One integer for each block of a row.
    BlockScales,
    /// One scale for each row.
    ChannelScales,
}

/// Type and shape of a part of a weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartSpec {
    /// Which part.
    pub part: WeightPart,
    /// Type of its elements.
    pub element: Element,
    /// Its dimensions, outermost first.
    pub shape: Vec<u64>,
}

impl WeightForm {
    /// Every form.
    pub const ALL: [WeightForm; 4] = [
        WeightForm::Plain,
        WeightForm::Block,
        WeightForm::BlockOffset,
        WeightForm::Lpbq,
    ];

    /// Its parts, in the order of the inputs of a function. The first has an element for each
    /// value of the weight.
    pub fn parts(self) -> &'static [WeightPart] {
        use WeightPart::*;
        match self {
            WeightForm::Plain => &[Values],
            WeightForm::Block => &[Codes, Scales],
            WeightForm::BlockOffset => &[Codes, Scales, Offsets],
            WeightForm::Lpbq => &[Codes, BlockScales, ChannelScales],
        }
    }
}

impl WeightPart {
    /// Last segment of the blob's name: `codes`.
    pub fn name(self) -> &'static str {
        match self {
            WeightPart::Values => "values",
            WeightPart::Codes => "codes",
            WeightPart::Scales => "scales",
            WeightPart::Offsets => "offsets",
            WeightPart::BlockScales => "block_scales",
            WeightPart::ChannelScales => "channel_scales",
        }
    }

    /// Whether its elements can be of this type.
    fn supports(self, element: Element) -> bool {
        match self {
            WeightPart::Codes => matches!(element, Element::Int4 | Element::Uint4 | Element::Int8),
            WeightPart::BlockScales => element == Element::Uint8,
            WeightPart::Values
            | WeightPart::Scales
            | WeightPart::Offsets
            | WeightPart::ChannelScales => element.is_float(),
        }
    }
}

impl WeightEncoding {
    /// The encoding by blocks of rows of `columns`. Signed codes under one f32 scale for a whole
    /// row are the encoding by channel: the two store the same parts.
    pub fn blocks(
        codes: Element,
        block: u32,
        scales: Element,
        offsets: Option<Element>,
        columns: u64,
    ) -> Self {
        let is_signed = matches!(codes, Element::Int8 | Element::Int4);
        match offsets {
            Some(offsets) => WeightEncoding::BlockOffset {
                codes,
                block,
                scales,
                offsets,
            },
            None if is_signed && scales == Element::F32 && u64::from(block) == columns => {
                WeightEncoding::Channel { codes }
            }
            None => WeightEncoding::Block {
                codes,
                block,
                scales,
            },
        }
    }

    /// Which parts it has.
    pub fn form(self) -> WeightForm {
        match self {
            WeightEncoding::Plain { .. } => WeightForm::Plain,
            WeightEncoding::Block { .. } | WeightEncoding::Channel { .. } => WeightForm::Block,
            WeightEncoding::BlockOffset { .. } => WeightForm::BlockOffset,
            WeightEncoding::Lpbq { .. } | WeightEncoding::LpbqShifted { .. } => WeightForm::Lpbq,
        }
    }

    /// The part that has an element for each value.
    pub fn main_part(self) -> WeightPart {
        self.form().parts()[0]
    }

    /// The type of the elements of the main part.
    pub fn main_element(self) -> Element {
        match self {
            WeightEncoding::Plain { element } => element,
            WeightEncoding::Block { codes, .. }
            | WeightEncoding::BlockOffset { codes, .. }
            | WeightEncoding::Channel { codes } => codes,
            WeightEncoding::Lpbq { .. } | WeightEncoding::LpbqShifted { .. } => Element::Int4,
        }
    }

    /// Whether the device can multiply it with activations in codes: signed codes, with one
    /// floating-point scale for each row.
    pub fn multiplies_codes(self) -> bool {
        match self {
            WeightEncoding::Channel { .. }
            | WeightEncoding::Lpbq { .. }
            | WeightEncoding::LpbqShifted { .. } => true,
            WeightEncoding::Plain { .. }
            | WeightEncoding::Block { .. }
            | WeightEncoding::BlockOffset { .. } => false,
        }
    }

    /// Whether it stores the values themselves.
    pub fn is_plain(self) -> bool {
        self.form() == WeightForm::Plain
    }

    /// How many of the `columns` of a row share a scale; `None` where there is no scale.
    pub fn block(self, columns: u64) -> Option<u64> {
        match self {
            WeightEncoding::Plain { .. } => None,
            WeightEncoding::Channel { .. } => Some(columns),
            WeightEncoding::Block { block, .. }
            | WeightEncoding::BlockOffset { block, .. }
            | WeightEncoding::Lpbq { block }
            | WeightEncoding::LpbqShifted { block } => Some(block.into()),
        }
    }

    /// The columns that it adds to those of the weight.
    pub fn added_columns(self, columns: u64) -> Option<SumColumns> {
        match self {
            WeightEncoding::LpbqShifted { block } => Some(SumColumns::new(columns, block)),
            _ => None,
        }
    }

    /// The parts of a weight of this shape, `[rows, columns]` or `[n]`, in the order of its form.
    /// An error is the reason why there is no such weight.
    pub fn parts(self, shape: &[u64]) -> Result<Vec<PartSpec>, String> {
        let (mut block_count, mut stored) = (0, shape.to_vec());
        if let Some(block) = self.block(shape.last().copied().unwrap_or(0)) {
            let &[rows, columns] = shape else {
                return Err(format!("only a matrix is stored in codes, not {shape:?}"));
            };
            if block == 0 || !columns.is_multiple_of(block) {
                return Err(format!("{columns} columns are not whole blocks of {block}"));
            }
            let added = self.added_columns(columns).map_or(0, SumColumns::count);
            let columns = columns.saturating_add(added);
            block_count = columns / block;
            stored = vec![rows, columns];
        }
        let mut specs = vec![];
        for &part in self.form().parts() {
            let element = self.element(part);
            if !part.supports(element) {
                return Err(format!("{} cannot be {}", part.name(), element.name()));
            }
            let shape = match part {
                WeightPart::Values | WeightPart::Codes => stored.clone(),
                WeightPart::Scales | WeightPart::Offsets | WeightPart::BlockScales => {
                    vec![shape[0], block_count]
                }
                WeightPart::ChannelScales => vec![shape[0]],
            };
            specs.push(PartSpec {
                part,
                element,
                shape,
            });
        }
        Ok(specs)
    }

    /// The type of the elements of one of its parts.
    fn element(self, part: WeightPart) -> Element {
        match (part, self) {
            (WeightPart::Values | WeightPart::Codes, _) => self.main_element(),
            (WeightPart::BlockScales, _) => Element::Uint8,
            (
                WeightPart::Scales,
                WeightEncoding::Block { scales, .. } | WeightEncoding::BlockOffset { scales, .. },
            ) => scales,
            (WeightPart::Offsets, WeightEncoding::BlockOffset { offsets, .. }) => offsets,
            (WeightPart::Scales | WeightPart::Offsets | WeightPart::ChannelScales, _) => {
                Element::F32
            }
        }
    }
}

impl fmt::Display for WeightEncoding {
    /// `f16`, `int4 x32 f16`, `uint4 x32 f16 + f16`, `int8 by channel`, `lpbq x32`,
    /// `lpbq x32 shifted`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WeightEncoding::Plain { element } => f.write_str(element.name()),
            WeightEncoding::Block {
                codes,
                block,
                scales,
            } => write!(f, "{} x{block} {}", codes.name(), scales.name()),
            WeightEncoding::BlockOffset {
                codes,
                block,
                scales,
                offsets,
            } => write!(
                f,
                "{} x{block} {} + {}",
                codes.name(),
                scales.name(),
                offsets.name()
            ),
            WeightEncoding::Channel { codes } => write!(f, "{} by channel", codes.name()),
            WeightEncoding::Lpbq { block } => write!(f, "lpbq x{block}"),
            WeightEncoding::LpbqShifted { block } => write!(f, "lpbq x{block} shifted"),
        }
    }
}

impl PartSpec {
    /// Length of its blob; `None` if its bits overflow 64 bits.
    pub fn size_bytes(&self) -> Option<u64> {
        let mut bits = self.element.bits();
        for &n in &self.shape {
            bits = bits.checked_mul(n)?;
        }
        Some(bits.div_ceil(8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts of a 64 x 96 matrix, as text.
    fn parts(encoding: WeightEncoding) -> String {
        let specs = match encoding.parts(&[64, 96]) {
            Ok(specs) => specs,
            Err(why) => return why,
        };
        let mut texts = vec![];
        for spec in specs {
            let (name, element) = (spec.part.name(), spec.element.name());
            let bytes = spec.size_bytes().unwrap();
            texts.push(format!("{name} {element} {:?} {bytes}", spec.shape));
        }
        texts.join(", ")
    }

    fn encodings() -> [WeightEncoding; 6] {
        use Element::*;
        [
            WeightEncoding::Plain { element: Bf16 },
            WeightEncoding::blocks(Int4, 32, F16, None, 96),
            WeightEncoding::blocks(Uint4, 16, F32, Some(F32), 96),
            WeightEncoding::blocks(Int8, 96, F32, None, 96),
            WeightEncoding::Lpbq { block: 48 },
            WeightEncoding::LpbqShifted { block: 32 },
        ]
    }

    #[test]
    fn each_encoding_has_its_parts() {
        assert_eq!(
            encodings().map(parts),
            [
                "values bf16 [64, 96] 12288",
                "codes int4 [64, 96] 3072, scales f16 [64, 3] 384",
                "codes uint4 [64, 96] 3072, scales f32 [64, 6] 1536, offsets f32 [64, 6] 1536",
                "codes int8 [64, 96] 6144, scales f32 [64, 1] 256",
                "codes int4 [64, 96] 3072, block_scales uint8 [64, 2] 128, channel_scales f32 \
                 [64] 256",
                "codes int4 [64, 160] 5120, block_scales uint8 [64, 5] 320, channel_scales f32 \
                 [64] 256",
            ]
        );
    }

    #[test]
    fn encodings_round_trip_through_json() {
        let texts = encodings().map(|encoding| {
            let text = serde_json::to_string(&encoding).unwrap();
            assert_eq!(
                serde_json::from_str::<WeightEncoding>(&text).unwrap(),
                encoding
            );
            text
        });
        assert_eq!(
            texts,
            [
                r#"{"kind":"plain","element":"bf16"}"#,
                r#"{"kind":"block","codes":"int4","block":32,"scales":"f16"}"#,
                r#"{"kind":"block-offset","codes":"uint4","block":16,"scales":"f32","offsets":"f32"}"#,
                r#"{"kind":"channel","codes":"int8"}"#,
                r#"{"kind":"lpbq","block":48}"#,
                r#"{"kind":"lpbq-shifted","block":32}"#,
            ]
        );
        let names = encodings().map(|encoding| encoding.to_string());
        assert_eq!(
            names,
            [
                "bf16",
                "int4 x32 f16",
                "uint4 x16 f32 + f32",
                "int8 by channel",
                "lpbq x48",
                "lpbq x32 shifted"
            ]
        );
    }

    #[test]
    fn one_f32_scale_for_each_row_is_by_channel() {
        let is_by_channel = |codes, block, scales| {
            let encoding = WeightEncoding::blocks(codes, block, scales, None, 32);
            matches!(encoding, WeightEncoding::Channel { .. })
        };
        assert!(is_by_channel(Element::Int4, 32, Element::F32));
        assert!(!is_by_channel(Element::Int4, 16, Element::F32));
        assert!(!is_by_channel(Element::Int4, 32, Element::F16));
        assert!(!is_by_channel(Element::Uint4, 32, Element::F32));
    }

    #[test]
    fn invalid_encodings_are_rejected() {
        let block = WeightEncoding::blocks(Element::Int4, 36, Element::F16, None, 96);
        assert_eq!(parts(block), "96 columns are not whole blocks of 36");
        let float_codes = WeightEncoding::blocks(Element::F16, 32, Element::F16, None, 96);
        assert_eq!(parts(float_codes), "codes cannot be f16");
        let plain = WeightEncoding::Plain {
            element: Element::Int8,
        };
        assert_eq!(parts(plain), "values cannot be int8");
        let vector = WeightEncoding::Channel {
            codes: Element::Int8,
        }
        .parts(&[96]);
        assert_eq!(
            vector.unwrap_err(),
            "only a matrix is stored in codes, not [96]"
        );
    }
}
