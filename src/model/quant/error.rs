//! How far rounded values are from their source.

use super::kernels;

/// Signal, noise and largest error, summed in f64 in a fixed order: the same figure whatever the
/// thread count.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ErrorSum {
    signal: f64,
    noise: f64,
    max: f64,
    differs: bool,
}

/// How many sums run side by side, so that an addition need not wait for the one before.
pub(super) const LANES: usize = 8;

/// The sums while they grow: value `i` goes into lane `i % 8`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ErrorLanes {
    pub(super) signal: [f64; LANES],
    pub(super) noise: [f64; LANES],
    pub(super) max: [f64; LANES],
    pub(super) differs: bool,
}

impl ErrorLanes {
    /// All lanes in one.
    pub fn sum(&self) -> ErrorSum {
        let add = |all: ErrorSum, lane: usize| {
            all.and(ErrorSum {
                signal: self.signal[lane],
                noise: self.noise[lane],
                max: self.max[lane],
                differs: false,
            })
        };
        (0..LANES).fold(
            ErrorSum {
                differs: self.differs,
                ..ErrorSum::default()
            },
            add,
        )
    }
}

/// Measures `result` against `source`: any number of values the last time, multiples of eight
/// before.
pub(super) fn measure(lanes: &mut ErrorLanes, source: &[f32], result: &[f32]) {
    for (source, result) in source.chunks(LANES).zip(result.chunks(LANES)) {
        for (lane, (source, result)) in source.iter().zip(result).enumerate() {
            lanes.differs |= source.to_bits() != result.to_bits();
            let (source, result) = (f64::from(*source), f64::from(*result));
            let error = source - result;
            lanes.signal[lane] += source * source;
            lanes.noise[lane] += error * error;
            lanes.max[lane] = if error.abs() > lanes.max[lane] {
                error.abs()
            } else {
                lanes.max[lane]
            };
        }
    }
}

impl ErrorSum {
    /// Measures `result` against `source`.
    pub fn of(source: &[f32], result: &[f32]) -> Self {
        let mut lanes = ErrorLanes::default();
        (kernels::widest().measure)(&mut lanes, source, result);
        lanes.sum()
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

    /// Signal to noise in dB, to a hundredth: a libm's last bit must not reach a key. `None` where
    /// there is no noise.
    pub fn sqnr_db(&self) -> Option<f64> {
        (self.noise > 0.0).then(|| (1000.0 * (self.signal / self.noise).log10()).round() / 100.0)
    }

    /// The largest absolute error.
    pub fn max_error(&self) -> f64 {
        self.max
    }
}
