//! What the blobs of a weight stand for, by the table in `docs/artifacts.md`.

use half::f16;
use kiln::action::{Manifest, Part};
use kiln::model::weight::{Element, WeightEncoding, WeightFacts};

use super::workspace::Folder;

fn facts(part: &Part) -> WeightFacts {
    part.facts.read().unwrap()
}

/// What the elements of a part are, and how many there are.
fn elements(facts: &WeightFacts) -> (Element, usize) {
    let specs = facts.encoding.parts(&facts.shape).unwrap();
    let spec = specs.iter().find(|spec| spec.part == facts.part).unwrap();
    (spec.element, spec.shape.iter().product::<u64>() as usize)
}

fn numbers(folder: &Folder, part: &Part) -> Vec<f32> {
    let bytes = folder.bytes(part);
    let (element, count) = elements(&facts(part));
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

/// The numbers of a blob, if there is one: `blk.0.attn_q.weight/codes`.
pub fn blob(folder: &Folder, weights: &Manifest, name: &str) -> Option<Vec<f32>> {
    weights.get(name).map(|part| numbers(folder, part))
}

/// The facts that stand for a weight: `blk.0.attn_q.weight`.
pub fn main_facts(weights: &Manifest, name: &str) -> WeightFacts {
    let mut all = weights.under(name).map(|(_, part)| facts(part));
    all.find(WeightFacts::is_main).unwrap()
}

/// The values of a weight: `blk.0.attn_q.weight`.
pub fn weight(folder: &Folder, weights: &Manifest, name: &str) -> Vec<f32> {
    let blob = |what: &str| blob(folder, weights, &format!("{name}/{what}"));
    let facts = main_facts(weights, name);
    let columns = *facts.shape.last().unwrap() as usize;
    let (block, codes) = match facts.encoding {
        WeightEncoding::Plain { .. } => return blob("values").unwrap(),
        WeightEncoding::Channel { .. } => (columns, blob("codes").unwrap()),
        WeightEncoding::Block { block, .. }
        | WeightEncoding::BlockOffset { block, .. }
        | WeightEncoding::Lpbq { block } => (block as usize, blob("codes").unwrap()),
    };
    if let WeightEncoding::Lpbq { .. } = facts.encoding {
        let (integers, channels) = (
            blob("block_scales").unwrap(),
            blob("channel_scales").unwrap(),
        );
        return (0..codes.len())
            .map(|i| codes[i] * (channels[i / columns] * integers[i / block]))
            .collect();
    }
    let (scales, offsets) = (blob("scales").unwrap(), blob("offsets"));
    (0..codes.len())
        .map(|i| {
            let value = codes[i] * scales[i / block];
            // A zero keeps its sign where there are no offsets.
            offsets
                .as_ref()
                .map_or(value, |offsets| value + offsets[i / block])
        })
        .collect()
}

/// The names of all weights.
pub fn names(weights: &Manifest) -> Vec<String> {
    let mut names: Vec<String> = weights
        .parts
        .keys()
        .filter_map(|part| Some(part.as_str().rsplit_once('/')?.0.to_string()))
        .collect();
    names.dedup();
    names
}
