//! AVX-512: sixteen values at a time.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::scalar::q6_k;
use super::{Decoders, Kernels, scalar};
use crate::model::quant::error::{ErrorLanes, LANES};

/// The kernels, if this processor can run them.
pub(super) fn kernels() -> Option<&'static Kernels> {
    let can = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
    let can = can && is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("f16c");
    if can { Some(&KERNELS) } else { None }
}

static KERNELS: Kernels = Kernels {
    name: "avx512",
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

#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn q4_0<const STREAMING: bool>(blocks: &[u8], out: &mut [f32]) {
    let codes = _mm512_setr_ps(
        -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0,
    );
    let mut sink = Sink::<STREAMING>::new(out);
    for [d0, d1, pairs @ ..] in blocks.as_chunks::<18>().0 {
        sink.push_pairs(pairs, _mm512_mul_ps(codes, splat_f16(*d0, *d1)));
    }
    sink.finish();
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn q4_1<const STREAMING: bool>(blocks: &[u8], out: &mut [f32]) {
    let codes = _mm512_setr_ps(
        0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0,
    );
    let mut sink = Sink::<STREAMING>::new(out);
    for [d0, d1, m0, m1, pairs @ ..] in blocks.as_chunks::<20>().0 {
        let (d, m) = (splat_f16(*d0, *d1), splat_f16(*m0, *m1));
        sink.push_pairs(pairs, _mm512_add_ps(_mm512_mul_ps(codes, d), m));
    }
    sink.finish();
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn q8_0<const STREAMING: bool>(blocks: &[u8], out: &mut [f32]) {
    let mut sink = Sink::<STREAMING>::new(out);
    for [d0, d1, codes @ ..] in blocks.as_chunks::<34>().0 {
        let d = splat_f16(*d0, *d1);
        for codes in codes.as_chunks().0 {
            sink.push(_mm512_mul_ps(f32s(codes), d));
        }
    }
    sink.finish();
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn q6_k<const STREAMING: bool>(blocks: &[u8], out: &mut [f32]) {
    let mut sink = Sink::<STREAMING>::new(out);
    for block in blocks.as_chunks().0 {
        let (low, high, sub_scales, d) = q6_k::fields(block);
        let codes = q6_k::unpack_codes(low, high).map(|code| code as u8);
        for (codes, sub_scale) in codes.as_chunks().0.iter().zip(sub_scales) {
            let scale = _mm512_set1_ps(q6_k::scale_of(d, *sub_scale));
            sink.push(_mm512_mul_ps(scale, f32s(codes)));
        }
    }
    sink.finish();
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn from_f16(bytes: &[u8], out: &mut [f32]) {
    let (runs, rest) = bytes.as_chunks::<32>();
    let (outs, out_rest) = out.as_chunks_mut::<16>();
    for (run, out) in runs.iter().zip(outs) {
        // SAFETY: `run` is 32 bytes, which need no alignment.
        let run = unsafe { _mm256_loadu_si256(run.as_ptr().cast()) };
        store(_mm512_cvtph_ps(run), out);
    }
    scalar::from_f16(rest, out_rest);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn to_f16(values: &[f32], out: &mut [u8]) {
    let (runs, rest) = values.as_chunks::<16>();
    let (outs, out_rest) = out.as_chunks_mut::<32>();
    for (run, out) in runs.iter().zip(outs) {
        // SAFETY: `run` is 16 f32 and `out` 32 bytes; neither needs alignment.
        unsafe {
            let f16s = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm512_loadu_ps(run.as_ptr()));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), f16s);
        }
    }
    scalar::to_f16(rest, out_rest);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn measure(lanes: &mut ErrorLanes, source: &[f32], result: &[f32]) {
    let (sources, source_rest) = source.as_chunks::<LANES>();
    let (results, result_rest) = result.as_chunks::<LANES>();
    let mut signal = load_f64s(&lanes.signal);
    let mut noise = load_f64s(&lanes.noise);
    let mut max = load_f64s(&lanes.max);
    let mut differs = _mm256_setzero_ps();
    for (source, result) in sources.iter().zip(results) {
        // SAFETY: each is eight f32, which need no alignment.
        let (source, result) = unsafe {
            (
                _mm256_loadu_ps(source.as_ptr()),
                _mm256_loadu_ps(result.as_ptr()),
            )
        };
        differs = _mm256_or_ps(differs, _mm256_xor_ps(source, result));
        let (source, result) = (_mm512_cvtps_pd(source), _mm512_cvtps_pd(result));
        let error = _mm512_sub_pd(source, result);
        signal = _mm512_add_pd(signal, _mm512_mul_pd(source, source));
        noise = _mm512_add_pd(noise, _mm512_mul_pd(error, error));
        // If one is NaN, the result is the second.
        max = _mm512_max_pd(_mm512_abs_pd(error), max);
    }
    for (out, numbers) in [
        (&mut lanes.signal, signal),
        (&mut lanes.noise, noise),
        (&mut lanes.max, max),
    ] {
        // SAFETY: `out` is eight numbers, which need no alignment.
        unsafe { _mm512_storeu_pd(out.as_mut_ptr(), numbers) };
    }
    let differs = _mm256_castps_si256(differs);
    lanes.differs |= _mm256_testz_si256(differs, differs) == 0;
    crate::model::quant::error::measure(lanes, source_rest, result_rest);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn load_f64s(numbers: &[f64; LANES]) -> __m512d {
    // SAFETY: `numbers` is eight numbers, which need no alignment.
    unsafe { _mm512_loadu_pd(numbers.as_ptr()) }
}

/// Writes values, sixteen at a time, with ordinary or with non-temporal stores. The latter need
/// aligned addresses, so each store combines a part of the pending values with a part of the next.
struct Sink<'a, const STREAMING: bool> {
    cached: std::slice::IterMut<'a, [f32; 16]>,
    head: &'a mut [f32],
    lines: std::slice::IterMut<'a, __m512>,
    tail: &'a mut [f32],
    pending: Option<__m512>,
    shift: __m512i,
}

impl<'a, const STREAMING: bool> Sink<'a, STREAMING> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
    fn new(out: &'a mut [f32]) -> Self {
        let (cached, streaming) = if STREAMING {
            out.split_at_mut(0)
        } else {
            out.split_at_mut(out.len())
        };
        // SAFETY: any sixteen f32 that are aligned to 64 bytes are a valid vector.
        let (head, lines, tail) = unsafe { streaming.align_to_mut::<__m512>() };
        let places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let shift = _mm512_add_epi32(places, _mm512_set1_epi32(head.len() as i32));
        Sink {
            cached: cached.as_chunks_mut().0.iter_mut(),
            head,
            lines: lines.iter_mut(),
            tail,
            pending: None,
            shift,
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
    fn push(&mut self, values: __m512) {
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
                self.write_line(_mm512_permutex2var_ps(pending, self.shift, values));
            }
        }
        self.pending = Some(values);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
    fn write_line(&mut self, values: __m512) {
        if let Some(line) = self.lines.next() {
            // SAFETY: `line` is 64 bytes and aligned.
            unsafe { _mm512_stream_ps(std::ptr::from_mut(line).cast(), values) };
        }
    }

    /// Writes sixteen bytes of two codes each, as the values of `table` at the codes. The
    /// permutation uses the low four bits of an index.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
    fn push_pairs(&mut self, pairs: &[u8; 16], table: __m512) {
        let pairs = _mm512_cvtepu8_epi32(load(pairs));
        self.push(_mm512_permutexvar_ps(pairs, table));
        self.push(_mm512_permutexvar_ps(_mm512_srli_epi32(pairs, 4), table));
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
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
#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn splat_f16(low: u8, high: u8) -> __m512 {
    _mm512_cvtph_ps(_mm256_set1_epi16(i16::from_le_bytes([low, high])))
}

/// Signed bytes as f32.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn f32s(codes: &[u8; 16]) -> __m512 {
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load(codes)))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn load(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: `bytes` is 16 bytes, which need no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn store(values: __m512, out: &mut [f32; 16]) {
    // SAFETY: `out` is sixteen f32, which need no alignment.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), values) };
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn f32s_of(values: __m512) -> [f32; 16] {
    let mut out = [0.0; 16];
    store(values, &mut out);
    out
}
