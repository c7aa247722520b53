//! Streaming statistics of a value: a histogram over magnitudes whose bins are the leading bits of
//! the float.

use crate::model::calibration::Activation;

/// Bits of a float that do not select the bin. The others are the exponent and four bits of the
/// mantissa: sixteen bins per octave.
const SHIFT: u32 = 19;
/// Number of bins: magnitudes have no sign bit.
const BINS: usize = 1 << (31 - SHIFT);
/// The quantile above which magnitudes are outliers.
const BULK: f64 = 0.99;

/// The statistics of a value, in 64 KiB.
pub(super) struct Tally {
    count: u64,
    non_finite: u64,
    min: f32,
    max: f32,
    bins: Vec<Bin>,
}

#[derive(Clone, Copy, Default)]
struct Bin {
    count: u64,
    squares: f64,
}

impl Default for Tally {
    fn default() -> Self {
        let bins = vec![Bin::default(); BINS];
        Tally {
            count: 0,
            non_finite: 0,
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
            bins,
        }
    }
}

impl Tally {
    /// Adds `values`.
    pub(super) fn add(&mut self, values: &[f32]) {
        self.count += values.len() as u64;
        for &value in values {
            if !value.is_finite() {
                self.non_finite += 1;
                continue;
            }
            self.min = self.min.min(value);
            self.max = self.max.max(value);
            if let Some(bin) = self.bins.get_mut((value.abs().to_bits() >> SHIFT) as usize) {
                bin.count += 1;
                bin.squares += f64::from(value) * f64::from(value);
            }
        }
    }

    /// How many were infinite or NaN.
    pub(super) fn non_finite(&self) -> u64 {
        self.non_finite
    }

    /// The statistics; `None` if there are no finite values.
    pub(super) fn activation(&self) -> Option<Activation> {
        if self.count == self.non_finite {
            return None;
        }
        let squares: f64 = self.bins.iter().map(|bin| bin.squares).sum();
        // The bin of zero has the subnormals too, which every code rounds to zero.
        let (zeros, rest) = self.bins.split_first()?;
        let nonzero: u64 = rest.iter().map(|bin| bin.count).sum();
        let last = bin_of_rank(rest, (nonzero as f64 * BULK) as u64).unwrap_or(rest.len());
        let (mut count, mut bulk) = (0, 0.0);
        for bin in rest.iter().take(last + 1) {
            count += bin.count;
            bulk += bin.squares;
        }
        Some(Activation {
            count: self.count,
            zeros: zeros.count,
            min: self.min,
            max: self.max,
            mean_square: squares / self.count as f64,
            bulk_square: if count == 0 { 0.0 } else { bulk / count as f64 },
            p99: self.quantile(0.99),
            p99_9: self.quantile(0.999),
            p99_99: self.quantile(0.9999),
        })
    }

    /// The upper end of the bin with the quantile `share` of the magnitudes, at most the maximum.
    fn quantile(&self, share: f64) -> f32 {
        let bin = bin_of_rank(&self.bins, (self.count as f64 * share) as u64).unwrap_or(0);
        let upper_end = f32::from_bits(((bin + 1) as u32) << SHIFT);
        upper_end.min(self.max.abs().max(self.min.abs()))
    }
}

/// The index of the bin with the value of rank `rank`, counted from 1.
fn bin_of_rank(bins: &[Bin], rank: u64) -> Option<usize> {
    let mut count = 0;
    for (index, bin) in bins.iter().enumerate() {
        count += bin.count;
        if count >= rank.max(1) {
            return Some(index);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f32]) -> Activation {
        let mut tally = Tally::default();
        for chunk in values.chunks(7) {
            tally.add(chunk);
        }
        tally.activation().unwrap()
    }

    #[test]
    fn percentiles_are_within_a_bin_of_the_sorted_values() {
        // Magnitudes over many octaves, signs mixed.
        let values: Vec<f32> = (0..20_000)
            .map(|i| (i as f32 * 0.37).sin() * 2f32.powi(i % 23 - 11))
            .filter(|x| *x != 0.0)
            .collect();
        let mut sorted: Vec<f32> = values.iter().map(|x| x.abs()).collect();
        sorted.sort_by(f32::total_cmp);
        let found = of(&values);
        for (share, percentile) in [
            (0.99, found.p99),
            (0.999, found.p99_9),
            (0.9999, found.p99_99),
        ] {
            let exact = sorted[(values.len() as f64 * share) as usize - 1];
            assert!(
                percentile >= exact && percentile <= exact * (1.0 + 1.0 / 16.0),
                "{share} {exact} {percentile}"
            );
        }
        let squares: f64 = values.iter().map(|x| f64::from(*x).powi(2)).sum();
        assert!((found.mean_square / (squares / values.len() as f64) - 1.0).abs() < 1e-12);
        assert_eq!(found.max, values.iter().copied().fold(f32::MIN, f32::max));
        assert_eq!(found.min, values.iter().copied().fold(f32::MAX, f32::min));
    }

    #[test]
    fn the_bulk_has_no_outliers() {
        let mut values = vec![1.0; 999];
        values.push(-30_000.0);
        values.extend([0.0; 1000]);
        let found = of(&values);
        assert_eq!(
            (found.count, found.zeros, found.bulk_square),
            (2000, 1000, 1.0)
        );
        assert_eq!(found.mean_square, (999.0 + 9e8) / 2000.0);
        assert_eq!((found.min, found.max), (-30_000.0, 1.0));
        assert_eq!(
            (found.p99, found.p99_99),
            (1.0625, 1.0625),
            "the end of the bin of 1"
        );
        assert_eq!(
            of(&[3.0]).p99,
            3.0,
            "the end of its bin is above the maximum"
        );
    }

    #[test]
    fn non_finite_values_are_counted_separately() {
        let mut tally = Tally::default();
        tally.add(&[f32::NAN, f32::INFINITY]);
        assert!(tally.activation().is_none());
        tally.add(&[2.0]);
        assert_eq!(
            (tally.non_finite(), tally.activation().unwrap().max),
            (2, 2.0)
        );
    }

    #[test]
    fn zeros_alone_have_no_magnitude() {
        let found = of(&[0.0, -0.0]);
        assert_eq!(
            (found.zeros, found.max, found.p99, found.bulk_square),
            (2, 0.0, 0.0, 0.0)
        );
    }
}
