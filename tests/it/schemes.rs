//! The schemes of `requant`: codes in their range, errors within their bounds, the same whatever
//! runs beside, and the same numbers in ONNX Runtime.

use std::collections::BTreeMap;
use std::fs;

use crate::support::peers::{python, said};
use crate::support::quantize::Quant;
use crate::support::restore;
use crate::support::tiny_gguf::{Random, TinyGguf};
use crate::support::workspace::Folder;
use kiln::action::{Inputs, Manifest, Part};
use kiln::base::Code;
use kiln::model::quant::*;
use kiln::model::weight::{Element, WeightFacts};
use proptest::prelude::*;
use serde_json::{Value, json};

const INT8: RowLayout = RowLayout {
    codes: Element::Int8,
    block: None,
};
const INT4: RowLayout = RowLayout {
    codes: Element::Int4,
    block: None,
};

fn lpbq(block: u32) -> RowLayout {
    RowLayout {
        codes: Element::Int4,
        block: Some(block),
    }
}

/// What rows become.
#[derive(Debug, PartialEq)]
struct Rounded {
    codes: Vec<i32>,
    integers: Vec<u8>,
    scales: Vec<f32>,
    values: Vec<f32>,
    sum: RowSum,
}

fn round_with(layout: RowLayout, metric: Metric, columns: usize, values: &[f32]) -> Rounded {
    let rounding = RowRounding::new(layout, metric).unwrap();
    let [mut codes, mut integers, mut scales] = rounding
        .bytes(values.len() / columns)
        .map(|size| vec![0u8; size]);
    let pieces = RowPieces {
        codes: &mut codes,
        integers: &mut integers,
        scales: &mut scales,
    };
    let sum = rounding.encode(values, pieces).unwrap();
    let code = |i: usize| match layout.codes {
        Element::Int8 => i32::from(codes[i] as i8),
        _ => i32::from((codes[i / 2] >> (i % 2 * 4) << 4) as i8 >> 4),
    };
    let codes: Vec<i32> = (0..values.len()).map(code).collect();
    let scales: Vec<f32> = scales
        .as_chunks()
        .0
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect();
    let integer = |i: usize| {
        layout
            .block
            .map_or(1.0, |block| f32::from(integers[i / block as usize]))
    };
    let restored = (0..values.len())
        .map(|i| codes[i] as f32 * (scales[i / columns] * integer(i)))
        .collect();
    Rounded {
        codes,
        integers,
        scales,
        values: restored,
        sum,
    }
}

fn round_plain(layout: RowLayout, columns: usize, values: &[f32]) -> Rounded {
    round_with(
        layout,
        Metric::plain(columns, layout.block),
        columns,
        values,
    )
}

fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut random = Random::of("rows", seed);
    (0..count).map(|_| random.normal()).collect()
}

/// Second moments of inputs that hang together.
fn moments(seed: u64, columns: usize) -> Vec<f32> {
    let mut random = Random::of("inputs", seed);
    let mut h = vec![0.0; columns * columns];
    for _ in 0..columns * 2 {
        let common = random.normal();
        let x: Vec<f32> = (0..columns)
            .map(|column| (common + random.normal()) * if column % 7 == 3 { 8.0 } else { 1.0 })
            .collect();
        h.iter_mut()
            .enumerate()
            .for_each(|(i, h)| *h += x[i / columns] * x[i % columns]);
    }
    h
}

/// What the errors of a row cost in moments damped as the rounding damps them.
fn cost(h: &[f32], columns: usize, values: &[f32], rounded: &[f32]) -> f64 {
    let damping = 0.05
        * (0..columns)
            .map(|i| f64::from(h[i * (columns + 1)]))
            .sum::<f64>()
        / columns as f64;
    let of_row = |(values, rounded): (&[f32], &[f32])| -> f64 {
        let error: Vec<f64> = values
            .iter()
            .zip(rounded)
            .map(|(a, b)| f64::from(a - b))
            .collect();
        let row = |i: usize| {
            (0..columns)
                .map(|j| f64::from(h[i * columns + j]) * error[j])
                .sum::<f64>()
        };
        (0..columns)
            .map(|i| error[i] * (row(i) + damping * error[i]))
            .sum()
    };
    values
        .chunks(columns)
        .zip(rounded.chunks(columns))
        .map(of_row)
        .sum()
}

