//! Weights with one scale for each row. The device requires these scales to be above zero.

use super::Lowering;
use super::stored::{Stored, transposed};
use crate::base::{Code, Problem, Result};
use crate::model::weight::blob_owner;
use crate::qnn::{DataType, Encoding, StaticData, TensorId};

/// Output channels are the last dimension of a `[1, 1, K, N]` weight.
const CHANNELS: u32 = 3;

/// Signed codes, and a scale for each row.
pub(super) struct ChannelWeight {
    pub(super) codes: Stored,
    pub(super) scales: Stored,
    pub(super) gain: f32,
}

impl ChannelWeight {
    fn data(&self, [rows, columns]: [usize; 2]) -> Result<StaticData> {
        let bytes = transposed(rows, columns, |row, out| {
            for (column, out) in out.iter_mut().enumerate() {
                *out = [self.codes.code(row * columns + column) as u8];
            }
        });
        let bits = self.codes.element.bits() as u32;
        let encoding = Encoding::Axis {
            bits: if bits < 8 { Some(bits) } else { None },
            axis: CHANNELS,
            scales: self.scales()?,
        };
        Ok(StaticData { bytes, encoding })
    }

    /// The scales times the gain.
    fn scales(&self) -> Result<Vec<f32>> {
        let mut scales = vec![];
        for scale in self.scales.all_numbers() {
            let scaled = scale * self.gain;
            if !scaled.is_normal() || scaled <= 0.0 {
                let owner = blob_owner(&self.codes.name);
                let what =
                    format!("a row of `{owner}` has a scale that times the gain is not above zero");
                return Err(Problem::new(Code::LowerScale, what)
                    .help("the device supports only scales above zero for whole rows"));
            }
            scales.push(scaled);
        }
        Ok(scales)
    }
}

impl Lowering<'_> {
    pub(super) fn channel_weight(
        &mut self,
        weight: ChannelWeight,
        shape: [usize; 2],
    ) -> Result<TensorId> {
        let note = format!("channel {} bit", weight.codes.element.bits());
        let name = weight.codes.name.clone();
        self.conv_weight(&name, DataType::SFixed8, shape, &note, move || {
            weight.data(shape)
        })
    }
}
