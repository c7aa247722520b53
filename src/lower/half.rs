//! Numbers as halves, and what that costs.

use half::f16;

use crate::base::{Code, Problem, Result};

/// Where a tensor of halves is no longer as good as f16's own rounding (at most 2^-11 of each
/// value): too many of its values are so small that they lose bits.
const MAX_RELATIVE_RMS: f64 = 1.0 / 1024.0;

/// Rounds a tensor to halves and sums up the error.
#[derive(Default)]
pub(super) struct Fp16Weights {
    error: f64,
    power: f64,
}

impl Fp16Weights {
    /// `value` as a little-endian half.
    pub(super) fn round(&mut self, value: f32) -> [u8; 2] {
        let half = f16::from_f32(value);
        self.error += f64::from(half.to_f32() - value).powi(2);
        self.power += f64::from(value).powi(2);
        half.to_le_bytes()
    }

    /// Refuses a tensor that overflowed (its error is infinite or no number) or lost too much.
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

/// `scale * gain`. The device keeps scales as halves; a gain must not cost one of them bits.
pub(super) fn scale_times_gain(scale: f32, gain: f32, tensor: &str) -> Result<f32> {
    let scaled = scale * gain;
    let half = f16::from_f32(scaled);
    let is_subnormal = scaled.abs() < f16::MIN_POSITIVE.to_f32();
    let loses = gain != 1.0 && is_subnormal && half.to_f32() != scaled;
    if half.is_finite() && !loses {
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
    fn a_gain_may_not_cost_a_scale_its_bits() {
        assert_eq!(scale_times_gain(0.5, 0.25, "w").unwrap(), 0.125);
        assert_eq!(
            scale_times_gain(3e-5, 1.0, "w").unwrap(),
            3e-5,
            "a small scale of the file is the file's own"
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
    fn halves_that_lose_more_than_their_rounding_are_refused() {
        let fits = |values: &[f32]| {
            let mut f16s = Fp16Weights::default();
            values.iter().for_each(|&value| {
                f16s.round(value);
            });
            f16s.finish("w").is_ok()
        };
        assert!(fits(&[0.0, 0.0]));
        assert!(fits(&[0.1, -0.3, 1e-9]));
        assert!(!fits(&[1e-7, 3e-7]));
        assert!(!fits(&[1.0, 70000.0]));
        assert!(!fits(&[f32::NAN]));
    }
}
