//! Builds an ONNX model node by node. Every value carries its shape, and a node has the name of its
//! output.

use std::collections::{BTreeMap, BTreeSet};

use super::encodings::Grid;
use super::functions::{DOMAIN, DOMAIN_VERSION, Function, OPSET, float, int, ints};
use super::proto::*;

/// The IR version for opset 21.
const IR_VERSION: i64 = 10;

/// A value of the graph: its name, and its shape with the outermost dimension first.
#[derive(Clone, Debug)]
pub struct Value {
    /// Unique in the graph.
    pub name: String,
    /// Row-major.
    pub dims: Vec<u64>,
}

/// Builds a model. The same calls give the same bytes.
#[derive(Default)]
pub struct Builder {
    graph: GraphProto,
    initializers: BTreeMap<String, TensorProto>,
    functions: BTreeSet<Function>,
    /// The values that are rounded where they are computed.
    grids: BTreeMap<String, Grid>,
}

/// A tensor in an external file.
pub struct External<'a> {
    /// Name of the initializer.
    pub name: &'a str,
    /// The file, relative to that of the model.
    pub location: String,
    /// One of [`element`].
    pub element: i32,
    /// Row-major.
    pub dims: &'a [u64],
    /// Length of the file.
    pub size_bytes: u64,
}

impl Builder {
    /// A builder that rounds each value in `grids` to its grid where it is computed: the value of
    /// that name is the rounded one. A rounded input is called `NAME.held`.
    pub fn rounding(grids: BTreeMap<String, Grid>) -> Self {
        Builder {
            grids,
            ..Builder::default()
        }
    }

    /// An input of the graph.
    pub fn input(&mut self, name: &str, element: i32, dims: &[u64]) -> Value {
        let value = Value {
            name: name.into(),
            dims: dims.into(),
        };
        self.graph.input.push(info(&value, element));
        match self.grids.get(name) {
            Some(&grid) => self.quantize(&value, grid, &format!("{name}.held")),
            None => value,
        }
    }

    /// Declares `value` (f32) to be an output of the graph.
    pub fn output(&mut self, value: &Value) {
        self.graph.output.push(info(value, element::FLOAT));
    }

    /// A tensor in an external file. A second call with the same name adds no second tensor.
    pub fn external(&mut self, tensor: &External) -> Value {
        self.initializers.insert(
            tensor.name.into(),
            TensorProto {
                name: tensor.name.into(),
                dims: signed(tensor.dims),
                data_type: tensor.element,
                external_data: vec![
                    entry("location", tensor.location.clone()),
                    entry("offset", "0".into()),
                    entry("length", tensor.size_bytes.to_string()),
                ],
                data_location: EXTERNAL,
                ..TensorProto::default()
            },
        );
        Value {
            name: tensor.name.into(),
            dims: tensor.dims.into(),
        }
    }

    /// A constant of another graph, with its data or the place of its data.
    pub(super) fn existing(&mut self, tensor: &TensorProto) -> Value {
        let name = tensor.name.clone();
        self.initializers.insert(name.clone(), tensor.clone());
        let dims = tensor.dims.iter().map(|&n| n as u64).collect();
        Value { name, dims }
    }

    /// A constant number.
    pub fn scalar(&mut self, name: &str, value: f32) -> Value {
        self.constant(name, &[], &[value])
    }

    /// A small constant in the ONNX file itself: `values`, row-major.
    pub fn constant(&mut self, name: &str, dims: &[u64], values: &[f32]) -> Value {
        debug_assert_eq!(dims.iter().product::<u64>(), values.len() as u64, "{name}");
        let mut raw_data = vec![];
        for value in values {
            raw_data.extend(value.to_le_bytes());
        }
        self.initializer(name.into(), element::FLOAT, dims, raw_data)
    }

    /// A constant of 8-bit codes in the ONNX file itself, row-major.
    pub fn codes(&mut self, name: &str, dims: &[u64], codes: &[i8]) -> Value {
        debug_assert_eq!(dims.iter().product::<u64>(), codes.len() as u64, "{name}");
        let raw_data = codes.iter().map(|code| *code as u8).collect();
        self.initializer(name.into(), element::INT8, dims, raw_data)
    }

