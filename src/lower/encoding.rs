//! How weights lie on the device, for the lowering and for who proves what it writes.

use crate::model::weight::{Activations, Element, WeightEncoding, WeightUse};
use crate::qnn::{DeviceEncoding, DeviceUse, LinearIo};

/// How the lowering stores a weight of this encoding on the device.
pub(super) fn device_encoding(encoding: WeightEncoding) -> DeviceEncoding {
    let bits = encoding.main_element().bits() as u32;
    match encoding {
        WeightEncoding::Plain { .. } => DeviceEncoding::F16,
        WeightEncoding::Channel { .. } => DeviceEncoding::Channel { bits },
        WeightEncoding::Block { codes, block, .. } => DeviceEncoding::FloatBlock {
            bits,
            block,
            // The codes of the device are signed: an offset makes up for it.
            offsets: codes == Element::Uint4,
        },
        WeightEncoding::BlockOffset { block, .. } => DeviceEncoding::FloatBlock {
            bits,
            block,
            offsets: true,
        },
        // Each block gets the product of its integer and the scale of its row.
        WeightEncoding::Lpbq { block } => DeviceEncoding::FloatBlock {
            bits,
            block,
            offsets: false,
        },
    }
}

/// What the lowering has the device do where a graph uses a weight so.
pub fn device_use(weight_use: WeightUse) -> DeviceUse {
    match weight_use {
        WeightUse::Linear {
            weight,
            activations,
        } => DeviceUse::Linear {
            weight: device_encoding(weight),
            io: match activations {
                Activations::F16 => LinearIo::F16,
                Activations::U16 => LinearIo::F16FromU16,
            },
        },
        WeightUse::Lookup { weight } => DeviceUse::Lookup {
            weight: device_encoding(weight),
        },
    }
}
