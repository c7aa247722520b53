//! The lowering: the device ops of a graph, their constants, and rejected graphs.

use std::collections::BTreeMap;

use crate::support::quantize::{Quant, encode};
use crate::support::tiny_weights::TinyWeights;
use crate::support::workspace::Folder;
use kiln::action::Blob;
use kiln::base::{Code, Problem, Result};
use kiln::lower::{device_use, lower};
use kiln::model::onnx::proto::{ModelProto, element};
use kiln::model::onnx::{
    Builder, External, Function, Grid, decode, element_type, float, gain, int, weight_uses,
};
use kiln::model::weight::{Element, PartSpec, WeightEncoding, WeightForm, WeightPart};
use kiln::qnn::{
    DeviceEncoding, DeviceGraph, DeviceUse, Encoding, LinearIo, StaticData, TensorKind,
};
use serde_json::json;

type Files = BTreeMap<String, Vec<u8>>;

fn lower_with(model: &ModelProto, files: &Files) -> Result<DeviceGraph> {
    lower(model, &|location| match files.get(location) {
        Some(bytes) => Ok(Blob::new(bytes.clone())),
        None => Err(Problem::new(Code::of("test"), "no such file")),
    })
}

/// A graph with one call. The parts of its weight are (name, element, dims, bytes).
fn one_call(
    function: Function,
    x: &[u64],
    blobs: &[(&str, i32, &[u64], Vec<u8>)],
    block: i64,
    exponent: i32,
) -> (ModelProto, Files) {
    call_in(Builder::default(), function, x, blobs, block, exponent)
}

fn call_in(
    mut graph: Builder,
    function: Function,
    x: &[u64],
    blobs: &[(&str, i32, &[u64], Vec<u8>)],
    block: i64,
    exponent: i32,
) -> (ModelProto, Files) {
    let mut files = Files::new();
    let ids = matches!(function, Function::Embedding { .. });
    let mut inputs = vec![graph.input("x", if ids { element::INT32 } else { element::FLOAT }, x)];
    for (blob, element, dims, bytes) in blobs {
        let name = format!("w/{blob}");
        files.insert(name.clone(), bytes.clone());
        let size_bytes = bytes.len() as u64;
        inputs.push(graph.external(&External {
            name: &name,
            location: name.clone(),
            element: *element,
            dims,
            size_bytes,
        }));
    }
    let [rows, columns] = [blobs[0].2[0], blobs[0].2[1]];
    let mut dims = x.to_vec();
    if ids {
        dims.push(columns);
    } else {
        dims[3] = rows;
    }
    let attributes = vec![int("block", block), gain(exponent)];
    let y = graph.call(
        function,
        "y",
        &inputs.iter().collect::<Vec<_>>(),
        attributes,
        dims,
    );
    graph.output(&y);
    (graph.finish("one"), files)
}

fn constant(graph: &DeviceGraph, name: &str) -> StaticData {
    try_constant(graph, name).unwrap()
}

fn try_constant(graph: &DeviceGraph, name: &str) -> Result<StaticData> {
    let mut tensors = graph.tensors.iter();
    let tensor = tensors.find(|tensor| tensor.name == name).unwrap();
    let TensorKind::Static(source) = &tensor.kind else {
        panic!("{name} is not a constant")
    };
    source()
}

fn f16s(values: &[f32]) -> Vec<u8> {
    encode(Quant::F16, values)
}

fn f32s(values: &[f32]) -> Vec<u8> {
    encode(Quant::F32, values)
}

/// The values of a weight on the device: row `n` of W is column `n` of `[K, N]`.
fn values(data: &StaticData, rows: usize, columns: usize) -> Vec<f32> {
    let Encoding::FloatBlock {
        block,
        scales,
        offsets,
        ..
    } = &data.encoding
    else {
        panic!("{:?}", data.encoding)
    };
    let block = block[2] as usize;
    let mut values = vec![];
    for row in 0..rows {
        for column in 0..columns {
            let at = row * (columns / block) + column / block;
            let code = f32::from(data.bytes[column * rows + row] as i8);
            values.push((code + offsets[at]) * scales[at]);
        }
    }
    values
}

