//! The graphs of the tests: a linear layer and a lookup, with the operators of the lowering.

use std::sync::Arc;

use half::f16;

use super::weight::Weight;
use super::{Activation, DeviceEncoding, K, LinearIo, N, Numbers, T, Trial};
use crate::qnn::{
    DataType, DeviceGraph, Encoding, Node, Param, StaticData, Tensor, TensorId, TensorKind,
};

impl Trial {
    /// `y [1, 1, T, N] = x [1, 1, T, K] * w [1, 1, K, N]`, as a 1x1 convolution. On codes also `+
    /// bias [N]`: the device drops a wrong one without an error.
    pub(super) fn linear(encoding: DeviceEncoding, io: LinearIo) -> Self {
        let mut numbers = Numbers(1);
        let weight = Weight::new(encoding, &mut numbers);
        let is_coded = io != LinearIo::F16;
        let x = Activation::new(is_coded, numbers.take(T * K));
        let bias = if io == LinearIo::U16 {
            Some(Bias::new(&x, &weight, &mut numbers))
        } else {
            None
        };
        let mut products = vec![];
        for row in x.values.chunks_exact(K) {
            for (output, column) in weight.values.chunks_exact(K).enumerate() {
                let mut sum = match &bias {
                    Some(bias) => bias.values[output],
                    None => 0.0,
                };
                for (x, w) in row.iter().zip(column) {
                    sum += x * w;
                }
                products.push(sum);
            }
        }
        let y = Activation::new(is_coded, products);

        let mut graph = Graph::new();
        let weight_type = match encoding {
            DeviceEncoding::F16 => DataType::Float16,
            _ => DataType::SFixed8,
        };
        let input = graph.activation("x", TensorKind::Input, &x, &[1, 1, T, K]);
        let note = encoding.to_string();
        let weight = graph.constant("w", weight_type, &[1, 1, K, N], weight.data, note);
        let mut inputs = vec![input, weight];
        if let Some(Bias { data, .. }) = bias {
            let note = "32 bit".to_string();
            inputs.push(graph.constant("bias", DataType::SFixed32, &[N], data, note));
        }
        let output = graph.activation("y", TensorKind::Output, &y, &[1, 1, T, N]);
        let conv = vec![
            ("stride", Param::Uint32s(vec![2], vec![1, 1])),
            ("pad_amount", Param::Uint32s(vec![2, 2], vec![0; 4])),
            ("dilation", Param::Uint32s(vec![2], vec![1, 1])),
            ("group", Param::U32(1)),
        ];
        if io == LinearIo::F16FromU16 {
            let plain = graph.f16("plain", &[1, 1, T, K]);
            let product = graph.f16("product", &[1, 1, T, N]);
            graph.node("Dequantize", vec![], &[input], plain);
            graph.node("Conv2d", conv, &[plain, weight], product);
            graph.node("Quantize", vec![], &[product], output);
        } else {
            graph.node("Conv2d", conv, &inputs, output);
        }
        Trial {
            graph: graph.0,
            inputs: [("x".to_string(), x.bytes())].into(),
            y,
        }
    }

