//! AVX2 with F16C: eight values at a time.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::{Decoders, Kernels, scalar};
use crate::model::quant::error::{ErrorLanes, LANES};
use crate::model::quant::formats::q6_k;

/// The kernels, if this machine can run them.
pub(super) fn kernels() -> Option<&'static Kernels> {
    (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")).then_some(&KERNELS)
}

static KERNELS: Kernels = Kernels {
    name: "avx2",
    near: decoders::<false>(),
    far: decoders::<true>(),
    // SAFETY: see `kernels`, which hands these out.
    from_f16: |halves, out| unsafe { from_f16(halves, out) },
    // SAFETY: the same.
    to_f16: |values, out| unsafe { to_f16(values, out) },
    // SAFETY: the same.
    measure: |lanes, source, result| unsafe { measure(lanes, source, result) },
};

const fn decoders<const FAR: bool>() -> Decoders {
    Decoders {
        // SAFETY: see `kernels`, which hands these out.
        q4_0: |blocks, out| unsafe { q4_0::<FAR>(blocks, out) },
        // SAFETY: the same.
        q4_1: |blocks, out| unsafe { q4_1::<FAR>(blocks, out) },
        // SAFETY: the same.
        q8_0: |blocks, out| unsafe { q8_0::<FAR>(blocks, out) },
        // SAFETY: the same.
        q6_k: |blocks, out| unsafe { q6_k::<FAR>(blocks, out) },
    }
}

#[target_feature(enable = "avx2,f16c")]
fn q4_0<const FAR: bool>(blocks: &[u8], out: &mut [f32]) {
    let eight = _mm_set1_epi8(8);
    let mut sink = Sink::<FAR>::new(out);
    for [d0, d1, pairs @ ..] in blocks.as_chunks::<18>().0 {
        let d = half(*d0, *d1);
        for codes in nibbles(pairs) {
            let [low, high] = f32s(_mm_sub_epi8(codes, eight));
            sink.push(_mm256_mul_ps(low, d));
            sink.push(_mm256_mul_ps(high, d));
        }
    }
    sink.finish();
}

#[target_feature(enable = "avx2,f16c")]
fn q4_1<const FAR: bool>(blocks: &[u8], out: &mut [f32]) {
    let mut sink = Sink::<FAR>::new(out);
    for [d0, d1, m0, m1, pairs @ ..] in blocks.as_chunks::<20>().0 {
        let (d, m) = (half(*d0, *d1), half(*m0, *m1));
        for codes in nibbles(pairs) {
            let [low, high] = f32s(codes);
            sink.push(_mm256_add_ps(_mm256_mul_ps(low, d), m));
            sink.push(_mm256_add_ps(_mm256_mul_ps(high, d), m));
        }
    }
    sink.finish();
}

#[target_feature(enable = "avx2,f16c")]
fn q8_0<const FAR: bool>(blocks: &[u8], out: &mut [f32]) {
    let mut sink = Sink::<FAR>::new(out);
    for [d0, d1, codes @ ..] in blocks.as_chunks::<34>().0 {
        let d = half(*d0, *d1);
        for codes in codes.as_chunks().0 {
            let [low, high] = f32s(load(codes));
            sink.push(_mm256_mul_ps(low, d));
            sink.push(_mm256_mul_ps(high, d));
        }
    }
    sink.finish();
}

#[target_feature(enable = "avx2,f16c")]
fn q6_k<const FAR: bool>(blocks: &[u8], out: &mut [f32]) {
    let mut sink = Sink::<FAR>::new(out);
    for block in blocks.as_chunks().0 {
        let (low, high, sub_scales, d) = q6_k::pieces(block);
        let codes = q6_k::codes(low, high).map(|code| code as u8);
        for (codes, sub_scale) in codes.as_chunks().0.iter().zip(sub_scales) {
            let scale = _mm256_set1_ps(q6_k::scale(d, *sub_scale));
            let [low, high] = f32s(load(codes));
            sink.push(_mm256_mul_ps(scale, low));
            sink.push(_mm256_mul_ps(scale, high));
        }
    }
    sink.finish();
}

#[target_feature(enable = "avx2,f16c")]
fn from_f16(halves: &[u8], out: &mut [f32]) {
    let (runs, rest) = halves.as_chunks::<16>();
    let (outs, out_rest) = out.as_chunks_mut::<8>();
    for (run, out) in runs.iter().zip(outs) {
        store(_mm256_cvtph_ps(load(run)), out);
    }
    scalar::from_f16(rest, out_rest);
}

#[target_feature(enable = "avx2,f16c")]
fn to_f16(values: &[f32], out: &mut [u8]) {
    let (runs, rest) = values.as_chunks::<8>();
    let (outs, out_rest) = out.as_chunks_mut::<16>();
    for (run, out) in runs.iter().zip(outs) {
        // SAFETY: `run` is eight singles and `out` 16 bytes, neither of which needs alignment.
        unsafe {
            let halves =
                _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(run.as_ptr()));
            _mm_storeu_si128(out.as_mut_ptr().cast(), halves);
        }
    }
    scalar::to_f16(rest, out_rest);
}