fn square(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn codes_and_errors_keep_their_bounds(seed: u64, rows in 1usize..20) {
        let values = numbers(seed, rows * 128);
        for layout in [INT8, INT4, lpbq(16), lpbq(32), lpbq(64), lpbq(128)] {
            let rounded = round_plain(layout, 128, &values);
            let limit = if layout.codes == Element::Int8 { [-127, 127] } else { [-8, 7] };
            prop_assert!(rounded.codes.iter().all(|code| (limit[0]..=limit[1]).contains(code)));
            prop_assert!(rounded.integers.iter().all(|integer| (1..=16).contains(integer)));
            prop_assert!(rounded.scales.iter().all(|scale| *scale > 0.0));
            let mut clipped = 0;
            for (i, (value, restored)) in values.iter().zip(&rounded.values).enumerate() {
                let integer = layout.block.map_or(1, |block| rounded.integers[i / block as usize]);
                let step = rounded.scales[i / 128] * f32::from(integer);
                let is_last = limit.contains(&rounded.codes[i]);
                let beyond = (value - restored).abs() > step * 0.500_01;
                prop_assert!(is_last || !beyond, "{layout:?} {value} {restored}");
                clipped += u64::from(beyond);
            }
            prop_assert!(clipped.abs_diff(rounded.sum.clipped) <= 1, "{clipped} {:?}", rounded.sum);
        }
    }

    #[test]
    fn clipping_is_never_worse_than_none(seed: u64) {
        let values = numbers(seed, 5 * 96);
        for (layout, reach) in [(INT8, 127.0), (INT4, 7.0)] {
            let rounded = round_plain(layout, 96, &values);
            let unclipped: Vec<f32> = values.chunks(96).flat_map(|row| {
                let largest = row.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
                // As it is written: eleven bits, so that a half holds it.
                let scale = half::f16::from_f32(largest / reach).to_f32();
                row.iter().map(move |value| (value / scale).round().clamp(-reach - 1.0, reach) * scale)
            }).collect();
            let (ours, theirs) = (square(&values, &rounded.values), square(&values, &unclipped));
            prop_assert!(ours <= theirs * 1.0001, "{layout:?}: {ours} {theirs}");
        }
    }

    /// A source in blocks of 32 codes, one of them the last, leaves half a block most of its range unused.
    #[test]
    fn smaller_blocks_lose_less_of_a_quantized_source(seed: u64) {
        let noise = numbers(seed, 16 * 512);
        let on_grid = |block: &[f32]| -> Vec<f32> {
            let largest = block.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap_or_default();
            block.iter().map(|value| (value / largest * -8.0).round().min(7.0) * largest / -8.0).collect()
        };
        let values: Vec<f32> = noise.chunks(32).flat_map(on_grid).collect();
        let [small, large] = [16, 32].map(|block| square(&values, &round_plain(lpbq(block), 512, &values).values));
        prop_assert!(small < large, "{small} {large}");
    }

    #[test]
    fn feedback_is_never_worse_than_rounding(seed: u64) {
        let (columns, values) = (64, numbers(seed, 17 * 64));
        let h = moments(seed, columns);
        let squares: Vec<f32> = (0..columns).map(|i| h[i * (columns + 1)]).collect();
        for layout in [INT4, lpbq(16), lpbq(32)] {
            let of = |metric| cost(&h, columns, &values, &round_with(layout, metric, columns, &values).values);
            let full = of(Metric::full(&h, columns, layout.block).unwrap());
            let plain = of(Metric::plain(columns, layout.block));
            let weighted = of(Metric::diagonal(&squares, layout.block).unwrap());
            prop_assert!(full <= weighted * 1.001 && full < plain * 0.7, "{layout:?}: {full} {weighted} {plain}");
        }
    }
}

#[test]
fn rows_of_one_value_and_of_none() {
    for layout in [INT8, INT4, lpbq(16)] {
        let zeros = round_plain(layout, 32, &[0.0; 64]);
        assert_eq!(
            (zeros.values, zeros.scales, zeros.sum.clipped),
            (vec![0.0; 64], vec![1.0; 2], 0)
        );
        let same = round_plain(layout, 32, &[0.75; 32]);
        assert!(
            same.values
                .iter()
                .all(|value| (value / 0.75 - 1.0).abs() < 0.02),
            "{layout:?} {:?}",
            same.values
        );
    }
}