    /// Some rows of a table `[N, K]`.
    pub(super) fn lookup(encoding: DeviceEncoding) -> Self {
        let ids = ids();
        let mut graph = Graph::new();
        let input = graph.ids();
        let (bits, block, has_offsets) = match encoding {
            DeviceEncoding::F16 => return Trial::lookup_f16(graph, input, &ids),
            DeviceEncoding::FloatBlock {
                bits,
                block,
                offsets,
            } => (bits, block as usize, offsets),
            DeviceEncoding::Channel { bits } => (bits, K, false),
            DeviceEncoding::Lpbq { block } => (4, block as usize, false),
        };
        let mut numbers = Numbers(1);
        let codes = Weight::codes(bits, &mut numbers);
        let span = f64::from(1u32 << (bits - 1));
        let count = N * K / block;
        let scales = f16s(&mut numbers, count, 1.0 / span);
        let mut grids = vec![("scales", "ElementWiseMultiply", scales.clone())];
        let mut offsets = vec![f16::ZERO; count];
        if has_offsets {
            offsets = f16s(&mut numbers, count, 1.0);
            grids.push(("offsets", "ElementWiseAdd", offsets.clone()));
        }
        let mut expected = vec![];
        for &id in &ids {
            for index in id * K..(id + 1) * K {
                let (scale, offset) = (scales[index / block], offsets[index / block]);
                expected.push(f64::from(codes[index]) * scale.to_f64() + offset.to_f64());
            }
        }
        let y = Activation::new(false, expected);

        let plus_128 = Encoding::ScaleOffset {
            scale: 1.0,
            offset: -128,
        };
        let mut bytes = vec![];
        for &code in &codes {
            bytes.push((i32::from(code) + 128) as u8);
        }
        let table = StaticData {
            bytes,
            encoding: plus_128.clone(),
        };
        let blocks = K / block;
        let of_blocks = [1, T, blocks, block];
        let table = graph.constant(
            "codes",
            DataType::UFixed8,
            &[N, K],
            table,
            encoding.to_string(),
        );
        let coded = graph.tensor(
            "row_codes",
            TensorKind::Native,
            DataType::UFixed8,
            &[1, T, K],
            plus_128,
            String::new(),
        );
        let plain = graph.f16("plain_codes", &[1, T, K]);
        let mut value = graph.f16("blocks", &of_blocks);
        graph.node("Gather", gather(), &[table, input], coded);
        graph.node("Dequantize", vec![], &[coded], plain);
        graph.node("Reshape", vec![], &[plain], value);
        for (name, op, grid) in grids {
            let table = graph.f16_constant(name, &[N, blocks], &grid);
            let of_row = graph.f16(&format!("row_{name}"), &[1, T, blocks]);
            let of_block = graph.f16(&format!("block_{name}"), &[1, T, blocks, 1]);
            let result = graph.f16(&format!("with_{name}"), &of_blocks);
            graph.node("Gather", gather(), &[table, input], of_row);
            graph.node("Reshape", vec![], &[of_row], of_block);
            graph.node(op, vec![], &[value, of_block], result);
            value = result;
        }
        let output = graph.activation("y", TensorKind::Output, &y, &[1, T, K]);
        graph.node("Reshape", vec![], &[value], output);
        Trial {
            graph: graph.0,
            inputs: [("x".to_string(), id_bytes(&ids))].into(),
            y,
        }
    }

    fn lookup_f16(mut graph: Graph, input: TensorId, ids: &[usize]) -> Self {
        let table = f16s(&mut Numbers(1), N * K, 1.0);
        let mut expected = vec![];
        for &id in ids {
            for value in &table[id * K..(id + 1) * K] {
                expected.push(value.to_f64());
            }
        }
        let y = Activation::new(false, expected);
        let table = graph.f16_constant("table", &[N, K], &table);
        let output = graph.activation("y", TensorKind::Output, &y, &[1, T, K]);
        graph.node("Gather", gather(), &[table, input], output);
        Trial {
            graph: graph.0,
            inputs: [("x".to_string(), id_bytes(ids))].into(),
            y,
        }
    }

    /// Some rows of a table `[N, K]` of 16-bit codes. No number is rounded a second time, so that a
    /// single wrong code shows.
    pub(super) fn lookup_u16() -> Self {
        let ids = ids();
        let mut graph = Graph::new();
        let input = graph.ids();
        let table = Activation::new(true, Numbers(1).take(N * K));
        let mut expected = vec![];
        for &id in &ids {
            expected.extend(&table.values[id * K..(id + 1) * K]);
        }
        let y = Activation {
            exact: expected.clone(),
            values: expected,
            scale: table.scale,
        };
        let data = StaticData {
            bytes: table.bytes(),
            encoding: table.encoding(),
        };
        let table = graph.constant("table", DataType::UFixed16, &[N, K], data, "q16".into());
        let output = graph.activation("y", TensorKind::Output, &y, &[1, T, K]);
        graph.node("Gather", gather(), &[table, input], output);
        Trial {
            graph: graph.0,
            inputs: [("x".to_string(), id_bytes(&ids))].into(),
            y,
        }
    }
}

/// A bias of a layer that multiplies codes.
struct Bias {
    data: StaticData,
    values: Vec<f64>,
}

