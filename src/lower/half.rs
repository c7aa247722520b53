//! Rounds weights to f16, and checks the rounding error.

use half::f16;

use crate::base::{Code, Problem, Result};

/// Largest relative error of a tensor in f16. The rounding error of a normal f16 number is at most
/// 2^-11 of its value; above this limit, too many values are subnormal and lose bits.
const MAX_RELATIVE_RMS: f64 = 1.0 / 1024.0;

/// Rounds a tensor to f16 and sums up the squared error.
#[derive(Default)]
pub(super) struct Fp16Weights {
    error: f64,
    power: f64,
}

impl Fp16Weights {
    /// `value` as a little-endian f16.
    pub(super) fn round(&mut self, value: f32) -> [u8; 2] {
        let half = f16::from_f32(value);
        self.error += f64::from(half.to_f32() - value).powi(2);
        self.power += f64::from(value).powi(2);
        half.to_le_bytes()
    }

    /// A problem if the tensor overflowed (its error is infinite or NaN) or its error is too large.
    pub(super) fn finish(self, tensor: &str) -> Result<()> {
        if self.error <= self.power * MAX_RELATIVE_RMS.powi(2) {
            return Ok(());
        }
        let relative = (self.error / self.power).sqrt();
        Err(Problem::new(
            Code::LowerHalf,
            format!("`{tensor}` does not fit into f16: relative error {relative:.1e}"),
        )
        .help(
            "a smaller `residual_exponent` or `ffn_exponent` keeps small values; values over \
             65504 fit in no half",
        ))
    }
}

/// `scale * gain`. The device stores scales in f16: it is a problem if a scale loses bits because
/// of the gain.
pub(super) fn scale_times_gain(scale: f32, gain: f32, tensor: &str) -> Result<f32> {
    let scaled = scale * gain;
    let half = f16::from_f32(scaled);
    let is_subnormal = scaled.abs() < f16::MIN_POSITIVE.to_f32();
    let loses_bits = gain != 1.0 && is_subnormal && half.to_f32() != scaled;
    if half.is_finite() && !loses_bits {
        return Ok(scaled);
    }
    Err(Problem::new(
        Code::LowerHalf,
        format!("the scale {scale:e} of `{tensor}` times the gain {gain} does not fit into f16"),
    )
    .help("choose a smaller `residual_exponent` or `ffn_exponent`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_must_not_lose_bits_by_its_gain() {
        assert_eq!(scale_times_gain(0.5, 0.25, "w").unwrap(), 0.125);
        assert_eq!(
            scale_times_gain(3e-5, 1.0, "w").unwrap(),
            3e-5,
            "a small scale of the file, without a gain"
        );
        assert!(scale_times_gain(f16::from_f32(7e-5).to_f32(), 1.0 / 16.0, "w").is_err());
        assert_eq!(
            scale_times_gain(2f32.powi(-14), 2f32.powi(-10), "w").unwrap(),
            2f32.powi(-24),
            "exact"
        );
        assert!(scale_times_gain(60000.0, 2.0, "w").is_err());
        assert!(scale_times_gain(f32::NAN, 1.0, "w").is_err());
    }

    #[test]
    fn tensors_with_large_rounding_errors_are_rejected() {
        let fits = |values: &[f32]| {
            let mut f16s = Fp16Weights::default();
            for &value in values {
                f16s.round(value);
            }
            f16s.finish("w").is_ok()
        };
        assert!(fits(&[0.0, 0.0]));
        assert!(fits(&[0.1, -0.3, 1e-9]));
        assert!(!fits(&[1e-7, 3e-7]));
        assert!(!fits(&[1.0, 70000.0]));
        assert!(!fits(&[f32::NAN]));
    }
}