#[test]
fn neighbours_and_threads_change_nothing() {
    let values = numbers(5, 40 * 64);
    let h = moments(5, 64);
    for layout in [INT4, lpbq(32)] {
        let round = |values: &[f32]| {
            round_with(
                layout,
                Metric::full(&h, 64, layout.block).unwrap(),
                64,
                values,
            )
        };
        let pool = |threads| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap()
        };
        let all = pool(1).install(|| round(&values));
        assert_eq!(all, pool(3).install(|| round(&values)));
        assert_eq!(
            all.values[7 * 64..8 * 64],
            round(&values[7 * 64..8 * 64]).values,
            "a row alone"
        );
    }
}

#[test]
fn what_cannot_be_rounded_is_refused() {
    let message = |layout: RowLayout, columns| {
        RowRounding::new(layout, Metric::plain(columns, layout.block))
            .map(drop)
            .unwrap_err()
            .message
    };
    assert_eq!(
        message(lpbq(32), 48),
        "48 columns are no whole number of blocks of 32"
    );
    assert_eq!(
        message(INT4, 7),
        "7 columns are no whole number of blocks of 2"
    );
    let rounding = RowRounding::new(INT8, Metric::plain(2, None)).unwrap();
    let (mut codes, mut scales) = ([0; 4], [0; 8]);
    let pieces = RowPieces {
        codes: &mut codes,
        integers: &mut [],
        scales: &mut scales,
    };
    assert_eq!(
        rounding.encode(&[0.0, 1.0, f32::INFINITY, 0.0], pieces),
        Err(2)
    );
}

struct Bench {
    folder: Folder,
    model: Manifest,
    _root: tempfile::TempDir,
}

impl Bench {
    fn new(model: &TinyGguf) -> Self {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path());
        let file = Manifest {
            parts: [(
                "tiny.gguf".parse().unwrap(),
                folder.part(&model.write(), json!({})),
            )]
            .into(),
        };
        let mut bench = Bench {
            folder,
            model: Manifest::default(),
            _root: root,
        };
        bench.model = bench.run("inspect", json!({}), &[("gguf", &file)]).unwrap();
        bench
    }

    fn run(
        &self,
        kind: &str,
        params: Value,
        slots: &[(&str, &Manifest)],
    ) -> kiln::base::Result<Manifest> {
        let slot = |(slot, given): &(&str, &Manifest)| {
            (slot.to_string(), vec![(slot.to_string(), (*given).clone())])
        };
        let inputs = Inputs {
            slots: slots.iter().map(slot).collect(),
            ..Inputs::default()
        };
        self.folder
            .run_stage(kiln::stages::all().get(kind).unwrap(), params, &inputs)
    }

    fn requant(&self, scheme: &str) -> Manifest {
        self.run(
            "requant",
            json!({"scheme": scheme}),
            &[("tensors", &self.model)],
        )
        .unwrap()
    }

    /// A calibration with the moments of every matrix, or their diagonals only.
    fn calibration(&self, diagonal: bool) -> Manifest {
        let mut parts = BTreeMap::new();
        for (name, part) in self.model.under("tensors") {
            let facts: kiln::model::facts::TensorFacts = part.facts.read().unwrap();
            let [_, columns] = facts.shape[..] else {
                continue;
            };
            let h = moments(columns, columns as usize);
            let numbers: Vec<f32> = if diagonal {
                h.into_iter().step_by(columns as usize + 1).collect()
            } else {
                h
            };
            let bytes: Vec<u8> = numbers
                .iter()
                .flat_map(|number| number.to_le_bytes())
                .collect();
            let part: Part = self
                .folder
                .part(&bytes, json!({"columns": columns, "tokens": columns * 2}));
            parts.insert(
                format!("{}/{name}", if diagonal { "diagonal" } else { "moments" })
                    .parse()
                    .unwrap(),
                part,
            );
        }
        Manifest { parts }
    }
}

fn facts(weights: &Manifest, name: &str) -> WeightFacts {
    weights.part(name).unwrap().facts.read().unwrap()
}

