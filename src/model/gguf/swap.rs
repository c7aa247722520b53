//! Tensors of big-endian files, turned into the little-endian blocks that everything else knows.
//!
//! What ggml keeps in a number of several bytes lies the other way round there, in the fields of
//! its block structs (`ggml-common.h`) and where its kernels copy bytes into a number (`qh` of
//! Q5_0). Bytes that it reads one by one stay.

use crate::base::{Code, Problem, Result};
use crate::model::quant::GgmlType;

/// Numbers side by side in a block: where they begin, bytes of each, how many.
type Field = (usize, usize, usize);

/// The numbers of a block of `name`; `None` if that is not settled.
///
/// IQ2_XXS is not: ggml's quantizer shifts its bytes into 32-bit numbers that its decoder takes
/// apart in memory, so on such machines it does not read what it writes. `gguf_convert_endian.py`
/// of gguf-py turns the same bytes of the types it knows: F32, F16, BF16, Q4_0, Q8_0, Q4_K, Q6_K,
/// MXFP4, NVFP4.
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

/// Refuses a type whose big-endian form is not settled.
pub fn can_swap(ggml: &GgmlType) -> Result<()> {
    fields(ggml.name).map(drop).ok_or_else(|| {
        Problem::new(
            Code::ModelGgufBigEndian,
            format!(
                "{} in a big-endian file: its form is not settled",
                ggml.name
            ),
        )
        .help("quantize the model anew, or fetch a little-endian file of it")
    })
}

/// Turns whole blocks of a big-endian file round, in place.
pub fn swap(ggml: &GgmlType, blocks: &mut [u8]) -> Result<()> {
    can_swap(ggml)?;
    let fields = fields(ggml.name).unwrap_or_default();
    for block in blocks.chunks_exact_mut(ggml.block_bytes as usize) {
        for (start, width, count) in fields {
            block[*start..start + width * count]
                .chunks_exact_mut(*width)
                .for_each(<[u8]>::reverse);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_inside_their_blocks() {
        let known: Vec<&GgmlType> = (0..=42).filter_map(|id| GgmlType::by_id(id).ok()).collect();
        for ggml in &known {
            for (start, width, count) in fields(ggml.name).unwrap_or_default() {
                assert!(
                    start + width * count <= ggml.block_bytes as usize,
                    "{}",
                    ggml.name
                );
            }
        }
        let unsettled: Vec<&str> = known
            .iter()
            .filter(|ggml| can_swap(ggml).is_err())
            .map(|ggml| ggml.name)
            .collect();
        assert_eq!(unsettled, ["IQ2_XXS"]);
    }
}
