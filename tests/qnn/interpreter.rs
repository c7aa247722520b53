//! Device graphs computed in f32, op by op and slowly: what the device would say with better
//! arithmetic.

use std::collections::BTreeMap;

use half::f16;
use kiln::qnn::{DataType, DeviceGraph, Encoding, Node, Param, StaticData, Tensor, TensorKind};

/// Row-major.
#[derive(Clone, Debug)]
pub struct Array {
    pub dims: Vec<usize>,
    pub data: Vec<f32>,
}

/// A device graph and its constants.
pub struct Interpreter {
    graph: DeviceGraph,
    constants: BTreeMap<usize, Array>,
}

impl Interpreter {
    pub fn new(graph: DeviceGraph) -> Self {
        let constant = |(id, tensor): (usize, &Tensor)| match &tensor.kind {
            TensorKind::Static(source) => Some((id, numbers(tensor, source().unwrap()))),
            _ => None,
        };
        let constants = graph
            .tensors
            .iter()
            .enumerate()
            .filter_map(constant)
            .collect();
        Interpreter { graph, constants }
    }

    /// All tensors by name, given the inputs.
    pub fn run(&self, inputs: &BTreeMap<String, Vec<f32>>) -> BTreeMap<String, Vec<f32>> {
        let mut arrays = self.constants.clone();
        for (id, tensor) in self.graph.tensors.iter().enumerate() {
            if matches!(tensor.kind, TensorKind::Input) {
                arrays.insert(id, array(tensor, inputs[&tensor.name].clone()));
            }
        }
        for node in &self.graph.nodes {
            let operands: Vec<&Array> = node
                .inputs
                .iter()
                .map(|id| &arrays[&(id.0 as usize)])
                .collect();
            let output = self.graph.tensor(node.outputs[0]);
            let result = array(output, compute(node, &operands, &dims(output)));
            arrays.insert(node.outputs[0].0 as usize, result);
        }
        arrays
            .into_iter()
            .map(|(id, array)| (self.graph.tensors[id].name.clone(), array.data))
            .collect()
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

fn numbers(tensor: &Tensor, data: StaticData) -> Array {
    let halves = || {
        data.bytes
            .chunks(2)
            .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
            .collect()
    };
    let numbers = match (&data.encoding, tensor.data_type) {
        (Encoding::None, DataType::Float16) => halves(),
        (Encoding::ScaleOffset { scale, offset }, DataType::UFixed8) => data
            .bytes
            .iter()
            .map(|&code| (i32::from(code) + offset) as f32 * scale)
            .collect(),
        (
            Encoding::FloatBlock {
                block,
                scales,
                offsets,
                ..
            },
            DataType::SFixed8,
        ) => {
            let (rows, blocks) = (
                tensor.dims[3] as usize,
                (tensor.dims[2] / block[2]) as usize,
            );
            let value = |(index, &code): (usize, &u8)| {
                let at = index % rows * blocks + index / rows / block[2] as usize;
                (f32::from(code as i8) + offsets[at]) * scales[at]
            };
            data.bytes.iter().enumerate().map(value).collect()
        }
        (
            Encoding::Axis {
                axis: 3, scales, ..
            },
            DataType::SFixed8,
        ) => data
            .bytes
            .iter()
            .zip(scales.iter().cycle())
            .map(|(&code, scale)| f32::from(code as i8) * scale)
            .collect(),
        other => panic!("{}: {other:?}", tensor.name),
    };
    array(tensor, numbers)
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
            x[1].data
                .iter()
                .flat_map(|&id| x[0].data[id as usize * width..][..width].to_vec())
                .collect()
        }
        "RmsNorm" => {
            let Param::F32(epsilon) = param(node, "epsilon") else {
                panic!()
            };
            rows(x[0], |row| {
                let mean = row.iter().map(|v| v * v).sum::<f32>() / row.len() as f32;
                row.iter()
                    .zip(&x[1].data)
                    .map(|(v, gamma)| v / (mean + epsilon).sqrt() * gamma)
                    .collect()
            })
        }
        "Softmax" => rows(x[0], |row| {
            let top = row.iter().copied().fold(f32::MIN, f32::max);
            let powers: Vec<f32> = row.iter().map(|v| (v - top).exp()).collect();
            let sum: f32 = powers.iter().sum();
            powers.iter().map(|p| p / sum).collect()
        }),
        "Conv2d" => {
            let mut product = matmul(x[0], x[1]);
            if let Some(bias) = x.get(2) {
                product
                    .iter_mut()
                    .zip(bias.data.iter().cycle())
                    .for_each(|(y, b)| *y += b);
            }
            product
        }
        "MatMul" => matmul(x[0], x[1]),
        "Transpose" => {
            let Param::Uint32s(_, perm) = param(node, "perm") else {
                panic!()
            };
            pick(x[0], dims, |to| {
                let mut from = vec![0; to.len()];
                perm.iter()
                    .zip(to)
                    .for_each(|(&axis, &i)| from[axis as usize] = i);
                from
            })
        }
        "StridedSlice" => {
            let Param::Int32s(_, ranges) = param(node, "ranges") else {
                panic!()
            };
            pick(x[0], dims, |to| {
                to.iter()
                    .zip(ranges.chunks(3))
                    .map(|(i, range)| range[0] as usize + i)
                    .collect()
            })
        }
        "Concat" => {
            let &Param::U32(axis) = param(node, "axis") else {
                panic!()
            };
            let inner = |array: &Array| array.dims[axis as usize..].iter().product::<usize>();
            let (a, b) = (x[0].data.chunks(inner(x[0])), x[1].data.chunks(inner(x[1])));
            a.zip(b).flat_map(|(a, b)| [a, b].concat()).collect()
        }
        op => panic!("{op}"),
    }
}