#[test]
fn q4_0_keeps_codes_and_signed_scales() {
    // Two rows of one block of four.
    let blobs = [
        (
            "codes",
            element::INT4,
            &[2, 4][..],
            vec![0x10, 0xf8, 0x72, 0x3e],
        ),
        ("scales", element::FLOAT16, &[2, 1][..], f16s(&[0.5, -2.0])),
    ];
    let linear = Function::Linear {
        weight: WeightForm::Block,
        bias: false,
    };
    let (model, files) = one_call(linear, &[1, 1, 3, 4], &blobs, 4, -1);
    let graph = lower_with(&model, &files).unwrap();
    assert_eq!(
        graph.to_string(),
        "graph one\ninput x: f16 [1, 1, 3, 4]\noutput y: f16 [1, 1, 3, 2]\ny: f16 [1, 1, 3, 2] = \
         Conv2d(x, <w: float-block 4 bit 4 [1, 1, 4, 2]>, stride=[1, 1], pad_amount=[0, 0, 0, 0], \
         dilation=[1, 1], group=1)\n"
    );
    let data = constant(&graph, "w");
    let codes: Vec<i8> = data.bytes.iter().map(|&byte| byte as i8).collect();
    assert_eq!(codes, [0, 2, 1, 7, -8, -2, -1, 3], "[K, N]");
    let encoding = Encoding::FloatBlock {
        bits: 4,
        block: vec![1, 1, 4, 1],
        scales: vec![0.25, -1.0],
        offsets: vec![0.0; 2],
    };
    assert_eq!(data.encoding, encoding, "the gain is in the scales");
}

#[test]
fn q4_1_offsets_are_in_code_steps_and_constant_blocks_are_exact() {
    // Scale 0, scale 0 and minimum 0, an ordinary block, and one whose steps are below the
    // precision of f16.
    let (d, m) = ([0.0, 0.0, 0.25, 1e-6], [3.5, 0.0, -1.0, 2.0]);
    let blobs = [
        (
            "codes",
            element::UINT4,
            &[4, 2][..],
            vec![0xf5, 0x21, 0xf0, 0xf0],
        ),
        ("scales", element::FLOAT16, &[4, 1][..], f16s(&d)),
        ("offsets", element::FLOAT16, &[4, 1][..], f16s(&m)),
    ];
    let linear = Function::Linear {
        weight: WeightForm::BlockOffset,
        bias: false,
    };
    let (model, files) = one_call(linear, &[1, 1, 1, 2], &blobs, 2, 0);
    let data = constant(&lower_with(&model, &files).unwrap(), "w");
    let values = values(&data, 4, 2);
    assert_eq!(values[..6], [3.5, 3.5, 0.0, 0.0, -1.0, 2.75]);
    for value in &values[6..] {
        assert!((value - 2.0).abs() < 2e-5, "{value}");
    }
    let Encoding::FloatBlock { offsets, .. } = data.encoding else {
        panic!()
    };
    for offset in offsets {
        assert!(offset.abs() < 65504.0, "{offset} does not fit f16");
    }
}

#[test]
fn int8_blocks_with_f32_scales_are_exact() {
    let scales = [1.0f32 / 3.0, -0.1];
    let blobs = [
        ("codes", element::INT8, &[1, 4][..], vec![127, 128, 255, 1]),
        ("scales", element::FLOAT, &[1, 2][..], f32s(&scales)),
    ];
    let linear = Function::Linear {
        weight: WeightForm::Block,
        bias: false,
    };
    let (model, files) = one_call(linear, &[1, 1, 1, 4], &blobs, 2, 0);
    let data = constant(&lower_with(&model, &files).unwrap(), "w");
    let expected = [127.0 * scales[0], -128.0 * scales[0], -scales[1], scales[1]];
    assert_eq!(values(&data, 1, 4), expected);
}

