//! A slow interpreter that computes device graphs in f32, one op at a time.

use std::collections::BTreeMap;

use half::f16;
use kiln::qnn::{
    DataType, DeviceGraph, Encoding, Node, Param, StaticData, Tensor, TensorId, TensorKind,
};

/// A row-major array.
#[derive(Clone, Debug)]
pub struct Array {
    pub dims: Vec<usize>,
    pub data: Vec<f32>,
}

impl Array {
    fn row_length(&self) -> usize {
        *self.dims.last().unwrap()
    }
}

/// A device graph and its constants.
pub struct Interpreter {
    graph: DeviceGraph,
    constants: BTreeMap<usize, Array>,
}

impl Interpreter {
    pub fn new(graph: DeviceGraph) -> Self {
        let mut constants = BTreeMap::new();
        for (id, tensor) in graph.tensors.iter().enumerate() {
            if let TensorKind::Static(source) = &tensor.kind {
                constants.insert(id, decode(tensor, source().unwrap()));
            }
        }
        Interpreter { graph, constants }
    }

    /// Computes all tensors, by name.
    pub fn run(&self, inputs: &BTreeMap<String, Vec<f32>>) -> BTreeMap<String, Vec<f32>> {
        let mut arrays = self.constants.clone();
        for (id, tensor) in self.graph.tensors.iter().enumerate() {
            if matches!(tensor.kind, TensorKind::Input) {
                arrays.insert(id, array(tensor, inputs[&tensor.name].clone()));
            }
        }
        for node in &self.graph.nodes {
            let operand = |id: &TensorId| &arrays[&(id.0 as usize)];
            let operands: Vec<&Array> = node.inputs.iter().map(operand).collect();
            let output = self.graph.tensor(node.outputs[0]);
            let result = array(output, compute(node, &operands, &dims(output)));
            arrays.insert(node.outputs[0].0 as usize, result);
        }
        let mut tensors = BTreeMap::new();
        for (id, array) in arrays {
            tensors.insert(self.graph.tensors[id].name.clone(), array.data);
        }
        tensors
    }
}

fn dims(tensor: &Tensor) -> Vec<usize> {
    tensor.dims.iter().map(|&n| n as usize).collect()
}

fn array(tensor: &Tensor, data: Vec<f32>) -> Array {
    let dims = dims(tensor);
    assert_eq!(
        dims.iter().product::<usize>(),
        data.len(),
        "{}",
        tensor.name
    );
    Array { dims, data }
}

/// The values of a constant.
fn decode(tensor: &Tensor, data: StaticData) -> Array {
    let mut values = vec![];
    match (&data.encoding, tensor.data_type) {
        (Encoding::None, DataType::Float16) => {
            for bytes in data.bytes.chunks(2) {
                values.push(f16::from_le_bytes([bytes[0], bytes[1]]).to_f32());
            }
        }
        (Encoding::ScaleOffset { scale, offset }, DataType::UFixed8) => {
            for &code in &data.bytes {
                values.push((i32::from(code) + offset) as f32 * scale);
            }
        }
        (
            Encoding::FloatBlock {
                block,
                scales,
                offsets,
                ..
            },
            DataType::SFixed8,
        ) => {
            let block = block[2] as usize;
            let (columns, rows) = (tensor.dims[2] as usize, tensor.dims[3] as usize);
            for (index, &code) in data.bytes.iter().enumerate() {
                let (column, row) = (index / rows, index % rows);
                let at = row * (columns / block) + column / block;
                values.push((f32::from(code as i8) + offsets[at]) * scales[at]);
            }
        }
        (
            Encoding::Axis {
                axis: 3, scales, ..
            },
            DataType::SFixed8,
        ) => {
            for (index, &code) in data.bytes.iter().enumerate() {
                values.push(f32::from(code as i8) * scales[index % scales.len()]);
            }
        }
        other => panic!("{}: {other:?}", tensor.name),
    };
    array(tensor, values)
}

