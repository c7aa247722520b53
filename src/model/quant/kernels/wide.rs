//! Runs a loop of plain Rust that is compiled for several instruction sets. Every operation is
//! rounded separately, as the compiler fuses nothing, so the result is the same for all of them.
#![allow(unsafe_code)]

/// A loop that gains from wider registers.
pub trait Loop {
    /// The result.
    type Output;

    /// Runs the loop. This function and all that it calls must be `#[inline(always)]`, so that they
    /// are compiled for each instruction set.
    fn run(self) -> Self::Output;
}

/// Runs `body` with the widest registers of this processor.
pub fn run_wide<L: Loop>(body: L) -> L::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has the feature, as was just checked; the body is safe code.
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