/// Scales of MXFP4 are any power of two in f32; the device stores f16.
#[test]
fn scales_outside_the_f16_range_are_rejected() {
    let check = |scales: [f32; 2], expected: &str| {
        let blobs = [
            ("codes", element::INT8, &[1, 4][..], vec![12, 0, 254, 1]),
            ("scales", element::FLOAT, &[1, 2][..], f32s(&scales)),
        ];
        let linear = Function::Linear {
            weight: WeightForm::Block,
            bias: false,
        };
        let (model, files) = one_call(linear, &[1, 1, 1, 4], &blobs, 2, 0);
        let graph = lower_with(&model, &files).unwrap();
        let found = match try_constant(&graph, "w") {
            Ok(_) => "fits".to_string(),
            Err(problem) => problem.to_string(),
        };
        assert!(found.contains(expected), "{scales:?}: {found}");
    };
    check([2f32.powi(-7), 2f32.powi(-24)], "fits");
    check([2f32.powi(-7), 2f32.powi(-30)], "fits");
    check(
        [2f32.powi(-28), 2f32.powi(-30)],
        "`w/scales` does not fit into f16: relative error 1.0e0",
    );
    check([1.0, 2f32.powi(16)], "does not fit into f16");
}

/// Integer steps of an offset move into the codes, within the range of the codes. The device rounds
/// the rest.
#[test]
fn integer_steps_of_an_offset_move_into_the_codes() {
    let (d, m) = ([0.5, 0.5, 0.25, 1.0], [-7.75, 1.0, -100.0, 3.0]);
    let blobs = [
        (
            "codes",
            element::UINT4,
            &[4, 2][..],
            vec![0xf0, 0x30, 0x21, 0x52],
        ),
        ("scales", element::FLOAT16, &[4, 1][..], f16s(&d)),
        ("offsets", element::FLOAT16, &[4, 1][..], f16s(&m)),
    ];
    let linear = Function::Linear {
        weight: WeightForm::BlockOffset,
        bias: false,
    };
    let (model, files) = one_call(linear, &[1, 1, 1, 2], &blobs, 2, 0);
    let data = constant(&lower_with(&model, &files).unwrap(), "w");
    assert_eq!(
        values(&data, 4, 2),
        [-7.75, -0.25, 1.0, 2.5, -99.75, -99.5, 5.0, 8.0]
    );
    let Encoding::FloatBlock { offsets, .. } = &data.encoding else {
        panic!()
    };
    assert_eq!(*offsets, [-7.5, 0.0, -391.0, 1.0]);
    let codes: Vec<i8> = data.bytes.iter().map(|&byte| byte as i8).collect();
    assert_eq!(codes, [-8, 2, -8, 4, 7, 5, -7, 7], "[K, N]");
}

/// A table `[2, 4]` in blocks of 2 with offsets.
fn embedding_blobs() -> [(&'static str, i32, &'static [u64], Vec<u8>); 3] {
    [
        (
            "codes",
            element::UINT4,
            &[2, 4],
            vec![0x10, 0xf8, 0x72, 0x3e],
        ),
        (
            "scales",
            element::FLOAT16,
            &[2, 2],
            f16s(&[1.0, 2.0, 3.0, 4.0]),
        ),
        ("offsets", element::FLOAT16, &[2, 2], f16s(&[0.5; 4])),
    ]
}

#[test]
fn an_embedding_becomes_gather_and_multiply() {
    let blobs = embedding_blobs();
    let (model, files) = one_call(
        Function::Embedding {
            weight: WeightForm::BlockOffset,
        },
        &[1, 3],
        &blobs,
        2,
        -2,
    );
    let graph = lower_with(&model, &files).unwrap();
    assert_eq!(
        graph.to_string(),
        "\
graph one
input x: i32 [1, 3]
output y: f16 [1, 3, 4]
y.codes: q8 [1, 3, 4] = Gather(<w.codes: 4 bit codes [2, 4]>, x, axis=0)
y.plain_codes: f16 [1, 3, 4] = Dequantize(y.codes)
y.blocks: f16 [1, 3, 2, 2] = Reshape(y.plain_codes)
y.scales: f16 [1, 3, 2] = Gather(<w.scales: f16 [2, 2]>, x, axis=0)
y.scales_of_block: f16 [1, 3, 2, 1] = Reshape(y.scales)
y.scaled: f16 [1, 3, 2, 2] = ElementWiseMultiply(y.blocks, y.scales_of_block)
y.offsets: f16 [1, 3, 2] = Gather(<w.offsets: f16 [2, 2]>, x, axis=0)
y.offsets_of_block: f16 [1, 3, 2, 1] = Reshape(y.offsets)
y.shifted: f16 [1, 3, 2, 2] = ElementWiseAdd(y.scaled, y.offsets_of_block)
y: f16 [1, 3, 4] = Reshape(y.shifted)
"
    );
    let codes = constant(&graph, "w.codes");
    assert_eq!(codes.bytes, [128, 129, 136, 143, 130, 135, 142, 131]);
    assert_eq!(
        codes.encoding,
        Encoding::ScaleOffset {
            scale: 1.0,
            offset: -128
        }
    );
    assert_eq!(
        constant(&graph, "w.scales").bytes,
        f16s(&[0.25, 0.5, 0.75, 1.0])
    );
}

