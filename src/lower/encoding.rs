//! The encodings of weights on the device, for the lowering and for the proof of `context-bin`.

use crate::model::weight::{Activations, Element, WeightEncoding, WeightUse};
use crate::qnn::{DeviceEncoding, DeviceUse, LinearIo};

/// How the lowering stores a weight of this encoding for a linear layer.
pub(super) fn linear_encoding(encoding: WeightEncoding, on_codes: bool) -> DeviceEncoding {
    match encoding {
        WeightEncoding::Lpbq { block } | WeightEncoding::LpbqShifted { block } if on_codes => {
            DeviceEncoding::Lpbq { block }
        }
        _ => f16_encoding(encoding),
    }
}

/// How the lowering stores a weight of this encoding for computing in f16.
pub(super) fn f16_encoding(encoding: WeightEncoding) -> DeviceEncoding {
    let bits = encoding.main_element().bits() as u32;
    match encoding {
        WeightEncoding::Plain { .. } => DeviceEncoding::F16,
        WeightEncoding::Channel { .. } => DeviceEncoding::Channel { bits },
        WeightEncoding::Block { codes, block, .. } => DeviceEncoding::FloatBlock {
            bits,
            block,
            // The codes on the device are signed, so unsigned codes need an offset.
            offsets: codes == Element::Uint4,
        },
        WeightEncoding::BlockOffset { block, .. } => DeviceEncoding::FloatBlock {
            bits,
            block,
            offsets: true,
        },
        // In f16, each block gets the product of its integer and the scale of its row.
        WeightEncoding::Lpbq { block } | WeightEncoding::LpbqShifted { block } => {
            DeviceEncoding::FloatBlock {
                bits,
                block,
                offsets: false,
            }
        }
    }
}

/// The computation on the device that the lowering makes of a use of a weight.
pub fn device_use(weight_use: WeightUse) -> DeviceUse {
    match weight_use {
        WeightUse::Linear {
            weight,
            activations,
        } => DeviceUse::Linear {
            weight: linear_encoding(weight, activations == Activations::U16),
            io: match activations {
                Activations::F16 => LinearIo::F16,
                Activations::F16FromU16 => LinearIo::F16FromU16,
                Activations::U16 => LinearIo::U16,
            },
        },
        WeightUse::Lookup { weight } => DeviceUse::Lookup {
            weight: f16_encoding(weight),
        },
        // The rows are rounded to the same table, however the weight is stored.
        WeightUse::LookupU16 { .. } => DeviceUse::LookupU16,
    }
}
