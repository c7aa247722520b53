//! SIMD kernels of the inner loops, one set per instruction set. The scalar kernels are the
//! reference: `tests/it/kernels.rs` checks that all others yield the same bits.
//!
//! The compiler vectorizes all other loops, with SSE2 on x86-64 and NEON on AArch64, which every
//! such processor has.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
pub(super) mod scalar;
mod wide;

use std::sync::LazyLock;

pub use wide::{Loop, run_wide};

use super::error::{ErrorLanes, ErrorSum};

/// Decodes whole blocks to their values.
pub type Decode = fn(&[u8], &mut [f32]);

/// The kernels of one instruction set.
pub struct Kernels {
    /// Name of the instruction set.
    pub name: &'static str,
    /// Decoders with ordinary stores, for values that are read soon.
    pub cached: Decoders,
    /// Decoders with non-temporal stores, which bypass the caches, where the processor has them.
    pub streaming: Decoders,
    /// Converts little-endian f16 to f32.
    pub from_f16: Decode,
    /// Converts f32 to little-endian f16, rounded to nearest, ties to even.
    pub to_f16: fn(&[f32], &mut [u8]),
    /// Adds signal, noise and largest error of results against their source.
    pub measure: fn(&mut ErrorLanes, &[f32], &[f32]),
}

/// The decoders of all formats that have kernels.
pub struct Decoders {
    /// Decodes Q4_0.
    pub q4_0: Decode,
    /// Decodes Q4_1.
    pub q4_1: Decode,
    /// Decodes Q8_0.
    pub q8_0: Decode,
    /// Decodes Q6_K.
    pub q6_k: Decode,
}

/// The widest kernels that this processor can run, chosen once.
pub fn widest() -> &'static Kernels {
    static WIDEST: LazyLock<&Kernels> = LazyLock::new(|| available()[0]);
    *WIDEST
}

impl ErrorSum {
    /// The error of `result` against `source`.
    pub fn of(source: &[f32], result: &[f32]) -> Self {
        let mut lanes = ErrorLanes::default();
        (widest().measure)(&mut lanes, source, result);
        lanes.sum()
    }
}

/// All kernels that this processor can run, the widest first and the scalar ones last.
pub fn available() -> Vec<&'static Kernels> {
    #[cfg(target_arch = "x86_64")]
    let wide = [avx512::kernels(), avx2::kernels()];
    #[cfg(target_arch = "aarch64")]
    let wide = [neon::kernels()];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let wide = [None];
    let mut all: Vec<&Kernels> = wide.into_iter().flatten().collect();
    all.push(&scalar::KERNELS);
    all
}