impl Bias {
    /// About as large as the products, in 32-bit codes with the steps of the products.
    fn new(x: &Activation, weight: &Weight, numbers: &mut Numbers) -> Self {
        let mut bytes = vec![];
        let mut scales = vec![];
        let mut values = vec![];
        for scale in weight.row_scales() {
            let step = x.scale.unwrap_or(1.0) * scale;
            let code = (numbers.next() * f64::from(1u32 << 24)).round();
            bytes.extend((code as i32).to_le_bytes());
            scales.push(step);
            values.push(code * f64::from(step));
        }
        let encoding = Encoding::Axis {
            bits: None,
            axis: 0,
            scales,
        };
        Bias {
            data: StaticData { bytes, encoding },
            values,
        }
    }
}

fn gather() -> Vec<(&'static str, Param)> {
    vec![("axis", Param::I32(0))]
}

/// The rows that a lookup reads.
fn ids() -> Vec<usize> {
    (0..T).map(|t| (21 * t + 5) % N).collect()
}

fn id_bytes(ids: &[usize]) -> Vec<u8> {
    let mut bytes = vec![];
    for &id in ids {
        bytes.extend((id as i32).to_le_bytes());
    }
    bytes
}

/// `count` numbers in `[-spread, spread)`.
fn f16s(numbers: &mut Numbers, count: usize, spread: f64) -> Vec<f16> {
    let numbers = numbers.take(count);
    numbers.iter().map(|n| f16::from_f64(n * spread)).collect()
}

/// Builds the graph of a test.
struct Graph(DeviceGraph);

impl Graph {
    fn new() -> Self {
        Graph(DeviceGraph {
            name: "proof".into(),
            ..Default::default()
        })
    }

    fn tensor(
        &mut self,
        name: &str,
        kind: TensorKind,
        data_type: DataType,
        dims: &[usize],
        encoding: Encoding,
        note: String,
    ) -> TensorId {
        self.0.add(Tensor {
            name: name.into(),
            kind,
            data_type,
            dims: dims.iter().map(|&dim| dim as u32).collect(),
            encoding,
            note,
        })
    }

    /// The input of a lookup.
    fn ids(&mut self) -> TensorId {
        self.tensor(
            "x",
            TensorKind::Input,
            DataType::Int32,
            &[1, T],
            Encoding::None,
            String::new(),
        )
    }

    /// An input or output of the graph.
    fn activation(
        &mut self,
        name: &str,
        kind: TensorKind,
        activation: &Activation,
        dims: &[usize],
    ) -> TensorId {
        let (data_type, encoding) = (activation.data_type(), activation.encoding());
        self.tensor(name, kind, data_type, dims, encoding, String::new())
    }

    /// An f16 tensor between operators.
    fn f16(&mut self, name: &str, dims: &[usize]) -> TensorId {
        self.tensor(
            name,
            TensorKind::Native,
            DataType::Float16,
            dims,
            Encoding::None,
            String::new(),
        )
    }

    fn constant(
        &mut self,
        name: &str,
        data_type: DataType,
        dims: &[usize],
        data: StaticData,
        note: String,
    ) -> TensorId {
        let (bytes, encoding) = (data.bytes, data.encoding);
        let source = TensorKind::Static(Arc::new(move || {
            Ok(StaticData {
                bytes: bytes.clone(),
                encoding: encoding.clone(),
            })
        }));
        self.tensor(name, source, data_type, dims, Encoding::None, note)
    }

    fn f16_constant(&mut self, name: &str, dims: &[usize], values: &[f16]) -> TensorId {
        let mut bytes = vec![];
        for value in values {
            bytes.extend(value.to_le_bytes());
        }
        let data = StaticData {
            bytes,
            encoding: Encoding::None,
        };
        self.constant(name, DataType::Float16, dims, data, "f16".into())
    }

    /// Adds an operator that is called `OUTPUT.op`.
    fn node(
        &mut self,
        op: &'static str,
        params: Vec<(&'static str, Param)>,
        inputs: &[TensorId],
        output: TensorId,
    ) {
        self.0.nodes.push(Node {
            name: format!("{}.op", self.0.tensor(output).name),
            op,
            params,
            inputs: inputs.to_vec(),
            outputs: vec![output],
        });
    }
}
