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
        let mut lanes = [ErrorSum::default(); LANES];
        let (sources, source_rest) = source.as_chunks::<LANES>();
        let (results, result_rest) = result.as_chunks::<LANES>();
        for (source, result) in sources.iter().zip(results) {
            for lane in 0..LANES {
                lanes[lane].add(source[lane], result[lane]);
            }
        }
        for (lane, (source, result)) in lanes.iter_mut().zip(source_rest.iter().zip(result_rest)) {
            lane.add(*source, *result);
        }
        lanes.into_iter().fold(ErrorSum::default(), ErrorSum::and)
    }

    /// The sums over numbers that are no singles, each with how much its result falls short of it.
    pub(super) fn of_shortfalls(pairs: impl Iterator<Item = (f64, f64)>) -> Self {
        pairs.fold(ErrorSum::default(), |sum, (source, error)| ErrorSum {
            signal: sum.signal + source * source,
            noise: sum.noise + error * error,
            max: sum.max.max(error.abs()),
            differs: sum.differs | (error != 0.0),
        })
    }

    fn add(&mut self, source: f32, result: f32) {
        let error = f64::from(source) - f64::from(result);
        self.signal += f64::from(source) * f64::from(source);
        self.noise += error * error;
        self.max = if error.abs() > self.max { error.abs() } else { self.max };
        self.differs |= source.to_bits() != result.to_bits();
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
