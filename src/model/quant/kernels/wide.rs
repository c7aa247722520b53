//! One loop of plain Rust, compiled for several sets of instructions. It rounds every operation by
//! itself, and so gives the same bits whichever of them runs it: the compiler fuses nothing.
#![allow(unsafe_code)]

/// A loop that is worth wider registers.
pub trait Loop {
    /// What comes of it.
    type Output;

    /// Runs it. To be marked `#[inline(always)]`, with all that it calls: only then is it compiled
    /// anew for each set.
    fn run(self) -> Self::Output;
}

/// Runs `body` with the widest registers that this machine has.
pub fn run_wide<L: Loop>(body: L) -> L::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine was just asked for the feature; the body is safe code.
            return unsafe { with_avx512(body) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return unsafe { with_avx2(body) };
        }
    }
    body.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn with_avx512<L: Loop>(body: L) -> L::Output {
    body.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn with_avx2<L: Loop>(body: L) -> L::Output {
    body.run()
}
