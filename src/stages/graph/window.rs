//! The masks of layers with a sliding window, computed in the graph from the mask of all tokens.
//!
//! The past tokens are the first columns of the mask, in their order. Row i of a call after n of
//! them must not see column j if n + i - j >= window, which is to say: if there is a past token in
//! column j + window - 1 - i. So what the window hides from a row is the first row of the mask,
//! moved to the left. Nothing has to be counted, and every host that feeds one mask will do.
//!
//! Genie has caches of a window's length too (`cache-groups`). They are not used: it writes new
//! tokens at places that a graph would have to read from another input.

use std::collections::BTreeMap;

use super::decoder::Decoder;
use crate::base::Result;
use crate::model::decoder::inputs::{MASKED, mask_name, short_window};
use crate::model::decoder::shards::Shard;
use crate::model::onnx::{Builder, Value};

impl Decoder<'_> {
    /// The masks that the layers of `shard` add to their scores, by their short window if they have
    /// one. `mask` is the host's.
    pub(super) fn masks(
        &mut self,
        shard: &Shard,
        mask: &Value,
    ) -> Result<BTreeMap<Option<u64>, Value>> {
        let mut masks = BTreeMap::new();
        for index in shard.first..shard.end {
            let window = self.model.layer(index)?.attention.window;
            let window = short_window(window, self.profile.context);
            let graph = &mut self.graph;
            masks.entry(window).or_insert_with(|| match window {
                Some(window) => window_mask(graph, mask, window),
                None => mask.clone(),
            });
        }
        Ok(masks)
    }
}

/// The mask of layers with this `window`: `mask`, `[1, 1, tokens, past + tokens]`, with more hidden.
fn window_mask(g: &mut Builder, mask: &Value, window: u64) -> Value {
    let mask_name = mask_name(Some(window));
    let name = |what: &str| format!("{mask_name}.{what}");
    let tokens = mask.dims[2];
    let past = mask.dims[3] - tokens;
    let [before, new] = g.pieces(&name("columns"), mask, 3, [("past", past), ("new", tokens)]);
    let hidden = hidden_past(g, &name("hidden"), &before, window);
    let hidden = g.scaled(&name("hidden.depth"), &hidden, MASKED);
    let before = g.elementwise("Add", &name("past"), &before, &hidden);
    let new = match tokens > window {
        true => hide_new(g, &name("new"), &new, window),
        false => new,
    };
    g.concat(&mask_name, &[&before, &new], 3)
}

/// The mask `new` of the new tokens, `[1, 1, tokens, tokens]`, with those hidden that are out of the
/// window.
fn hide_new(g: &mut Builder, name: &str, new: &Value, window: u64) -> Value {
    let tokens = new.dims[3];
    let mut hidden = vec![];
    for row in 0..tokens {
        for column in 0..tokens {
            let is_hidden = column + window <= row;
            hidden.push(if is_hidden { MASKED } else { 0.0 });
        }
    }
    let hidden = g.constant(&format!("{name}.hidden"), &new.dims, &hidden);
    g.elementwise("Add", name, new, &hidden)
}

/// 1 for each column that is out of the window of a row, else 0: of the past tokens of `mask`,
/// `[1, 1, tokens, past]`.
fn hidden_past(g: &mut Builder, name: &str, mask: &Value, window: u64) -> Value {
    let part = |what: &str| format!("{name}.{what}");
    let (tokens, past) = (mask.dims[2], mask.dims[3]);
    let row = match tokens {
        1 => mask.clone(),
        _ => {
            let rows = [("first", 1), ("others", tokens - 1)];
            let [first, _] = g.pieces(&part("row"), mask, 2, rows);
            first
        }
    };
    // 1 for each past token, 0 for an empty column.
    let one = g.scalar("one", 1.0);
    let row = g.elementwise("Add", &part("above"), &row, &one);
    let row = g.relu(&part("is_token"), &row);

    // What the last row hides: `row`, moved to the left by `window - tokens`. Before it, columns
    // that are out of the window of every row; after it, columns that are in it.
    let mut columns = vec![];
    if tokens > window {
        let ones = vec![1.0; (tokens - window) as usize];
        columns.push(g.constant(&part("out"), &[1, 1, 1, tokens - window], &ones));
        columns.push(row);
    } else if tokens < window {
        let sizes = [("left", window - tokens), ("right", past + tokens - window)];
        let [_, right] = g.pieces(&part("moved"), &row, 3, sizes);
        columns.push(right);
    } else {
        columns.push(row);
    }
    let zeros = vec![0.0; window as usize];
    columns.push(g.constant(&part("in"), &[1, 1, 1, window], &zeros));
    let columns: Vec<&Value> = columns.iter().collect();
    let last = g.concat(&part("last"), &columns, 3);

    if tokens == 1 {
        let [last, _] = g.pieces(&part("last"), &last, 3, [("past", past), ("rest", 1)]);
        return last;
    }

    // The row before is the same, moved to the right by one column. That is what copies of it are
    // when they are read with one column less in each row.
    let width = past + tokens;
    let copies = g.concat(&part("copies"), &vec![&last; tokens as usize], 3);
    let kept = tokens * (width - 1);
    let sizes = [("lead", tokens - 1), ("kept", kept), ("rest", 1)];
    let [_, rows, _] = g.pieces(&part("copies"), &copies, 3, sizes);
    let rows = g.reshape(&part("rows"), &rows, &[1, 1, tokens, width - 1]);
    let sizes = [("past", past), ("rest", tokens - 1)];
    let [rows, _] = g.pieces(&part("rows"), &rows, 3, sizes);
    rows
}