#[test]
fn an_embedding_in_codes_becomes_one_table_of_them() {
    let blobs = embedding_blobs();
    let weight = WeightForm::BlockOffset;
    let grid = Grid {
        bits: 16,
        scale: 0.0625,
        zero_point: 10,
    };
    let builder = Builder::rounding([("y".to_string(), grid)].into());
    let function = Function::Embedding { weight };
    let (model, files) = call_in(builder, function, &[1, 3], &blobs, 2, -2);
    let graph = lower_with(&model, &files).unwrap();
    assert_eq!(
        graph.to_string(),
        "\
graph one
input x: i32 [1, 3]
output y: q16 [1, 3, 4]
y: q16 [1, 3, 4] = Gather(<w.table: q16 [2, 4]>, x, axis=0)
"
    );
    let table = constant(&graph, "w.table");
    // (code * scale + 0.5) / 4 in steps of 1/16, from 10.
    let expected: [u16; 8] = [12, 16, 76, 132, 36, 96, 236, 60];
    let mut bytes = vec![];
    for code in expected {
        bytes.extend(code.to_le_bytes());
    }
    assert_eq!(table.bytes, bytes);
    let encoding = Encoding::ScaleOffset {
        scale: 0.0625,
        offset: -10,
    };
    assert_eq!(table.encoding, encoding);
}

/// The use of the weight in the device graph of one call, derived from its ops and constants.
fn actual_use(graph: &DeviceGraph) -> DeviceUse {
    let find = |op: &str| graph.nodes.iter().find(|node| node.op == op);
    if let Some(conv) = find("Conv2d") {
        let weight = constant(graph, &graph.tensor(conv.inputs[1]).name);
        let weight = match weight.encoding {
            Encoding::None => DeviceEncoding::F16,
            Encoding::Axis { bits, .. } => DeviceEncoding::Channel {
                bits: bits.unwrap_or(8),
            },
            Encoding::FloatBlock {
                bits,
                block,
                offsets,
                ..
            } => DeviceEncoding::FloatBlock {
                bits,
                block: block[2],
                offsets: offsets.iter().any(|offset| *offset != 0.0),
            },
            Encoding::Expansion {
                scales,
                block_scales,
                ..
            } => DeviceEncoding::Lpbq {
                block: graph.tensor(conv.inputs[1]).dims[2]
                    / (block_scales.len() / scales.len()) as u32,
            },
            other => panic!("{other:?}"),
        };
        let io = match find("Dequantize") {
            _ if graph.tensor(conv.inputs[0]).encoding != Encoding::None => LinearIo::U16,
            Some(before) if before.outputs[0] == conv.inputs[0] => LinearIo::F16FromU16,
            _ => LinearIo::F16,
        };
        return DeviceUse::Linear { weight, io };
    }
    let Some(blocks) = find("ElementWiseMultiply") else {
        assert_eq!(graph.nodes.len(), 1, "a Gather");
        if graph.tensor(graph.nodes[0].outputs[0]).encoding != Encoding::None {
            return DeviceUse::LookupU16;
        }
        let weight = DeviceEncoding::F16;
        return DeviceUse::Lookup { weight };
    };
    let note = &graph.tensor(find("Gather").unwrap().inputs[0]).note;
    let bits = note.split(' ').next().unwrap().parse().unwrap();
    let [_, _, count, block] = graph.tensor(blocks.outputs[0]).dims[..] else {
        panic!()
    };
    let weight = match count {
        1 => DeviceEncoding::Channel { bits },
        _ => DeviceEncoding::FloatBlock {
            bits,
            block,
            offsets: find("ElementWiseAdd").is_some(),
        },
    };
    DeviceUse::Lookup { weight }
}

