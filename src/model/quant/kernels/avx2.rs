//! AVX2 with F16C: eight values at a time.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::scalar::q6_k;
use super::{Decoders, Kernels, scalar};
use crate::model::quant::error::{ErrorLanes, LANES};

/// The kernels, if this processor can run them.
pub(super) fn kernels() -> Option<&'static Kernels> {
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
        return Some(&KERNELS);
    }
    None
}

static KERNELS: Kernels = Kernels {
    name: "avx2",
    cached: decoders::<false>(),
    streaming: decoders::<true>(),
    // SAFETY: `kernels` returns these only if the processor has the instructions.
    from_f16: |bytes, out| unsafe { from_f16(bytes, out) },
    // SAFETY: the same.
    to_f16: |values, out| unsafe { to_f16(values, out) },
    // SAFETY: the same.
    measure: |lanes, source, result| unsafe { measure(lanes, source, result) },
};

const fn decoders<const STREAMING: bool>() -> Decoders {
    Decoders {
        // SAFETY: `kernels` returns these only if the processor has the instructions.
        q4_0: |blocks, out| unsafe { q4_0::<STREAMING>(blocks, out) },
        // SAFETY: the same.
        q4_1: |blocks, out| unsafe { q4_1::<STREAMING>(blocks, out) },
        // SAFETY: the same.
        q8_0: |blocks, out| unsafe { q8_0::<STREAMING>(blocks, out) },
        // SAFETY: the same.
        q6_k: |blocks, out| unsafe { q6_k::<STREAMING>(blocks, out) },
    }
}

#[target_feature(enable = "avx2,f16c")]
fn q4_0<const STREAMING: bool>(blocks: &[u8], out: &mut [f32]) {
    let eight = _mm_set1_epi8(8);
    let mut sink = Sink::<STREAMING>::new(out);
    for [d0, d1, pairs @ ..] in blocks.as_chunks::<18>().0 {
        let d = splat_f16(*d0, *d1);
        for codes in nibbles(pairs) {
            let [low, high] = f32s(_mm_sub_epi8(codes, eight));
            sink.push(_mm256_mul_ps(low, d));
            sink.push(_mm256_mul_ps(high, d));
        }
    }
    sink.finish();
}

#[target_feature(enable = "avx2,f16c")]
fn q4_1<const STREAMING: bool>(blocks: &[u8], out: &mut [f32]) {
    let mut sink = Sink::<STREAMING>::new(out);
    for [d0, d1, m0, m1, pairs @ ..] in blocks.as_chunks::<20>().0 {
        let (d, m) = (splat_f16(*d0, *d1), splat_f16(*m0, *m1));
        for codes in nibbles(pairs) {
            let [low, high] = f32s(codes);
            sink.push(_mm256_add_ps(_mm256_mul_ps(low, d), m));
            sink.push(_mm256_add_ps(_mm256_mul_ps(high, d), m));
        }
    }
    sink.finish();
}

#[target_feature(enable = "avx2,f16c")]
fn q8_0<const STREAMING: bool>(blocks: &[u8], out: &mut [f32]) {
    let mut sink = Sink::<STREAMING>::new(out);
    for [d0, d1, codes @ ..] in blocks.as_chunks::<34>().0 {
        let d = splat_f16(*d0, *d1);
        for codes in codes.as_chunks().0 {
            let [low, high] = f32s(load(codes));
            sink.push(_mm256_mul_ps(low, d));
            sink.push(_mm256_mul_ps(high, d));
        }
    }
    sink.finish();
}

#[target_feature(enable = "avx2,f16c")]
fn q6_k<const STREAMING: bool>(blocks: &[u8], out: &mut [f32]) {
    let mut sink = Sink::<STREAMING>::new(out);
    for block in blocks.as_chunks().0 {
        let (low, high, sub_scales, d) = q6_k::fields(block);
        let codes = q6_k::unpack_codes(low, high).map(|code| code as u8);
        for (codes, sub_scale) in codes.as_chunks().0.iter().zip(sub_scales) {
            let scale = _mm256_set1_ps(q6_k::scale_of(d, *sub_scale));
            let [low, high] = f32s(load(codes));
            sink.push(_mm256_mul_ps(scale, low));
            sink.push(_mm256_mul_ps(scale, high));
        }
    }
    sink.finish();
}

#[target_feature(enable = "avx2,f16c")]
fn from_f16(bytes: &[u8], out: &mut [f32]) {
    let (runs, rest) = bytes.as_chunks::<16>();
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
        // SAFETY: `run` is eight f32 and `out` 16 bytes; neither needs alignment.
        unsafe {
            let f16s = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(run.as_ptr()));
            _mm_storeu_si128(out.as_mut_ptr().cast(), f16s);
        }
    }
    scalar::to_f16(rest, out_rest);
}

