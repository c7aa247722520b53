//! NEON: sixteen values at a time, in four registers. Its non-temporal stores are only a hint, so
//! the streaming decoders are the ordinary ones. Tested under qemu; the speed was not measured.
#![allow(unsafe_code)]

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};
use std::array::from_fn;

use super::scalar::q6_k;
use super::{Decoders, Kernels, scalar};
use crate::model::quant::error::{ErrorLanes, LANES};

/// The kernels, if this processor can run them. They load f16 in the byte order of
/// memory, which must be little-endian.
pub(super) fn kernels() -> Option<&'static Kernels> {
    if cfg!(target_endian = "little") && is_aarch64_feature_detected!("neon") {
        return Some(&KERNELS);
    }
    None
}

static KERNELS: Kernels = Kernels {
    name: "neon",
    cached: DECODERS,
    streaming: DECODERS,
    // SAFETY: `kernels` returns these only if the processor has the instructions.
    from_f16: |bytes, out| unsafe { from_f16(bytes, out) },
    // SAFETY: the same.
    to_f16: |values, out| unsafe { to_f16(values, out) },
    // SAFETY: the same.
    measure: |lanes, source, result| unsafe { measure(lanes, source, result) },
};

const DECODERS: Decoders = Decoders {
    // SAFETY: `kernels` returns these only if the processor has the instructions.
    q4_0: |blocks, out| unsafe { q4_0(blocks, out) },
    // SAFETY: the same.
    q4_1: |blocks, out| unsafe { q4_1(blocks, out) },
    // SAFETY: the same.
    q8_0: |blocks, out| unsafe { q8_0(blocks, out) },
    // SAFETY: the same.
    q6_k: |blocks, out| unsafe { q6_k(blocks, out) },
};

#[target_feature(enable = "neon")]
fn q4_0(blocks: &[u8], out: &mut [f32]) {
    let mut sink = Sink::new(out);
    for [d0, d1, pairs @ ..] in blocks.as_chunks::<18>().0 {
        let d = splat_f16(*d0, *d1);
        for codes in nibbles(pairs) {
            let mut values = f32s(vsubq_s8(codes, vdupq_n_s8(8)));
            for values in &mut values {
                *values = vmulq_f32(*values, d);
            }
            sink.push(values);
        }
    }
}

#[target_feature(enable = "neon")]
fn q4_1(blocks: &[u8], out: &mut [f32]) {
    let mut sink = Sink::new(out);
    for [d0, d1, m0, m1, pairs @ ..] in blocks.as_chunks::<20>().0 {
        let (d, m) = (splat_f16(*d0, *d1), splat_f16(*m0, *m1));
        for codes in nibbles(pairs) {
            let mut values = f32s(codes);
            for values in &mut values {
                *values = vaddq_f32(vmulq_f32(*values, d), m);
            }
            sink.push(values);
        }
    }
}

#[target_feature(enable = "neon")]
fn q8_0(blocks: &[u8], out: &mut [f32]) {
    let mut sink = Sink::new(out);
    for [d0, d1, codes @ ..] in blocks.as_chunks::<34>().0 {
        let d = splat_f16(*d0, *d1);
        for codes in codes.as_chunks().0 {
            let mut values = f32s(vreinterpretq_s8_u8(load(codes)));
            for values in &mut values {
                *values = vmulq_f32(*values, d);
            }
            sink.push(values);
        }
    }
}

#[target_feature(enable = "neon")]
fn q6_k(blocks: &[u8], out: &mut [f32]) {
    let mut sink = Sink::new(out);
    for block in blocks.as_chunks().0 {
        let (low, high, sub_scales, d) = q6_k::fields(block);
        let codes = q6_k::unpack_codes(low, high).map(|code| code as u8);
        for (codes, sub_scale) in codes.as_chunks().0.iter().zip(sub_scales) {
            let scale = vdupq_n_f32(q6_k::scale_of(d, *sub_scale));
            let mut values = f32s(vreinterpretq_s8_u8(load(codes)));
            for values in &mut values {
                *values = vmulq_f32(scale, *values);
            }
            sink.push(values);
        }
    }
}

#[target_feature(enable = "neon")]
fn from_f16(bytes: &[u8], out: &mut [f32]) {
    let (runs, rest) = bytes.as_chunks::<32>();
    let (outs, out_rest) = out.as_chunks_mut::<16>();
    for (run, out) in runs.iter().zip(outs) {
        // SAFETY: eight bytes of 32, which need no alignment.
        let values = from_fn(|four| unsafe {
            widen(vreinterpret_u16_u8(vld1_u8(run.as_ptr().add(8 * four))))
        });
        store(values, out);
    }
    scalar::from_f16(rest, out_rest);
}

#[target_feature(enable = "neon")]
fn to_f16(values: &[f32], out: &mut [u8]) {
    let (runs, rest) = values.as_chunks::<4>();
    let (outs, out_rest) = out.as_chunks_mut::<8>();
    for (run, out) in runs.iter().zip(outs) {
        // SAFETY: `run` is four f32 and `out` eight bytes; neither needs alignment.
        unsafe {
            let f16s = narrow(vld1q_f32(run.as_ptr()));
            vst1_u8(out.as_mut_ptr(), vreinterpret_u8_u16(f16s));
        }
    }
    scalar::to_f16(rest, out_rest);
}

