//! AVX-512: sixteen values at a time.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::{Decoders, Kernels, scalar};
use crate::model::quant::error::{ErrorLanes, LANES};
use crate::model::quant::formats::q6_k;

/// The kernels, if this machine can run them.
pub(super) fn kernels() -> Option<&'static Kernels> {
    let can = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
    let can = can && is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("f16c");
    can.then_some(&KERNELS)
}

static KERNELS: Kernels = Kernels {
    name: "avx512",
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

#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn q4_0<const FAR: bool>(blocks: &[u8], out: &mut [f32]) {
    let codes = _mm512_setr_ps(
        -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0,
    );
    let mut sink = Sink::<FAR>::new(out);
    for [d0, d1, pairs @ ..] in blocks.as_chunks::<18>().0 {
        sink.push_pairs(pairs, _mm512_mul_ps(codes, half(*d0, *d1)));
    }
    sink.finish();
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn q4_1<const FAR: bool>(blocks: &[u8], out: &mut [f32]) {
    let codes = _mm512_setr_ps(
        0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0,
    );
    let mut sink = Sink::<FAR>::new(out);
    for [d0, d1, m0, m1, pairs @ ..] in blocks.as_chunks::<20>().0 {
        sink.push_pairs(
            pairs,
            _mm512_add_ps(_mm512_mul_ps(codes, half(*d0, *d1)), half(*m0, *m1)),
        );
    }
    sink.finish();
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn q8_0<const FAR: bool>(blocks: &[u8], out: &mut [f32]) {
    let mut sink = Sink::<FAR>::new(out);
    for [d0, d1, codes @ ..] in blocks.as_chunks::<34>().0 {
        let d = half(*d0, *d1);
        for codes in codes.as_chunks().0 {
            sink.push(_mm512_mul_ps(f32s(codes), d));
        }
    }
    sink.finish();
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn q6_k<const FAR: bool>(blocks: &[u8], out: &mut [f32]) {
    let mut sink = Sink::<FAR>::new(out);
    for block in blocks.as_chunks().0 {
        let (low, high, sub_scales, d) = q6_k::pieces(block);
        let codes = q6_k::codes(low, high).map(|code| code as u8);
        for (codes, sub_scale) in codes.as_chunks().0.iter().zip(sub_scales) {
            sink.push(_mm512_mul_ps(
                _mm512_set1_ps(q6_k::scale(d, *sub_scale)),
                f32s(codes),
            ));
        }
    }
    sink.finish();
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn from_f16(halves: &[u8], out: &mut [f32]) {
    let (runs, rest) = halves.as_chunks::<32>();
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
        // SAFETY: `run` is 16 singles and `out` 32 bytes, neither of which needs alignment.
        unsafe {
            let halves =
                _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm512_loadu_ps(run.as_ptr()));
            _mm256_storeu_si256(out.as_mut_ptr().cast(), halves);
        }
    }
    scalar::to_f16(rest, out_rest);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn measure(lanes: &mut ErrorLanes, source: &[f32], result: &[f32]) {
    let (sources, source_rest) = source.as_chunks::<LANES>();
    let (results, result_rest) = result.as_chunks::<LANES>();
    // SAFETY: each of these is eight numbers, which need no alignment.
    let load = |numbers: &[f64; LANES]| unsafe { _mm512_loadu_pd(numbers.as_ptr()) };
    let [mut signal, mut noise, mut max] = [&lanes.signal, &lanes.noise, &lanes.max].map(load);
    let mut differs = _mm256_setzero_ps();
    for (source, result) in sources.iter().zip(results) {
        // SAFETY: each is eight singles, which need no alignment.
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
        // Of two, the second where they are not ordered.
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

/// Where values go, sixteen at a time: to where they are read again at once, or past the caches.
/// The latter takes aligned lines only, so that a line is put together from what is held back and
/// what comes.
struct Sink<'a, const FAR: bool> {
    near: std::slice::IterMut<'a, [f32; 16]>,
    head: &'a mut [f32],
    lines: std::slice::IterMut<'a, __m512>,
    tail: &'a mut [f32],
    held: Option<__m512>,
    shift: __m512i,
}

impl<'a, const FAR: bool> Sink<'a, FAR> {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
    fn new(out: &'a mut [f32]) -> Self {
        let (near, far): (&mut [f32], &mut [f32]) =
            if FAR { (&mut [], out) } else { (out, &mut []) };
        // SAFETY: any sixteen singles that lie on 64 bytes are one such vector.
        let (head, lines, tail) = unsafe { far.align_to_mut::<__m512>() };
        let places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let shift = _mm512_add_epi32(places, _mm512_set1_epi32(head.len() as i32));
        Sink {
            near: near.as_chunks_mut().0.iter_mut(),
            head,
            lines: lines.iter_mut(),
            tail,
            held: None,
            shift,
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
    fn push(&mut self, values: __m512) {
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
            Some(held) => self.line(_mm512_permutex2var_ps(held, self.shift, values)),
        }
        self.held = Some(values);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
    fn line(&mut self, values: __m512) {
        if let Some(line) = self.lines.next() {
            // SAFETY: `line` is a whole line, and aligned.
            unsafe { _mm512_stream_ps(std::ptr::from_mut(line).cast(), values) };
        }
    }

    /// Sixteen bytes of two codes each, by the table of what a code stands for: of an index, only
    /// the low four bits count.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
    fn push_pairs(&mut self, pairs: &[u8; 16], table: __m512) {
        let pairs = _mm512_cvtepu8_epi32(load(pairs));
        self.push(_mm512_permutexvar_ps(pairs, table));
        self.push(_mm512_permutexvar_ps(_mm512_srli_epi32(pairs, 4), table));
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
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
#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn half(low: u8, high: u8) -> __m512 {
    _mm512_cvtph_ps(_mm256_set1_epi16(i16::from_le_bytes([low, high])))
}

/// Signed bytes as singles.
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
    // SAFETY: `out` is sixteen singles, which need no alignment.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), values) };
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn f32s_of(values: __m512) -> [f32; 16] {
    let mut out = [0.0; 16];
    store(values, &mut out);
    out
}
