//! Whether the attention mask really hides the masked positions. An additive mask of finite depth
//! does so only as long as no visible score is as far below zero.

use std::collections::BTreeMap;

use crate::artifact::evaluation::{MaskMargin, Masks};
use crate::base::{Code, Context, Problem, Result};
use crate::model::decoder::inputs::is_mask;
use crate::model::facts::{in_layer, of_all_heads};

/// Observes the attention of a graph over one window.
pub(super) struct MaskWatch {
    tokens: usize,
    rows: usize,
    head_dim: usize,
    /// The name of the mask of each layer.
    names: Vec<String>,
    masks: BTreeMap<String, Mask>,
    layers: BTreeMap<u32, Extremes>,
}

/// A mask of some layers.
struct Mask {
    /// Which columns each row attends to, `[rows, columns]`.
    visible: Vec<bool>,
    /// The least that is subtracted from a masked score.
    depth: f32,
}

/// The figures of a layer.
struct Extremes {
    /// See [`MaskMargin::least`].
    least: f32,
    /// Length of the longest query.
    query: f32,
    /// Length of the longest key.
    key: f32,
}

/// The name of the mask that a value is, also as a graph of 16-bit activations holds it.
fn mask_of(value: &str) -> Option<&str> {
    Some(value.strip_suffix(".held").unwrap_or(value)).filter(|name| is_mask(name))
}

impl MaskWatch {
    /// For a window of `tokens` in a graph that takes `rows`: those after the window are padding.
    /// `names` has the name of the mask of each layer.
    pub(super) fn new(tokens: usize, rows: usize, head_dim: usize, names: Vec<String>) -> Self {
        MaskWatch {
            tokens,
            rows: rows.max(1),
            head_dim,
            names,
            masks: BTreeMap::new(),
            layers: BTreeMap::new(),
        }
    }

    /// Whether [`MaskWatch::see`] needs the value of this name.
    pub(super) fn wants(value: &str) -> bool {
        match in_layer(of_all_heads(value)) {
            Some((_, what)) => matches!(what, "query.scaled" | "key" | "scores.masked"),
            None => mask_of(value).is_some(),
        }
    }

    /// Takes the elements of a value of all or some heads; the masks come before the layers.
    pub(super) fn see(&mut self, value: &str, elements: &[f32]) -> Result<()> {
        if let Some(name) = mask_of(value) {
            self.see_mask(name, elements);
            return Ok(());
        }
        let Some((layer, what)) = in_layer(of_all_heads(value)) else {
            return Ok(());
        };
        if !Self::wants(value) {
            return Ok(());
        }
        let layer: u32 = layer.parse().context(Code::EvaluateMask, || {
            format!("read the layer of `{value}`")
        })?;
        let found = match what {
            "scores.masked" => self.least_margin(layer, elements)?,
            _ => longest(elements, self.head_dim),
        };
        let extremes = self.layers.entry(layer).or_insert(Extremes {
            least: f32::MAX,
            query: 0.0,
            key: 0.0,
        });
        match what {
            "scores.masked" => extremes.least = extremes.least.min(found),
            "query.scaled" => extremes.query = extremes.query.max(found),
            _ => extremes.key = extremes.key.max(found),
        }
        Ok(())
    }

    /// The first mask of a name shows what is visible. One after it is what the graph holds, which
    /// may be less deep.
    fn see_mask(&mut self, name: &str, elements: &[f32]) {
        let mask = self.masks.entry(name.into()).or_insert_with(|| Mask {
            visible: elements.iter().map(|added| *added == 0.0).collect(),
            depth: 0.0,
        });
        mask.depth = f32::MAX;
        for (added, is_visible) in elements.iter().zip(&mask.visible) {
            if !is_visible {
                mask.depth = mask.depth.min(-added);
            }
        }
    }

    fn mask(&self, layer: u32) -> Result<&Mask> {
        let name = self.names.get(layer as usize);
        match name.and_then(|name| self.masks.get(name)) {
            Some(mask) => Ok(mask),
            None => Err(no_attention()),
        }
    }