#[target_feature(enable = "avx2,f16c")]
fn measure(lanes: &mut ErrorLanes, source: &[f32], result: &[f32]) {
    let (sources, source_rest) = source.as_chunks::<LANES>();
    let (results, result_rest) = result.as_chunks::<LANES>();
    let mut differs = false;
    for half in 0..2 {
        // SAFETY: four of the eight numbers of each lane, which need no alignment.
        let load =
            |numbers: &[f64; LANES]| unsafe { _mm256_loadu_pd(numbers.as_ptr().add(4 * half)) };
        let [mut signal, mut noise, mut max] = [&lanes.signal, &lanes.noise, &lanes.max].map(load);
        let mut different = _mm_setzero_ps();
        for (source, result) in sources.iter().zip(results) {
            // SAFETY: four of eight singles, which need no alignment.
            let [source, result] =
                [source, result].map(|run| unsafe { _mm_loadu_ps(run.as_ptr().add(4 * half)) });
            different = _mm_or_ps(different, _mm_xor_ps(source, result));
            let (source, result) = (_mm256_cvtps_pd(source), _mm256_cvtps_pd(result));
            let error = _mm256_sub_pd(source, result);
            signal = _mm256_add_pd(signal, _mm256_mul_pd(source, source));
            noise = _mm256_add_pd(noise, _mm256_mul_pd(error, error));
            // Of two, the second where they are not ordered.
            max = _mm256_max_pd(_mm256_andnot_pd(_mm256_set1_pd(-0.0), error), max);
        }
        for (out, numbers) in [
            (&mut lanes.signal, signal),
            (&mut lanes.noise, noise),
            (&mut lanes.max, max),
        ] {
            // SAFETY: four of its eight numbers, which need no alignment.
            unsafe { _mm256_storeu_pd(out.as_mut_ptr().add(4 * half), numbers) };
        }
        let different = _mm_castps_si128(different);
        differs |= _mm_testz_si128(different, different) == 0;
    }
    lanes.differs |= differs;
    crate::model::quant::error::measure(lanes, source_rest, result_rest);
}

/// Where values go, eight at a time: to where they are read again at once, or past the caches. The
/// latter takes aligned lines only, so that a line is put together from what is held back and what
/// comes.
struct Sink<'a, const FAR: bool> {
    near: std::slice::IterMut<'a, [f32; 8]>,
    head: &'a mut [f32],
    lines: std::slice::IterMut<'a, __m256>,
    tail: &'a mut [f32],
    held: Option<__m256>,
    shift: __m256i,
}

impl<'a, const FAR: bool> Sink<'a, FAR> {
    #[target_feature(enable = "avx2,f16c")]
    fn new(out: &'a mut [f32]) -> Self {
        let (near, far): (&mut [f32], &mut [f32]) =
            if FAR { (&mut [], out) } else { (out, &mut []) };
        // SAFETY: any eight singles that lie on 32 bytes are one such vector.
        let (head, lines, tail) = unsafe { far.align_to_mut::<__m256>() };
        let places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let shift = _mm256_add_epi32(places, _mm256_set1_epi32(head.len() as i32));
        Sink {
            near: near.as_chunks_mut().0.iter_mut(),
            head,
            lines: lines.iter_mut(),
            tail,
            held: None,
            shift,
        }
    }

    #[target_feature(enable = "avx2,f16c")]
    fn push(&mut self, values: __m256) {
        if !FAR {
            self.near
                .next()
                .into_iter()
                .for_each(|out| store(values, out));
            return;
        }
        match self.held {
            None => self
                .head
                .copy_from_slice(&f32s_of(values)[..self.head.len()]),
            Some(held) => {
                // Of a place, only the low three bits count; those beyond seven are taken from what
                // comes.
                let [held, come] =
                    [held, values].map(|from| _mm256_permutevar8x32_ps(from, self.shift));
                let beyond = _mm256_cmpgt_epi32(self.shift, _mm256_set1_epi32(7));
                self.line(_mm256_blendv_ps(held, come, _mm256_castsi256_ps(beyond)));
            }
        }
        self.held = Some(values);
    }

    #[target_feature(enable = "avx2,f16c")]
    fn line(&mut self, values: __m256) {
        if let Some(line) = self.lines.next() {
            // SAFETY: `line` is half a line, and aligned.
            unsafe { _mm256_stream_ps(std::ptr::from_mut(line).cast(), values) };
        }
    }

    #[target_feature(enable = "avx2,f16c")]
    fn finish(mut self) {
        let Some(held) = self.held else { return };
        let rest = f32s_of(held);
        match self.head.len() {
            0 => self.line(held),
            start => self
                .tail
                .iter_mut()
                .zip(&rest[start..])
                .for_each(|(out, value)| *out = *value),
        }
        // Such stores are weakly ordered: all are done before anything after.
        _mm_sfence();
    }
}

/// A half of a block, in every place.
#[target_feature(enable = "avx2,f16c")]
fn half(low: u8, high: u8) -> __m256 {
    _mm256_cvtph_ps(_mm_set1_epi16(i16::from_le_bytes([low, high])))
}

/// The low nibbles and the high ones.
#[target_feature(enable = "avx2,f16c")]
fn nibbles(pairs: &[u8; 16]) -> [__m128i; 2] {
    let (pairs, mask) = (load(pairs), _mm_set1_epi8(0x0f));
    [
        _mm_and_si128(pairs, mask),
        _mm_and_si128(_mm_srli_epi16(pairs, 4), mask),
    ]
}

/// Signed bytes as singles.
#[target_feature(enable = "avx2,f16c")]
fn f32s(codes: __m128i) -> [__m256; 2] {
    let upper = _mm_srli_si128(codes, 8);
    [
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)),
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(upper)),
    ]
}

#[target_feature(enable = "avx2,f16c")]
fn load(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: `bytes` is 16 bytes, which need no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2,f16c")]
fn store(values: __m256, out: &mut [f32; 8]) {
    // SAFETY: `out` is eight singles, which need no alignment.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), values) };
}

#[target_feature(enable = "avx2,f16c")]
fn f32s_of(values: __m256) -> [f32; 8] {
    let mut out = [0.0; 8];
    store(values, &mut out);
    out
}