#[test]
fn safe_weights_are_the_native_ones_without_a_negative_scale() {
    let types = [Quant::Q4_0, Quant::Q4_1, Quant::Q8_0];
    for (model, quant) in types.map(|quant| {
        (
            TinyGguf::llama().tensor_type("blk.0.ffn_up.weight", quant),
            quant,
        )
    }) {
        let bench = Bench::new(&model);
        let (native, safe) = (bench.requant("native"), bench.requant("native-safe"));
        for name in restore::names(&native) {
            let [native, safe_values] =
                [&native, &safe].map(|weights| restore::weight(&bench.folder, weights, &name));
            assert!(native == safe_values, "{quant:?} {name}");
            if let Some(scales) = restore::blob(&bench.folder, &safe, &format!("{name}/scales")) {
                assert!(scales.iter().all(|scale| *scale > 0.0), "{name}");
                assert!(
                    facts(&safe, &format!("{name}/codes")).error.unwrap().exact,
                    "{name}"
                );
            }
        }
    }
    let bench = Bench::new(&TinyGguf::qwen2());
    let native = bench.requant("native");
    let scales = restore::blob(&bench.folder, &native, "blk.0.attn_q.weight/scales").unwrap();
    assert!(
        scales.iter().any(|scale| *scale < 0.0),
        "else this test says nothing"
    );
    assert!(
        bench
            .requant("native-safe")
            .get("blk.0.attn_q.weight/offsets")
            .is_some()
    );
}

#[test]
fn blocks_are_mirrored_by_hand() {
    // d = -0.5, codes 0 to 15 and again: -8 has no negative, so that the block is lifted by |d|.
    let block: Vec<u8> = half::f16::from_f32(-0.5)
        .to_le_bytes()
        .into_iter()
        .chain((0..16).map(|k| k | (15 - k) << 4))
        .collect();
    let NativeEncoding::Blocks(grid) = GgmlType::by_name("Q4_0").unwrap().format.native_encoding()
    else {
        panic!()
    };
    let (mut codes, mut scales, mut offsets) = ([0; 16], [0; 2], [0; 2]);
    grid.split(
        &block,
        Split {
            codes: &mut codes,
            scales: &mut scales,
            offsets: &mut [],
        },
    );
    assert!(Positive::must_lift(
        grid,
        &Split {
            codes: &mut codes,
            scales: &mut scales,
            offsets: &mut []
        }
    ));
    Positive::new(grid, true).split(
        &block,
        Split {
            codes: &mut codes,
            scales: &mut scales,
            offsets: &mut offsets,
        },
    );
    let number = |bytes| half::f16::from_le_bytes(bytes).to_f32();
    assert_eq!((number(scales), number(offsets)), (0.5, 0.5));
    assert_eq!(codes[0], 0x67, "-8 and -7 become 7 and 6");
}

#[test]
fn a_scheme_says_what_it_cost() {
    let bench = Bench::new(&TinyGguf::qwen2());
    let name = "blk.0.ffn_down.weight";
    let error = |weights: &Manifest| facts(weights, &format!("{name}/codes")).error.unwrap();
    let source = restore::weight(&bench.folder, &bench.requant("native"), name);
    let mut lines = String::new();
    for (scheme, at_least_db) in [
        ("int8-channel", 38.0),
        ("int4-channel", 14.0),
        ("lpbq-16", 18.0),
        ("lpbq-64", 16.0),
    ] {
        let weights = bench.requant(scheme);
        let found = error(&weights);
        let noise = square(&source, &restore::weight(&bench.folder, &weights, name));
        let signal: f64 = source.iter().map(|value| f64::from(*value).powi(2)).sum();
        let sqnr = found.sqnr_db.unwrap();
        assert!(
            (sqnr - 10.0 * (signal / noise).log10()).abs() < 0.01,
            "{scheme} {sqnr}"
        );
        assert!(sqnr > at_least_db, "{scheme} {sqnr}");
        assert_eq!((found.exact, found.scheme.as_str()), (false, scheme));
        lines += &format!("{scheme} clipped {}\n", found.clipped.is_some());
    }
    assert!(!lines.contains("false"), "{lines}");
    assert_eq!(error(&bench.requant("native")).clipped, None);
}

