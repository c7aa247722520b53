//! Every block type of ggml on the simulator: requantized `native`, lowered, multiplied, and
//! compared with the weights that decoding gives. docs/native-weights.md holds what comes out.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::support::peers::{python, said};
use crate::support::tiny_gguf::Random;
use crate::support::workspace::Folder;
use half::f16;
use kiln::action::{Inputs, Manifest, Part};
use kiln::lower::lower;
use kiln::model::onnx::proto::{ModelProto, element};
use kiln::model::onnx::{Builder, External, Function, element_type, gain, int};
use kiln::model::quant::{self, GgmlType, GridLayout};
use kiln::model::weight::{Element, WeightEncoding, WeightFacts};
use kiln::qnn::{
    Backend, Context, DeviceGraph, GraphInfo, GraphOptions, HtpGraph, Soc, relative_rms_error,
};
use prost::Message;
use serde_json::json;

/// Inputs and outputs of the matmul.
const K: usize = 1024;
const N: usize = 256;
/// Its tokens: of random numbers, of random positive ones, and of a single one, which read weights
/// back.
const RANDOM: usize = 8;
const POSITIVE: usize = 8;
const ONE_HOT: usize = 32;
const T: usize = RANDOM + POSITIVE + ONE_HOT;

/// Where the blocks of a type hold their halves, and what to make of them, so that weights are
/// about as large and as evenly spread around zero as those of a model. Codes and sub-scales are
/// random.
const HALVES: [(&str, &[(usize, f32)]); 24] = [
    ("Q4_0", &[(0, 0.01)]),
    ("Q4_1", &[(0, 0.01), (2, -0.075)]),
    ("Q5_0", &[(0, 0.005)]),
    ("Q5_1", &[(0, 0.005), (2, -0.0775)]),
    ("Q8_0", &[(0, 6e-4)]),
    ("Q2_K", &[(80, 0.002), (82, 0.003)]),
    ("Q3_K", &[(108, 6e-4)]),
    ("Q4_K", &[(0, 2e-4), (2, 15e-4)]),
    ("Q5_K", &[(0, 1e-4), (2, 15.5e-4)]),
    ("Q6_K", &[(208, 3e-5)]),
    ("IQ2_XXS", &[(0, 0.002)]),
    ("IQ2_XS", &[(0, 0.002)]),
    ("IQ2_S", &[(0, 0.002)]),
    ("IQ3_XXS", &[(0, 0.001)]),
    ("IQ3_S", &[(0, 6e-4)]),
    ("IQ1_S", &[(0, 0.01)]),
    ("IQ4_NL", &[(0, 6e-4)]),
    ("IQ4_XS", &[(0, 3e-5)]),
    ("TQ1_0", &[(52, 0.05)]),
    ("TQ2_0", &[(64, 0.05)]),
    ("Q1_0", &[(0, 0.05)]),
    ("Q2_0", &[(0, 0.05)]),
    ("MXFP4", &[]),
    ("NVFP4", &[]),
];

/// `[rows, K]` in blocks of a type.
fn blocks(ggml: &GgmlType, rows: usize) -> Vec<u8> {
    let mut random = Random::of(ggml.name, 1);
    let size = ggml.bytes((rows * K) as u64).unwrap();
    let mut bytes: Vec<u8> = (0..size).map(|_| random.bits() as u8).collect();
    let halves = HALVES
        .iter()
        .find(|(name, _)| *name == ggml.name)
        .map_or(&[][..], |(_, halves)| halves);
    for block in bytes.chunks_mut(ggml.block_bytes as usize) {
        // Both signs, as ggml has them, but for the types with offsets.
        let negative = random.bits().is_multiple_of(2) && halves.len() < 2;
        let size = 0.75 + 0.5 * (random.bits() % 1024) as f32 / 1024.0;
        let spread = if negative { -size } else { size };
        for (at, value) in halves {
            block[*at..at + 2].copy_from_slice(&f16::from_f32(value * spread).to_le_bytes());
        }
        match ggml.name {
            // The upper half of sub-scales and minima: as in a model, no run is much smaller than
            // its neighbours.
            "Q2_K" => block[..16].iter_mut().for_each(|byte| *byte |= 0x88),
            "Q4_K" | "Q5_K" => block[4..12].iter_mut().for_each(|byte| *byte |= 0xa0),
            "Q8_K" => block[..4].copy_from_slice(&(6e-4 * spread).to_le_bytes()),
            "IQ1_M" => (0..4).for_each(|word| {
                let d = f16::from_f32(0.01).to_bits();
                block[49 + 2 * word] =
                    block[49 + 2 * word] & 0x0f | ((d >> (4 * word) & 0x0f) << 4) as u8;
            }),
            "MXFP4" => block[0] = 119 + block[0] % 5,
            "NVFP4" => block[..4]
                .iter_mut()
                .for_each(|byte| *byte = 8 + *byte % 32),
            _ => {}
        }
    }
    bytes
}