    fn initializer(
        &mut self,
        name: String,
        data_type: i32,
        dims: &[u64],
        raw_data: Vec<u8>,
    ) -> Value {
        let tensor = TensorProto {
            name: name.clone(),
            dims: signed(dims),
            data_type,
            raw_data,
            ..TensorProto::default()
        };
        self.initializers.insert(name.clone(), tensor);
        Value {
            name,
            dims: dims.into(),
        }
    }

    /// `value` rounded to `grid`, by QuantizeLinear and DequantizeLinear. The result is called
    /// `name`.
    pub fn quantize(&mut self, value: &Value, grid: Grid, name: &str) -> Value {
        let bytes = grid.scale.to_le_bytes().to_vec();
        let scale = self.initializer(format!("{name}.scale"), element::FLOAT, &[], bytes);
        let bytes = grid.zero_point.to_le_bytes()[..grid.bits as usize / 8].to_vec();
        let zero_point = self.initializer(format!("{name}.zero_point"), grid.element(), &[], bytes);
        let codes = Value {
            name: format!("{name}.codes"),
            ..value.clone()
        };
        let rounded = Value {
            name: name.into(),
            ..value.clone()
        };
        for (op, from, to) in [
            ("QuantizeLinear", value, &codes),
            ("DequantizeLinear", &codes, &rounded),
        ] {
            let inputs = [from, &scale, &zero_point];
            self.append("", op, &to.name, &inputs, vec![], std::slice::from_ref(to));
        }
        // `append` declares every output as f32.
        let count = self.graph.value_info.len();
        self.graph.value_info[count - 2] = info(&codes, grid.element());
        rounded
    }

    /// A call of a function of the dialect.
    pub fn call(
        &mut self,
        function: Function,
        name: &str,
        inputs: &[&Value],
        attributes: Vec<AttributeProto>,
        dims: Vec<u64>,
    ) -> Value {
        self.functions.insert(function);
        let value = Value {
            name: name.into(),
            dims,
        };
        self.push(
            DOMAIN,
            &function.name(),
            name,
            inputs,
            attributes,
            std::slice::from_ref(&value),
        );
        value
    }

    /// `Add`, `Sub`, `Mul` or `Div`; where one operand has 1 element along an axis, it is
    /// broadcast.
    pub fn elementwise(&mut self, op: &str, name: &str, a: &Value, b: &Value) -> Value {
        let (longer, shorter) = if a.dims.len() >= b.dims.len() {
            (a, b)
        } else {
            (b, a)
        };
        let mut dims = longer.dims.clone();
        let leading = dims.len() - shorter.dims.len();
        for (axis, n) in shorter.dims.iter().enumerate() {
            dims[leading + axis] = dims[leading + axis].max(*n);
        }
        self.node(op, name, &[a, b], vec![], dims)
    }

    /// `max(x, 0)`.
    pub fn relu(&mut self, name: &str, x: &Value) -> Value {
        self.node("Relu", name, &[x], vec![], x.dims.clone())
    }

    /// `1 / (1 + exp(-x))`.
    pub fn sigmoid(&mut self, name: &str, x: &Value) -> Value {
        self.node("Sigmoid", name, &[x], vec![], x.dims.clone())
    }

    /// The hyperbolic tangent.
    pub fn tanh(&mut self, name: &str, x: &Value) -> Value {
        self.node("Tanh", name, &[x], vec![], x.dims.clone())
    }

    /// `x` times the constant `NAME.factor`.
    pub fn scaled(&mut self, name: &str, x: &Value, factor: f32) -> Value {
        let factor = self.scalar(&format!("{name}.factor"), factor);
        self.elementwise("Mul", name, x, &factor)
    }

    /// `cap * tanh(x / cap)`. The names are those of `x / cap`, its tanh, and the result.
    pub fn soft_cap(&mut self, names: [&str; 3], x: &Value, cap: f32) -> Value {
        let [share, tanh, capped] = names;
        let share = self.scaled(share, x, cap.recip());
        let tanh = self.tanh(tanh, &share);
        self.scaled(capped, &tanh, cap)
    }

    /// Softmax over the last axis.
    pub fn softmax(&mut self, name: &str, x: &Value) -> Value {
        self.node("Softmax", name, &[x], vec![int("axis", -1)], x.dims.clone())
    }