#[test]
fn only_what_a_calibration_changes_has_it_in_its_key() {
    let bench = Bench::new(&TinyGguf::qwen2());
    let calibration = bench.calibration(false);
    let stages = kiln::stages::all();
    let stage = stages.get("requant").unwrap();
    let inputs_of = |scheme: &str, calibration: &Manifest| -> Vec<String> {
        let slots = [("tensors", &bench.model), ("calibration", calibration)];
        let slot = |(slot, given): (&str, &Manifest)| {
            (slot.to_string(), vec![(slot.to_string(), given.clone())])
        };
        let inputs = Inputs {
            slots: slots.map(slot).into(),
            ..Inputs::default()
        };
        let orders = stage.expand(&json!({"scheme": scheme}), &inputs).unwrap();
        let order = orders
            .into_iter()
            .find(|order| order.name == "blk.0.attn_q.weight")
            .unwrap();
        order.inputs.into_keys().collect()
    };
    for scheme in ["native", "native-safe", "f16", "int8-block", "int8-channel"] {
        assert_eq!(inputs_of(scheme, &calibration), ["tensor"], "{scheme}");
    }
    for scheme in ["int4-channel", "lpbq-16", "lpbq-32", "lpbq-64"] {
        assert_eq!(
            inputs_of(scheme, &calibration),
            ["moments", "tensor"],
            "{scheme}"
        );
        assert_eq!(
            inputs_of(scheme, &bench.calibration(true)),
            ["diagonal", "tensor"],
            "{scheme}"
        );
        assert_eq!(
            inputs_of(scheme, &Manifest::default()),
            ["tensor"],
            "{scheme}"
        );
    }
}

#[test]
fn a_calibration_lowers_the_cost_of_errors() {
    let bench = Bench::new(&TinyGguf::qwen2());
    let name = "blk.1.ffn_gate.weight";
    let source = restore::weight(&bench.folder, &bench.requant("native"), name);
    let h = moments(64, 64);
    let cost_of = |scheme: &str, calibration: Manifest| {
        let slots = [("tensors", &bench.model), ("calibration", &calibration)];
        let weights = bench
            .run("requant", json!({"scheme": scheme}), &slots)
            .unwrap();
        cost(
            &h,
            64,
            &source,
            &restore::weight(&bench.folder, &weights, name),
        )
    };
    for scheme in ["int4-channel", "lpbq-16", "lpbq-64"] {
        let (full, diagonal) = (
            cost_of(scheme, bench.calibration(false)),
            cost_of(scheme, bench.calibration(true)),
        );
        let none = cost_of(scheme, Manifest::default());
        assert!(
            full < diagonal * 0.9 && diagonal < none,
            "{scheme}: {full} {diagonal} {none}"
        );
    }
}

#[test]
fn columns_that_make_no_blocks_are_refused() {
    let bench = Bench::new(&TinyGguf::qwen2());
    let problem = bench
        .run(
            "requant",
            json!({"scheme": "lpbq-128"}),
            &[("tensors", &bench.model)],
        )
        .unwrap_err();
    assert_eq!(problem.code, Code::WeightsColumns);
    assert!(
        problem
            .message
            .ends_with("has 64 columns, not a multiple of 128, as lpbq-128 requires"),
        "{problem}"
    );
}

/// A graph over the weights of `scheme`, checked by `onnx` and run by ONNX Runtime against numpy.
fn run_in_onnx_runtime(scheme: &str) {
    let bench = Bench::new(&TinyGguf::qwen2());
    let weights = bench.requant(scheme);
    let graph = json!({"prefill": 8, "context": 24});
    let onnx = bench
        .run(
            "graph",
            graph,
            &[("model", &bench.model), ("weights", &weights)],
        )
        .unwrap();
    let out = tempfile::tempdir().unwrap();
    for (name, part) in &onnx.parts {
        let path = out.path().join(name.as_str());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &*bench.folder.bytes(part)).unwrap();
    }
    let parts: BTreeMap<&str, _> = onnx
        .under("weights")
        .map(|(name, part)| (name, &part.facts))
        .collect();
    let facts = json!({"model": onnx.part("model.json").unwrap().facts, "weights": parts});
    fs::write(out.path().join("facts.json"), facts.to_string()).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/peers/run_graphs.py");
    println!("{scheme}: {}", said(python().arg(script).arg(out.path())));
}

#[test]
#[ignore = "needs a package index"]
fn onnx_runtime_computes_every_scheme() {
    for scheme in [
        "native-safe",
        "int8-channel",
        "int4-channel",
        "lpbq-16",
        "lpbq-64",
    ] {
        run_in_onnx_runtime(scheme);
    }
}