fn compute(node: &Node, x: &[&Array], dims: &[usize]) -> Vec<f32> {
    match node.op {
        "Reshape" | "Dequantize" => x[0].data.clone(),
        "ElementWiseAdd" => elementwise(x, dims, |a, b| a + b),
        "ElementWiseSubtract" => elementwise(x, dims, |a, b| a - b),
        "ElementWiseMultiply" => elementwise(x, dims, |a, b| a * b),
        "ElementWiseDivide" => elementwise(x, dims, |a, b| a / b),
        "Relu" => x[0].data.iter().map(|v| v.max(0.0)).collect(),
        "Sigmoid" => x[0].data.iter().map(|v| 1.0 / (1.0 + (-v).exp())).collect(),
        "Gather" => {
            let width = x[0].dims[1];
            let mut rows = vec![];
            for &id in &x[1].data {
                rows.extend_from_slice(&x[0].data[id as usize * width..][..width]);
            }
            rows
        }
        "RmsNorm" => {
            let Param::F32(epsilon) = param(node, "epsilon") else {
                panic!()
            };
            let mut y = x[0].data.clone();
            for row in y.chunks_mut(x[0].row_length()) {
                let mean = dot(row, row) / row.len() as f32;
                for (v, gamma) in row.iter_mut().zip(&x[1].data) {
                    *v = *v / (mean + epsilon).sqrt() * gamma;
                }
            }
            y
        }
        "Softmax" => {
            let mut y = x[0].data.clone();
            for row in y.chunks_mut(x[0].row_length()) {
                let top = row.iter().copied().fold(f32::MIN, f32::max);
                let mut sum = 0.0;
                for v in row.iter_mut() {
                    *v = (*v - top).exp();
                    sum += *v;
                }
                for v in row.iter_mut() {
                    *v /= sum;
                }
            }
            y
        }
        "Conv2d" => {
            let mut product = matmul(x[0], x[1]);
            if let Some(bias) = x.get(2) {
                for (i, y) in product.iter_mut().enumerate() {
                    *y += bias.data[i % bias.data.len()];
                }
            }
            product
        }
        "MatMul" => matmul(x[0], x[1]),
        "Transpose" => {
            let Param::Uint32s(_, perm) = param(node, "perm") else {
                panic!()
            };
            gather(x[0], dims, |to| {
                let mut from = vec![0; to.len()];
                for (&axis, &i) in perm.iter().zip(to) {
                    from[axis as usize] = i;
                }
                from
            })
        }
        "StridedSlice" => {
            let Param::Int32s(_, ranges) = param(node, "ranges") else {
                panic!()
            };
            gather(x[0], dims, |to| {
                let start = |axis: usize| ranges[axis * 3] as usize;
                (0..to.len()).map(|axis| start(axis) + to[axis]).collect()
            })
        }
        "Concat" => {
            let &Param::U32(axis) = param(node, "axis") else {
                panic!()
            };
            let outer: usize = x[0].dims[..axis as usize].iter().product();
            let mut joined = vec![];
            for index in 0..outer {
                for part in x {
                    let inner = part.data.len() / outer;
                    joined.extend_from_slice(&part.data[index * inner..][..inner]);
                }
            }
            joined
        }
        op => panic!("{op}"),
    }
}

fn param<'a>(node: &'a Node, name: &str) -> &'a Param {
    let mut params = node.params.iter();
    &params.find(|(param, _)| *param == name).unwrap().1
}

/// An array with shape `dims` of elements of `x`; `source` maps an index to the index in `x`.
fn gather(x: &Array, dims: &[usize], source: impl Fn(&[usize]) -> Vec<usize>) -> Vec<f32> {
    let mut out = vec![];
    let mut index = vec![0; dims.len()];
    for _ in 0..dims.iter().product() {
        let mut at = 0;
        for (i, n) in source(&index).iter().zip(&x.dims) {
            at = at * n + i;
        }
        out.push(x.data[at]);
        // The next index, in row-major order.
        for axis in (0..dims.len()).rev() {
            index[axis] += 1;
            if index[axis] < dims[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    out
}

/// `x` broadcast to `dims`.
fn broadcast(x: &Array, dims: &[usize]) -> Vec<f32> {
    let missing = dims.len() - x.dims.len();
    let clamp = |axis: usize, i: usize| if x.dims[axis] == 1 { 0 } else { i };
    gather(x, dims, |to| {
        (0..x.dims.len())
            .map(|axis| clamp(axis, to[missing + axis]))
            .collect()
    })
}

fn elementwise(x: &[&Array], dims: &[usize], op: impl Fn(f32, f32) -> f32) -> Vec<f32> {
    let (a, b) = (broadcast(x[0], dims), broadcast(x[1], dims));
    (0..a.len()).map(|i| op(a[i], b[i])).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `[.., M, K]` times `[.., K, N]` with the same batches.
fn matmul(a: &Array, b: &Array) -> Vec<f32> {
    let [k, n] = b.dims[b.dims.len() - 2..] else {
        panic!()
    };
    let m = a.dims[a.dims.len() - 2];
    assert_eq!(a.dims[a.dims.len() - 1], k);
    let mut product = vec![];
    for (a, b) in a.data.chunks(m * k).zip(b.data.chunks(k * n)) {
        for row in a.chunks(k) {
            for column in 0..n {
                let mut sum = 0.0;
                for (i, x) in row.iter().enumerate() {
                    sum += x * b[i * n + column];
                }
                product.push(sum);
            }
        }
    }
    product
}
