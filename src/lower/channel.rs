//! Weights under one scale a row. The device wants these scales above zero.

use super::Lowering;
use super::linear::conv_dims;
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
            let codes = (row * columns..).map(|index| [self.codes.code(index) as u8]);
            out.iter_mut()
                .zip(codes)
                .for_each(|(out, code)| *out = code);
        });
        let bits = self.codes.element.bits() as u32;
        let encoding = Encoding::Axis {
            bits: (bits < 8).then_some(bits),
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
                    .help("the device holds only scales above zero for whole rows"));
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
        let name = blob_owner(&weight.codes.name).to_string();
        let data = move || weight.data(shape);
        self.fixed(&name, DataType::SFixed8, &conv_dims(shape), &note, data)
    }
}
