//! `kiln::qnn`. The tests that need the vendor's libraries fetch them, and are ignored by default.
//! To run them: `cargo test --release --test qnn -- libraries:: --ignored`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::quantize::{Quant, encode};
use kiln::base::Code;
use kiln::qnn::{
    Backend, Chip, Context, DataType, DeviceEncoding, DeviceGraph, DeviceUse, Encoding,
    GraphOptions, HtpGraph, LinearIo, Node, Numbers, Param, Simulator, Soc, StaticData, System,
    Tensor, TensorId, TensorKind, prove, relative_rms_error,
};

fn libraries() -> PathBuf {
    crate::support::tools::qnn()
}

fn code<T>(result: kiln::base::Result<T>) -> String {
    result
        .err()
        .map_or("no problem".into(), |problem| problem.code.to_string())
}

#[test]
fn a_missing_library_is_a_missing_tool() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(code(System::open(folder.path())), "kiln::tool_file_missing");
    assert_eq!(
        code(Simulator::load(folder.path(), b"binary")),
        "kiln::tool_file_missing"
    );
    let soc = Soc::named("sm8650").unwrap();
    assert_eq!(
        code(prove(
            folder.path(),
            soc,
            layer(DeviceEncoding::F16, LinearIo::F16)
        )),
        "kiln::tool_file_missing"
    );
}

#[test]
fn a_file_that_is_not_a_library_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("libQnnSystem.so"), b"clay, not code").unwrap();
    let problem = System::open(folder.path()).err().unwrap();
    assert_eq!(problem.code, Code::ToolMissing);
    assert!(
        problem.to_string().contains("invalid ELF header")
            || problem.to_string().contains("too short"),
        "{problem}"
    );
}

#[test]
fn a_library_without_qnn_symbols_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let libm = [
        "/lib/x86_64-linux-gnu/libm.so.6",
        "/lib64/libm.so.6",
        "/usr/lib/libm.so.6",
    ];
    let Some(libm) = libm.map(Path::new).into_iter().find(|path| path.exists()) else {
        return;
    };
    std::os::unix::fs::symlink(libm, folder.path().join("libQnnSystem.so")).unwrap();
    let problem = System::open(folder.path()).err().unwrap();
    assert_eq!(problem.code, Code::ToolMissing);
    assert!(
        problem
            .message
            .contains("does not export QnnSystemInterface_getProviders"),
        "{problem}"
    );
}

fn layer(weight: DeviceEncoding, io: LinearIo) -> DeviceUse {
    DeviceUse::Linear { weight, io }
}

#[test]
#[ignore = "needs the QNN libraries"]
fn every_weight_use_is_accurate() {
    let _alone = crate::alone();
    let soc = Soc::named("sm8650").unwrap();
    let block = |bits, block, offsets| DeviceEncoding::FloatBlock {
        bits,
        block,
        offsets,
    };
    let mut in_f16 = vec![DeviceEncoding::F16];
    in_f16.extend([4, 8].map(|bits| DeviceEncoding::Channel { bits }));
    for (bits, len) in [
        (4, 16),
        (4, 32),
        (4, 64),
        (4, 128),
        (4, 256),
        (8, 16),
        (8, 32),
    ] {
        in_f16.push(block(bits, len, false));
    }
    for (bits, len) in [(4, 16), (4, 32), (8, 16), (8, 32)] {
        in_f16.push(block(bits, len, true));
    }
    let mut uses = vec![];
    for weight in in_f16 {
        uses.push(layer(weight, LinearIo::F16));
        uses.push(layer(weight, LinearIo::F16FromU16));
        uses.push(DeviceUse::Lookup { weight });
    }
    let mut in_codes = vec![];
    in_codes.extend([4, 8].map(|bits| DeviceEncoding::Channel { bits }));
    in_codes.extend([16, 32, 64, 128].map(|block| DeviceEncoding::Lpbq { block }));
    uses.extend(
        in_codes
            .into_iter()
            .map(|weight| layer(weight, LinearIo::U16)),
    );
    uses.push(DeviceUse::LookupU16);
    for case in uses {
        let proof = prove(&libraries(), soc, case).unwrap();
        println!("{} {:.2e}", proof.encoding, proof.relative_rms_error);
        // Only what needs no fp16 is tried on a chip without it.
        let without = prove(&libraries(), Soc::named("sm8635").unwrap(), case);
        if case.computes_in_f16() {
            assert_eq!(code(without), "kiln::qnn::no_f16");
        } else {
            let proof = without.unwrap();
            println!("sm8635 {} {:.2e}", proof.encoding, proof.relative_rms_error);
        }
    }
}

/// Builds small fp16 graphs.
#[derive(Default)]
struct Small(DeviceGraph);

