//! Plays a [`DeviceGraph`] to a backend: tensors, validated nodes, finalization.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::null_mut;

use super::context::{Context, custom, list};
use super::ir::{
    DataType, DeviceGraph, Encoding, Node, Param, StaticData, Tensor, TensorId, TensorKind,
};
use super::library::{c_string, check, given, slot};
use super::quantize::{Held, Quantize};
use super::tensors::{GraphInfo, TensorInfo, type_name};
use super::{ffi, log};
use crate::base::{Code, Context as _, Problem, Result};

/// The package of every operation.
const PACKAGE: &std::ffi::CStr = c"qti.aisw";

/// What the HTP's compiler is told about a graph; all of it changes bytes.
#[derive(Clone, Copy, Debug)]
pub struct HtpGraph {
    /// Effort of finalization, 1 to 3.
    pub optimization: u32,
    /// Tightly coupled memory, in MiB; 0 means all that the chip has.
    pub vtcm_mb: u32,
}

/// What the backend is told about a graph.
pub enum GraphOptions {
    /// Compile for the HTP, with fp16 arithmetic.
    Htp(HtpGraph),
    /// Serialize as a DLC into this file.
    Ir(CString),
}

impl GraphOptions {
    /// Serialize as a DLC into `path`.
    pub fn ir(path: &Path) -> Result<Self> {
        CString::new(path.as_os_str().as_bytes())
            .map(GraphOptions::Ir)
            .context(Code::QnnName, || {
                format!("name {} to a library", path.display())
            })
    }

    /// The structs that the API takes; valid while `self` is.
    pub(super) fn raw(&self) -> RawOptions {
        match self {
            GraphOptions::Htp(HtpGraph {
                optimization,
                vtcm_mb,
            }) => {
                let option = |option, values: &[u32]| {
                    let mut config = ffi::HtpConfig {
                        option,
                        ..Default::default()
                    };
                    config.values[..values.len()].copy_from_slice(values);
                    config
                };
                let level = [
                    ffi::HTP_FINALIZE_OPTIMIZATION,
                    (*optimization as f32).to_bits(),
                ];
                RawOptions::Htp([
                    option(ffi::HTP_GRAPH_PRECISION, &[ffi::PRECISION_FLOAT16]),
                    option(ffi::HTP_GRAPH_OPTIMIZATION, &level),
                    option(ffi::HTP_GRAPH_VTCM_MB, &[*vtcm_mb]),
                ])
            }
            GraphOptions::Ir(path) => RawOptions::Ir(ffi::IrGraphConfig {
                option: ffi::IR_GRAPH_SERIALIZATION,
                padding: 0,
                serialization: ffi::IR_FLAT_BUFFER,
                output_path: path.as_ptr(),
            }),
        }
    }
}

pub(super) enum RawOptions {
    Htp([ffi::HtpConfig; 3]),
    Ir(ffi::IrGraphConfig),
}

impl RawOptions {
    pub(super) fn configs(&self) -> Vec<ffi::Config> {
        match self {
            RawOptions::Htp(options) => options.iter().map(custom).collect(),
            RawOptions::Ir(options) => vec![custom(options)],
        }
    }
}

/// So many refused operations of a kind are named.
const NAMED: usize = 4;

impl Context {
    /// Creates, fills and finalizes `graph`; gives its signature, ready to execute.
    /// With the HTP every operation is first put to the backend's own validation.
    pub fn build(&self, graph: &DeviceGraph, options: &GraphOptions) -> Result<GraphInfo> {
        let create = slot(self.backend.interface.table.graph_create, "graphCreate")?;
        let name = c_string(&graph.name)?;
        let raw = options.raw();
        let configs = raw.configs();
        let mut handle = null_mut();
        // SAFETY: the lists outlive the call, and `options` with its path outlives the finalization
        // below.
        let code = unsafe {
            create(
                self.handle,
                name.as_ptr(),
                list(&configs).as_ptr(),
                &mut handle,
            )
        };
        check(code, || format!("create graph `{}`", graph.name))?;
        // libQnnHtp complains at each graphCreate of options that nobody set; a refusal need not
        // quote that.
        log::take();
        let validate = matches!(options, GraphOptions::Htp(_));
        let mut player = Player {
            context: self,
            graph,
            handle: given(handle, "graph")?,
            validate,
            tensors: graph.tensors.iter().map(|_| None).collect(),
        };
        let info = player.play()?;
        self.finalize(handle, &graph.name)?;
        Ok(info)
    }

