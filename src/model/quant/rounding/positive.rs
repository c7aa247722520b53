//! A grid without negative scales: a block under a negative scale becomes its mirror.

use crate::model::quant::elements::{code_at, number_at, set_code, set_number};
use crate::model::quant::{BlockGrid, GridLayout, Split};
use crate::model::weight::Element;

/// The grid `of` with scales above zero. Signed codes are negated where all of a block can be;
/// where one cannot (-8 of four bits), `-1 - code` takes the place of each, and the block is lifted
/// by a step: `|d| * (-1 - q) + |d| = d * q`. Unsigned codes are counted from the other end. A
/// scale of zero becomes one, its codes zero.
pub struct Positive<'a> {
    of: &'a dyn BlockGrid,
    lifts: bool,
}

impl<'a> Positive<'a> {
    /// `lifts` says whether some block must be lifted; [`Positive::must_lift`] tells.
    pub fn new(of: &'a dyn BlockGrid, lifts: bool) -> Self {
        Positive { of, lifts }
    }

    /// Whether blocks that were split into `split` by `of` cannot all be mirrored without an
    /// offset.
    pub fn must_lift(of: &dyn BlockGrid, split: &Split) -> bool {
        let layout = of.layout();
        let Some(lowest) = lowest(layout.codes) else {
            return false;
        };
        layout.offsets.is_none()
            && (0..scales(&layout, split)).any(|block| {
                let codes = block * layout.block as usize..(block + 1) * layout.block as usize;
                number_at(layout.scales, split.scales, block) < 0.0
                    && codes
                        .into_iter()
                        .any(|index| code_at(layout.codes, split.codes, index) == lowest)
            })
    }
}

impl BlockGrid for Positive<'_> {
    fn layout(&self) -> GridLayout {
        let layout = self.of.layout();
        let offsets = layout.offsets.or(self.lifts.then_some(layout.scales));
        GridLayout { offsets, ..layout }
    }

    fn split(&self, blocks: &[u8], out: Split<'_>) {
        let given = self.of.layout();
        let Split {
            codes,
            scales,
            offsets,
        } = out;
        let inner = if given.offsets.is_some() {
            &mut *offsets
        } else {
            &mut [][..]
        };
        self.of.split(
            blocks,
            Split {
                codes: &mut *codes,
                scales: &mut *scales,
                offsets: inner,
            },
        );
        if given.offsets.is_none() {
            offsets.fill(0);
        }
        let width = given.block as usize;
        for block in 0..scales.len() * 8 / given.scales.bits() as usize {
            let scale = number_at(given.scales, scales, block);
            let all = block * width..(block + 1) * width;
            let mut each = |change: &dyn Fn(i32) -> i32| {
                all.clone().for_each(|at| {
                    set_code(
                        given.codes,
                        codes,
                        at,
                        change(code_at(given.codes, codes, at)),
                    )
                });
            };
            if scale == 0.0 {
                each(&|_| 0);
                set_number(given.scales, scales, block, 1.0);
                continue;
            }
            if scale > 0.0 {
                continue;
            }
            set_number(given.scales, scales, block, -scale);
            match (lowest(given.codes), given.offsets) {
                (None, Some(element)) => {
                    let highest = (1 << given.codes.bits()) - 1;
                    each(&|code| highest - code);
                    let offset = number_at(element, offsets, block) + scale * highest as f32;
                    set_number(element, offsets, block, offset);
                }
                (_, Some(element)) => {
                    each(&|code| -1 - code);
                    let offset = number_at(element, offsets, block) - scale;
                    set_number(element, offsets, block, offset);
                }
                _ if self.lifts => {
                    each(&|code| -1 - code);
                    set_number(given.scales, offsets, block, -scale);
                }
                _ => each(&|code| -code),
            }
        }
    }
}

/// The code whose negative is none; unsigned ones have no negatives at all.
fn lowest(element: Element) -> Option<i32> {
    match element {
        Element::Int4 => Some(-8),
        Element::Int8 => Some(-128),
        _ => None,
    }
}

fn scales(layout: &GridLayout, split: &Split) -> usize {
    split.scales.len() * 8 / layout.scales.bits() as usize
}

/// The values that the pieces stand for.
pub fn recombine(layout: &GridLayout, split: &Split, values: &mut [f32]) {
    for (index, value) in values.iter_mut().enumerate() {
        let block = index / layout.block as usize;
        let product = code_at(layout.codes, split.codes, index) as f32
            * number_at(layout.scales, split.scales, block);
        *value = layout.offsets.map_or(product, |element| {
            product + number_at(element, split.offsets, block)
        });
    }
}
