//! Converts encodings of static tensors to the structs of the API.

use super::ffi;
use super::ir::Encoding;
use crate::base::{Code, Problem, Result};

/// Bits of the integer of a block in LPBQ. The HTP rejects other widths.
const BLOCK_SCALE_BITS: u32 = 4;

/// The encoding of a tensor as the API takes it. It also points into the [`Encoding`], which must
/// outlive it.
pub(super) struct Quantize {
    pub(super) params: ffi::QuantizeParams,
    pub(super) data: QuantizeData,
}

/// The data that [`Quantize::params`] points to. It is on the heap, so that it may be moved.
#[derive(Default)]
pub(super) struct QuantizeData {
    blocks: Vec<ffi::FloatScaleOffset>,
    pairs: Vec<ffi::ScaleOffset>,
    expansion: Option<Box<ffi::BlockwiseExpansion>>,
}

impl Quantize {
    /// The encoding of the static tensor `name`. It is a problem if the number of scales does not
    /// fit its shape.
    pub(super) fn new(name: &str, dims: &[u32], encoding: &Encoding) -> Result<Self> {
        let mut data = QuantizeData::default();
        let invalid = |what: String| {
            Problem::new(
                Code::QnnStaticData,
                format!("static tensor `{name}` of shape {dims:?} {what}"),
            )
        };
        // All fields that are not set below must be zero.
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
                    return Err(invalid(format!(
                        "in blocks of {block:?} has {scales} scales, {offsets} offsets"
                    )));
                }
                for (&scale, &offset) in scales.iter().zip(offsets) {
                    data.blocks.push(ffi::FloatScaleOffset { scale, offset });
                }
                let (block_size, scale_offsets) = (block.as_ptr(), data.blocks.as_ptr());
                params.encoding = ffi::ENCODING_BW_FLOAT_BLOCK;
                params.of.bw_float_block = ffi::BwFloatBlock {
                    bitwidth: *bits,
                    block_size,
                    scale_offsets,
                };
            }
            Encoding::Axis { bits, axis, scales } => {
                if !has_extent(dims, *axis, scales.len()) {
                    return Err(invalid(format!(
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
                        data.pairs = symmetric(scales);
                        let scale_offsets = data.pairs.as_ptr();
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
                if !has_extent(dims, *axis, scales.len())
                    || scales.is_empty()
                    || block_scales.is_empty()
                    || !block_scales.len().is_multiple_of(scales.len())
                {
                    let (scales, blocks) = (scales.len(), block_scales.len());
                    return Err(invalid(format!(
                        "has {scales} scales along dimension {axis}, and {blocks} of blocks"
                    )));
                }
                data.pairs = symmetric(scales);
                let expansion = data.expansion.insert(Box::new(ffi::BlockwiseExpansion {
                    axis: *axis as i32,
                    scale_offsets: data.pairs.as_ptr(),
                    blocks_per_axis: (block_scales.len() / scales.len()) as u32,
                    block_scale_bitwidth: BLOCK_SCALE_BITS,
                    block_scale_storage: 0,
                    block_scales: block_scales.as_ptr(),
                }));
                params.encoding = ffi::ENCODING_BLOCKWISE_EXPANSION;
                params.of.blockwise_expansion = &**expansion;
            }
        }
        Ok(Quantize { params, data })
    }
}

/// Whether dimension `axis` has `count` indices.
fn has_extent(dims: &[u32], axis: u32, count: usize) -> bool {
    match dims.get(axis as usize) {
        Some(&extent) => extent as usize == count,
        None => false,
    }
}

fn symmetric(scales: &[f32]) -> Vec<ffi::ScaleOffset> {
    let mut pairs = Vec::with_capacity(scales.len());
    for &scale in scales {
        pairs.push(ffi::ScaleOffset { scale, offset: 0 });
    }
    pairs
}

/// The number of blocks that tile `dims`; `None` if blocks do not tile it.
fn block_count(dims: &[u32], block: &[u32]) -> Option<usize> {
    if dims.len() != block.len() {
        return None;
    }
    let mut count = 1usize;
    for (&dim, &extent) in dims.iter().zip(block) {
        if extent == 0 || !dim.is_multiple_of(extent) {
            return None;
        }
        count = count.checked_mul((dim / extent) as usize)?;
    }
    Some(count)
}
