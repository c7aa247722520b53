//! Every block type of ggml on the simulator: requantized with `native`, lowered, multiplied, and
//! compared with the decoded weights. The results are in docs/native-weights.md.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::support::peers::{python, stdout_of};
use crate::support::tiny_gguf::Random;
use crate::support::workspace::Folder;
use half::f16;
use kiln::action::Manifest;
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

/// Input and output width of the matmul.
const K: usize = 1024;
const N: usize = 256;
/// The tokens: random numbers, random positive numbers, and one-hot vectors, which read weights
/// back.
const RANDOM: usize = 8;
const POSITIVE: usize = 8;
const ONE_HOT: usize = 32;
const T: usize = RANDOM + POSITIVE + ONE_HOT;

/// The offsets of the f16 numbers in the blocks of each type, and their magnitudes, chosen so that
/// weights have sizes and signs as in a model. Codes and sub-scales are random.
const F16_FIELDS: [(&str, &[(usize, f32)]); 24] = [
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
    let fields = match F16_FIELDS.iter().find(|(name, _)| *name == ggml.name) {
        Some((_, fields)) => *fields,
        None => &[],
    };
    for block in bytes.chunks_mut(ggml.block_bytes as usize) {
        // Both signs, as in ggml, except for types with offsets.
        let negative = random.bits().is_multiple_of(2) && fields.len() < 2;
        let size = 0.75 + 0.5 * (random.bits() % 1024) as f32 / 1024.0;
        let spread = if negative { -size } else { size };
        for (at, value) in fields {
            block[*at..at + 2].copy_from_slice(&f16::from_f32(value * spread).to_le_bytes());
        }
        match ggml.name {
            // Large sub-scales and minima: as in a model, no sub-block is much smaller than its
            // neighbours.
            "Q2_K" => {
                for byte in &mut block[..16] {
                    *byte |= 0x88;
                }
            }
            "Q4_K" | "Q5_K" => {
                for byte in &mut block[4..12] {
                    *byte |= 0xa0;
                }
            }
            "Q8_K" => block[..4].copy_from_slice(&(6e-4 * spread).to_le_bytes()),
            "IQ1_M" => {
                let d = f16::from_f32(0.01).to_bits();
                for word in 0..4 {
                    let byte = &mut block[49 + 2 * word];
                    *byte = *byte & 0x0f | ((d >> (4 * word) & 0x0f) << 4) as u8;
                }
            }
            "MXFP4" => block[0] = 119 + block[0] % 5,
            "NVFP4" => {
                for byte in &mut block[..4] {
                    *byte = 8 + *byte % 32;
                }
            }
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

/// The output of `requant` for each type, and the decoded values.
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
    let weights = folder
        .run("requant", json!({}), &[("tensors", &model)])
        .unwrap();
    let mut by_name = BTreeMap::new();
    for ggml in types {
        let mut values = vec![0.0; rows * K];
        ggml.format.decode(&blocks(ggml, rows), &mut values);
        let name = format!("{}.weight", ggml.name);
        let mut parts = BTreeMap::new();
        for (part_name, part) in weights.under(&name) {
            parts.insert(part_name.to_string(), folder.bytes(part).to_vec());
        }
        let codes = weights.part(&format!("{name}/codes")).unwrap();
        let facts: WeightFacts = codes.facts.read().unwrap();
        let weight = Weight {
            encoding: facts.encoding,
            parts,
            values: values.into_iter().map(f64::from).collect(),
        };
        by_name.insert(ggml.name, weight);
    }
    by_name
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
        vtcm_mb: 8,
        ..HtpGraph::default()
    });
    let info = context.build(graph, &options).unwrap();
    (context, info)
}

