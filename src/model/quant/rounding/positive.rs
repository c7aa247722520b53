//! A grid without negative scales: the codes of a block with a negative scale are mirrored.

use std::ops::Range;

use crate::model::quant::elements::{code_at, number_at, set_code, set_number};
use crate::model::quant::{BlockGrid, GridLayout, Split};
use crate::model::weight::Element;

/// The grid `of` with positive scales. Signed codes are negated if all codes of the block can be.
/// If one cannot (-8 in four bits), `-1 - code` replaces each, and the block gets an offset of one
/// step: `|d| * (-1 - q) + |d| = d * q`. Unsigned codes are counted from the highest. A scale of
/// zero becomes one, with codes of zero.
pub struct Positive<'a> {
    of: &'a dyn BlockGrid,
    adds_offsets: bool,
}

impl<'a> Positive<'a> {
    /// `adds_offsets`: whether [`Positive::needs_offsets`] for some block.
    pub fn new(of: &'a dyn BlockGrid, adds_offsets: bool) -> Self {
        Positive { of, adds_offsets }
    }

    /// Whether some of the blocks in `split`, as encoded by `of`, cannot be mirrored without an
    /// offset.
    pub fn needs_offsets(of: &dyn BlockGrid, split: &Split) -> bool {
        let layout = of.layout();
        let Some(lowest) = lowest_code(layout.codes) else {
            return false;
        };
        if layout.offsets.is_some() {
            return false;
        }
        for block in 0..scale_count(&layout, split.scales) {
            let is_negative = number_at(layout.scales, split.scales, block) < 0.0;
            if !is_negative {
                continue;
            }
            for index in values_of(&layout, block) {
                if code_at(layout.codes, split.codes, index) == lowest {
                    return true;
                }
            }
        }
        false
    }
}

impl BlockGrid for Positive<'_> {
    fn layout(&self) -> GridLayout {
        let mut layout = self.of.layout();
        if self.adds_offsets && layout.offsets.is_none() {
            layout.offsets = Some(layout.scales);
        }
        layout
    }

    fn split(&self, blocks: &[u8], out: Split<'_>) {
        let layout = self.of.layout();
        let Split {
            codes,
            scales,
            offsets,
        } = out;
        let own_offsets = match layout.offsets {
            Some(_) => &mut *offsets,
            None => &mut [][..],
        };
        self.of.split(
            blocks,
            Split {
                codes: &mut *codes,
                scales: &mut *scales,
                offsets: own_offsets,
            },
        );
        if layout.offsets.is_none() {
            offsets.fill(0);
        }
        let element = layout.codes;
        for block in 0..scale_count(&layout, scales) {
            let scale = number_at(layout.scales, scales, block);
            let values = values_of(&layout, block);
            if scale == 0.0 {
                change_codes(element, codes, values, |_| 0);
                set_number(layout.scales, scales, block, 1.0);
                continue;
            }
            if scale > 0.0 {
                continue;
            }
            set_number(layout.scales, scales, block, -scale);
            match (lowest_code(element), layout.offsets) {
                (None, Some(of_offsets)) => {
                    let highest = (1 << element.bits()) - 1;
                    change_codes(element, codes, values, |code| highest - code);
                    let offset = number_at(of_offsets, offsets, block) + scale * highest as f32;
                    set_number(of_offsets, offsets, block, offset);
                }
                (_, Some(of_offsets)) => {
                    change_codes(element, codes, values, |code| -1 - code);
                    let offset = number_at(of_offsets, offsets, block) - scale;
                    set_number(of_offsets, offsets, block, offset);
                }
                _ if self.adds_offsets => {
                    change_codes(element, codes, values, |code| -1 - code);
                    set_number(layout.scales, offsets, block, -scale);
                }
                _ => change_codes(element, codes, values, |code| -code),
            }
        }
    }
}

/// The lowest signed code, which has no negative; `None` for unsigned codes.
fn lowest_code(element: Element) -> Option<i32> {
    match element {
        Element::Int4 => Some(-8),
        Element::Int8 => Some(-128),
        _ => None,
    }
}

/// The number of blocks with these `scales`.
fn scale_count(layout: &GridLayout, scales: &[u8]) -> usize {
    scales.len() * 8 / layout.scales.bits() as usize
}

/// The indices of the values in a block.
fn values_of(layout: &GridLayout, block: usize) -> Range<usize> {
    let len = layout.block as usize;
    block * len..(block + 1) * len
}

fn change_codes(
    element: Element,
    codes: &mut [u8],
    indices: Range<usize>,
    change: impl Fn(i32) -> i32,
) {
    for index in indices {
        let code = code_at(element, codes, index);
        set_code(element, codes, index, change(code));
    }
}

/// The values that are encoded in `split`.
pub fn recombine(layout: &GridLayout, split: &Split, values: &mut [f32]) {
    for (index, value) in values.iter_mut().enumerate() {
        let block = index / layout.block as usize;
        let code = code_at(layout.codes, split.codes, index);
        *value = code as f32 * number_at(layout.scales, split.scales, block);
        if let Some(element) = layout.offsets {
            *value += number_at(element, split.offsets, block);
        }
    }
}