#[target_feature(enable = "avx2,f16c")]
fn measure(lanes: &mut ErrorLanes, source: &[f32], result: &[f32]) {
    let (sources, source_rest) = source.as_chunks::<LANES>();
    let (results, result_rest) = result.as_chunks::<LANES>();
    let mut differs = false;
    for first in [0, 4] {
        let mut signal = load_f64s(&lanes.signal, first);
        let mut noise = load_f64s(&lanes.noise, first);
        let mut max = load_f64s(&lanes.max, first);
        let mut different = _mm_setzero_ps();
        for (source, result) in sources.iter().zip(results) {
            let (source, result) = (load_f32s(source, first), load_f32s(result, first));
            different = _mm_or_ps(different, _mm_xor_ps(source, result));
            let (source, result) = (_mm256_cvtps_pd(source), _mm256_cvtps_pd(result));
            let error = _mm256_sub_pd(source, result);
            signal = _mm256_add_pd(signal, _mm256_mul_pd(source, source));
            noise = _mm256_add_pd(noise, _mm256_mul_pd(error, error));
            // If one is NaN, the result is the second.
            max = _mm256_max_pd(_mm256_andnot_pd(_mm256_set1_pd(-0.0), error), max);
        }
        for (out, numbers) in [
            (&mut lanes.signal, signal),
            (&mut lanes.noise, noise),
            (&mut lanes.max, max),
        ] {
            // SAFETY: `out` has eight numbers, and needs no alignment.
            unsafe { _mm256_storeu_pd(out.as_mut_ptr().add(first), numbers) };
        }
        let different = _mm_castps_si128(different);
        differs |= _mm_testz_si128(different, different) == 0;
    }
    lanes.differs |= differs;
    crate::model::quant::error::measure(lanes, source_rest, result_rest);
}

/// Four of eight numbers, from `first` on, which is 0 or 4.
#[target_feature(enable = "avx2,f16c")]
fn load_f64s(numbers: &[f64; LANES], first: usize) -> __m256d {
    let numbers: &[f64] = &numbers[first..first + 4];
    // SAFETY: there are four numbers, which need no alignment.
    unsafe { _mm256_loadu_pd(numbers.as_ptr()) }
}

/// Four of eight numbers, from `first` on, which is 0 or 4.
#[target_feature(enable = "avx2,f16c")]
fn load_f32s(numbers: &[f32; LANES], first: usize) -> __m128 {
    let numbers: &[f32] = &numbers[first..first + 4];
    // SAFETY: there are four numbers, which need no alignment.
    unsafe { _mm_loadu_ps(numbers.as_ptr()) }
}

/// Writes values, eight at a time, with ordinary or with non-temporal stores. The latter need
/// aligned addresses, so each store combines a part of the pending values with a part of the next.
struct Sink<'a, const STREAMING: bool> {
    cached: std::slice::IterMut<'a, [f32; 8]>,
    head: &'a mut [f32],
    lines: std::slice::IterMut<'a, __m256>,
    tail: &'a mut [f32],
    pending: Option<__m256>,
    shift: __m256i,
}

impl<'a, const STREAMING: bool> Sink<'a, STREAMING> {
    #[target_feature(enable = "avx2,f16c")]
    fn new(out: &'a mut [f32]) -> Self {
        let (cached, streaming) = if STREAMING {
            out.split_at_mut(0)
        } else {
            out.split_at_mut(out.len())
        };
        // SAFETY: any eight f32 that are aligned to 32 bytes are a valid vector.
        let (head, lines, tail) = unsafe { streaming.align_to_mut::<__m256>() };
        let places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let shift = _mm256_add_epi32(places, _mm256_set1_epi32(head.len() as i32));
        Sink {
            cached: cached.as_chunks_mut().0.iter_mut(),
            head,
            lines: lines.iter_mut(),
            tail,
            pending: None,
            shift,
        }
    }

    #[target_feature(enable = "avx2,f16c")]
    fn push(&mut self, values: __m256) {
        if !STREAMING {
            if let Some(out) = self.cached.next() {
                store(values, out);
            }
            return;
        }
        match self.pending {
            None => {
                let len = self.head.len();
                self.head.copy_from_slice(&f32s_of(values)[..len]);
            }
            Some(pending) => {
                // The permutation uses the low three bits of an index. Indices above seven select
                // from `values`.
                let old = _mm256_permutevar8x32_ps(pending, self.shift);
                let new = _mm256_permutevar8x32_ps(values, self.shift);
                let is_new = _mm256_cmpgt_epi32(self.shift, _mm256_set1_epi32(7));
                self.write_line(_mm256_blendv_ps(old, new, _mm256_castsi256_ps(is_new)));
            }
        }
        self.pending = Some(values);
    }

    #[target_feature(enable = "avx2,f16c")]
    fn write_line(&mut self, values: __m256) {
        if let Some(line) = self.lines.next() {
            // SAFETY: `line` is 32 bytes and aligned.
            unsafe { _mm256_stream_ps(std::ptr::from_mut(line).cast(), values) };
        }
    }

    #[target_feature(enable = "avx2,f16c")]
    fn finish(mut self) {
        let Some(pending) = self.pending else {
            return;
        };
        let rest = f32s_of(pending);
        match self.head.len() {
            0 => self.write_line(pending),
            start => {
                let len = self.tail.len().min(rest.len() - start);
                self.tail[..len].copy_from_slice(&rest[start..start + len]);
            }
        }
        // Non-temporal stores are weakly ordered. The fence completes them before later stores.
        _mm_sfence();
    }
}

/// An f16 of a block, as f32 in every element.
#[target_feature(enable = "avx2,f16c")]
fn splat_f16(low: u8, high: u8) -> __m256 {
    _mm256_cvtph_ps(_mm_set1_epi16(i16::from_le_bytes([low, high])))
}

/// The low and the high nibbles.
#[target_feature(enable = "avx2,f16c")]
fn nibbles(pairs: &[u8; 16]) -> [__m128i; 2] {
    let (pairs, mask) = (load(pairs), _mm_set1_epi8(0x0f));
    [
        _mm_and_si128(pairs, mask),
        _mm_and_si128(_mm_srli_epi16(pairs, 4), mask),
    ]
}

/// Signed bytes as f32.
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
    // SAFETY: `out` is eight f32, which need no alignment.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), values) };
}

#[target_feature(enable = "avx2,f16c")]
fn f32s_of(values: __m256) -> [f32; 8] {
    let mut out = [0.0; 8];
    store(values, &mut out);
    out
}