/// `context-bin` proves the weight uses that graphs state, so these must be the compiled ones.
#[test]
fn stated_weight_uses_match_the_lowered_graph() {
    use Element::{Bf16, F16, F32, Int4, Int8, Uint4};
    let blocks =
        |codes, block, scales, offsets| WeightEncoding::blocks(codes, block, scales, offsets, 64);
    let encodings = [
        WeightEncoding::Plain { element: Bf16 },
        blocks(Int4, 16, F16, None),
        blocks(Int8, 32, F32, None),
        blocks(Uint4, 32, F16, Some(F16)),
        blocks(Int8, 64, F32, None),
        blocks(Int4, 64, F32, None),
        WeightEncoding::Lpbq { block: 32 },
    ];
    let mut proofs = vec![];
    for encoding in encodings {
        let specs = encoding.parts(&[2, 64]).unwrap();
        let bytes = |spec: &PartSpec| {
            let count = spec.shape.iter().product::<u64>() as usize;
            match (spec.part, spec.element) {
                (WeightPart::Values, Bf16) => [0x80, 0x3f].repeat(count),
                (WeightPart::Offsets, _) => f16s(&[0.5]).repeat(count),
                (WeightPart::Scales | WeightPart::ChannelScales, F16) => {
                    f16s(&[0.75]).repeat(count)
                }
                (WeightPart::Scales | WeightPart::ChannelScales, _) => {
                    0.75f32.to_le_bytes().repeat(count)
                }
                _ => vec![1; spec.size_bytes().unwrap() as usize],
            }
        };
        let mut blobs = vec![];
        for spec in &specs {
            let element = element_type(spec.element);
            blobs.push((spec.part.name(), element, &*spec.shape, bytes(spec)));
        }
        let block = encoding.block(64).unwrap_or(0) as i64;
        let (weight, bias) = (encoding.form(), false);
        let linear = Function::Linear { weight, bias };
        let lookup = Function::Embedding { weight };
        for (function, x, rounded) in [
            (linear, &[1, 1, 3, 64][..], &[][..]),
            (linear, &[1, 1, 3, 64], &["x"]),
            (linear, &[1, 1, 3, 64], &["x", "y"]),
            (lookup, &[1, 3], &[]),
            (lookup, &[1, 3], &["y"]),
        ] {
            let mut grids = BTreeMap::new();
            for name in rounded {
                grids.insert(name.to_string(), Grid::unit(16));
            }
            let builder = Builder::rounding(grids);
            let (model, files) = call_in(builder, function, x, &blobs, block, 0);
            let uses = weight_uses(&model).unwrap();
            let [stated] = uses[..] else {
                panic!("{uses:?}")
            };
            let graph = lower_with(&model, &files).unwrap();
            assert_eq!(device_use(stated), actual_use(&graph), "{stated:?}");
            proofs.push(device_use(stated).to_string());
        }
    }
    assert_eq!(
        proofs,
        [
            "f16",
            "f16-from-u16",
            "f16-from-u16",
            "lookup-f16",
            "lookup-u16",
            "float-block-4x16",
            "float-block-4x16-from-u16",
            "float-block-4x16-from-u16",
            "lookup-float-block-4x16",
            "lookup-u16",
            "float-block-8x32",
            "float-block-8x32-from-u16",
            "float-block-8x32-from-u16",
            "lookup-float-block-8x32",
            "lookup-u16",
            "float-block-4x32-offset",
            "float-block-4x32-offset-from-u16",
            "float-block-4x32-offset-from-u16",
            "lookup-float-block-4x32-offset",
            "lookup-u16",
            "channel-8",
            "channel-8-from-u16",
            "channel-8-u16",
            "lookup-channel-8",
            "lookup-u16",
            "channel-4",
            "channel-4-from-u16",
            "channel-4-u16",
            "lookup-channel-4",
            "lookup-u16",
            "float-block-4x32",
            "float-block-4x32-from-u16",
            "lpbq-32-u16",
            "lookup-float-block-4x32",
            "lookup-u16",
        ]
    );
}

