//! The error of rounded values against their source.

/// Signal, noise and largest error, summed in f64 in a fixed order, so that the number of threads
/// changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ErrorSum {
    signal: f64,
    noise: f64,
    max: f64,
    differs: bool,
}

/// Number of independent sums, so that an addition need not wait for the previous one.
pub(super) const LANES: usize = 8;

/// Partial sums: value `i` is added to lane `i % 8`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ErrorLanes {
    pub(super) signal: [f64; LANES],
    pub(super) noise: [f64; LANES],
    pub(super) max: [f64; LANES],
    pub(super) differs: bool,
}

impl ErrorLanes {
    /// The sum of all lanes.
    pub fn sum(&self) -> ErrorSum {
        let mut sum = ErrorSum {
            differs: self.differs,
            ..ErrorSum::default()
        };
        for lane in 0..LANES {
            sum = sum.and(ErrorSum {
                signal: self.signal[lane],
                noise: self.noise[lane],
                max: self.max[lane],
                differs: false,
            });
        }
        sum
    }
}

/// Adds the errors of `result` against `source`. Each call but the last must have a multiple of
/// eight values.
pub(super) fn measure(lanes: &mut ErrorLanes, source: &[f32], result: &[f32]) {
    for (source, result) in source.chunks(LANES).zip(result.chunks(LANES)) {
        for (lane, (source, result)) in source.iter().zip(result).enumerate() {
            lanes.differs |= source.to_bits() != result.to_bits();
            let (source, result) = (f64::from(*source), f64::from(*result));
            let error = source - result;
            lanes.signal[lane] += source * source;
            lanes.noise[lane] += error * error;
            // A NaN is not larger.
            if error.abs() > lanes.max[lane] {
                lanes.max[lane] = error.abs();
            }
        }
    }
}

/// The ratio of two powers in dB, rounded to 0.01, because the last bits of `log10` depend on the
/// libm and the figure is part of keys. `None` if there is no noise.
pub(super) fn decibels(signal: f64, noise: f64) -> Option<f64> {
    let has_noise = noise > 0.0;
    has_noise.then(|| (1000.0 * (signal / noise).log10()).round() / 100.0)
}

impl ErrorSum {
    /// Adds one value of the source and its error.
    pub(super) fn add(&mut self, source: f64, error: f64) {
        self.signal += source * source;
        self.noise += error * error;
        self.max = self.max.max(error.abs());
        self.differs |= error != 0.0;
    }

    /// The sums of these values and the `next` ones.
    pub fn and(self, next: Self) -> Self {
        ErrorSum {
            signal: self.signal + next.signal,
            noise: self.noise + next.noise,
            max: self.max.max(next.max),
            differs: self.differs | next.differs,
        }
    }

    /// Whether every value equals the source, bit for bit.
    pub fn is_exact(&self) -> bool {
        !self.differs
    }

    /// Signal to noise ratio, as [`decibels`].
    pub fn sqnr_db(&self) -> Option<f64> {
        decibels(self.signal, self.noise)
    }

    /// The largest absolute error.
    pub fn max_error(&self) -> f64 {
        self.max
    }
}
