//! Encodings of tensors.

pub(crate) const DEFINED: u32 = 1;
/// "No quantization", both as definition and as encoding.
pub(crate) const UNDEFINED: u32 = 0x7FFF_FFFF;
pub(crate) const ENCODING_SCALE_OFFSET: u32 = 0;
pub(crate) const ENCODING_AXIS_SCALE_OFFSET: u32 = 1;
pub(crate) const ENCODING_BW_AXIS_SCALE_OFFSET: u32 = 3;
pub(crate) const ENCODING_BLOCKWISE_EXPANSION: u32 = 5;
pub(crate) const ENCODING_BW_FLOAT_BLOCK: u32 = 11;

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ScaleOffset {
    pub scale: f32,
    pub offset: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct FloatScaleOffset {
    pub scale: f32,
    pub offset: f32,
}

/// `Qnn_AxisScaleOffset_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct AxisScaleOffset {
    pub axis: i32,
    pub count: u32,
    pub scale_offsets: *const ScaleOffset,
}

/// `Qnn_BwAxisScaleOffset_t`. Without offsets it is symmetric.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct BwAxisScaleOffset {
    pub bitwidth: u32,
    pub axis: i32,
    pub count: u32,
    pub scales: *const f32,
    pub offsets: *const i32,
}

/// `Qnn_BlockwiseExpansion_t`, which the union holds by pointer.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct BlockwiseExpansion {
    pub axis: i32,
    pub scale_offsets: *const ScaleOffset,
    pub blocks_per_axis: u32,
    pub block_scale_bitwidth: u32,
    /// 0: a byte each.
    pub block_scale_storage: u32,
    pub block_scales: *const u8,
}

/// `Qnn_BwFloatBlockEncoding_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct BwFloatBlock {
    pub bitwidth: u32,
    pub block_size: *const u32,
    pub scale_offsets: *const FloatScaleOffset,
}

#[repr(C)]
pub(crate) union QuantizeUnion {
    pub scale_offset: ScaleOffset,
    pub axis_scale_offset: AxisScaleOffset,
    pub bw_axis_scale_offset: BwAxisScaleOffset,
    pub blockwise_expansion: *const BlockwiseExpansion,
    pub bw_float_block: BwFloatBlock,
    pub whole: [u64; 4],
}

#[repr(C)]
pub(crate) struct QuantizeParams {
    pub definition: u32,
    pub encoding: u32,
    pub of: QuantizeUnion,
}

layout! {
    ScaleOffset = 8 { offset @ 4 }
    FloatScaleOffset = 8 { offset @ 4 }
    AxisScaleOffset = 16 { count @ 4, scale_offsets @ 8 }
    BwAxisScaleOffset = 32 { axis @ 4, count @ 8, scales @ 16, offsets @ 24 }
    BlockwiseExpansion = 40 { scale_offsets @ 8, blocks_per_axis @ 16, block_scale_bitwidth @ 20, block_scale_storage @ 24,
        block_scales @ 32 }
    BwFloatBlock = 24 { block_size @ 8, scale_offsets @ 16 }
    QuantizeParams = 40 { encoding @ 4, of @ 8 }
}

impl QuantizeParams {
    /// One scale and offset, or no quantization.
    pub(crate) fn scale_offset(pair: Option<(f32, i32)>) -> Self {
        let mut params = QuantizeParams {
            definition: UNDEFINED,
            encoding: UNDEFINED,
            of: QuantizeUnion { whole: [0; 4] },
        };
        if let Some((scale, offset)) = pair {
            (params.definition, params.encoding) = (DEFINED, ENCODING_SCALE_OFFSET);
            params.of.scale_offset = ScaleOffset { scale, offset };
        }
        params
    }
}
