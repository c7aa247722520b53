//! Reading ONNX: inconsistent graphs are rejected, corrupt bytes do not panic, and the messages
//! equal those of the `onnx` package.

use crate::support::peers::{python, stdout_of};
use kiln::model::onnx::proto::{GraphProto, ModelProto, ValueInfoProto, element};
use kiln::model::onnx::{Builder, Checked, External, Function, Summary, Value, decode, gain, int};
use kiln::model::weight::WeightForm;
use proptest::prelude::*;
use prost::Message;

/// A model with every kind of op and tensor.
fn model() -> ModelProto {
    let mut g = Builder::default();
    let ids = g.input("ids", element::INT32, &[1, 3]);
    let external = |name, element, dims, size_bytes| External {
        name,
        location: format!("weights/{name}"),
        element,
        dims,
        size_bytes,
    };
    let codes = g.external(&external("w/codes", element::UINT4, &[4, 4], 8));
    let [scales, offsets] = ["w/scales", "w/offsets"]
        .map(|name| g.external(&external(name, element::FLOAT16, &[4, 2], 16)));
    let block = || vec![int("block", 2), gain(-1)];
    let embedding = Function::Embedding {
        weight: WeightForm::BlockOffset,
    };
    let x = g.call(
        embedding,
        "rows",
        &[&ids, &codes, &scales, &offsets],
        block(),
        vec![1, 3, 4],
    );
    let x = g.reshape("x", &x, &[1, 1, 3, 4]);
    let linear = Function::Linear {
        weight: WeightForm::BlockOffset,
        bias: false,
    };
    let y = g.call(
        linear,
        "y",
        &[&x, &codes, &scales, &offsets],
        block(),
        vec![1, 1, 3, 4],
    );
    let [low, high] = g.halves("z", &y);
    let half = g.scalar("half", 0.5);
    let low = g.elementwise("Mul", "scaled", &low, &half);
    let joined = g.concat("joined", &[&low, &high], 3);
    let turned = g.transpose("turned", &joined, [0, 1, 3, 2]);
    let product: Value = g.matmul("product", &joined, &turned);
    let probabilities = g.softmax("probabilities", &product);
    let out = g.sigmoid("out", &probabilities);
    g.output(&out);
    g.finish("everything")
}

#[test]
fn the_summary_counts_nodes_and_constants() {
    assert_eq!(
        Summary::of(&model()).to_string(),
        "\
ONNX graph `everything`: IR version 10, opset ai.onnx 21, kiln 1

1 inputs
  ids                      i32 [1, 3]

1 outputs
  out                      f32 [1, 1, 3, 3]

10 nodes
       1  Concat
       1  MatMul
       1  Mul
       1  Reshape
       1  Sigmoid
       1  Softmax
       1  Split
       1  Transpose
       1  kiln.BlockOffsetEmbedding
       1  kiln.BlockOffsetLinear

2 functions, by nodes of their bodies
      14  kiln.BlockOffsetEmbedding
      15  kiln.BlockOffsetLinear

2 constants inside, others outside: 40 B
       2  f16
       1  u4
"
    );
}

#[test]
fn decoding_and_encoding_round_trips() {
    let bytes = model().encode_to_vec();
    assert_eq!(decode(&bytes).unwrap().encode_to_vec(), bytes);
}

#[track_caller]
fn check_rejected(change: impl Fn(&mut GraphProto), expect: &str) {
    let mut model = model();
    assert!(Checked::new(&model).is_ok());
    change(model.graph.as_mut().unwrap());
    assert_eq!(
        Checked::new(&model).map(|_| ()).unwrap_err().message,
        expect
    );
}

fn first_dim(value: &mut ValueInfoProto, dim: Option<i64>) {
    let tensor = value.r#type.as_mut().unwrap().tensor_type.as_mut().unwrap();
    tensor.shape.as_mut().unwrap().dim[0].dim_value = dim;
}

#[test]
fn inconsistent_graphs_are_rejected() {
    check_rejected(
        |graph| graph.node.reverse(),
        "node `out` (Sigmoid) reads `probabilities`, which nothing before it makes",
    );
    check_rejected(
        |graph| graph.node[2].output[0] = "x".into(),
        "`x` is made twice, again by node `y`",
    );
    check_rejected(
        |graph| graph.value_info.clear(),
        "`rows`, made by node `rows`, has no shape",
    );
    check_rejected(
        |graph| {
            let mut lost = graph.output[0].clone();
            lost.name = "lost".into();
            graph.output.push(lost);
        },
        "nothing makes the output `lost`",
    );
    check_rejected(
        |graph| first_dim(&mut graph.input[0], Some(0)),
        "a dimension of `ids` is not a positive number",
    );
    check_rejected(
        |graph| first_dim(&mut graph.input[0], Some(-1)),
        "a dimension of `ids` is not a positive number",
    );
    check_rejected(
        |graph| first_dim(&mut graph.input[0], None),
        "a dimension of `ids` is not a positive number",
    );
    check_rejected(
        |graph| first_dim(&mut graph.input[0], Some(i64::MAX)),
        "`ids` [9223372036854775807, 3] has more than 68719476736 elements",
    );
    check_rejected(
        |graph| graph.initializer[0].dims = vec![1; 9],
        "`half` has 9 dimensions; at most 8 are read",
    );
    check_rejected(
        |graph| graph.initializer[1].name = "half".into(),
        "two constants are called `half`",
    );
    check_rejected(|graph| graph.input[0].r#type = None, "`ids` is no tensor");
    assert!(decode(b"").is_err(), "no graph");
}

proptest! {
    #[test]
    fn corrupt_bytes_never_panic(at in 0usize..2000, byte: u8, cut in 0usize..4000) {
        let mut bytes = model().encode_to_vec();
        let at = at % bytes.len();
        bytes[at] = byte;
        bytes.truncate(cut.max(at + 1));
        if let Ok(model) = decode(&bytes) {
            let _ = Checked::new(&model);
            let _ = Summary::of(&model).to_string();
            let _ = kiln::lower::lower(&model, &|_| Ok(kiln::action::Blob::new(vec![0u8; 16])));
        }
    }
}

/// The `onnx` package reads and writes the same bytes, so all field numbers and types are correct.
#[test]
#[ignore = "needs a package index"]
fn the_onnx_package_reproduces_the_bytes() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("model.onnx");
    std::fs::write(&path, model().encode_to_vec()).unwrap();
    let script = "import sys, onnx; m = onnx.ModelProto.FromString(open(sys.argv[1], \
                  'rb').read()); m.DiscardUnknownFields(); open(sys.argv[2], \
                  'wb').write(m.SerializeToString(deterministic=True))";
    let rewritten = root.path().join("rewritten.onnx");
    stdout_of(python().args(["-c", script]).args([&path, &rewritten]));
    let rewritten = std::fs::read(rewritten).unwrap();
    assert_eq!(rewritten, std::fs::read(path).unwrap());
}
