//! Decodes the blobs of a weight, as the table in `docs/artifacts.md` specifies.

use half::f16;
use kiln::action::{Manifest, Part};
use kiln::model::weight::{Element, WeightEncoding, WeightFacts};

use super::workspace::Folder;

fn weight_facts(part: &Part) -> WeightFacts {
    part.facts.read().unwrap()
}

/// The element type of a part and its number of elements.
fn elements(facts: &WeightFacts) -> (Element, usize) {
    let specs = facts.encoding.parts(&facts.shape).unwrap();
    let spec = specs.iter().find(|spec| spec.part == facts.part).unwrap();
    (spec.element, spec.shape.iter().product::<u64>() as usize)
}

fn numbers(folder: &Folder, part: &Part) -> Vec<f32> {
    let bytes = folder.bytes(part);
    let (element, count) = elements(&weight_facts(part));
    assert_eq!(bytes.len(), (count * element.bits() as usize).div_ceil(8));
    let nibble = |i: usize| (bytes[i / 2] >> (i % 2 * 4)) & 15;
    let number = |i: usize| match element {
        Element::F32 => f32::from_le_bytes(bytes.as_chunks().0[i]),
        Element::F16 => f16::from_le_bytes(bytes.as_chunks().0[i]).to_f32(),
        Element::Bf16 => {
            f32::from_bits(u32::from(u16::from_le_bytes(bytes.as_chunks().0[i])) << 16)
        }
        Element::Int8 => bytes[i] as i8 as f32,
        Element::Uint8 => bytes[i] as f32,
        Element::Int4 => ((nibble(i) << 4) as i8 >> 4) as f32,
        Element::Uint4 => nibble(i) as f32,
    };
    (0..count).map(number).collect()
}

/// The numbers in a part such as `blk.0.attn_q.weight/codes`, if it exists.
pub fn blob(folder: &Folder, weights: &Manifest, name: &str) -> Option<Vec<f32>> {
    weights.get(name).map(|part| numbers(folder, part))
}

/// The facts of the main part of a weight such as `blk.0.attn_q.weight`.
fn main_facts(weights: &Manifest, name: &str) -> WeightFacts {
    for (_, part) in weights.under(name) {
        let facts = weight_facts(part);
        if facts.is_main() {
            return facts;
        }
    }
    panic!("{name} has no main part")
}

/// The values of a weight such as `blk.0.attn_q.weight`.
pub fn weight(folder: &Folder, weights: &Manifest, name: &str) -> Vec<f32> {
    let blob = |what: &str| blob(folder, weights, &format!("{name}/{what}"));
    let facts = main_facts(weights, name);
    let columns = *facts.shape.last().unwrap() as usize;
    let (block, codes) = match facts.encoding {
        WeightEncoding::Plain { .. } => return blob("values").unwrap(),
        WeightEncoding::Channel { .. } => (columns, blob("codes").unwrap()),
        WeightEncoding::Block { block, .. }
        | WeightEncoding::BlockOffset { block, .. }
        | WeightEncoding::Lpbq { block }
        | WeightEncoding::LpbqShifted { block } => (block as usize, blob("codes").unwrap()),
    };
    if let WeightEncoding::Lpbq { .. } = facts.encoding {
        let (integers, channels) = (
            blob("block_scales").unwrap(),
            blob("channel_scales").unwrap(),
        );
        let value = |i| codes[i] * (channels[i / columns] * integers[i / block]);
        return (0..codes.len()).map(value).collect();
    }
    if let WeightEncoding::LpbqShifted { .. } = facts.encoding {
        let (integers, channels) = (
            blob("block_scales").unwrap(),
            blob("channel_scales").unwrap(),
        );
        return shifted(columns, block, &codes, &integers, &channels);
    }
    let (scales, offsets) = (blob("scales").unwrap(), blob("offsets"));
    let value = |i| {
        let value = codes[i] * scales[i / block];
        // Without offsets, a zero keeps its sign.
        match &offsets {
            Some(offsets) => value + offsets[i / block],
            None => value,
        }
    };
    (0..codes.len()).map(value).collect()
}

/// The values of LPBQ with shifted blocks: the inputs of a layer over it are x, and twice the sums
/// of the blocks of x, divided by 4, with zeros up to whole blocks.
fn shifted(
    columns: usize,
    block: usize,
    codes: &[f32],
    integers: &[f32],
    channels: &[f32],
) -> Vec<f32> {
    let group = (columns / block).next_multiple_of(block);
    let width = columns + 2 * group;
    assert_eq!(codes.len(), width * channels.len());
    let mut values = vec![];
    for (row, channel) in channels.iter().enumerate() {
        let stored = |i: usize| codes[row * width + i] * integers[(row * width + i) / block];
        for column in 0..columns {
            let sum = columns + column / block;
            let of_sums = stored(sum) + stored(sum + group);
            values.push(channel * (stored(column) + of_sums / 4.0));
        }
        for zero in (columns / block)..group {
            let zero = columns + zero;
            assert_eq!([stored(zero), stored(zero + group)], [0.0; 2]);
        }
    }
    values
}

/// The names of all weights.
pub fn names(weights: &Manifest) -> Vec<String> {
    let mut names = vec![];
    for part in weights.parts.keys() {
        if let Some((name, _)) = part.as_str().rsplit_once('/') {
            names.push(name.to_string());
        }
    }
    names.dedup();
    names
}
