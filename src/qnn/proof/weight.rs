//! The fixed matrix of a proof in each encoding.

use half::f16;

use super::{DeviceEncoding, K, N, Numbers};
use crate::qnn::{Encoding, StaticData};

/// A weight as the device wants it, and what it means as `[N, K]`.
pub(super) struct Weight {
    pub(super) data: StaticData,
    pub(super) values: Vec<f64>,
}

impl Weight {
    pub(super) fn new(encoding: DeviceEncoding, numbers: &mut Numbers) -> Self {
        match encoding {
            DeviceEncoding::F16 => Weight::halves(numbers),
            DeviceEncoding::FloatBlock {
                bits,
                block,
                offsets,
            } => Weight::float_block(bits, block, offsets, numbers),
            DeviceEncoding::Channel { bits } => {
                let scales = Weight::scales(numbers);
                let codes = Weight::codes(bits, numbers);
                let values = (0..N * K)
                    .map(|i| f64::from(codes[i]) * f64::from(scales[i / K]))
                    .collect();
                let encoding = Encoding::Axis {
                    bits: (bits < 8).then_some(bits),
                    axis: 3,
                    scales,
                };
                Weight {
                    data: StaticData {
                        bytes: bytes(&codes),
                        encoding,
                    },
                    values,
                }
            }
            DeviceEncoding::Lpbq { block } => {
                let scales = Weight::scales(numbers);
                let codes = Weight::codes(4, numbers);
                let blocks = N * K / block as usize;
                let block_scales: Vec<u8> = (0..blocks)
                    .map(|_| (8.5 + 8.0 * numbers.next()) as u8)
                    .collect();
                let step = |i: usize| {
                    f64::from(block_scales[i / block as usize]) * f64::from(scales[i / K])
                };
                let values = (0..N * K).map(|i| f64::from(codes[i]) * step(i)).collect();
                let encoding = Encoding::Expansion {
                    axis: 3,
                    scales,
                    block_scales,
                };
                Weight {
                    data: StaticData {
                        bytes: bytes(&codes),
                        encoding,
                    },
                    values,
                }
            }
        }
    }

    fn halves(numbers: &mut Numbers) -> Self {
        let halves: Vec<f16> = (0..N * K).map(|_| f16::from_f64(numbers.next())).collect();
        let bytes = transposed(&halves)
            .into_iter()
            .flat_map(f16::to_le_bytes)
            .collect();
        let values = halves.into_iter().map(f16::to_f64).collect();
        Weight {
            data: StaticData {
                bytes,
                encoding: Encoding::None,
            },
            values,
        }
    }

    /// Above zero, as the device demands of a scale for each output.
    fn scales(numbers: &mut Numbers) -> Vec<f32> {
        (0..N)
            .map(|_| (0.01 + numbers.next().abs() / 100.0) as f32)
            .collect()
    }

    pub(super) fn codes(bits: u32, numbers: &mut Numbers) -> Vec<i8> {
        let span = f64::from(1u32 << (bits - 1));
        (0..N * K)
            .map(|_| (numbers.next() * span).floor() as i8)
            .collect()
    }

    fn float_block(bits: u32, block: u32, offsets: bool, numbers: &mut Numbers) -> Self {
        let span = f64::from(1u32 << (bits - 1));
        let codes = Weight::codes(bits, numbers);
        let blocks = N * K / block as usize;
        // Both signs, as ggml has them; halves, as the device keeps them.
        let scales: Vec<f32> = (0..blocks)
            .map(|_| f16::from_f64(numbers.next() / span).to_f32())
            .collect();
        let offsets: Vec<f32> = (0..blocks)
            .map(|_| {
                if offsets {
                    f16::from_f64(numbers.next() * span).to_f32()
                } else {
                    0.0
                }
            })
            .collect();
        let value = |i: usize| {
            let block = i / block as usize;
            (f64::from(codes[i]) + f64::from(offsets[block])) * f64::from(scales[block])
        };
        let values = (0..N * K).map(value).collect();
        let encoding = Encoding::FloatBlock {
            bits,
            block: vec![1, 1, block, 1],
            scales,
            offsets,
        };
        Weight {
            data: StaticData {
                bytes: bytes(&codes),
                encoding,
            },
            values,
        }
    }
}

/// Codes `[N, K]` as bytes `[K, N]`.
fn bytes(codes: &[i8]) -> Vec<u8> {
    transposed(codes)
        .into_iter()
        .map(|code| code as u8)
        .collect()
}

/// `[N, K]` to `[K, N]`.
fn transposed<E: Copy>(values: &[E]) -> Vec<E> {
    (0..K * N).map(|i| values[i % N * K + i / N]).collect()
}
