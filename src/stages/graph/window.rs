//! The masks of layers with a sliding window, computed in the graph from the mask of all tokens.
//!
//! The past tokens are the first columns of the mask, in their order. Row i of a call after n of
//! them must not see column j if n + i - j >= window, which is to say: if there is a past token in
//! column j + window - 1 - i. So what the window hides from a row is where the first row sees
//! something, moved to the left. Nothing has to be counted, every host that feeds one mask will do,
//! and all but a few operators only move codes.
//!
//! Genie has caches of a window's length too (`cache-groups`). They are not used: it writes new
//! tokens to places that a graph would have to read from another input.

use std::collections::BTreeMap;

use super::decoder::Decoder;
use crate::base::Result;
use crate::model::decoder::inputs::{MASKED, in_window_mask, mask_name, short_window};
use crate::model::decoder::shards::Shard;
use crate::model::onnx::{Builder, Value};

/// A value that says what a window hides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hidden {
    /// 1 where it hides a token, else below 0.
    Sign,
    /// 1 or 0.
    Share,
    /// What is added to the mask.
    Depth,
}

impl Hidden {
    const ALL: [Hidden; 3] = [Hidden::Sign, Hidden::Share, Hidden::Depth];

    fn name(self) -> &'static str {
        match self {
            Hidden::Sign => "sign",
            Hidden::Share => "share",
            Hidden::Depth => "depth",
        }
    }

    /// What the value of this name is, if it says what a window hides.
    pub(super) fn named(value: &str) -> Option<Self> {
        let (_, last) = in_window_mask(value)?.rsplit_once('.')?;
        Hidden::ALL.into_iter().find(|hidden| hidden.name() == last)
    }
}

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
    // The last columns are in the window of every row.
    let (old, recent) = match window.checked_sub(tokens) {
        Some(recent) => (past - recent, recent),
        None => (past, 0),
    };
    let sizes = [("old", old), ("recent", recent + tokens)];
    let [old, recent] = g.pieces(&mask_name, mask, 3, sizes);
    let moved = moved_to_the_left(g, &name("moved"), mask, window);
    let old = hide(g, &name("old_in_window"), &old, &moved);
    let recent = match tokens > window {
        true => hide_new(g, &name("new"), &recent, window),
        false => recent,
    };
    g.concat(&mask_name, &[&old, &recent], 3)
}

/// `mask` with those columns hidden that `other` sees.
fn hide(g: &mut Builder, name: &str, mask: &Value, other: &Value) -> Value {
    let part = |what: Hidden| format!("{name}.{}", what.name());
    let one = g.scalar("one", 1.0);
    let sign = g.elementwise("Add", &part(Hidden::Sign), other, &one);
    let share = g.relu(&part(Hidden::Share), &sign);
    let depth = g.scaled(&part(Hidden::Depth), &share, MASKED);
    g.elementwise("Add", name, mask, &depth)
}

/// The mask `new` of the new tokens, `[1, 1, tokens, tokens]`: a row does not see what the row
/// `window` rows before it sees.
fn hide_new(g: &mut Builder, name: &str, new: &Value, window: u64) -> Value {
    let tokens = new.dims[2];
    let sizes = [("first", window), ("others", tokens - window)];
    let [first, others] = g.pieces(name, new, 2, sizes);
    let sizes = [("before", tokens - window), ("rest", window)];
    let [before, _] = g.pieces(&format!("{name}.rows"), new, 2, sizes);
    let others = hide(g, &format!("{name}.in_window"), &others, &before);
    g.concat(name, &[&first, &others], 2)
}

/// What the window hides from each row, `[1, 1, tokens, old]`: the past columns of the first row of
/// `mask`, moved to the left by `window - 1 - row`.
fn moved_to_the_left(g: &mut Builder, name: &str, mask: &Value, window: u64) -> Value {
    let part = |what: &str| format!("{name}.{what}");
    let tokens = mask.dims[2];
    let past = mask.dims[3] - tokens;
    if tokens == 1 {
        let sizes = [
            ("left", window - 1),
            ("right", past + 1 - window),
            ("own", 1),
        ];
        let [_, right, _] = g.pieces(name, mask, 3, sizes);
        return right;
    }
    let rows = [("first", 1), ("others", tokens - 1)];
    let [first, _] = g.pieces(&part("row"), mask, 2, rows);

    // What is hidden from the last row, and behind it what else the rows before see there. The
    // first row sees its own token and none after it, which stand for "hidden" and "not hidden".
    let last = if tokens > window {
        let sizes = [
            ("past", past),
            ("own", 1),
            ("later", window - 1),
            ("rest", tokens - window),
        ];
        let [past, own, later, _] = g.pieces(name, &first, 3, sizes);
        let mut columns = vec![&own; (tokens - window) as usize];
        columns.extend([&past, &later]);
        g.concat(&part("last"), &columns, 3)
    } else {
        let sizes = [
            ("left", window - tokens),
            ("right", past + tokens - window),
            ("own", 1),
            ("later", tokens - 1),
        ];
        let [_, right, _, later] = g.pieces(name, &first, 3, sizes);
        g.concat(&part("last"), &[&right, &later], 3)
    };

    // The row before is the same, moved to the right by one column. That is what copies of it are
    // when they are read with one column less in each row.
    let width = last.dims[3];
    let copies = g.concat(&part("copies"), &vec![&last; tokens as usize], 3);
    let kept = tokens * (width - 1);
    let sizes = [("lead", tokens - 1), ("kept", kept), ("rest", 1)];
    let [_, rows, _] = g.pieces(&part("copies"), &copies, 3, sizes);
    let rows = g.reshape(&part("rows"), &rows, &[1, 1, tokens, width - 1]);
    let sizes = [("old", width + 1 - tokens), ("rest", tokens - 2)];
    let [rows, _] = g.pieces(&part("rows"), &rows, 3, sizes);
    rows
}
