//! Encodings of static tensors as the API takes them.

use super::ffi;
use super::ir::Encoding;
use crate::base::{Code, Problem, Result};

/// LPBQ has no other width of a block's integer: the HTP refuses them.
const BLOCK_SCALE_BITS: u32 = 4;

/// What a tensor says of its encoding, with all that it points to beside the encoding itself, which
/// must outlive it.
pub(super) struct Quantize {
    pub(super) params: ffi::QuantizeParams,
    pub(super) held: Held,
}

/// What [`Quantize::params`] points to; moving it moves no byte that is pointed to.
#[derive(Default)]
pub(super) struct Held {
    blocks: Vec<ffi::FloatScaleOffset>,
    pairs: Vec<ffi::ScaleOffset>,
    expansion: Option<Box<ffi::BlockwiseExpansion>>,
}

impl Quantize {
    /// The encoding of the static tensor `name`. Refused: numbers of scales that do not fit its
    /// shape.
    pub(super) fn new(name: &str, dims: &[u32], encoding: &Encoding) -> Result<Self> {
        let mut held = Held::default();
        let wrong = |what: String| {
            Problem::new(
                Code::QnnStaticData,
                format!("static tensor `{name}` of shape {dims:?} {what}"),
            )
        };
        let extent = |axis: u32| dims.get(axis as usize).map(|&extent| extent as usize);
        let symmetric = |scales: &[f32]| {
            scales
                .iter()
                .map(|&scale| ffi::ScaleOffset { scale, offset: 0 })
                .collect()
        };
        // All zero: what is not set below must be.
        let mut params = ffi::QuantizeParams::scale_offset(None);
        params.definition = ffi::DEFINED;
        match encoding {
            Encoding::None => params = ffi::QuantizeParams::scale_offset(None),
            Encoding::ScaleOffset { scale, offset } => {
                params = ffi::QuantizeParams::scale_offset(Some((*scale, *offset)));
            }
            Encoding::FloatBlock {
                bits,
                block,
                scales,
                offsets,
            } => {
                if block_count(dims, block) != Some(scales.len()) || scales.len() != offsets.len() {
                    let (scales, offsets) = (scales.len(), offsets.len());
                    return Err(wrong(format!(
                        "in blocks of {block:?} has {scales} scales, {offsets} offsets"
                    )));
                }
                let pair = |(&scale, &offset)| ffi::FloatScaleOffset { scale, offset };
                held.blocks = scales.iter().zip(offsets).map(pair).collect();
                let (block_size, scale_offsets) = (block.as_ptr(), held.blocks.as_ptr());
                params.encoding = ffi::ENCODING_BW_FLOAT_BLOCK;
                params.of.bw_float_block = ffi::BwFloatBlock {
                    bitwidth: *bits,
                    block_size,
                    scale_offsets,
                };
            }
            Encoding::Axis { bits, axis, scales } => {
                if extent(*axis) != Some(scales.len()) {
                    return Err(wrong(format!(
                        "has {} scales along dimension {axis}",
                        scales.len()
                    )));
                }
                let (axis, count) = (*axis as i32, scales.len() as u32);
                match *bits {
                    Some(bitwidth) => {
                        let (scales, offsets) = (scales.as_ptr(), std::ptr::null());
                        params.encoding = ffi::ENCODING_BW_AXIS_SCALE_OFFSET;
                        params.of.bw_axis_scale_offset = ffi::BwAxisScaleOffset {
                            bitwidth,
                            axis,
                            count,
                            scales,
                            offsets,
                        };
                    }
                    None => {
                        held.pairs = symmetric(scales);
                        let scale_offsets = held.pairs.as_ptr();
                        params.encoding = ffi::ENCODING_AXIS_SCALE_OFFSET;
                        params.of.axis_scale_offset = ffi::AxisScaleOffset {
                            axis,
                            count,
                            scale_offsets,
                        };
                    }
                }
            }
            Encoding::Expansion {
                axis,
                scales,
                block_scales,
            } => {
                let fits = extent(*axis) == Some(scales.len()) && !scales.is_empty();
                if !fits
                    || block_scales.is_empty()
                    || !block_scales.len().is_multiple_of(scales.len())
                {
                    let (scales, blocks) = (scales.len(), block_scales.len());
                    return Err(wrong(format!(
                        "has {scales} scales along dimension {axis}, and {blocks} of blocks"
                    )));
                }
                held.pairs = symmetric(scales);
                let expansion = held.expansion.insert(Box::new(ffi::BlockwiseExpansion {
                    axis: *axis as i32,
                    scale_offsets: held.pairs.as_ptr(),
                    blocks_per_axis: (block_scales.len() / scales.len()) as u32,
                    block_scale_bitwidth: BLOCK_SCALE_BITS,
                    block_scale_storage: 0,
                    block_scales: block_scales.as_ptr(),
                }));
                params.encoding = ffi::ENCODING_BLOCKWISE_EXPANSION;
                params.of.blockwise_expansion = &**expansion;
            }
        }
        Ok(Quantize { params, held })
    }
}

/// How many blocks tile `dims`; `None` if they do not tile it.
fn block_count(dims: &[u32], block: &[u32]) -> Option<usize> {
    if dims.len() != block.len() {
        return None;
    }
    dims.iter()
        .zip(block)
        .try_fold(1usize, |count, (&dim, &extent)| {
            (extent > 0 && dim % extent == 0).then(|| count.checked_mul((dim / extent) as usize))?
        })
}
