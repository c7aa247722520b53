//! Non-temporal stores, and ggml's decoders.
#![allow(unsafe_code)]

use std::ffi::c_void;

use libloading::{Library, Symbol};

/// Writes a constant, with non-temporal stores if the machine has them.
pub fn fill(out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has the instructions.
            return unsafe { x86::fill_512(out) };
        }
        if is_x86_feature_detected!("avx") {
            // SAFETY: the machine has the instructions.
            return unsafe { x86::fill_256(out) };
        }
    }
    out.fill(1.0);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f")]
    pub fn fill_512(out: &mut [f32]) {
        // SAFETY: any sixteen aligned f32 are such a vector; each is written once.
        let lines = unsafe { out.align_to_mut::<__m512>().1 };
        for line in lines {
            // SAFETY: the same.
            unsafe { _mm512_stream_ps(std::ptr::from_mut(line).cast(), _mm512_set1_ps(1.0)) };
        }
        _mm_sfence();
    }

    #[target_feature(enable = "avx")]
    pub fn fill_256(out: &mut [f32]) {
        // SAFETY: any eight aligned f32 are such a vector; each is written once.
        let lines = unsafe { out.align_to_mut::<__m256>().1 };
        for line in lines {
            // SAFETY: the same.
            unsafe { _mm256_stream_ps(std::ptr::from_mut(line).cast(), _mm256_set1_ps(1.0)) };
        }
        _mm_sfence();
    }
}

/// ggml's decoders, from the library KILN_GGML.
pub struct Ggml(Library);

impl Ggml {
    /// Loads the library; `None` if KILN_GGML is not set.
    pub fn load() -> Option<Ggml> {
        let path = std::env::var_os("KILN_GGML")?;
        // SAFETY: the initializers of ggml have no side effects that matter here. The user who sets
        // KILN_GGML is responsible for the file.
        Some(Ggml(
            unsafe { Library::new(path) }.expect("KILN_GGML is a library"),
        ))
    }

    /// Decodes as `dequantize_row_*` does.
    pub fn decode(&self, name: &str, blocks: &[u8], out: &mut [f32]) {
        type Row = unsafe extern "C" fn(*const c_void, *mut f32, i64);
        let name = format!("dequantize_row_{}", name.replace('Q', "q"));
        // SAFETY: the signature is that of ggml-quants.h; `out` has space for the values of
        // `blocks`.
        unsafe {
            let row: Symbol<Row> = self.0.get(name.as_bytes()).expect("a known decoder");
            row(blocks.as_ptr().cast(), out.as_mut_ptr(), out.len() as i64);
        }
    }
}
