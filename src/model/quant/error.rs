//! How far rounded values are from their source.

/// Signal, noise and largest error, summed in f64 in a fixed order: the same figure whatever the thread count.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ErrorSum {
    signal: f64,
    noise: f64,
    max: f64,
    differs: bool,
}

/// Sums that run side by side, so that an addition need not wait for the one before.
const LANES: usize = 8;

impl ErrorSum {
    /// Measures `result` against `source`.
    pub fn of(source: &[f32], result: &[f32]) -> Self {
        let (mut signal, mut noise, mut max) = ([0.0; LANES], [0.0; LANES], [0.0f64; LANES]);
        let mut differs = false;
        for (source, result) in source.chunks(LANES).zip(result.chunks(LANES)) {
            for (lane, (source, result)) in source.iter().zip(result).enumerate() {
                let error = *source as f64 - *result as f64;
                signal[lane] += *source as f64 * *source as f64;
                noise[lane] += error * error;
                max[lane] = max[lane].max(error.abs());
                differs |= source.to_bits() != result.to_bits();
            }
        }
        let max = max.into_iter().fold(0.0, f64::max);
        ErrorSum { signal: signal.iter().sum(), noise: noise.iter().sum(), max, differs }
    }

    /// The sums of this part and the next.
    pub fn and(self, next: Self) -> Self {
        ErrorSum {
            signal: self.signal + next.signal,
            noise: self.noise + next.noise,
            max: self.max.max(next.max),
            differs: self.differs | next.differs,
        }
    }

    /// Whether every value is the source's, bit for bit.
    pub fn is_exact(&self) -> bool {
        !self.differs
    }

    /// Signal to noise in dB, to a hundredth: a libm's last bit must not reach a key. `None` where there is no noise.
    pub fn sqnr_db(&self) -> Option<f64> {
        (self.noise > 0.0).then(|| (1000.0 * (self.signal / self.noise).log10()).round() / 100.0)
    }

    /// The largest absolute error.
    pub fn max_error(&self) -> f64 {
        self.max
    }
}
