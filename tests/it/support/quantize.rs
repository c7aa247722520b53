//! Simple quantizers that write valid ggml blocks; the bytes may differ from llama-quantize's.

use half::{bf16, f16};

/// The types of tensors in a tiny model, with ggml's ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quant {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q8_0 = 8,
    Q6_K = 14,
    Bf16 = 30,
}

impl Quant {
    pub const ALL: [Quant; 7] = [
        Quant::Q4_0,
        Quant::Q4_1,
        Quant::Q8_0,
        Quant::Q6_K,
        Quant::F16,
        Quant::Bf16,
        Quant::F32,
    ];
}

/// Encodes `values`, whose number must be a multiple of the block length.
pub fn encode(quant: Quant, values: &[f32]) -> Vec<u8> {
    let blocks = |len: usize, block: fn(&[f32]) -> Vec<u8>| {
        assert_eq!(values.len() % len, 0, "{quant:?} comes in blocks of {len}");
        values.chunks(len).flat_map(block).collect()
    };
    match quant {
        Quant::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Quant::F16 => values
            .iter()
            .flat_map(|v| f16::from_f32(*v).to_le_bytes())
            .collect(),
        Quant::Bf16 => values
            .iter()
            .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
            .collect(),
        Quant::Q4_0 => blocks(32, q4_0),
        Quant::Q4_1 => blocks(32, q4_1),
        Quant::Q8_0 => blocks(32, q8_0),
        Quant::Q6_K => blocks(256, q6_k),
    }
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The value of largest magnitude, with its sign.
fn extreme(values: &[f32]) -> f32 {
    let mut extreme = 0.0f32;
    for value in values {
        if value.abs() > extreme.abs() {
            extreme = *value;
        }
    }
    extreme
}

/// Element j in the low nibble of byte j, element j + 16 in the high one.
fn nibbles(codes: &[u8]) -> impl Iterator<Item = u8> {
    (0..16).map(|j| codes[j] | codes[j + 16] << 4)
}

fn q4_0(values: &[f32]) -> Vec<u8> {
    let d = extreme(values) / -8.0;
    let code = |v: &f32| ((v * inverse(d) + 8.5) as u8).min(15);
    let codes: Vec<u8> = values.iter().map(code).collect();
    let mut block = f16::from_f32(d).to_le_bytes().to_vec();
    block.extend(nibbles(&codes));
    block
}

fn q4_1(values: &[f32]) -> Vec<u8> {
    let min = values.iter().copied().fold(f32::INFINITY, f32::min);
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let d = (max - min) / 15.0;
    let code = |v: &f32| (((v - min) * inverse(d) + 0.5) as u8).min(15);
    let codes: Vec<u8> = values.iter().map(code).collect();
    let mut block = f16::from_f32(d).to_le_bytes().to_vec();
    block.extend(f16::from_f32(min).to_le_bytes());
    block.extend(nibbles(&codes));
    block
}

fn q8_0(values: &[f32]) -> Vec<u8> {
    let d = extreme(values).abs() / 127.0;
    let mut block = f16::from_f32(d).to_le_bytes().to_vec();
    for value in values {
        block.push((value * inverse(d)).round() as i8 as u8);
    }
    block
}

/// 16 sub-blocks of 16 values with signed 8-bit sub-scales; the layout of the bits is that of
/// `block_q6_K` in ggml-common.h.
fn q6_k(values: &[f32]) -> Vec<u8> {
    let scales: Vec<f32> = values.chunks(16).map(|sub| extreme(sub) / -32.0).collect();
    let d = f16::from_f32(extreme(&scales) / -128.0);
    let sub_scales: Vec<i8> = scales
        .iter()
        .map(|s| (s * inverse(d.to_f32())).round() as i8)
        .collect();
    let code = |i: usize| {
        let scale = d.to_f32() * sub_scales[i / 16] as f32;
        ((values[i] * inverse(scale)).round().clamp(-32.0, 31.0) + 32.0) as u8
    };
    let (mut low, mut high) = (vec![0u8; 128], vec![0u8; 64]);
    for i in 0..256 {
        let (half, quarter, lane) = (i / 128, i % 128 / 32, i % 32);
        low[half * 64 + quarter % 2 * 32 + lane] |= (code(i) & 15) << (quarter / 2 * 4);
        high[half * 32 + lane] |= (code(i) >> 4) << (quarter * 2);
    }
    let mut block = [low, high].concat();
    block.extend(sub_scales.iter().map(|scale| *scale as u8));
    block.extend(d.to_le_bytes());
    block
}