    /// The graph called `name`.
    pub(super) fn retrieve(&self, name: &str) -> Result<ffi::Handle> {
        let retrieve = slot(self.backend.interface.table.graph_retrieve, "graphRetrieve")?;
        let c_name = c_string(name)?;
        let mut handle = null_mut();
        check(
            // SAFETY: the context is alive, the name a C string.
            unsafe { retrieve(self.handle, c_name.as_ptr(), &mut handle) },
            || format!("find graph `{name}`"),
        )?;
        given(handle, "graph")
    }

    /// Compiles (HTP) or writes (IR) `graph`.
    pub(super) fn finalize(&self, graph: ffi::Handle, name: &str) -> Result<()> {
        let finalize = slot(self.backend.interface.table.graph_finalize, "graphFinalize")?;
        // SAFETY: the graph is one of this context; no profile, no signal.
        check(unsafe { finalize(graph, null_mut(), null_mut()) }, || {
            format!("finalize graph `{name}`")
        })
    }
}

/// A tensor as the API takes it, with all that it points to.
struct Live {
    raw: ffi::Tensor,
    _name: CString,
    _dims: Vec<u32>,
    _data: Option<StaticData>,
    _held: Held,
}

impl Live {
    fn new(
        name: &str,
        kind: u32,
        data_type: DataType,
        dims: &[u32],
        encoding: &Encoding,
    ) -> Result<Self> {
        let (name, mut dims) = (c_string(name)?, dims.to_vec());
        let mut raw = ffi::Tensor::empty();
        raw.body.name = name.as_ptr();
        raw.body.kind = kind;
        raw.body.data_type = data_type as u32;
        raw.body.rank = dims.len() as u32;
        raw.body.dims = dims.as_mut_ptr();
        if let Encoding::ScaleOffset { scale, offset } = *encoding {
            raw.body.quantize = ffi::QuantizeParams::scale_offset(Some((scale, offset)));
        }
        Ok(Live {
            raw,
            _name: name,
            _dims: dims,
            _data: None,
            _held: Held::default(),
        })
    }

    fn constant(
        name: &str,
        data_type: DataType,
        dims: &[u32],
        mut data: StaticData,
    ) -> Result<Self> {
        let mut live = Live::new(name, ffi::TENSOR_STATIC, data_type, dims, &data.encoding)?;
        let count: Option<u64> = dims.iter().try_fold(data_type.size_bytes(), |size, &dim| {
            size.checked_mul(dim.into())
        });
        if count != Some(data.bytes.len() as u64) || data.bytes.len() > u32::MAX as usize {
            return Err(Problem::new(
                Code::QnnStaticData,
                format!(
                    "static tensor `{name}` of shape {dims:?} has {} bytes of data",
                    data.bytes.len()
                ),
            )
            .help("a static tensor holds exactly its elements, and less than 4 GiB"));
        }
        // It points into `data.encoding`, which moves into `live` without its vectors moving.
        let quantize = Quantize::new(name, dims, &data.encoding)?;
        (live.raw.body.quantize, live._held) = (quantize.params, quantize.held);
        live.raw.body.client_buf = ffi::ClientBuffer {
            data: data.bytes.as_mut_ptr().cast(),
            data_size: data.bytes.len() as u32,
        };
        live._data = Some(data);
        Ok(live)
    }

    /// A second struct that points to the same things.
    fn raw(&self) -> ffi::Tensor {
        // SAFETY: the struct is plain data; what it points to belongs to `self` and is never freed
        // through it.
        unsafe { std::ptr::read(&self.raw) }
    }
}

struct Player<'a> {
    context: &'a Context,
    graph: &'a DeviceGraph,
    handle: ffi::Handle,
    validate: bool,
    /// Every tensor made so far that some node still needs.
    tensors: Vec<Option<Live>>,
}

