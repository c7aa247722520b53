//! Numbers of several rows that are rounded side by side, and their arithmetic.

/// Rows that are rounded side by side.
pub(super) const LANES: usize = 16;

/// One number per row.
pub(super) type Lanes = [f32; LANES];

/// Replaces each lane by `change` of its index and value.
#[inline(always)]
pub(super) fn update(all: &mut Lanes, change: impl Fn(usize, f32) -> f32) {
    for (lane, value) in all.iter_mut().enumerate() {
        *value = change(lane, *value);
    }
}

/// `start` plus the sum of `errors[i] * factors[i]`.
#[inline(always)]
pub(super) fn add_products(mut start: Lanes, errors: &[Lanes], factors: &[f32]) -> Lanes {
    for (error, factor) in errors.iter().zip(factors) {
        update(&mut start, |lane, sum| sum + error[lane] * factor);
    }
    start
}

/// `start` minus the sum of `errors[i] * factors[i]`.
#[inline(always)]
pub(super) fn subtract_products(mut start: Lanes, errors: &[Lanes], factors: &[f32]) -> Lanes {
    for (error, factor) in errors.iter().zip(factors) {
        update(&mut start, |lane, sum| sum - error[lane] * factor);
    }
    start
}