struct Weight {
    encoding: WeightEncoding,
    parts: BTreeMap<String, Vec<u8>>,
    values: Vec<f64>,
}

/// What `requant` makes of each type, and what its blocks decode to.
fn weights(types: &[&'static GgmlType], rows: usize) -> BTreeMap<&'static str, Weight> {
    let root = tempfile::tempdir().unwrap();
    let folder = Folder::new(root.path());
    let facts =
        serde_json::to_value(&crate::support::tiny_weights::TinyWeights::llama().facts).unwrap();
    let mut model = Manifest::default();
    model
        .parts
        .insert("model.json".parse().unwrap(), folder.part(b"", facts));
    for ggml in types {
        let facts = json!({"shape": [rows, K], "type": ggml.name});
        let name = format!("tensors/{}.weight", ggml.name);
        model.parts.insert(
            name.parse().unwrap(),
            folder.part(&blocks(ggml, rows), facts),
        );
    }
    let stages = kiln::stages::all();
    let inputs = Inputs {
        slots: [("tensors".into(), vec![("model".into(), model)])].into(),
        ..Inputs::default()
    };
    let made = folder
        .run_stage(stages.get("requant").unwrap(), json!({}), &inputs)
        .unwrap();
    let weight = |ggml: &&'static GgmlType| {
        let mut values = vec![0.0; rows * K];
        ggml.format.decode(&blocks(ggml, rows), &mut values);
        let name = format!("{}.weight", ggml.name);
        let part = |(name, part): (_, &Part)| (str::to_string(name), folder.bytes(part).to_vec());
        let parts = made.under(&name).map(part).collect();
        let codes = made.part(&format!("{name}/codes")).unwrap();
        let facts: WeightFacts = codes.facts.read().unwrap();
        (
            ggml.name,
            Weight {
                encoding: facts.encoding,
                parts,
                values: values.into_iter().map(f64::from).collect(),
            },
        )
    };
    types.iter().map(weight).collect()
}

/// `y = x W^T`.
fn onnx(name: &str, weight: &Weight, rows: usize) -> ModelProto {
    let mut graph = Builder::default();
    let mut inputs = vec![graph.input("x", element::FLOAT, &[1, 1, T as u64, K as u64])];
    let shape = [rows as u64, K as u64];
    for spec in weight.encoding.parts(&shape).unwrap() {
        let location = spec.part.name().to_string();
        let external = External {
            name: &format!("w/{location}"),
            size_bytes: weight.parts[&location].len() as u64,
            location,
            element: element_type(spec.element),
            dims: &spec.shape,
        };
        inputs.push(graph.external(&external));
    }
    let block = weight.encoding.block(K as u64).unwrap() as i64;
    let linear = Function::Linear {
        weight: weight.encoding.form(),
        bias: false,
    };
    let dims = vec![1, 1, T as u64, rows as u64];
    let y = graph.call(
        linear,
        "y",
        &inputs.iter().collect::<Vec<_>>(),
        vec![int("block", block), gain(0)],
        dims,
    );
    graph.output(&y);
    graph.finish(name)
}

fn lowered(name: &str, weight: &Weight, rows: usize) -> DeviceGraph {
    let open = |location: &str| Ok(kiln::action::Blob::new(weight.parts[location].clone()));
    lower(&onnx(name, weight, rows), &open).unwrap()
}

fn build(backend: &Rc<Backend>, graph: &DeviceGraph) -> (Context, GraphInfo) {
    let context = Context::new(backend, false).unwrap();
    let options = GraphOptions::Htp(HtpGraph {
        optimization: 3,
        vtcm_mb: 8,
    });
    let info = context.build(graph, &options).unwrap();
    (context, info)
}

/// Relative rms errors: of weights read back, of the product, of the product with positive numbers.
fn errors(context: &Context, info: &GraphInfo, weight: &Weight) -> [f64; 3] {
    let mut random = Random::of("x", 1);
    let x: Vec<f16> = (0..T * K)
        .map(|i| match i / K {
            0..RANDOM => random.normal(),
            token if token < RANDOM + POSITIVE => random.normal().abs(),
            token => f32::from(u8::from(i % K == token - RANDOM - POSITIVE)),
        })
        .map(f16::from_f32)
        .collect();
    let inputs = [(
        "x".to_string(),
        x.iter().flat_map(|x| x.to_le_bytes()).collect(),
    )]
    .into();
    let outputs = context.execute(info, &inputs).unwrap();
    let y = outputs.values().next().unwrap();
    let got: Vec<f64> = y
        .as_chunks::<2>()
        .0
        .iter()
        .map(|half| f16::from_le_bytes(*half).to_f64())
        .collect();
    let dot = |t: usize, n: usize| -> f64 {
        (0..K)
            .map(|k| x[t * K + k].to_f64() * weight.values[n * K + k])
            .sum()
    };
    let error = |tokens: std::ops::Range<usize>| {
        let rows = tokens.start * N..tokens.end * N;
        let expected: Vec<f64> = rows.clone().map(|i| dot(i / N, i % N)).collect();
        relative_rms_error(&expected, &got[rows])
    };
    [
        error(RANDOM + POSITIVE..T),
        error(0..RANDOM),
        error(RANDOM..RANDOM + POSITIVE),
    ]
}

fn block_types() -> Vec<(&'static GgmlType, GridLayout)> {
    let layout = |ggml: &'static GgmlType| match ggml.format.native_encoding() {
        quant::NativeEncoding::Blocks(grid) => Some((ggml, grid.layout())),
        _ => None,
    };
    GgmlType::all().filter_map(layout).collect()
}