/// The relative rms errors of weights read back, of the product, and of the product with positive
/// numbers.
fn errors(context: &Context, info: &GraphInfo, weight: &Weight) -> [f64; 3] {
    let mut random = Random::of("x", 1);
    let (mut x, mut bytes) = (vec![], vec![]);
    for i in 0..T * K {
        let value = match i / K {
            0..RANDOM => random.normal(),
            token if token < RANDOM + POSITIVE => random.normal().abs(),
            token => f32::from(u8::from(i % K == token - RANDOM - POSITIVE)),
        };
        let value = f16::from_f32(value);
        x.push(value.to_f64());
        bytes.extend(value.to_le_bytes());
    }
    let inputs = [("x".to_string(), bytes)].into();
    let outputs = context.execute(info, &inputs).unwrap();
    let y = outputs.values().next().unwrap();
    let float = |bytes: &[u8; 2]| f16::from_le_bytes(*bytes).to_f64();
    let got: Vec<f64> = y.as_chunks().0.iter().map(float).collect();
    let error = |tokens: std::ops::Range<usize>| {
        let mut expected = vec![];
        for x in x[tokens.start * K..tokens.end * K].chunks(K) {
            for row in weight.values.chunks(K) {
                expected.push((0..K).map(|k| x[k] * row[k]).sum());
            }
        }
        relative_rms_error(&expected, &got[tokens.start * N..tokens.end * N])
    };
    [
        error(RANDOM + POSITIVE..T),
        error(0..RANDOM),
        error(RANDOM..RANDOM + POSITIVE),
    ]
}

fn block_types() -> Vec<(&'static GgmlType, GridLayout)> {
    let mut types = vec![];
    for ggml in GgmlType::all() {
        if let quant::NativeEncoding::Blocks(grid) = ggml.format.native_encoding() {
            types.push((ggml, grid.layout()));
        }
    }
    types
}

/// The columns of the table that are not measured: name, bits in a GGUF, codes on the device, block
/// and exactness.
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

/// The rows of docs/native-weights.md: the columns that are not measured, and the measured numbers.
fn documented() -> Vec<(String, Vec<f64>)> {
    let mut rows = vec![];
    for line in include_str!("../../docs/native-weights.md").lines() {
        if line.matches(" | ").count() != 8 {
            continue;
        }
        let at = line.match_indices('|').nth(5).unwrap().0 + 1;
        let mut numbers = vec![];
        for cell in line[at..].split('|') {
            numbers.extend(cell.trim().parse::<f64>());
        }
        if !numbers.is_empty() {
            rows.push((line[..at].to_string(), numbers));
        }
    }
    rows
}

#[test]
fn the_table_lists_the_encoding_of_every_type() {
    let rows: Vec<String> = documented().into_iter().map(|(row, _)| row).collect();
    let mut expected = vec![];
    for (ggml, layout) in block_types() {
        expected.push(described(ggml, &layout));
    }
    assert_eq!(rows, expected);
}

/// For another chip: `KILN_SOC=sm8750 cargo test --release --test qnn native_weights:: -- --ignored
/// --nocapture`.
#[test]
#[ignore = "needs the QNN libraries"]
fn the_table_matches_the_simulator() {
    let _alone = crate::alone();
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
        assert_eq!(documented.len(), 4, "{row}");
        for (documented, measured) in documented.iter().zip(measured) {
            // The last digits may differ on another processor, which sums in another order.
            assert!(
                (measured - documented).abs() <= 0.1 * documented,
                "{row} has {documented:?}, measured {measured:?}"
            );
        }
    }
}

/// The growth of a context binary per added weight, so that the rest of the graph does not count.
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

/// Multiplies one-hot rows in ONNX Runtime, which reads back the weights of each model in a folder.
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
fn onnx_runtime_decodes_every_type_exactly() {
    const ROWS: usize = 8;
    let types: Vec<_> = block_types().into_iter().map(|(ggml, _)| ggml).collect();
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
        for (part, bytes) in &weight.parts {
            std::fs::write(folder.join(part), bytes).unwrap();
        }
    }
    stdout_of(python().args(["-c", READ_BACK]).arg(root.path()));
    for (name, weight) in &all {
        let bytes = std::fs::read(root.path().join(name).join("y")).unwrap();
        let value = |bytes: &[u8; 4]| f32::from_le_bytes(*bytes).into();
        let got: Vec<f64> = bytes.as_chunks().0.iter().map(value).collect();
        let mut expected = vec![];
        for column in 0..T {
            for row in 0..ROWS {
                expected.push(weight.values[row * K + column]);
            }
        }
        assert_eq!(got, expected, "{name}");
    }
}