    /// The least distance of the largest visible score from the largest masked one, over all rows
    /// of `scores`, `[heads, rows, columns]`.
    fn least_margin(&self, layer: u32, scores: &[f32]) -> Result<f32> {
        let Mask { visible, .. } = self.mask(layer)?;
        let columns = (visible.len() / self.rows).max(1);
        let mut least = f32::MAX;
        for head in scores.chunks_exact(columns * self.rows) {
            let visible = visible.chunks_exact(columns).take(self.tokens);
            for (scores, visible) in head.chunks_exact(columns).zip(visible) {
                let (mut largest_visible, mut largest_masked) = (f32::MIN, f32::MIN);
                for (score, is_visible) in scores.iter().zip(visible) {
                    if !score.is_finite() {
                        return Ok(f32::MIN);
                    }
                    if *is_visible {
                        largest_visible = largest_visible.max(*score);
                    } else {
                        largest_masked = largest_masked.max(*score);
                    }
                }
                least = least.min(largest_visible - largest_masked);
            }
        }
        Ok(least)
    }

    /// The margins of all layers.
    pub(super) fn margins(self) -> Result<Masks> {
        if self.layers.is_empty() {
            return Err(no_attention());
        }
        let mut margins = Masks::new();
        for (layer, found) in &self.layers {
            let depth = f64::from(self.mask(*layer)?.depth);
            let bound = depth - 2.0 * f64::from(found.query) * f64::from(found.key);
            let margin = MaskMargin {
                least: found.least.max(f32::MIN),
                bound: bound.max(f64::from(f32::MIN)) as f32,
            };
            margins.insert(*layer, margin);
        }
        Ok(margins)
    }
}

fn no_attention() -> Problem {
    Problem::new(Code::EvaluateMask, "the graph shows no attention")
}

/// The largest Euclidean length of a row of `head_dim` elements; `f32::MAX` if one is not finite.
fn longest(elements: &[f32], head_dim: usize) -> f32 {
    let mut longest = 0.0f32;
    for row in elements.chunks_exact(head_dim.max(1)) {
        let square: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
        let length = square.sqrt() as f32;
        if !length.is_finite() {
            return f32::MAX;
        }
        longest = longest.max(length);
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The margin of two heads of two rows, of which `tokens` are not padding, with one empty column
    /// before them. `scores` include the mask.
    fn margins(tokens: usize, scores: [f32; 6]) -> MaskMargin {
        let mut names = vec!["window_1.mask".to_string(); 7];
        names.push("attention_mask".into());
        let mut watch = MaskWatch::new(tokens, 2, 2, names);
        watch
            .see("attention_mask", &[-100.0, 0.0, -100.0, -100.0, 0.0, 0.0])
            .unwrap();
        watch.see("window_1.mask", &[0.0; 6]).unwrap();
        watch
            .see("blk.7.query.scaled", &[3.0, 4.0, 0.0, 1.0])
            .unwrap();
        watch.see("blk.7.key", &[0.0, 2.0, 1.0, 1.0]).unwrap();
        let of_other_head = [-200.0, 5.0, -200.0, -200.0, 5.0, 5.0];
        watch.see("blk.7.scores.masked.0", &scores).unwrap();
        watch.see("blk.7.scores.masked.1", &of_other_head).unwrap();
        watch.margins().unwrap().remove(&7).unwrap()
    }

    #[test]
    fn the_least_distance_of_a_visible_maximum_from_a_masked_one() {
        let found = margins(2, [-100.0, 5.0, -98.0, -100.0, -90.0, -40.0]);
        assert_eq!(
            found,
            MaskMargin {
                least: 60.0,
                bound: 100.0 - 2.0 * 5.0 * 2.0
            }
        );
    }

    #[test]
    fn rows_of_padding_do_not_count() {
        assert_eq!(
            margins(1, [-100.0, 5.0, -98.0, -100.0, -500.0, -400.0]).least,
            103.0
        );
    }

    #[test]
    fn a_mask_that_hides_too_little_has_a_negative_margin() {
        assert_eq!(
            margins(2, [-100.0, 5.0, -98.0, -100.0, -500.0, -400.0]).least,
            -300.0
        );
        assert_eq!(margins(2, [f32::NAN; 6]).least, f32::MIN);
    }
}