#[target_feature(enable = "neon")]
fn measure(lanes: &mut ErrorLanes, source: &[f32], result: &[f32]) {
    let (sources, source_rest) = source.as_chunks::<LANES>();
    let (results, result_rest) = result.as_chunks::<LANES>();
    let mut signal = load_f64s(&lanes.signal);
    let mut noise = load_f64s(&lanes.noise);
    let mut max = load_f64s(&lanes.max);
    let mut differs = vdupq_n_u32(0);
    for (source, result) in sources.iter().zip(results) {
        for four in 0..2 {
            // SAFETY: these are four of eight f32, which need no alignment.
            let source = unsafe { vld1q_f32(source.as_ptr().add(4 * four)) };
            // SAFETY: the same.
            let result = unsafe { vld1q_f32(result.as_ptr().add(4 * four)) };
            let different = veorq_u32(vreinterpretq_u32_f32(source), vreinterpretq_u32_f32(result));
            differs = vorrq_u32(differs, different);
            let (sources, results) = (f64s(source), f64s(result));
            for two in 0..2 {
                let (source, result) = (sources[two], results[two]);
                let (lane, error) = (2 * four + two, vsubq_f64(source, result));
                signal[lane] = vaddq_f64(signal[lane], vmulq_f64(source, source));
                noise[lane] = vaddq_f64(noise[lane], vmulq_f64(error, error));
                let size = vabsq_f64(error);
                max[lane] = vbslq_f64(vcgtq_f64(size, max[lane]), size, max[lane]);
            }
        }
    }
    for (out, numbers) in [
        (&mut lanes.signal, signal),
        (&mut lanes.noise, noise),
        (&mut lanes.max, max),
    ] {
        for (out, two) in out.as_chunks_mut::<2>().0.iter_mut().zip(numbers) {
            // SAFETY: `out` is two numbers, which need no alignment.
            unsafe { vst1q_f64(out.as_mut_ptr(), two) };
        }
    }
    lanes.differs |= vmaxvq_u32(differs) != 0;
    crate::model::quant::error::measure(lanes, source_rest, result_rest);
}

/// Writes values, sixteen at a time.
struct Sink<'a>(std::slice::IterMut<'a, [f32; 16]>);

impl<'a> Sink<'a> {
    fn new(out: &'a mut [f32]) -> Self {
        Sink(out.as_chunks_mut().0.iter_mut())
    }

    #[target_feature(enable = "neon")]
    fn push(&mut self, values: [float32x4_t; 4]) {
        if let Some(out) = self.0.next() {
            store(values, out);
        }
    }
}

/// An f16 of a block, as f32 in every element.
#[target_feature(enable = "neon")]
fn splat_f16(low: u8, high: u8) -> float32x4_t {
    widen(vdup_n_u16(u16::from_le_bytes([low, high])))
}

/// Converts f16 to f32. The intrinsic is newer than the oldest Rust that `Cargo.toml` allows.
#[target_feature(enable = "neon")]
fn widen(f16s: uint16x4_t) -> float32x4_t {
    let f32s;
    // SAFETY: it reads a register and writes another.
    unsafe {
        asm!(
            "fcvtl {:v}.4s, {:v}.4h",
            lateout(vreg) f32s,
            in(vreg) f16s,
            options(pure, nomem, nostack)
        )
    };
    f32s
}

/// Converts f32 to the nearest f16, ties to even. The intrinsic is as new.
#[target_feature(enable = "neon")]
fn narrow(f32s: float32x4_t) -> uint16x4_t {
    let f16s;
    // SAFETY: it reads a register and writes another.
    unsafe {
        asm!(
            "fcvtn {:v}.4h, {:v}.4s",
            lateout(vreg) f16s,
            in(vreg) f32s,
            options(pure, nomem, nostack)
        )
    };
    f16s
}

/// The low and the high nibbles.
#[target_feature(enable = "neon")]
fn nibbles(pairs: &[u8; 16]) -> [int8x16_t; 2] {
    let pairs = load(pairs);
    let (low, high) = (vandq_u8(pairs, vdupq_n_u8(0x0f)), vshrq_n_u8::<4>(pairs));
    [vreinterpretq_s8_u8(low), vreinterpretq_s8_u8(high)]
}

/// Signed bytes as f32.
#[target_feature(enable = "neon")]
fn f32s(codes: int8x16_t) -> [float32x4_t; 4] {
    let (low, high) = (vmovl_s8(vget_low_s8(codes)), vmovl_high_s8(codes));
    [
        vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
        vcvtq_f32_s32(vmovl_high_s16(low)),
        vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
        vcvtq_f32_s32(vmovl_high_s16(high)),
    ]
}

#[target_feature(enable = "neon")]
fn load_f64s(numbers: &[f64; LANES]) -> [float64x2_t; 4] {
    // SAFETY: two of eight numbers, which need no alignment.
    from_fn(|two| unsafe { vld1q_f64(numbers.as_ptr().add(2 * two)) })
}

#[target_feature(enable = "neon")]
fn f64s(f32s: float32x4_t) -> [float64x2_t; 2] {
    [vcvt_f64_f32(vget_low_f32(f32s)), vcvt_high_f64_f32(f32s)]
}

#[target_feature(enable = "neon")]
fn load(bytes: &[u8; 16]) -> uint8x16_t {
    // SAFETY: `bytes` is 16 bytes, which need no alignment.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

#[target_feature(enable = "neon")]
fn store(values: [float32x4_t; 4], out: &mut [f32; 16]) {
    for (out, four) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
        // SAFETY: `out` is four f32, which need no alignment.
        unsafe { vst1q_f32(out.as_mut_ptr(), four) };
    }
}