    /// `[.., M, K]` times `[.., K, N]`.
    pub fn matmul(&mut self, name: &str, a: &Value, b: &Value) -> Value {
        let mut dims = a.dims.clone();
        dims.pop();
        dims.extend(b.dims.last());
        self.node("MatMul", name, &[a, b], vec![], dims)
    }

    /// Dimension `i` of the result is dimension `perm[i]` of `x`.
    pub fn transpose(&mut self, name: &str, x: &Value, perm: [usize; 4]) -> Value {
        let dims = perm.iter().map(|&axis| x.dims[axis]).collect();
        self.node(
            "Transpose",
            name,
            &[x],
            vec![ints("perm", perm.map(|axis| axis as i64).to_vec())],
            dims,
        )
    }

    /// The same elements in another shape.
    pub fn reshape(&mut self, name: &str, x: &Value, dims: &[u64]) -> Value {
        debug_assert_eq!(
            x.dims.iter().product::<u64>(),
            dims.iter().product::<u64>(),
            "{name}"
        );
        let shape = self.integers("shape", dims);
        self.node("Reshape", name, &[x, &shape], vec![], dims.into())
    }

    /// The constant vector of `numbers`, called `PREFIX.1x2x3`.
    fn integers(&mut self, prefix: &str, numbers: &[u64]) -> Value {
        let text: Vec<String> = numbers.iter().map(u64::to_string).collect();
        let vector = Value {
            name: format!("{prefix}.{}", text.join("x")),
            dims: vec![numbers.len() as u64],
        };
        if !self.initializers.contains_key(&vector.name) {
            let mut raw_data = vec![];
            for &n in numbers {
                raw_data.extend((n as i64).to_le_bytes());
            }
            self.initializer(vector.name.clone(), element::INT64, &vector.dims, raw_data);
        }
        vector
    }

    /// `parts` one after the other along `axis`, except parts of size 0.
    pub fn concat(&mut self, name: &str, parts: &[&Value], axis: usize) -> Value {
        let mut dims = parts[0].dims.clone();
        dims[axis] = parts.iter().map(|part| part.dims[axis]).sum();
        let mut parts = parts.to_vec();
        parts.retain(|part| part.dims[axis] > 0);
        let attributes = vec![int("axis", axis as i64)];
        self.node("Concat", name, &parts, attributes, dims)
    }

    /// Splits `x` into the two halves of its last axis: `NAME.low` and `NAME.high`.
    pub fn halves(&mut self, name: &str, x: &Value) -> [Value; 2] {
        let axis = x.dims.len() - 1;
        let halves = ["low", "high"].map(|half| part_of(x, format!("{name}.{half}"), axis, 2));
        self.split(&format!("{name}.halves"), x, axis, &halves);
        halves
    }

    /// Splits `x` into parts of these `sizes` along `axis`, `NAME.WHAT` for each name. Parts of size
    /// 0 are not in the graph; a part that is all of `x` is `x`.
    pub fn pieces<const N: usize>(
        &mut self,
        name: &str,
        x: &Value,
        axis: usize,
        sizes: [(&str, u64); N],
    ) -> [Value; N] {
        let mut pieces = sizes.map(|(what, size)| {
            let mut dims = x.dims.clone();
            dims[axis] = size;
            Value {
                name: format!("{name}.{what}"),
                dims,
            }
        });
        if let Some(whole) = sizes.iter().position(|(_, size)| *size == x.dims[axis]) {
            pieces[whole] = x.clone();
            return pieces;
        }
        let (mut outputs, mut lengths) = (pieces.to_vec(), sizes.map(|(_, size)| size).to_vec());
        outputs.retain(|piece| piece.dims[axis] > 0);
        lengths.retain(|length| *length > 0);
        let lengths = self.integers("sizes", &lengths);
        let attributes = vec![int("axis", axis as i64)];
        let name = format!("{name}.pieces");
        self.push("", "Split", &name, &[x, &lengths], attributes, &outputs);
        pieces
    }

    /// Splits `x` into `count` equal parts along `axis`, `X.0` and so on.
    pub fn parts(&mut self, x: &Value, axis: usize, count: u64) -> Vec<Value> {
        let mut parts = vec![];
        for index in 0..count {
            parts.push(part_of(x, format!("{}.{index}", x.name), axis, count));
        }
        self.split(&format!("{}.parts", x.name), x, axis, &parts);
        parts
    }

