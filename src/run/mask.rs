//! Whether the mask hides what it masks: an additive mask of finite depth does so only as long as
//! no visible score lies as deep.

use std::collections::BTreeMap;

use crate::artifact::evaluation::{MaskMargin, Masks};
use crate::base::{Code, Context, Problem, Result};
use crate::model::decoder::inputs::MASK;
use crate::model::facts::in_layer;

/// Watches the attention of a graph over one window.
pub(super) struct MaskWatch {
    tokens: usize,
    rows: usize,
    head_dim: usize,
    /// Which columns each row sees, `[rows, columns]`, as the host says it.
    visible: Vec<bool>,
    /// The least that is subtracted from a masked score.
    depth: f32,
    layers: BTreeMap<u32, Seen>,
}

/// What was seen of a layer.
struct Seen {
    least: f32,
    query: f32,
    key: f32,
}

/// Whether a value is the mask, or the mask as a graph of 16-bit activations holds it.
fn is_mask(value: &str) -> bool {
    value.strip_suffix(".held").unwrap_or(value) == MASK
}

impl MaskWatch {
    /// For a window of `tokens` in a graph that takes `rows`: those after the window are padding.
    pub(super) fn new(tokens: usize, rows: usize, head_dim: usize) -> Self {
        MaskWatch {
            tokens,
            rows: rows.max(1),
            head_dim,
            visible: vec![],
            depth: 0.0,
            layers: BTreeMap::new(),
        }
    }

    pub(super) fn wants(value: &str) -> bool {
        let in_layer = in_layer(value).map(|(_, what)| what);
        is_mask(value) || matches!(in_layer, Some("query.scaled" | "key" | "scores.masked"))
    }

    pub(super) fn see(&mut self, value: &str, elements: &[f32]) -> Result<()> {
        if is_mask(value) {
            self.see_mask(elements);
            return Ok(());
        }
        let Some((layer, what)) = in_layer(value).filter(|_| Self::wants(value)) else {
            return Ok(());
        };
        let layer = layer.parse().context(Code::EvaluateMask, || {
            format!("read the layer of `{value}`")
        })?;
        let found = match what {
            "scores.masked" => self.least(elements),
            _ => longest(elements, self.head_dim),
        };
        let seen = self.layers.entry(layer).or_insert(Seen {
            least: f32::MAX,
            query: 0.0,
            key: 0.0,
        });
        match what {
            "scores.masked" => seen.least = found,
            "query.scaled" => seen.query = found,
            _ => seen.key = found,
        }
        Ok(())
    }

    fn see_mask(&mut self, mask: &[f32]) {
        if self.visible.is_empty() {
            self.visible = mask.iter().map(|added| *added == 0.0).collect();
        }
        let masked = mask
            .iter()
            .zip(&self.visible)
            .filter(|(_, visible)| !**visible)
            .map(|(added, _)| -added);
        self.depth = masked.fold(f32::MAX, f32::min);
    }

    /// The least distance of the largest visible score from the largest masked one among the rows
    /// of `scores`, `[heads, rows, columns]`.
    fn least(&self, scores: &[f32]) -> f32 {
        let columns = (self.visible.len() / self.rows).max(1);
        let visible: Vec<&[bool]> = self
            .visible
            .chunks_exact(columns)
            .take(self.tokens)
            .collect();
        let mut least = f32::MAX;
        for head in scores.chunks_exact(columns * self.rows) {
            for (scores, visible) in head.chunks_exact(columns).zip(&visible) {
                if scores.iter().any(|score| !score.is_finite()) {
                    return f32::MIN;
                }
                let (mut shown, mut hidden) = (f32::MIN, f32::MIN);
                for (score, is_visible) in scores.iter().zip(*visible) {
                    let largest = if *is_visible { &mut shown } else { &mut hidden };
                    *largest = largest.max(*score);
                }
                least = least.min(shown - hidden);
            }
        }
        least
    }

    pub(super) fn margins(self) -> Result<Masks> {
        if self.layers.is_empty() || self.visible.is_empty() {
            return Err(Problem::new(
                Code::EvaluateMask,
                "the graph shows no attention",
            ));
        }
        let margin = |(layer, seen): (u32, Seen)| {
            let bound = f64::from(self.depth) - 2.0 * f64::from(seen.query) * f64::from(seen.key);
            (
                layer,
                MaskMargin {
                    least: seen.least.max(f32::MIN),
                    bound: bound.max(f64::from(f32::MIN)) as f32,
                },
            )
        };
        Ok(self.layers.into_iter().map(margin).collect())
    }
}

/// The largest Euclidean length of a row of `head_dim`; one that is no number counts as the largest
/// number.
fn longest(elements: &[f32], head_dim: usize) -> f32 {
    let length = |row: &[f32]| {
        row.iter()
            .map(|x| f64::from(*x).powi(2))
            .sum::<f64>()
            .sqrt() as f32
    };
    let lengths = elements.chunks_exact(head_dim.max(1)).map(length);
    lengths
        .map(|length| if length.is_finite() { length } else { f32::MAX })
        .fold(0.0, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One head of two rows, of which `tokens` are no padding, after one empty column: scores with
    /// the mask added.
    fn margins(tokens: usize, scores: [f32; 6]) -> MaskMargin {
        let mut watch = MaskWatch::new(tokens, 2, 2);
        watch
            .see("attention_mask", &[-100.0, 0.0, -100.0, -100.0, 0.0, 0.0])
            .unwrap();
        watch
            .see("blk.7.query.scaled", &[3.0, 4.0, 0.0, 1.0])
            .unwrap();
        watch.see("blk.7.key", &[0.0, 2.0, 1.0, 1.0]).unwrap();
        watch.see("blk.7.scores.masked", &scores).unwrap();
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
    fn a_mask_that_loses_is_negative() {
        assert_eq!(
            margins(2, [-100.0, 5.0, -98.0, -100.0, -500.0, -400.0]).least,
            -300.0
        );
        assert_eq!(margins(2, [f32::NAN; 6]).least, f32::MIN);
    }
}
