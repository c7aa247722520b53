//! Converts tensors of big-endian files to little-endian blocks.
//!
//! In such files, numbers of several bytes are big-endian: the fields of ggml's block structs
//! (`ggml-common.h`), and bytes that its kernels copy into a number (`qh` of Q5_0). Bytes that ggml
//! reads one by one have the same order.

use crate::base::{Code, Problem, Result};
use crate::model::quant::GgmlType;

/// Adjacent numbers in a block: offset of the first, bytes of each, count.
type Field = (usize, usize, usize);

/// The numbers in a block of type `name`; `None` if its big-endian form is not defined.
///
/// That of IQ2_XXS is not: ggml's quantizer shifts its bytes into 32-bit numbers that its decoder
/// takes apart in memory, so on such machines it does not read what it writes.
/// `gguf_convert_endian.py` of gguf-py swaps the same bytes of the types that it supports: F32,
/// F16, BF16, Q4_0, Q8_0, Q4_K, Q6_K, MXFP4, NVFP4.
fn fields(name: &str) -> Option<&'static [Field]> {
    Some(match name {
        "I8" | "MXFP4" | "NVFP4" => &[],
        "F16" | "BF16" | "I16" => &[(0, 2, 1)],
        "F32" | "I32" => &[(0, 4, 1)],
        "F64" | "I64" => &[(0, 8, 1)],
        "Q1_0" | "Q2_0" | "Q4_0" | "Q8_0" | "IQ4_NL" => &[(0, 2, 1)],
        "Q4_1" | "Q4_K" | "Q5_K" => &[(0, 2, 2)],
        "Q5_0" => &[(0, 2, 1), (2, 4, 1)],
        "Q5_1" => &[(0, 2, 2), (4, 4, 1)],
        "Q2_K" => &[(80, 2, 2)],
        "Q3_K" => &[(108, 2, 1)],
        "Q6_K" => &[(208, 2, 1)],
        "Q8_K" => &[(0, 4, 1), (260, 2, 16)],
        "IQ1_S" => &[(0, 2, 1), (34, 2, 8)],
        "IQ1_M" => &[(48, 2, 4)],
        "IQ2_XS" => &[(0, 2, 33)],
        "IQ2_S" | "IQ3_S" => &[(0, 2, 1)],
        "IQ3_XXS" => &[(0, 2, 1), (66, 4, 8)],
        "IQ4_XS" => &[(0, 2, 2)],
        "TQ1_0" => &[(52, 2, 1)],
        "TQ2_0" => &[(64, 2, 1)],
        _ => return None,
    })
}

/// A problem if the big-endian form of the type is not defined.
pub fn can_swap(ggml: &GgmlType) -> Result<()> {
    require_fields(ggml)?;
    Ok(())
}

/// Converts whole blocks of a big-endian file in place.
pub fn swap(ggml: &GgmlType, blocks: &mut [u8]) -> Result<()> {
    let fields = require_fields(ggml)?;
    for block in blocks.chunks_exact_mut(ggml.block_bytes as usize) {
        for &(start, width, count) in fields {
            for number in block[start..start + width * count].chunks_exact_mut(width) {
                number.reverse();
            }
        }
    }
    Ok(())
}

fn require_fields(ggml: &GgmlType) -> Result<&'static [Field]> {
    match fields(ggml.name) {
        Some(fields) => Ok(fields),
        None => Err(Problem::new(
            Code::ModelGgufBigEndian,
            format!(
                "{} in a big-endian file: its form is not settled",
                ggml.name
            ),
        )
        .help("quantize the model again, or fetch a little-endian file of it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_inside_their_blocks() {
        let mut undefined = vec![];
        for id in 0..=42 {
            let Ok(ggml) = GgmlType::by_id(id) else {
                continue;
            };
            let Some(fields) = fields(ggml.name) else {
                undefined.push(ggml.name);
                continue;
            };
            for (start, width, count) in fields {
                assert!(
                    start + width * count <= ggml.block_bytes as usize,
                    "{}",
                    ggml.name
                );
            }
        }
        assert_eq!(undefined, ["IQ2_XXS"]);
    }
}
