//! The schemes of `requant`: ranges of codes, bounds of errors, determinism, and the same numbers
//! in ONNX Runtime.

use std::collections::BTreeMap;

use crate::support::onnx_runtime::compare_with_numpy;
use crate::support::quantize::Quant;
use crate::support::restore;
use crate::support::tiny_gguf::{Random, TinyGguf};
use crate::support::workspace::{Folder, inputs};
use kiln::action::Manifest;
use kiln::base::Code;
use kiln::model::quant::*;
use kiln::model::weight::{Element, WeightFacts};
use proptest::prelude::*;
use serde_json::{Value, json};

const INT8: RowLayout = RowLayout {
    codes: Element::Int8,
    block: None,
    shifts: false,
};
const INT4: RowLayout = RowLayout {
    codes: Element::Int4,
    block: None,
    shifts: false,
};
pub(crate) const SHIFTED: RowLayout = RowLayout {
    codes: Element::Int4,
    block: Some(32),
    shifts: true,
};

pub(crate) fn lpbq(block: u32) -> RowLayout {
    RowLayout {
        codes: Element::Int4,
        block: Some(block),
        shifts: false,
    }
}

/// Rounded rows.
#[derive(Debug, PartialEq)]
pub(crate) struct Rounded {
    pub(crate) codes: Vec<i32>,
    integers: Vec<u8>,
    scales: Vec<f32>,
    pub(crate) values: Vec<f32>,
    pub(crate) sum: RowSum,
}

pub(crate) fn round_with(
    layout: RowLayout,
    metric: Metric,
    columns: usize,
    values: &[f32],
) -> Rounded {
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
    if layout.shifts {
        return unshifted(columns, code, &integers, &scales, sum);
    }
    let codes: Vec<i32> = (0..values.len()).map(code).collect();
    let single = |bytes: &[u8; 4]| f32::from_le_bytes(*bytes);
    let scales: Vec<f32> = scales.as_chunks().0.iter().map(single).collect();
    let integer = |i: usize| match layout.block {
        Some(block) => f32::from(integers[i / block as usize]),
        None => 1.0,
    };
    let value = |i| codes[i] as f32 * (scales[i / columns] * integer(i));
    let restored = (0..values.len()).map(value).collect();
    Rounded {
        codes,
        integers,
        scales,
        values: restored,
        sum,
    }
}

/// Rows in the layout [`SHIFTED`], whose stored codes are `code`, without the added columns.
fn unshifted(
    columns: usize,
    code: impl Fn(usize) -> i32,
    integers: &[u8],
    scales: &[u8],
    sum: RowSum,
) -> Rounded {
    let blocks = columns / 32;
    let group = blocks.next_multiple_of(32);
    let width = columns + 2 * group;
    let mut rounded = Rounded {
        codes: vec![],
        integers: vec![],
        scales: vec![],
        values: vec![],
        sum,
    };
    for (row, scale) in scales.as_chunks().0.iter().enumerate() {
        let scale = f32::from_le_bytes(*scale);
        rounded.scales.push(scale);
        for block in 0..blocks {
            let integer = integers[row * (width / 32) + block];
            let sum = row * width + columns + block;
            let sums = 16 * code(sum) + code(sum + group);
            assert!(sums == 0 || sums == 4 * i32::from(integer), "{sums}");
            rounded.integers.push(integer);
            for column in block * 32..(block + 1) * 32 {
                let code = code(row * width + column) + i32::from(sums != 0);
                rounded.codes.push(code);
                rounded
                    .values
                    .push(code as f32 * (scale * f32::from(integer)));
            }
        }
    }
    rounded
}