fn param<'a>(node: &'a Node, name: &str) -> &'a Param {
    &node
        .params
        .iter()
        .find(|(param, _)| *param == name)
        .unwrap()
        .1
}

fn rows(x: &Array, of_row: impl Fn(&[f32]) -> Vec<f32>) -> Vec<f32> {
    x.data
        .chunks(*x.dims.last().unwrap())
        .flat_map(of_row)
        .collect()
}

/// The element of `x` at the place that `from` gives for each place of the result.
fn pick(x: &Array, dims: &[usize], from: impl Fn(&[usize]) -> Vec<usize>) -> Vec<f32> {
    let place = |mut index: usize| {
        let mut place = vec![0; dims.len()];
        for (i, n) in place.iter_mut().zip(dims).rev() {
            (*i, index) = (index % n, index / n);
        }
        place
    };
    let flat = |place: Vec<usize>| place.iter().zip(&x.dims).fold(0, |at, (i, n)| at * n + i);
    (0..dims.iter().product())
        .map(|index| x.data[flat(from(&place(index)))])
        .collect()
}

fn elementwise(x: &[&Array], dims: &[usize], op: impl Fn(f32, f32) -> f32) -> Vec<f32> {
    let broadcast = |x: &Array| {
        let missing = dims.len() - x.dims.len();
        pick(x, dims, |to| {
            to[missing..]
                .iter()
                .zip(&x.dims)
                .map(|(&i, &n)| if n == 1 { 0 } else { i })
                .collect()
        })
    };
    broadcast(x[0])
        .into_iter()
        .zip(broadcast(x[1]))
        .map(|(a, b)| op(a, b))
        .collect()
}

/// `[.., M, K]` times `[.., K, N]` with the same batches.
fn matmul(a: &Array, b: &Array) -> Vec<f32> {
    let [k, n] = b.dims[b.dims.len() - 2..] else {
        panic!()
    };
    let m = a.dims[a.dims.len() - 2];
    assert_eq!(a.dims[a.dims.len() - 1], k);
    let batches = a.data.chunks(m * k).zip(b.data.chunks(k * n));
    let row = |row: &[f32], b: &[f32]| -> Vec<f32> {
        (0..n)
            .map(|j| {
                row.iter()
                    .zip(b.iter().skip(j).step_by(n))
                    .map(|(x, w)| x * w)
                    .sum()
            })
            .collect()
    };
    batches
        .flat_map(|(a, b)| a.chunks(k).flat_map(|r| row(r, b)).collect::<Vec<_>>())
        .collect()
}