    fn split(&mut self, name: &str, x: &Value, axis: usize, parts: &[Value]) {
        let attributes = vec![
            int("axis", axis as i64),
            int("num_outputs", parts.len() as i64),
        ];
        self.push("", "Split", name, &[x], attributes, parts);
    }

    fn node(
        &mut self,
        op: &str,
        name: &str,
        inputs: &[&Value],
        attributes: Vec<AttributeProto>,
        dims: Vec<u64>,
    ) -> Value {
        let value = Value {
            name: name.into(),
            dims,
        };
        self.push(
            "",
            op,
            name,
            inputs,
            attributes,
            std::slice::from_ref(&value),
        );
        value
    }

    /// Adds a node, and rounds those of its outputs that have a grid.
    fn push(
        &mut self,
        domain: &str,
        op: &str,
        name: &str,
        inputs: &[&Value],
        attribute: Vec<AttributeProto>,
        outputs: &[Value],
    ) {
        let mut exact = vec![];
        for value in outputs {
            exact.push(Value {
                name: self.exact_name(&value.name),
                ..value.clone()
            });
        }
        let node_name = self.exact_name(name);
        self.append(domain, op, &node_name, inputs, attribute, &exact);
        for (index, value) in outputs.iter().enumerate() {
            if let Some(&grid) = self.grids.get(&value.name) {
                self.quantize(&exact[index], grid, &value.name);
            }
        }
    }

    /// The name of the value `name` before it is rounded.
    fn exact_name(&self, name: &str) -> String {
        if self.grids.contains_key(name) {
            format!("{name}.exact")
        } else {
            name.into()
        }
    }

    fn append(
        &mut self,
        domain: &str,
        op: &str,
        name: &str,
        inputs: &[&Value],
        attribute: Vec<AttributeProto>,
        outputs: &[Value],
    ) {
        self.graph.node.push(NodeProto {
            name: name.into(),
            domain: domain.into(),
            op_type: op.into(),
            input: inputs.iter().map(|value| value.name.clone()).collect(),
            output: outputs.iter().map(|value| value.name.clone()).collect(),
            attribute,
            ..NodeProto::default()
        });
        for value in outputs {
            self.graph.value_info.push(info(value, element::FLOAT));
        }
    }

    /// The model.
    pub fn finish(mut self, name: &str) -> ModelProto {
        let mut outputs: BTreeSet<&str> = BTreeSet::new();
        for output in &self.graph.output {
            outputs.insert(&output.name);
        }
        self.graph
            .value_info
            .retain(|value| !outputs.contains(value.name.as_str()));
        self.graph.name = name.into();
        self.graph.initializer = self.initializers.into_values().collect();
        ModelProto {
            ir_version: IR_VERSION,
            producer_name: "kiln".into(),
            graph: Some(self.graph),
            opset_import: vec![
                OperatorSetIdProto {
                    domain: String::new(),
                    version: OPSET,
                },
                OperatorSetIdProto {
                    domain: DOMAIN.into(),
                    version: DOMAIN_VERSION,
                },
            ],
            functions: self
                .functions
                .into_iter()
                .map(Function::definition)
                .collect(),
            ..ModelProto::default()
        }
    }
}

/// One of `count` equal parts of `x` along `axis`.
fn part_of(x: &Value, name: String, axis: usize, count: u64) -> Value {
    let mut dims = x.dims.clone();
    dims[axis] /= count;
    Value { name, dims }
}

/// The attribute `gain` of the linear family.
pub fn gain(exponent: i32) -> AttributeProto {
    float("gain", 2f32.powi(exponent))
}

fn entry(key: &str, value: String) -> StringStringEntryProto {
    StringStringEntryProto {
        key: key.into(),
        value,
    }
}

/// `dims` as ONNX writes them.
fn signed(dims: &[u64]) -> Vec<i64> {
    dims.iter().map(|&n| n as i64).collect()
}

fn info(value: &Value, elem_type: i32) -> ValueInfoProto {
    let mut dim = vec![];
    for n in signed(&value.dims) {
        dim.push(DimensionProto {
            dim_value: Some(n),
            dim_param: None,
        });
    }
    let shape = Some(TensorShapeProto { dim });
    let tensor_type = Some(TensorTypeProto { elem_type, shape });
    ValueInfoProto {
        name: value.name.clone(),
        r#type: Some(TypeProto { tensor_type }),
    }
}
