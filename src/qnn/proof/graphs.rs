//! The graphs of the proofs: a linear layer and a lookup, of the operators that the lowering writes.

use std::sync::Arc;

use half::f16;

use super::weight::Weight;
use super::{DeviceEncoding, Flow, K, LinearIo, N, Numbers, T, Trial};
use crate::qnn::{
    DataType, DeviceGraph, Encoding, Node, Param, StaticData, Tensor, TensorId, TensorKind,
};

impl Trial {
    /// `y [1, 1, T, N] = x [1, 1, T, K] * w [1, 1, K, N]`, as a 1x1 convolution.
    pub(super) fn linear(encoding: DeviceEncoding, io: LinearIo) -> Self {
        let mut numbers = Numbers(1);
        let Weight { data, values } = Weight::new(encoding, &mut numbers);
        let is_coded = io != LinearIo::F16;
        let x = Flow::new(is_coded, (0..T * K).map(|_| numbers.next()).collect());
        let dot = |t: usize, n: usize| -> f64 {
            (0..K)
                .map(|k| x.values[t * K + k] * values[n * K + k])
                .sum()
        };
        let y = Flow::new(is_coded, (0..T * N).map(|i| dot(i / N, i % N)).collect());

        let mut graph = Graph::new();
        let weight_type = match encoding {
            DeviceEncoding::F16 => DataType::Float16,
            _ => DataType::SFixed8,
        };
        let input = graph.flow("x", TensorKind::Input, &x, &[1, 1, T, K]);
        let weight = graph.constant("w", weight_type, &[1, 1, K, N], data, encoding.to_string());
        let output = graph.flow("y", TensorKind::Output, &y, &[1, 1, T, N]);
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
            graph.node("Conv2d", conv, &[input, weight], output);
        }
        Trial {
            graph: graph.0,
            inputs: [("x".to_string(), x.bytes())].into(),
            y,
        }
    }

    /// Some rows of a table `[N, K]`.
    pub(super) fn lookup(encoding: DeviceEncoding) -> Self {
        let ids: Vec<usize> = (0..T).map(|t| (21 * t + 5) % N).collect();
        let mut graph = Graph::new();
        let input = graph.tensor(
            "x",
            TensorKind::Input,
            DataType::Int32,
            &[1, T],
            Encoding::None,
            String::new(),
        );
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
        let mut halves = |spread: f64| -> Vec<f16> {
            (0..N * K / block)
                .map(|_| f16::from_f64(numbers.next() * spread))
                .collect()
        };
        let scales = halves(1.0 / span);
        let offsets = has_offsets.then(|| halves(1.0));
        let expected = |i: usize| {
            let offset = offsets.as_ref().map_or(0.0, |all| all[i / block].to_f64());
            f64::from(codes[i]) * scales[i / block].to_f64() + offset
        };
        let rows = ids.iter().flat_map(|&id| id * K..(id + 1) * K);
        let y = Flow::new(false, rows.map(expected).collect());

        let plus_128 = Encoding::ScaleOffset {
            scale: 1.0,
            offset: -128,
        };
        let table = StaticData {
            bytes: codes
                .iter()
                .map(|&code| (i32::from(code) + 128) as u8)
                .collect(),
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
        let grids = [
            Some(("scales", "ElementWiseMultiply", scales)),
            offsets.map(|offsets| ("offsets", "ElementWiseAdd", offsets)),
        ];
        for (name, op, grid) in grids.into_iter().flatten() {
            let table = graph.halves(name, &[N, blocks], &grid);
            let of_row = graph.f16(&format!("row_{name}"), &[1, T, blocks]);
            let of_block = graph.f16(&format!("block_{name}"), &[1, T, blocks, 1]);
            let result = graph.f16(&format!("with_{name}"), &of_blocks);
            graph.node("Gather", gather(), &[table, input], of_row);
            graph.node("Reshape", vec![], &[of_row], of_block);
            graph.node(op, vec![], &[value, of_block], result);
            value = result;
        }
        let output = graph.flow("y", TensorKind::Output, &y, &[1, T, K]);
        graph.node("Reshape", vec![], &[value], output);
        Trial {
            graph: graph.0,
            inputs: [("x".to_string(), id_bytes(&ids))].into(),
            y,
        }
    }

    fn lookup_f16(mut graph: Graph, input: TensorId, ids: &[usize]) -> Self {
        let mut numbers = Numbers(1);
        let table: Vec<f16> = (0..N * K).map(|_| f16::from_f64(numbers.next())).collect();
        let rows = ids.iter().flat_map(|&id| &table[id * K..(id + 1) * K]);
        let y = Flow::new(false, rows.map(|value| value.to_f64()).collect());
        let table = graph.halves("table", &[N, K], &table);
        let output = graph.flow("y", TensorKind::Output, &y, &[1, T, K]);
        graph.node("Gather", gather(), &[table, input], output);
        Trial {
            graph: graph.0,
            inputs: [("x".to_string(), id_bytes(ids))].into(),
            y,
        }
    }
}

fn gather() -> Vec<(&'static str, Param)> {
    vec![("axis", Param::I32(0))]
}

fn id_bytes(ids: &[usize]) -> Vec<u8> {
    ids.iter()
        .flat_map(|&id| (id as i32).to_le_bytes())
        .collect()
}

/// Writes the graph of a proof.
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

    /// An input or output of the graph.
    fn flow(&mut self, name: &str, kind: TensorKind, flow: &Flow, dims: &[usize]) -> TensorId {
        let (data_type, encoding) = (flow.data_type(), flow.encoding());
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

    fn halves(&mut self, name: &str, dims: &[usize], halves: &[f16]) -> TensorId {
        let data = StaticData {
            bytes: halves.iter().flat_map(|half| half.to_le_bytes()).collect(),
            encoding: Encoding::None,
        };
        self.constant(name, DataType::Float16, dims, data, "f16".into())
    }

    /// Adds an operator, named after its result.
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