/// What the table says of a type that need not be measured: name, bits in a GGUF, the device's
/// codes, block, exactness.
fn described(ggml: &GgmlType, layout: &GridLayout) -> String {
    let offset = if layout.offsets.is_some() {
        " + offset"
    } else {
        ""
    };
    let exact = match (layout.offsets, layout.scales) {
        (Some(_), Element::F16) => "except the offset",
        (Some(_), _) => "except scale and offset",
        (None, Element::F16) => "yes",
        (None, _) if ggml.name == "MXFP4" => "yes, in the range of fp16",
        (None, _) => "except the scale",
    };
    let bits = ggml.block_bytes as f64 * 8.0 / ggml.block_len as f64;
    format!(
        "| {} | {bits} | {} bit{offset} | {} | {exact} |",
        ggml.name,
        layout.codes.bits(),
        layout.block
    )
}

/// The rows of docs/native-weights.md: what need not be measured, and the numbers that follow.
fn documented() -> Vec<(String, Vec<f64>)> {
    let rows = include_str!("../../docs/native-weights.md")
        .lines()
        .filter(|line| line.matches(" | ").count() == 8);
    let row = |line: &str| {
        let at = line.match_indices('|').nth(5).unwrap().0 + 1;
        let numbers = line[at..]
            .split('|')
            .filter_map(|cell| cell.trim().parse().ok())
            .collect();
        (line[..at].to_string(), numbers)
    };
    rows.map(row)
        .filter(|(_, numbers): &(_, Vec<f64>)| !numbers.is_empty())
        .collect()
}

#[test]
fn the_table_has_every_type_in_the_form_that_requant_gives_it() {
    let rows: Vec<String> = documented()
        .into_iter()
        .map(|(described, _)| described)
        .collect();
    let expected: Vec<String> = block_types()
        .iter()
        .map(|(ggml, layout)| described(ggml, layout))
        .collect();
    assert_eq!(rows, expected);
}

