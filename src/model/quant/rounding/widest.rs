//! The search compiled for wider registers. Every lane goes through the same operations in the same order, and none is fused,
//! so that the results are the same bit for bit.
#![allow(unsafe_code)]

use super::search::{Ratios, Rounded, Tile};

/// [`Tile::search`] with the widest registers that this machine has.
pub(super) fn search(tile: Tile, ratios: &Ratios, spell: &impl Fn(f32) -> f32) -> Rounded {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine was just asked for the feature.
            return unsafe { with_avx512(tile, ratios, spell) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return unsafe { with_avx2(tile, ratios, spell) };
        }
    }
    tile.search(ratios, spell)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn with_avx512(tile: Tile, ratios: &Ratios, spell: &impl Fn(f32) -> f32) -> Rounded {
    tile.search(ratios, spell)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn with_avx2(tile: Tile, ratios: &Ratios, spell: &impl Fn(f32) -> f32) -> Rounded {
    tile.search(ratios, spell)
}

#[cfg(test)]
mod tests {
    use super::super::metric::Metric;
    use super::super::search::{LANES, Lanes, Range};
    use super::*;

    #[test]
    fn wider_registers_change_no_bit() {
        let mut state = 1u32;
        let mut number = || {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let columns = 64;
        let inputs: Vec<f32> = (0..columns * 80).map(|_| number()).collect();
        let moment = |a: usize, b: usize| inputs.chunks(columns).map(|x| x[a] * x[b]).sum::<f32>();
        let moments: Vec<f32> = (0..columns * columns).map(|i| moment(i / columns, i % columns)).collect();
        let values: Vec<Lanes> = (0..columns).map(|_| [0.0; LANES].map(|_| number())).collect();
        for block in [Some(16), None] {
            let metric = Metric::full(&moments, columns, block).unwrap();
            let range = Range { codes: [-8.0, 7.0], integers: if block.is_some() { 16 } else { 1 } };
            let tile = || Tile::new(range, &metric, values.clone());
            let ratios = Ratios { all: -6..=1, near: &[0, 1] };
            let spell = |scale| scale;
            assert!(tile().search(&ratios, spell) == search(tile(), &ratios, &spell));
        }
    }
}
