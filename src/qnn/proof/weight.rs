//! The fixed matrix of the tests in each encoding.

use half::f16;

use super::{DeviceEncoding, K, N, Numbers};
use crate::qnn::{Encoding, StaticData};

/// A weight in the layout of the device, and its values `[N, K]`.
pub(super) struct Weight {
    pub(super) data: StaticData,
    pub(super) values: Vec<f64>,
}

impl Weight {
    pub(super) fn new(encoding: DeviceEncoding, numbers: &mut Numbers) -> Self {
        match encoding {
            DeviceEncoding::F16 => Weight::f16(numbers),
            DeviceEncoding::FloatBlock {
                bits,
                block,
                offsets,
            } => Weight::float_block(bits, block, offsets, numbers),
            DeviceEncoding::Channel { bits } => Weight::channel(bits, numbers),
            DeviceEncoding::Lpbq { block } => Weight::lpbq(block, numbers),
        }
    }

    fn f16(numbers: &mut Numbers) -> Self {
        let mut f16s = vec![];
        let mut values = vec![];
        for number in numbers.take(N * K) {
            let rounded = f16::from_f64(number);
            f16s.push(rounded);
            values.push(rounded.to_f64());
        }
        let mut bytes = vec![];
        for value in transposed(&f16s) {
            bytes.extend(value.to_le_bytes());
        }
        Weight {
            data: StaticData {
                bytes,
                encoding: Encoding::None,
            },
            values,
        }
    }

    fn coded(codes: &[i8], values: Vec<f64>, encoding: Encoding) -> Self {
        let codes = transposed(codes);
        Weight {
            data: StaticData {
                bytes: codes.iter().map(|&code| code as u8).collect(),
                encoding,
            },
            values,
        }
    }

    fn channel(bits: u32, numbers: &mut Numbers) -> Self {
        let scales = Weight::scales(numbers);
        let codes = Weight::codes(bits, numbers);
        let mut values = vec![];
        for (index, &code) in codes.iter().enumerate() {
            values.push(f64::from(code) * f64::from(scales[index / K]));
        }
        let encoding = Encoding::Axis {
            bits: if bits < 8 { Some(bits) } else { None },
            axis: 3,
            scales,
        };
        Weight::coded(&codes, values, encoding)
    }

    fn lpbq(block: u32, numbers: &mut Numbers) -> Self {
        let scales = Weight::scales(numbers);
        let codes = Weight::codes(4, numbers);
        let mut block_scales = vec![];
        for number in numbers.take(N * K / block as usize) {
            block_scales.push((8.5 + 8.0 * number) as u8);
        }
        let mut values = vec![];
        for (index, &code) in codes.iter().enumerate() {
            let block_scale = f64::from(block_scales[index / block as usize]);
            values.push(f64::from(code) * (block_scale * f64::from(scales[index / K])));
        }
        let encoding = Encoding::Expansion {
            axis: 3,
            scales,
            block_scales,
        };
        Weight::coded(&codes, values, encoding)
    }

    /// A scale for each output, above zero as the device requires.
    fn scales(numbers: &mut Numbers) -> Vec<f32> {
        let mut scales = vec![];
        for number in numbers.take(N) {
            scales.push((0.01 + number.abs() / 100.0) as f32);
        }
        scales
    }

    pub(super) fn codes(bits: u32, numbers: &mut Numbers) -> Vec<i8> {
        let span = f64::from(1u32 << (bits - 1));
        let mut codes = vec![];
        for number in numbers.take(N * K) {
            codes.push((number * span).floor() as i8);
        }
        codes
    }

    fn float_block(bits: u32, block: u32, has_offsets: bool, numbers: &mut Numbers) -> Self {
        let span = f64::from(1u32 << (bits - 1));
        let codes = Weight::codes(bits, numbers);
        let count = N * K / block as usize;
        // Scales have both signs, as in ggml, and are rounded to f16, as on the device.
        let mut scales = vec![];
        for number in numbers.take(count) {
            scales.push(f16::from_f64(number / span).to_f32());
        }
        let mut offsets = vec![0.0; count];
        if has_offsets {
            for offset in &mut offsets {
                *offset = f16::from_f64(numbers.next() * span).to_f32();
            }
        }
        let mut values = vec![];
        for (index, &code) in codes.iter().enumerate() {
            let (offset, scale) = (
                offsets[index / block as usize],
                scales[index / block as usize],
            );
            values.push((f64::from(code) + f64::from(offset)) * f64::from(scale));
        }
        let encoding = Encoding::FloatBlock {
            bits,
            block: vec![1, 1, block, 1],
            scales,
            offsets,
        };
        Weight::coded(&codes, values, encoding)
    }

    /// The scale of each output, for a weight that has one.
    pub(super) fn row_scales(&self) -> &[f32] {
        match &self.data.encoding {
            Encoding::Axis { scales, .. } | Encoding::Expansion { scales, .. } => scales,
            _ => &[],
        }
    }
}

/// `[N, K]` to `[K, N]`.
fn transposed<E: Copy>(values: &[E]) -> Vec<E> {
    let mut transposed = Vec::with_capacity(values.len());
    for k in 0..K {
        for n in 0..N {
            transposed.push(values[n * K + k]);
        }
    }
    transposed
}