#[test]
fn a_layer_lowers_to_the_expected_ops() {
    let root = tempfile::tempdir().unwrap();
    let folder = Folder::new(root.path());
    let mut model = TinyWeights::qwen2();
    model.facts.block_count = 1;
    model.facts.tied_embeddings = true;
    let registry = kiln::stages::all();
    let params = json!({"prefill": 2, "context": 8});
    let onnx = folder
        .run_stage(
            registry.get("graph").unwrap(),
            params,
            &model.inputs(&folder),
        )
        .unwrap();
    let prefill = decode(&folder.bytes(onnx.get("prefill.onnx").unwrap())).unwrap();
    let graph = lower(&prefill, &|location| Ok(folder.bytes(onnx.part(location)?))).unwrap();
    let text = graph.to_string();
    let linear = "stride=[1, 1], pad_amount=[0, 0, 0, 0], dilation=[1, 1], group=1";
    let text = text.replace(linear, "...");
    assert!(text == include_str!("lower/layer.txt"), "{text}");
}

#[track_caller]
fn check_rejected(change: impl Fn(&mut ModelProto, &mut Files), expect: &str) {
    let blobs = [
        ("codes", element::INT8, &[2, 4][..], vec![1; 8]),
        ("scales", element::FLOAT16, &[2, 2][..], f16s(&[1.0; 4])),
    ];
    let linear = Function::Linear {
        weight: WeightForm::Block,
        bias: false,
    };
    let (mut model, mut files) = one_call(linear, &[1, 1, 3, 4], &blobs, 2, 0);
    change(&mut model, &mut files);
    let problem = lower_with(&model, &files).map(|_| ()).unwrap_err();
    assert_eq!(problem.to_string(), expect);
}

#[test]
fn unsupported_nodes_are_reported() {
    let node = |model: &mut ModelProto| model.graph.as_mut().unwrap().node.pop().unwrap();
    check_rejected(
        |model, _| {
            let mut gelu = node(model);
            (gelu.op_type, gelu.domain) = ("Gelu".into(), String::new());
            model.graph.as_mut().unwrap().node.push(gelu);
        },
        "node `y`, Gelu(x [1, 1, 3, 4], w/codes [2, 4], w/scales [2, 2]), is not known to the \
         lowering",
    );
    check_rejected(
        |model, _| {
            let mut call = node(model);
            call.attribute[0].i = Some(3);
            model.graph.as_mut().unwrap().node.push(call);
        },
        "node `y`, kiln.BlockLinear(x [1, 1, 3, 4], w/codes [2, 4], w/scales [2, 2]), has a \
         weight that does not exist: 4 columns are not whole blocks of 3",
    );
    check_rejected(
        |model, _| model.functions[0].node[1].attribute[0].i = Some(0),
        "the body of function `BlockLinear` is not the one that kiln writes",
    );
    check_rejected(
        |_, files| drop(files.remove("w/scales")),
        "failed to open `w/scales`, the data of `w/scales`: no such file",
    );
    check_rejected(
        |_, files| files.get_mut("w/codes").unwrap().truncate(7),
        "the external data of `w/codes` is 8 bytes at 0 of `w/codes`, which has 7",
    );
    check_rejected(
        |model, _| {
            let mut call = node(model);
            call.attribute.retain(|attribute| attribute.name != "gain");
            call.attribute.push(float("gein", 1.0));
            model.graph.as_mut().unwrap().node.push(call);
        },
        "node `y`, kiln.BlockLinear(x [1, 1, 3, 4], w/codes [2, 4], w/scales [2, 2]), lacks the \
         number `gain`",
    );
}