impl Player<'_> {
    fn play(&mut self) -> Result<GraphInfo> {
        let mut info = GraphInfo {
            name: self.graph.name.clone(),
            inputs: vec![],
            outputs: vec![],
        };
        for (index, tensor) in self.graph.tensors.iter().enumerate() {
            let kind = match tensor.kind {
                TensorKind::Input => ffi::TENSOR_APP_WRITE,
                TensorKind::Output => ffi::TENSOR_APP_READ,
                TensorKind::Native => ffi::TENSOR_NATIVE,
                TensorKind::Static(_) => continue,
            };
            let mut live = Live::new(
                &tensor.name,
                kind,
                tensor.data_type,
                &tensor.dims,
                &tensor.encoding,
            )?;
            self.create(&mut live, &tensor.name)?;
            match tensor.kind {
                TensorKind::Input => info.inputs.push(signature(tensor, live.raw.body.id)),
                TensorKind::Output => info.outputs.push(signature(tensor, live.raw.body.id)),
                _ => {}
            }
            self.tensors[index] = Some(live);
        }
        info.inputs.sort_by(|a, b| a.name.cmp(&b.name));
        info.outputs.sort_by(|a, b| a.name.cmp(&b.name));

        // Static data is made at its first use and dropped after its last: a whole model never lies
        // here twice.
        let mut last_use = vec![0; self.graph.tensors.len()];
        for (index, node) in self.graph.nodes.iter().enumerate() {
            for input in &node.inputs {
                *last_use
                    .get_mut(input.0 as usize)
                    .ok_or_else(|| unknown_tensor(node, *input))? = index;
            }
        }
        // After a refusal the others are only asked about, so that all that are refused are told at
        // once.
        let mut refusals: Vec<(&Node, Problem)> = vec![];
        for (index, node) in self.graph.nodes.iter().enumerate() {
            match self.add(node, refusals.is_empty()) {
                Err(problem) if self.validate && problem.code == Code::QnnOpRefused => {
                    refusals.push((node, problem))
                }
                other => other?,
            }
            for &TensorId(input) in &node.inputs {
                let is_static = matches!(
                    self.graph.tensors[input as usize].kind,
                    TensorKind::Static(_)
                );
                if is_static && last_use[input as usize] == index {
                    self.tensors[input as usize] = None;
                }
            }
        }
        match told(refusals, self.graph.nodes.len()) {
            Some(problem) => Err(problem),
            None => Ok(info),
        }
    }

    fn create(&self, live: &mut Live, name: &str) -> Result<()> {
        let create = slot(
            self.context.backend.interface.table.graph_tensor,
            "tensorCreateGraphTensor",
        )?;
        // SAFETY: the tensor points to live data of the stated sizes; the library copies it and
        // writes the id.
        check(unsafe { create(self.handle, &mut live.raw) }, || {
            format!("create tensor `{name}`")
        })
    }

    /// The raw tensor `id`, made first if it is static and new.
    fn tensor(&mut self, node: &Node, id: TensorId) -> Result<ffi::Tensor> {
        let index = id.0 as usize;
        let tensor = self
            .graph
            .tensors
            .get(index)
            .ok_or_else(|| unknown_tensor(node, id))?;
        if self.tensors[index].is_none() {
            let TensorKind::Static(source) = &tensor.kind else {
                return Err(unknown_tensor(node, id));
            };
            let mut live = Live::constant(&tensor.name, tensor.data_type, &tensor.dims, source()?)?;
            self.create(&mut live, &tensor.name)?;
            self.tensors[index] = Some(live);
        }
        self.tensors[index]
            .as_ref()
            .map(Live::raw)
            .ok_or_else(|| unknown_tensor(node, id))
    }

    /// Adds `node`, or has it only validated.
    fn add(&mut self, node: &Node, adds: bool) -> Result<()> {
        let (name, type_name) = (c_string(&node.name)?, c_string(node.op)?);
        let mut param_tensors = Vec::new();
        for (param, value) in &node.params {
            if let Some((data_type, dims, bytes)) = param_data(value) {
                let tensor_name = format!("{}.{param}", node.name);
                let data = StaticData {
                    bytes,
                    encoding: Encoding::None,
                };
                let mut live = Live::constant(&tensor_name, data_type, dims, data)?;
                self.create(&mut live, &tensor_name)?;
                param_tensors.push(live);
            }
        }
        let names = node
            .params
            .iter()
            .map(|(name, _)| c_string(name))
            .collect::<Result<Vec<_>>>()?;
        let mut tensors = param_tensors.iter().map(Live::raw);
        let mut params: Vec<ffi::Param> = Vec::new();
        for ((_, value), name) in node.params.iter().zip(&names) {
            let of = match scalar(value) {
                Some(scalar) => Some(ffi::ParamUnion { scalar }),
                None => tensors.next().map(|raw| ffi::ParamUnion {
                    tensor: std::mem::ManuallyDrop::new(raw),
                }),
            };
            let kind = if scalar(value).is_some() {
                ffi::PARAM_SCALAR
            } else {
                ffi::PARAM_TENSOR
            };
            params.extend(of.map(|of| ffi::Param {
                kind,
                name: name.as_ptr(),
                of,
            }));
        }
        let mut inputs = node
            .inputs
            .iter()
            .map(|&id| self.tensor(node, id))
            .collect::<Result<Vec<_>>>()?;
        let mut outputs = node
            .outputs
            .iter()
            .map(|&id| self.tensor(node, id))
            .collect::<Result<Vec<_>>>()?;
        let op = ffi::OpConfig {
            version: ffi::V1,
            name: name.as_ptr(),
            package: PACKAGE.as_ptr(),
            type_name: type_name.as_ptr(),
            param_count: params.len() as u32,
            params: if params.is_empty() {
                null_mut()
            } else {
                params.as_mut_ptr()
            },
            input_count: inputs.len() as u32,
            inputs: inputs.as_mut_ptr(),
            output_count: outputs.len() as u32,
            outputs: outputs.as_mut_ptr(),
        };
        let table = &self.context.backend.interface.table;
        if self.validate {
            let validate = slot(table.validate_op, "backendValidateOpConfig")?;
            // SAFETY: the operation and all that it points to outlive the call.
            check(unsafe { validate(self.context.backend.handle, op) }, || {
                "validate".into()
            })
            .map_err(|refusal| self.refused(node, refusal))?;
        }
        if !adds {
            return Ok(());
        }
        let add = slot(table.graph_add_node, "graphAddNode")?;
        // SAFETY: as above.
        check(unsafe { add(self.handle, op) }, || "add".into())
            .map_err(|refusal| self.refused(node, refusal))
    }

    /// Everything that is known about an operation the backend does not take.
    fn refused(&self, node: &Node, refusal: Problem) -> Problem {
        let mut text = format!(
            "the backend refuses {} `{}` of graph `{}`",
            node.op, node.name, self.graph.name
        );
        for (role, ids) in [("in", &node.inputs), ("out", &node.outputs)] {
            for tensor in ids
                .iter()
                .filter_map(|id| self.graph.tensors.get(id.0 as usize))
            {
                let kind = type_name(tensor.data_type as u32);
                // Invariant: writing to a String cannot fail.
                let _ = write!(
                    text,
                    "\n  {role} `{}` {kind} {:?}",
                    tensor.name, tensor.dims
                );
                if !tensor.note.is_empty() && tensor.note != kind {
                    let _ = write!(text, " ({})", tensor.note);
                }
            }
        }
        for (name, value) in &node.params {
            let _ = write!(text, "\n  {name} = {value:?}");
        }
        let mut problem = Problem::new(Code::QnnOpRefused, text).help(
            "override the scheme of this operation's weights in the `requant` stage (every chip \
             takes `f16`), or build for a newer SoC",
        );
        problem.causes = std::iter::once(refusal.message)
            .chain(refusal.causes)
            .collect();
        problem
    }
}