impl Small {
    fn tensor(
        &mut self,
        name: &str,
        kind: TensorKind,
        data_type: DataType,
        dims: &[u32],
    ) -> TensorId {
        let (name, dims) = (name.to_string(), dims.to_vec());
        self.0.add(Tensor {
            name,
            kind,
            data_type,
            dims,
            encoding: Encoding::None,
            note: String::new(),
        })
    }

    fn half(&mut self, name: &str, kind: TensorKind, dims: &[u32]) -> TensorId {
        self.tensor(name, kind, DataType::Float16, dims)
    }

    fn node(
        &mut self,
        op: &'static str,
        params: Vec<(&'static str, Param)>,
        inputs: &[TensorId],
        output: TensorId,
    ) {
        let name = format!("{op}.{}", self.0.nodes.len());
        self.0.nodes.push(Node {
            name,
            op,
            params,
            inputs: inputs.to_vec(),
            outputs: vec![output],
        });
    }
}

fn to_f16(values: &[f32]) -> Vec<u8> {
    encode(Quant::F16, values)
}

fn from_f16(bytes: &[u8]) -> Vec<f32> {
    let value = |bytes: &[u8; 2]| half::f16::from_le_bytes(*bytes).to_f32();
    bytes.as_chunks().0.iter().map(value).collect()
}

const OPTIONS: GraphOptions = GraphOptions::Htp(HtpGraph {
    optimization: 3,
    vtcm_mb: 0,
});

/// Element `i` of W.
fn weight_value(i: u32) -> f32 {
    (i % 13) as f32 / 8.0 - 0.75
}

/// A graph `name` of y = x W^T with `rows` outputs and a constant W in f16.
fn linear(name: &str, tokens: u32, rows: u32, columns: u32) -> DeviceGraph {
    let mut graph = Small(DeviceGraph {
        name: name.into(),
        ..Default::default()
    });
    let x = graph.half("x", TensorKind::Input, &[1, 1, tokens, columns]);
    let weight = move || {
        let values: Vec<f32> = (0..rows * columns).map(weight_value).collect();
        Ok(StaticData {
            bytes: to_f16(&values),
            encoding: Encoding::None,
        })
    };
    let w = graph.half(
        "w",
        TensorKind::Static(Arc::new(weight)),
        &[1, 1, columns, rows],
    );
    let y = graph.half("y", TensorKind::Output, &[1, 1, tokens, rows]);
    let ones = || Param::Uint32s(vec![2], vec![1, 1]);
    let pad = Param::Uint32s(vec![2, 2], vec![0; 4]);
    graph.node(
        "Conv2d",
        vec![
            ("stride", ones()),
            ("pad_amount", pad),
            ("dilation", ones()),
        ],
        &[x, w],
        y,
    );
    graph.0
}

#[test]
#[ignore = "needs the QNN libraries"]
fn a_context_binary_can_be_reloaded_and_run() {
    let _alone = crate::alone();
    let folder = libraries();
    let soc = Soc::named("sm8650").unwrap();
    let context = Context::new(&Backend::htp(&folder, soc).unwrap(), false).unwrap();
    let mut built = vec![];
    for graph in [linear("two", 2, 8, 32), linear("one", 1, 8, 32)] {
        built.push(context.build(&graph, &OPTIONS).unwrap());
    }
    let x: BTreeMap<_, _> = [("x".to_string(), to_f16(&[0.5; 32]))].into();
    let direct = context.execute(&built[1], &x).unwrap();
    let binary = context.binary().unwrap();
    drop(context);

    let info = System::open(&folder).unwrap().binary_info(&binary).unwrap();
    println!("{}", serde_json::to_string_pretty(&info).unwrap());
    assert_eq!(info.soc_model, soc.model);
    let simulator = Simulator::load(&folder, &binary).unwrap();
    let names: Vec<&str> = simulator
        .graphs()
        .iter()
        .map(|graph| graph.name.as_str())
        .collect();
    assert_eq!(names, ["one", "two"]);
    assert_eq!(simulator.execute("one", &x).unwrap(), direct);
    // The row sums of W, which has the layout [columns, rows], times 0.5.
    let mut expected = vec![0.0; 8];
    for i in 0..32 * 8 {
        expected[i as usize % 8] += weight_value(i) / 2.0;
    }
    assert_eq!(from_f16(&direct["y"]), expected);

    let lacking = simulator.execute("one", &BTreeMap::new()).unwrap_err();
    assert!(lacking.message.contains("lacks its input `x`"), "{lacking}");
    let short = simulator
        .execute("one", &[("x".to_string(), vec![0; 3])].into())
        .unwrap_err();
    assert!(
        short.message.contains("f16 [1, 1, 1, 32], but got 3 bytes"),
        "{short}"
    );
    assert_eq!(code(simulator.execute("three", &x)), "kiln::qnn::graph");
}

#[test]
#[ignore = "needs the QNN libraries"]
fn only_some_chips_have_an_estimate() {
    let _alone = crate::alone();
    let folder = libraries();
    let estimate = |soc: Soc| {
        let context = Context::new(&Backend::htp(&folder, soc).unwrap(), false).unwrap();
        context.estimate(&linear("one", 1, 512, 1024), HtpGraph::default(), soc, true)
    };
    for name in Chip::estimated_names() {
        let found = estimate(Chip::estimated(name).unwrap().into()).unwrap();
        println!("{name} {found:?}");
        // The weights are half a million numbers in f16.
        assert!((1 << 20..1 << 21).contains(&found.read_bytes), "{found:?}");
    }
    for name in ["sm8650", "sc8380xp"] {
        let problem = estimate(Soc::named(name).unwrap()).unwrap_err();
        assert_eq!(problem.code, Code::QnnNoEstimate, "{problem}");
    }
}

/// What the library takes for each chip, and for what it writes a binary.
#[test]
#[ignore = "needs the QNN libraries"]
fn the_library_knows_each_chip_as_the_table_does() {
    let _alone = crate::alone();
    let folder = libraries();
    let system = System::open(&folder).unwrap();
    let blocks = DeviceEncoding::FloatBlock {
        bits: 4,
        block: 32,
        offsets: false,
    };
    for chip in Chip::all() {
        let soc = Soc::from(chip);
        let context = Context::new(&Backend::htp(&folder, soc).unwrap(), false).unwrap();
        let has_f16 = context.build(&linear("one", 1, 64, 64), &OPTIONS).is_ok();
        assert_eq!(has_f16, soc.has_f16(), "{soc}");
        let codes = layer(DeviceEncoding::Channel { bits: 8 }, LinearIo::U16);
        prove(&folder, soc, codes).unwrap();
        if has_f16 {
            let info = system.binary_info(&context.binary().unwrap()).unwrap();
            let vtcm_bytes = info.graphs[0].memory.unwrap().vtcm_bytes;
            let found = (info.soc_model, info.arch, vtcm_bytes);
            let expected = (chip.model, Some(chip.arch), chip.vtcm_mb << 20);
            assert_eq!(found, expected, "{soc}");
            let takes_blocks = prove(&folder, soc, layer(blocks, LinearIo::F16)).is_ok();
            assert_eq!(takes_blocks, chip.numbers == Numbers::Blocks, "{soc}");
        }
    }
}

#[test]
#[ignore = "needs the QNN libraries"]
fn a_rejected_operation_is_described() {
    let _alone = crate::alone();
    let folder = libraries();
    let context = Context::new(
        &Backend::htp(&folder, Soc::named("sm8650").unwrap()).unwrap(),
        false,
    )
    .unwrap();
    let mut graph = linear("bad", 2, 8, 32);
    graph.tensors[2].dims = vec![1, 1, 2, 9];
    let problem = context.build(&graph, &OPTIONS).unwrap_err();
    println!("{problem:#?}");
    assert_eq!(problem.code, Code::QnnOpRefused);
    assert!(
        problem.message.contains("out `y` f16 [1, 1, 2, 9]"),
        "{problem}"
    );
    assert!(!problem.causes.is_empty());

    // Two rejected operations are both reported.
    let (shift, nodes) = (graph.tensors.len() as u32, graph.nodes.clone());
    for mut tensor in linear("bad", 2, 8, 32).tensors {
        tensor.name += "_too";
        graph.tensors.push(tensor);
    }
    graph.tensors[2 + shift as usize].dims = vec![1, 1, 2, 9];
    for mut node in nodes {
        node.name += "_too";
        for tensor in &mut node.inputs {
            tensor.0 += shift;
        }
        for tensor in &mut node.outputs {
            tensor.0 += shift;
        }
        graph.nodes.push(node);
    }
    graph.name = "worse".into();
    let problem = context.build(&graph, &OPTIONS).unwrap_err();
    println!("{problem:#?}");
    assert!(
        problem
            .message
            .contains("2 of 2 operations are refused; they would have to run on the CPU"),
        "{problem}"
    );
}

#[test]
#[ignore = "needs the QNN libraries"]
fn an_invalid_binary_is_rejected() {
    let _alone = crate::alone();
    let folder = libraries();
    for binary in [&b""[..], b"clay", &[0; 8192]] {
        let problem = System::open(&folder)
            .unwrap()
            .binary_info(binary)
            .unwrap_err();
        println!("{problem:#?}");
        assert_eq!(problem.code, Code::QnnRefused);
    }
}

/// Attention uses key heads as the batch dimension of MatMul, Concat and Transpose:
/// `[kv_heads, 1, rows, columns]`.
#[test]
#[ignore = "needs the QNN libraries"]
fn key_heads_can_be_the_batch_dimension() {
    let _alone = crate::alone();
    let folder = libraries();
    let (heads, rows, width, past) = (3, 6, 64, 31);
    let mut graph = Small(DeviceGraph {
        name: "scores".into(),
        ..Default::default()
    });
    let q = graph.half("q", TensorKind::Input, &[heads, 1, rows, width]);
    let k = graph.half("k", TensorKind::Input, &[heads, 1, 1, width]);
    let cache = graph.half("cache", TensorKind::Input, &[heads, 1, width, past]);
    let turned = graph.half("turned", TensorKind::Output, &[heads, 1, width, 1]);
    let keys = graph.half("keys", TensorKind::Native, &[heads, 1, width, past + 1]);
    let scores = graph.half("scores", TensorKind::Output, &[heads, 1, rows, past + 1]);
    graph.node(
        "Transpose",
        vec![("perm", Param::Uint32s(vec![4], vec![0, 1, 3, 2]))],
        &[k],
        turned,
    );
    graph.node(
        "Concat",
        vec![("axis", Param::U32(3))],
        &[cache, turned],
        keys,
    );
    graph.node("MatMul", vec![], &[q, keys], scores);

    let soc = Soc::named("sm8650").unwrap();
    let context = Context::new(&Backend::htp(&folder, soc).unwrap(), false).unwrap();
    let info = context.build(&graph.0, &OPTIONS).unwrap();
    let numbers = |count: u32, seed: u32| -> Vec<f32> {
        let number = |i| ((i * 37 + seed * 11) % 101) as f32 / 64.0 - 0.75;
        (0..count).map(number).collect()
    };
    let (q, k, cache) = (
        numbers(heads * rows * width, 1),
        numbers(heads * width, 2),
        numbers(heads * width * past, 3),
    );
    let inputs = [("q", &q), ("k", &k), ("cache", &cache)]
        .map(|(name, values)| (name.to_string(), to_f16(values)));
    let outputs = context.execute(&info, &inputs.into()).unwrap();
    let (rows, width, past) = (rows as usize, width as usize, past as usize);
    let mut expected = vec![];
    for head in 0..heads as usize {
        for row in 0..rows {
            for column in 0..=past {
                let key = |d: usize| {
                    if column < past {
                        cache[(head * width + d) * past + column]
                    } else {
                        k[head * width + d]
                    }
                };
                let mut score = 0.0;
                for d in 0..width {
                    score += f64::from(q[(head * rows + row) * width + d]) * f64::from(key(d));
                }
                expected.push(score);
            }
        }
    }
    let scores = from_f16(&outputs["scores"]).into_iter();
    let got: Vec<f64> = scores.map(f64::from).collect();
    let error = relative_rms_error(&expected, &got);
    println!("relative error {error:.1e}");
    assert!(error < 1e-3, "{error}");
    assert_eq!(from_f16(&outputs["turned"]), k);
}

#[test]
#[ignore = "needs the QNN libraries"]
fn a_dlc_can_be_written_listed_and_composed() {
    let _alone = crate::alone();
    let folder = libraries();
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("one.dlc");
    let ir = Context::new(&Backend::ir(&folder).unwrap(), false).unwrap();
    ir.build(&linear("one", 1, 8, 32), &GraphOptions::ir(&path).unwrap())
        .unwrap();
    drop(ir);
    let system = System::open(&folder).unwrap();
    let dlc = system.open_dlc(&path).unwrap();
    println!("{:?} {:?}", dlc.graphs().unwrap(), dlc.binaries().unwrap());
    let context = Context::new(
        &Backend::htp(&folder, Soc::named("sm8650").unwrap()).unwrap(),
        true,
    )
    .unwrap();
    dlc.compose(&context, "one", HtpGraph::default()).unwrap();
    let binary = context.binary().unwrap();
    println!("{:?}", system.binary_info(&binary).unwrap());
    let container = system.wrap(&context).unwrap();
    let path = temporary.path().join("model.dlc");
    std::fs::write(&path, &container).unwrap();
    if let Some(keep) = std::env::var_os("KEEP") {
        std::fs::write(Path::new(&keep).join("model.dlc"), &container).unwrap();
        std::fs::write(Path::new(&keep).join("model.bin"), &binary).unwrap();
        std::fs::copy(
            temporary.path().join("one.dlc"),
            Path::new(&keep).join("one.dlc"),
        )
        .unwrap();
    }
    println!("container {} binary {}", container.len(), binary.len());
    let dlc = system.open_dlc(&path).unwrap();
    println!("{:?} {:?}", dlc.graphs(), dlc.binaries());
    println!("shared: {:?}", Simulator::load(&folder, &binary).err());
}