pub(crate) fn round_plain(layout: RowLayout, columns: usize, values: &[f32]) -> Rounded {
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

/// Second moments of correlated inputs.
pub(crate) fn moments(seed: u64, columns: usize) -> Vec<f32> {
    let mut random = Random::of("inputs", seed);
    let mut h = vec![0.0; columns * columns];
    for _ in 0..columns * 2 {
        let common = random.normal();
        let mut x = vec![];
        for column in 0..columns {
            let scale = if column % 7 == 3 { 8.0 } else { 1.0 };
            x.push((common + random.normal()) * scale);
        }
        for (i, h) in h.iter_mut().enumerate() {
            *h += x[i / columns] * x[i % columns];
        }
    }
    h
}

/// The errors of rows, weighted by the moments with the damping that the rounding uses.
fn cost(h: &[f32], columns: usize, values: &[f32], rounded: &[f32]) -> f64 {
    let mut trace = 0.0;
    for i in 0..columns {
        trace += f64::from(h[i * (columns + 1)]);
    }
    let damping = 0.05 * trace / columns as f64;
    let mut cost = 0.0;
    for (values, rounded) in values.chunks(columns).zip(rounded.chunks(columns)) {
        let error = |i: usize| f64::from(values[i] - rounded[i]);
        for i in 0..columns {
            let mut product = damping * error(i);
            for j in 0..columns {
                product += f64::from(h[i * columns + j]) * error(j);
            }
            cost += error(i) * product;
        }
    }
    cost
}

fn square(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn codes_and_errors_are_within_bounds(seed: u64, rows in 1usize..20) {
        let values = numbers(seed, rows * 128);
        for layout in [INT8, INT4, lpbq(16), lpbq(32), lpbq(64), lpbq(128), SHIFTED] {
            let rounded = round_plain(layout, 128, &values);
            let limits = |i: usize| match layout.codes {
                Element::Int8 => [-127, 127],
                _ if layout.shifts && rounded.codes[i / 32 * 32..][..32].contains(&8) => [-7, 8],
                _ => [-8, 7],
            };
            for (i, code) in rounded.codes.iter().enumerate() {
                let [low, high] = limits(i);
                prop_assert!((low..=high).contains(code));
            }
            for integer in &rounded.integers {
                prop_assert!((1..=16).contains(integer));
            }
            for scale in &rounded.scales {
                prop_assert!(*scale > 0.0);
            }
            let mut clipped = 0;
            for (i, (value, restored)) in values.iter().zip(&rounded.values).enumerate() {
                let integer = match layout.block {
                    Some(block) => rounded.integers[i / block as usize],
                    None => 1,
                };
                let step = rounded.scales[i / 128] * f32::from(integer);
                let is_last = limits(i).contains(&rounded.codes[i]);
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
            let mut unclipped = vec![];
            for row in values.chunks(96) {
                let largest = row.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
                // Scales have the precision of f16.
                let scale = half::f16::from_f32(largest / reach).to_f32();
                for value in row {
                    unclipped.push((value / scale).round().clamp(-reach - 1.0, reach) * scale);
                }
            }
            let (ours, theirs) = (square(&values, &rounded.values), square(&values, &unclipped));
            prop_assert!(ours <= theirs * 1.0001, "{layout:?}: {ours} {theirs}");
        }
    }

    /// In a source with blocks of 32 codes, a block of 16 needs only a part of the range.
    #[test]
    fn smaller_blocks_have_less_error_on_a_quantized_source(seed: u64) {
        let noise = numbers(seed, 16 * 512);
        let mut values = vec![];
        for block in noise.chunks(32) {
            let mut largest = 0.0f32;
            for value in block {
                if value.abs() >= largest.abs() {
                    largest = *value;
                }
            }
            for value in block {
                values.push((value / largest * -8.0).round().min(7.0) * largest / -8.0);
            }
        }
        let error = |block| square(&values, &round_plain(lpbq(block), 512, &values).values);
        let (small, large) = (error(16), error(32));
        prop_assert!(small < large, "{small} {large}");
    }

    #[test]
    fn error_feedback_is_never_worse_than_rounding(seed: u64) {
        let (columns, values) = (64, numbers(seed, 17 * 64));
        let h = moments(seed, columns);
        let squares: Vec<f32> = (0..columns).map(|i| h[i * (columns + 1)]).collect();
        for layout in [INT4, lpbq(16), lpbq(32), SHIFTED] {
            let of = |metric| {
                let rounded = round_with(layout, metric, columns, &values).values;
                cost(&h, columns, &values, &rounded)
            };
            let full = of(Metric::full(&h, columns, layout.block).unwrap());
            let plain = of(Metric::plain(columns, layout.block));
            let weighted = of(Metric::diagonal(&squares, layout.block).unwrap());
            prop_assert!(
                full <= weighted * 1.001 && full < plain * 0.7,
                "{layout:?}: {full} {weighted} {plain}"
            );
        }
    }
}

#[test]
fn constant_and_zero_rows_are_rounded() {
    for layout in [INT8, INT4, lpbq(16), SHIFTED] {
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
fn results_do_not_depend_on_other_rows_or_threads() {
    let values = numbers(5, 40 * 64);
    let h = moments(5, 64);
    for layout in [INT4, lpbq(32), SHIFTED] {
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
fn invalid_rows_are_rejected() {
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

struct TestModel {
    folder: Folder,
    model: Manifest,
    _root: tempfile::TempDir,
}

impl TestModel {
    fn new(model: &TinyGguf) -> Self {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path());
        let model = folder.inspect(&model.write()).unwrap();
        TestModel {
            folder,
            model,
            _root: root,
        }
    }

    fn run(
        &self,
        kind: &str,
        params: Value,
        slots: &[(&str, &Manifest)],
    ) -> kiln::base::Result<Manifest> {
        self.folder.run(kind, params, slots)
    }

    fn requant(&self, scheme: &str) -> Manifest {
        self.run(
            "requant",
            json!({"scheme": scheme}),
            &[("tensors", &self.model)],
        )
        .unwrap()
    }

    /// The layers in `scheme`, embedding and head as they are.
    fn requant_layers(&self, scheme: &str) -> Manifest {
        let layers = json!({"override": [{"match": "blk.*", "scheme": scheme}]});
        self.run("requant", layers, &[("tensors", &self.model)])
            .unwrap()
    }

    /// A calibration with the moments of every matrix, or their diagonals only.
    fn calibration(&self, diagonal: bool) -> Manifest {
        let mut parts = BTreeMap::new();
        for (name, part) in self.model.under("tensors") {
            let facts: kiln::model::quant::TensorFacts = part.facts.read().unwrap();
            let [_, columns] = facts.shape[..] else {
                continue;
            };
            let h = moments(columns, columns as usize);
            let numbers: Vec<f32> = if diagonal {
                h.into_iter().step_by(columns as usize + 1).collect()
            } else {
                h
            };
            let bytes: Vec<u8> = numbers.into_iter().flat_map(f32::to_le_bytes).collect();
            let facts = json!({"columns": columns, "tokens": columns * 2});
            let kind = if diagonal { "diagonal" } else { "moments" };
            let name = format!("{kind}/{name}").parse().unwrap();
            parts.insert(name, self.folder.part(&bytes, facts));
        }
        Manifest { parts }
    }
}

fn facts(weights: &Manifest, name: &str) -> WeightFacts {
    weights.part(name).unwrap().facts.read().unwrap()
}

#[test]
fn native_safe_weights_equal_native_without_negative_scales() {
    let types = [Quant::Q4_0, Quant::Q4_1, Quant::Q8_0];
    for quant in types {
        let model = TinyGguf::llama().tensor_type("blk.0.ffn_up.weight", quant);
        let test = TestModel::new(&model);
        let (native, safe) = (test.requant("native"), test.requant("native-safe"));
        for name in restore::names(&native) {
            let [native, safe_values] =
                [&native, &safe].map(|weights| restore::weight(&test.folder, weights, &name));
            assert!(native == safe_values, "{quant:?} {name}");
            if let Some(scales) = restore::blob(&test.folder, &safe, &format!("{name}/scales")) {
                assert!(scales.iter().all(|scale| *scale > 0.0), "{name}");
                assert!(
                    facts(&safe, &format!("{name}/codes")).error.unwrap().exact,
                    "{name}"
                );
            }
        }
    }
    let test = TestModel::new(&TinyGguf::qwen2());
    let native = test.requant("native");
    let scales = restore::blob(&test.folder, &native, "blk.0.attn_q.weight/scales").unwrap();
    assert!(
        scales.iter().any(|scale| *scale < 0.0),
        "the test needs negative scales"
    );
    assert!(
        test.requant("native-safe")
            .get("blk.0.attn_q.weight/offsets")
            .is_some()
    );
}

#[test]
fn a_block_with_a_negative_scale_is_mirrored() {
    // d = -0.5 and all codes twice. -8 has no positive counterpart, so the block gets an offset of
    // |d|.
    let mut block = half::f16::from_f32(-0.5).to_le_bytes().to_vec();
    block.extend((0..16).map(|k| k | (15 - k) << 4));
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
    assert!(Positive::needs_offsets(
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
fn reported_errors_match_the_weights() {
    let test = TestModel::new(&TinyGguf::qwen2());
    let name = "blk.0.ffn_down.weight";
    let error = |weights: &Manifest| facts(weights, &format!("{name}/codes")).error.unwrap();
    let source = restore::weight(&test.folder, &test.requant("native"), name);
    let mut lines = String::new();
    for (scheme, at_least_db) in [
        ("int8-channel", 38.0),
        ("int4-channel", 14.0),
        ("lpbq-16", 18.0),
        ("lpbq-64", 16.0),
        ("lpbq-32-shifted", 18.0),
    ] {
        let weights = test.requant(scheme);
        let found = error(&weights);
        let noise = square(&source, &restore::weight(&test.folder, &weights, name));
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
    assert_eq!(error(&test.requant("native")).clipped, None);
}

#[test]
fn only_calibrated_schemes_read_the_calibration() {
    let test = TestModel::new(&TinyGguf::qwen2());
    let calibration = test.calibration(false);
    let stages = kiln::stages::all();
    let stage = stages.get("requant").unwrap();
    let inputs_of = |scheme: &str, calibration: &Manifest| -> Vec<String> {
        let inputs = inputs(&[("tensors", &test.model), ("calibration", calibration)]);
        let orders = stage.expand(&json!({"scheme": scheme}), &inputs).unwrap();
        let order = orders
            .into_iter()
            .find(|order| order.name == "blk.0.attn_q.weight")
            .unwrap();
        order.inputs.into_keys().collect()
    };
    for scheme in ["native", "native-safe", "f16", "int8-block"] {
        assert_eq!(inputs_of(scheme, &calibration), ["tensor"], "{scheme}");
    }
    for scheme in [
        "int8-channel",
        "int4-channel",
        "lpbq-16",
        "lpbq-32",
        "lpbq-64",
        "lpbq-32-shifted",
    ] {
        assert_eq!(
            inputs_of(scheme, &calibration),
            ["moments", "tensor"],
            "{scheme}"
        );
        assert_eq!(
            inputs_of(scheme, &test.calibration(true)),
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
fn calibration_lowers_the_weighted_error() {
    let test = TestModel::new(&TinyGguf::qwen2());
    let name = "blk.1.ffn_gate.weight";
    let source = restore::weight(&test.folder, &test.requant("native"), name);
    let h = moments(64, 64);
    let cost_of = |scheme: &str, calibration: Manifest| {
        let slots = [("tensors", &test.model), ("calibration", &calibration)];
        let weights = test
            .run("requant", json!({"scheme": scheme}), &slots)
            .unwrap();
        cost(
            &h,
            64,
            &source,
            &restore::weight(&test.folder, &weights, name),
        )
    };
    for scheme in ["int4-channel", "lpbq-16", "lpbq-64"] {
        let (full, diagonal) = (
            cost_of(scheme, test.calibration(false)),
            cost_of(scheme, test.calibration(true)),
        );
        let none = cost_of(scheme, Manifest::default());
        assert!(
            full < diagonal * 0.9 && diagonal < none,
            "{scheme}: {full} {diagonal} {none}"
        );
    }
}

#[test]
fn indivisible_columns_are_rejected() {
    let test = TestModel::new(&TinyGguf::qwen2());
    let problem = test
        .run(
            "requant",
            json!({"scheme": "lpbq-128"}),
            &[("tensors", &test.model)],
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

#[test]
#[ignore = "needs a package index"]
fn onnx_runtime_matches_numpy_for_every_scheme() {
    for scheme in [
        "native-safe",
        "int8-channel",
        "int4-channel",
        "lpbq-16",
        "lpbq-64",
        "lpbq-32-shifted",
    ] {
        println!("{scheme}");
        let test = TestModel::new(&TinyGguf::qwen2());
        let weights = test.requant_layers(scheme);
        let slots = [("model", &test.model), ("weights", &weights)];
        let graph = json!({"prefill": 8, "context": 24});
        let onnx = test.run("graph", graph, &slots).unwrap();
        compare_with_numpy(&test.folder, &onnx, &[], 5e-6);
    }
}
