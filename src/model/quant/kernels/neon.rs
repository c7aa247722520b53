//! NEON: sixteen values at a time, in four registers. Past the caches it has only a hint, which a
//! machine need not take, so that far values are written as near ones are. They were proved under
//! qemu; how fast they are was not measured.
#![allow(unsafe_code)]

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};
use std::array::from_fn;

use super::{Decoders, Kernels, scalar};
use crate::model::quant::error::{ErrorLanes, LANES};
use crate::model::quant::formats::q6_k;

/// The kernels, if this machine can run them. They take the bytes of halves as they lie: the least
/// first.
pub(super) fn kernels() -> Option<&'static Kernels> {
    (cfg!(target_endian = "little") && is_aarch64_feature_detected!("neon")).then_some(&KERNELS)
}

static KERNELS: Kernels = Kernels {
    name: "neon",
    near: DECODERS,
    far: DECODERS,
    // SAFETY: see `kernels`, which hands these out.
    from_f16: |halves, out| unsafe { from_f16(halves, out) },
    // SAFETY: the same.
    to_f16: |values, out| unsafe { to_f16(values, out) },
    // SAFETY: the same.
    measure: |lanes, source, result| unsafe { measure(lanes, source, result) },
};

const DECODERS: Decoders = Decoders {
    // SAFETY: see `kernels`, which hands these out.
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
    let mut runs = out.as_chunks_mut().0.iter_mut();
    for [d0, d1, pairs @ ..] in blocks.as_chunks::<18>().0 {
        let d = half(*d0, *d1);
        for (codes, out) in nibbles(pairs).into_iter().zip(&mut runs) {
            let values = f32s(vsubq_s8(codes, vdupq_n_s8(8)));
            store(values.map(|values| vmulq_f32(values, d)), out);
        }
    }
}

#[target_feature(enable = "neon")]
fn q4_1(blocks: &[u8], out: &mut [f32]) {
    let mut runs = out.as_chunks_mut().0.iter_mut();
    for [d0, d1, m0, m1, pairs @ ..] in blocks.as_chunks::<20>().0 {
        let (d, m) = (half(*d0, *d1), half(*m0, *m1));
        for (codes, out) in nibbles(pairs).into_iter().zip(&mut runs) {
            store(
                f32s(codes).map(|values| vaddq_f32(vmulq_f32(values, d), m)),
                out,
            );
        }
    }
}

#[target_feature(enable = "neon")]
fn q8_0(blocks: &[u8], out: &mut [f32]) {
    let mut runs = out.as_chunks_mut().0.iter_mut();
    for [d0, d1, codes @ ..] in blocks.as_chunks::<34>().0 {
        let d = half(*d0, *d1);
        for (codes, out) in codes.as_chunks().0.iter().zip(&mut runs) {
            let values = f32s(vreinterpretq_s8_u8(load(codes)));
            store(values.map(|values| vmulq_f32(values, d)), out);
        }
    }
}

#[target_feature(enable = "neon")]
fn q6_k(blocks: &[u8], out: &mut [f32]) {
    let mut runs = out.as_chunks_mut().0.iter_mut();
    for block in blocks.as_chunks().0 {
        let (low, high, sub_scales, d) = q6_k::pieces(block);
        let codes = q6_k::codes(low, high).map(|code| code as u8);
        for ((codes, sub_scale), out) in codes.as_chunks().0.iter().zip(sub_scales).zip(&mut runs) {
            let scale = vdupq_n_f32(q6_k::scale(d, *sub_scale));
            let values = f32s(vreinterpretq_s8_u8(load(codes)));
            store(values.map(|values| vmulq_f32(scale, values)), out);
        }
    }
}

#[target_feature(enable = "neon")]
fn from_f16(halves: &[u8], out: &mut [f32]) {
    let (runs, rest) = halves.as_chunks::<32>();
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
        // SAFETY: `run` is four singles and `out` eight bytes, neither of which needs alignment.
        unsafe {
            vst1_u8(
                out.as_mut_ptr(),
                vreinterpret_u8_u16(narrow(vld1q_f32(run.as_ptr()))),
            )
        };
    }
    scalar::to_f16(rest, out_rest);
}

#[target_feature(enable = "neon")]
fn measure(lanes: &mut ErrorLanes, source: &[f32], result: &[f32]) {
    let (sources, source_rest) = source.as_chunks::<LANES>();
    let (results, result_rest) = result.as_chunks::<LANES>();
    // SAFETY: two of eight numbers, which need no alignment.
    let load =
        |numbers: &[f64; LANES]| from_fn(|two| unsafe { vld1q_f64(numbers.as_ptr().add(2 * two)) });
    let [mut signal, mut noise, mut max]: [[_; 4]; 3] =
        [&lanes.signal, &lanes.noise, &lanes.max].map(load);
    let mut differs = vdupq_n_u32(0);
    for (source, result) in sources.iter().zip(results) {
        for four in 0..2 {
            // SAFETY: four of eight singles, which need no alignment.
            let [source, result] =
                [source, result].map(|run| unsafe { vld1q_f32(run.as_ptr().add(4 * four)) });
            let different = veorq_u32(vreinterpretq_u32_f32(source), vreinterpretq_u32_f32(result));
            differs = vorrq_u32(differs, different);
            for (two, (source, result)) in
                doubles(source).into_iter().zip(doubles(result)).enumerate()
            {
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

/// A half of a block, in every place.
#[target_feature(enable = "neon")]
fn half(low: u8, high: u8) -> float32x4_t {
    widen(vdup_n_u16(u16::from_le_bytes([low, high])))
}

/// Halves as singles. Its intrinsic is younger than the oldest Rust that `Cargo.toml` allows.
#[target_feature(enable = "neon")]
fn widen(halves: uint16x4_t) -> float32x4_t {
    let f32s;
    // SAFETY: it reads a register and writes another.
    unsafe {
        asm!("fcvtl {:v}.4s, {:v}.4h", lateout(vreg) f32s, in(vreg) halves, options(pure, nomem, nostack))
    };
    f32s
}

/// The nearest halves, ties to even. The same of its intrinsic.
#[target_feature(enable = "neon")]
fn narrow(f32s: float32x4_t) -> uint16x4_t {
    let halves;
    // SAFETY: it reads a register and writes another.
    unsafe {
        asm!("fcvtn {:v}.4h, {:v}.4s", lateout(vreg) halves, in(vreg) f32s, options(pure, nomem, nostack))
    };
    halves
}

/// The low nibbles and the high ones.
#[target_feature(enable = "neon")]
fn nibbles(pairs: &[u8; 16]) -> [int8x16_t; 2] {
    let pairs = load(pairs);
    [vandq_u8(pairs, vdupq_n_u8(0x0f)), vshrq_n_u8::<4>(pairs)]
        .map(|codes| vreinterpretq_s8_u8(codes))
}

/// Signed bytes as singles.
#[target_feature(enable = "neon")]
fn f32s(codes: int8x16_t) -> [float32x4_t; 4] {
    let (low, high) = (vmovl_s8(vget_low_s8(codes)), vmovl_high_s8(codes));
    let fours = [
        vmovl_s16(vget_low_s16(low)),
        vmovl_high_s16(low),
        vmovl_s16(vget_low_s16(high)),
        vmovl_high_s16(high),
    ];
    fours.map(|four| vcvtq_f32_s32(four))
}

#[target_feature(enable = "neon")]
fn doubles(f32s: float32x4_t) -> [float64x2_t; 2] {
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
        // SAFETY: `out` is four singles, which need no alignment.
        unsafe { vst1q_f32(out.as_mut_ptr(), four) };
    }
}