/// All refusals of a graph of `count` operations as one problem: the first in full, and all by
/// their kind.
fn told(refusals: Vec<(&Node, Problem)>, count: usize) -> Option<Problem> {
    let mut kinds: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (node, _) in &refusals {
        kinds.entry(node.op).or_default().push(&node.name);
    }
    let total = refusals.len();
    let (_, mut problem) = refusals.into_iter().next()?;
    if total > 1 {
        let _ = write!(
            problem.message,
            "\n{total} of {count} operations are refused; they would have to run on the CPU:"
        );
        for (op, names) in kinds {
            let shown = names
                .iter()
                .take(NAMED)
                .copied()
                .collect::<Vec<_>>()
                .join(", ");
            let more = names.len().saturating_sub(NAMED);
            let more = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            let _ = write!(problem.message, "\n  {} {op}: {shown}{more}", names.len());
        }
    }
    Some(problem)
}

fn signature(tensor: &Tensor, id: u32) -> TensorInfo {
    let scale_offset = match tensor.encoding {
        Encoding::ScaleOffset { scale, offset } => Some((scale, offset)),
        _ => None,
    };
    TensorInfo {
        name: tensor.name.clone(),
        type_name: type_name(tensor.data_type as u32),
        shape: tensor.dims.clone(),
        scale_offset,
        data_type: tensor.data_type as u32,
        id,
    }
}

fn unknown_tensor(node: &Node, id: TensorId) -> Problem {
    Problem::new(
        Code::QnnGraph,
        format!(
            "{} `{}` uses tensor {}, which the graph lacks",
            node.op, node.name, id.0
        ),
    )
}

fn scalar(value: &Param) -> Option<ffi::Scalar> {
    // All members lie at the beginning of the union, and x86-64 is little-endian: the low bytes of
    // `whole` are they.
    let (data_type, bits) = match *value {
        Param::U32(value) => (DataType::Uint32, value),
        Param::I32(value) => (DataType::Int32, value as u32),
        Param::F32(value) => (DataType::Float32, value.to_bits()),
        Param::Bool(value) => (DataType::Bool8, value.into()),
        Param::Uint32s(..) | Param::Int32s(..) => return None,
    };
    Some(ffi::Scalar {
        data_type: data_type as u32,
        of: bits.into(),
    })
}

fn param_data(value: &Param) -> Option<(DataType, &[u32], Vec<u8>)> {
    match value {
        Param::Uint32s(dims, values) => Some((
            DataType::Uint32,
            dims,
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        )),
        Param::Int32s(dims, values) => Some((
            DataType::Int32,
            dims,
            values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
        )),
        Param::U32(_) | Param::I32(_) | Param::F32(_) | Param::Bool(_) => None,
    }
}
