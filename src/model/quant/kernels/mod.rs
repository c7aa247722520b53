//! The inner loops, once for each set of instructions that is worth it. The scalar ones are the
//! definition: `tests/it/kernels.rs` proves that every other gives the same bits.
//!
//! What has no wider twin here is left to the compiler: on x86-64 it has SSE2 to work with, on
//! AArch64 NEON, which every such machine has.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
mod wide;

use std::sync::LazyLock;

pub use wide::{Loop, run_wide};

use super::ErrorLanes;

/// Whole blocks to as many values.
pub type Decode = fn(&[u8], &mut [f32]);

/// The loops of one set of instructions.
pub struct Kernels {
    /// What the set is called.
    pub name: &'static str,
    /// Decoders whose values are read again at once.
    pub near: Decoders,
    /// Decoders that write past the caches, where the machine can.
    pub far: Decoders,
    /// Little-endian halves to singles.
    pub from_f16: Decode,
    /// Singles to little-endian halves, to nearest, ties to even.
    pub to_f16: fn(&[f32], &mut [u8]),
    /// Adds up signal, noise and largest error of results against their source.
    pub measure: fn(&mut ErrorLanes, &[f32], &[f32]),
}

/// One for each format that has kernels.
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

/// The widest that this machine can run, chosen once.
pub fn widest() -> &'static Kernels {
    static WIDEST: LazyLock<&Kernels> = LazyLock::new(|| here().next().unwrap_or(&scalar::KERNELS));
    *WIDEST
}

/// All that this machine can run, the widest first and the scalar ones last.
pub fn here() -> impl Iterator<Item = &'static Kernels> {
    #[cfg(target_arch = "x86_64")]
    let wide = [avx512::kernels(), avx2::kernels()];
    #[cfg(target_arch = "aarch64")]
    let wide = [neon::kernels()];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let wide = [None];
    wide.into_iter().flatten().chain([&scalar::KERNELS])
}