/// Of another chip: `KILN_SOC=sm8750 cargo test --release --test qnn native_weights:: -- --ignored
/// --nocapture`.
#[test]
#[ignore = "needs the QNN libraries"]
fn the_table_is_what_the_simulator_computes() {
    let soc = std::env::var("KILN_SOC").unwrap_or("sm8650".into());
    let backend = Backend::htp(&crate::support::tools::qnn(), Soc::named(&soc).unwrap()).unwrap();
    let types = block_types();
    let all = weights(&types.iter().map(|(ggml, _)| *ggml).collect::<Vec<_>>(), N);
    let mut sizes = BTreeMap::new();
    let mut measured = vec![];
    for (ggml, layout) in &types {
        let weight = &all[ggml.name];
        let (context, info) = build(&backend, &lowered(ggml.name, weight, N));
        let [weights, product, positive] = errors(&context, &info, weight);
        let encoding = format!(
            "{} {} {}",
            layout.codes.bits(),
            layout.block,
            layout.offsets.is_some()
        );
        let bits = *sizes
            .entry(encoding)
            .or_insert_with(|| bits_per_weight(&backend, ggml));
        let numbers = [
            format!("{bits:.2}"),
            format!("{weights:.1e}"),
            format!("{product:.1e}"),
            format!("{positive:.1e}"),
        ];
        println!("{} {} |", described(ggml, layout), numbers.join(" | "));
        assert!(product < 1e-3 && positive < 3e-3, "{}", ggml.name);
        measured.push(numbers.map(|number| number.parse::<f64>().unwrap()));
    }
    for ((row, documented), measured) in documented().iter().zip(measured) {
        // Not to the last digit: another processor may sum up in another order.
        let near = documented
            .iter()
            .zip(measured)
            .all(|(documented, measured)| (measured - documented).abs() <= 0.1 * documented);
        assert!(
            near && documented.len() == 4,
            "{row} says {documented:?}, measured {measured:?}"
        );
    }
}

/// What more rows add to a context binary, so that what a graph takes besides does not count.
fn bits_per_weight(backend: &Rc<Backend>, ggml: &'static GgmlType) -> f64 {
    let bytes = |rows| {
        let weights = weights(&[ggml], rows);
        build(backend, &lowered("g", &weights[ggml.name], rows))
            .0
            .binary()
            .unwrap()
            .len() as f64
    };
    (bytes(3 * N) - bytes(N)) * 8.0 / (2 * N * K) as f64
}

/// Multiplies by one-hot rows in ONNX Runtime, which reads the weights of each model in a folder
/// back, and writes them down.
const READ_BACK: &str = "
import sys, pathlib, numpy, onnxruntime
for folder in pathlib.Path(sys.argv[1]).iterdir():
    session = onnxruntime.InferenceSession(folder / 'model.onnx')
    [_, _, tokens, width] = session.get_inputs()[0].shape
    x = numpy.eye(width, dtype=numpy.float32)[:tokens].reshape(1, 1, tokens, width)
    session.run(None, {'x': x})[0].astype('<f4').tofile(folder / 'y')
";

#[test]
#[ignore = "needs a package index"]
fn onnx_runtime_reads_every_type_as_it_was_decoded() {
    const ROWS: usize = 8;
    let types = block_types()
        .into_iter()
        .map(|(ggml, _)| ggml)
        .collect::<Vec<_>>();
    let all = weights(&types, ROWS);
    let root = tempfile::tempdir().unwrap();
    for (name, weight) in &all {
        let folder = root.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(
            folder.join("model.onnx"),
            onnx(name, weight, ROWS).encode_to_vec(),
        )
        .unwrap();
        weight
            .parts
            .iter()
            .for_each(|(blob, bytes)| std::fs::write(folder.join(blob), bytes).unwrap());
    }
    said(python().args(["-c", READ_BACK]).arg(root.path()));
    for (name, weight) in &all {
        let bytes = std::fs::read(root.path().join(name).join("y")).unwrap();
        let got: Vec<f64> = bytes
            .as_chunks()
            .0
            .iter()
            .map(|single| f32::from_le_bytes(*single).into())
            .collect();
        let expected: Vec<f64> = (0..T * ROWS)
            .map(|i| weight.values[i % ROWS * K + i / ROWS])
            .collect();
        assert_eq!(got, expected, "{name}");
    }
}
