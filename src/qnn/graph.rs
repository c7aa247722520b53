//! Builds a [`DeviceGraph`] in a backend: creates tensors, validates and adds nodes, finalizes.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::null_mut;

use super::context::{Context, custom, list};
use super::ir::{
    DataType, DeviceGraph, Encoding, Node, Param, StaticData, Tensor, TensorId, TensorKind,
};
use super::library::{c_string, check, non_null, slot};
use super::profile::{Estimate, Profile};
use super::quantize::{Quantize, QuantizeData};
use super::tensors::{GraphInfo, TensorInfo, type_name};
use super::{Soc, ffi, log};
use crate::base::{Code, Context as _, Problem, Result};

/// The package of every operation.
const PACKAGE: &CStr = c"qti.aisw";

/// Options of the HTP's compiler for a graph. All of them change the bytes of the binary.
#[derive(Clone, Copy, Debug)]
pub struct HtpGraph {
    /// Effort of finalization, 1 to 3.
    pub optimization: u32,
    /// Tightly coupled memory, in MiB; 0 means all memory of the chip.
    pub vtcm_mb: u32,
}

impl Default for HtpGraph {
    fn default() -> Self {
        HtpGraph {
            optimization: 3,
            vtcm_mb: 0,
        }
    }
}

/// Options of a backend for a graph.
pub enum GraphOptions {
    /// Compile for the HTP, with fp16 arithmetic.
    Htp(HtpGraph),
    /// Serialize as a DLC into this file.
    Ir(CString),
}

impl GraphOptions {
    /// Serialize as a DLC into `path`.
    pub fn ir(path: &Path) -> Result<Self> {
        let path_name = CString::new(path.as_os_str().as_bytes());
        Ok(GraphOptions::Ir(
            path_name.context(Code::QnnName, || {
                format!("name {} to a library", path.display())
            })?,
        ))
    }

    /// The structs that the API takes; valid while `self` is.
    pub(super) fn raw(&self) -> RawOptions {
        match self {
            GraphOptions::Htp(HtpGraph {
                optimization,
                vtcm_mb,
            }) => {
                let level = [
                    ffi::HTP_FINALIZE_OPTIMIZATION,
                    (*optimization as f32).to_bits(),
                ];
                RawOptions::Htp([
                    htp_option(ffi::HTP_GRAPH_PRECISION, &[ffi::PRECISION_FLOAT16]),
                    htp_option(ffi::HTP_GRAPH_OPTIMIZATION, &level),
                    htp_option(ffi::HTP_GRAPH_VTCM_MB, &[*vtcm_mb]),
                    // By default 4 threads, in graphs with many constants (it begins to use them
                    // at 200 Mi). The binary then depends on which of them is first.
                    finalize_option(c"const_prop_parallel_threads", 0),
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

fn htp_option(option: u32, values: &[u32]) -> ffi::HtpConfig {
    let mut config = ffi::HtpConfig {
        option,
        ..Default::default()
    };
    config.values[..values.len()].copy_from_slice(values);
    config
}

/// A named option of finalization. Layout, as libQnnHtp.so reads it: the name, the type of the
/// value, and the value at 16.
fn finalize_option(name: &'static CStr, value: u32) -> ffi::HtpConfig {
    let address = name.as_ptr() as u64;
    let [low, high] = [address as u32, (address >> 32) as u32];
    htp_option(
        ffi::HTP_GRAPH_FINALIZE_CONFIG,
        &[low, high, DataType::Uint32 as u32, 0, value],
    )
}

pub(super) enum RawOptions {
    Htp([ffi::HtpConfig; 4]),
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

/// The step between the codes of a beta that is all zeros: any number above zero.
const BETA_STEP: f32 = 1.0 / 65536.0;

/// Most rejected operations of a kind that a message names.
const NAMED: usize = 4;

impl Context {
    /// Creates, fills and finalizes `graph`, and returns its signature. It can then be executed.
    /// With the HTP, the backend validates every operation first.
    pub fn build(&self, graph: &DeviceGraph, options: &GraphOptions) -> Result<GraphInfo> {
        self.build_profiled(graph, options, None)
    }

    /// Builds `graph` and returns the compiler's estimate of it on `soc`, the chip of the context.
    /// With `names`, it has the names of the operations without a cost.
    pub fn estimate(
        &self,
        graph: &DeviceGraph,
        options: HtpGraph,
        soc: Soc,
        names: bool,
    ) -> Result<Estimate> {
        let profile = Profile::new(&self.backend, names)?;
        self.build_profiled(graph, &GraphOptions::Htp(options), Some(&profile))?;
        profile.estimate(soc)
    }

    fn build_profiled(
        &self,
        graph: &DeviceGraph,
        options: &GraphOptions,
        profile: Option<&Profile>,
    ) -> Result<GraphInfo> {
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
        // libQnnHtp logs warnings about options that were not set at each graphCreate. Problems
        // should not quote them.
        log::take();
        let mut builder = GraphBuilder {
            context: self,
            graph,
            handle: non_null(handle, "graph")?,
            validate: matches!(options, GraphOptions::Htp(_)),
            tensors: vec![],
        };
        builder.tensors.resize_with(graph.tensors.len(), || None);
        let info = builder.build()?;
        self.finalize(handle, &graph.name, profile)?;
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
        non_null(handle, "graph")
    }

    /// Compiles (HTP) or writes (IR) `graph`. `profile` is one of the same backend.
    pub(super) fn finalize(
        &self,
        graph: ffi::Handle,
        name: &str,
        profile: Option<&Profile>,
    ) -> Result<()> {
        let finalize = slot(self.backend.interface.table.graph_finalize, "graphFinalize")?;
        let profile = match profile {
            Some(profile) => profile.handle,
            None => null_mut(),
        };
        // SAFETY: the graph is one of this context, the profile is null or alive; no signal.
        check(unsafe { finalize(graph, profile, null_mut()) }, || {
            format!("finalize graph `{name}`")
        })
    }
}

/// A tensor as the API takes it, with the data that it points to.
struct OwnedTensor {
    raw: ffi::Tensor,
    _name: CString,
    _dims: Vec<u32>,
    _data: Option<StaticData>,
    _quantize_data: QuantizeData,
}

impl OwnedTensor {
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
        Ok(OwnedTensor {
            raw,
            _name: name,
            _dims: dims,
            _data: None,
            _quantize_data: QuantizeData::default(),
        })
    }

    fn constant(
        name: &str,
        data_type: DataType,
        dims: &[u32],
        mut data: StaticData,
    ) -> Result<Self> {
        let kind = ffi::TENSOR_STATIC;
        let mut tensor = OwnedTensor::new(name, kind, data_type, dims, &data.encoding)?;
        let mut expected = u128::from(data_type.size_bytes());
        for &dim in dims {
            expected = expected.saturating_mul(dim.into());
        }
        if expected != data.bytes.len() as u128 || data.bytes.len() > u32::MAX as usize {
            return Err(Problem::new(
                Code::QnnStaticData,
                format!(
                    "static tensor `{name}` of shape {dims:?} has {} bytes of data",
                    data.bytes.len()
                ),
            )
            .help("a static tensor has exactly its elements, and less than 4 GiB"));
        }
        // It points into the vectors of `data.encoding`, which stay in place when `data` is moved.
        let quantize = Quantize::new(name, dims, &data.encoding)?;
        (tensor.raw.body.quantize, tensor._quantize_data) = (quantize.params, quantize.data);
        tensor.raw.body.client_buf = ffi::ClientBuffer {
            data: data.bytes.as_mut_ptr().cast(),
            data_size: data.bytes.len() as u32,
        };
        tensor._data = Some(data);
        Ok(tensor)
    }

    /// A copy of the struct, which points to the same data.
    fn raw(&self) -> ffi::Tensor {
        // SAFETY: the struct is plain data; what it points to belongs to `self` and is never freed
        // through it.
        unsafe { std::ptr::read(&self.raw) }
    }
}

struct GraphBuilder<'a> {
    context: &'a Context,
    graph: &'a DeviceGraph,
    handle: ffi::Handle,
    validate: bool,
    /// The created tensors that later nodes need.
    tensors: Vec<Option<OwnedTensor>>,
}

impl GraphBuilder<'_> {
    fn build(&mut self) -> Result<GraphInfo> {
        let mut info = GraphInfo {
            name: self.graph.name.clone(),
            inputs: vec![],
            outputs: vec![],
            memory: None,
        };
        for (index, tensor) in self.graph.tensors.iter().enumerate() {
            let kind = match tensor.kind {
                TensorKind::Input => ffi::TENSOR_APP_WRITE,
                TensorKind::Output => ffi::TENSOR_APP_READ,
                TensorKind::Native => ffi::TENSOR_NATIVE,
                TensorKind::Static(_) => continue,
            };
            let mut owned = OwnedTensor::new(
                &tensor.name,
                kind,
                tensor.data_type,
                &tensor.dims,
                &tensor.encoding,
            )?;
            self.create(&mut owned, &tensor.name)?;
            match tensor.kind {
                TensorKind::Input => info.inputs.push(signature(tensor, owned.raw.body.id)),
                TensorKind::Output => info.outputs.push(signature(tensor, owned.raw.body.id)),
                _ => {}
            }
            self.tensors[index] = Some(owned);
        }
        info.inputs.sort_by(|a, b| a.name.cmp(&b.name));
        info.outputs.sort_by(|a, b| a.name.cmp(&b.name));

        // Static data is created at its first use and freed after its last use, so that a model is
        // not in memory twice.
        let mut last_use = vec![0; self.graph.tensors.len()];
        for (index, node) in self.graph.nodes.iter().enumerate() {
            for input in &node.inputs {
                let Some(last_use) = last_use.get_mut(input.0 as usize) else {
                    return Err(unknown_tensor(node, *input));
                };
                *last_use = index;
            }
        }
        // After the first rejected node, the others are validated and not added, so that one
        // problem lists all rejected nodes.
        let mut rejected: Vec<(&Node, Problem)> = vec![];
        for (index, node) in self.graph.nodes.iter().enumerate() {
            match self.add(node, rejected.is_empty()) {
                Err(problem) if self.validate && problem.code == Code::QnnOpRefused => {
                    rejected.push((node, problem))
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
        match summarize(rejected, self.graph.nodes.len()) {
            Some(problem) => Err(problem),
            None => Ok(info),
        }
    }

    /// Creates a tensor in the backend, which sets its id.
    fn create(&self, tensor: &mut OwnedTensor, name: &str) -> Result<()> {
        let create = slot(
            self.context.backend.interface.table.graph_tensor,
            "tensorCreateGraphTensor",
        )?;
        // SAFETY: the tensor points to live data of the stated sizes; the library copies it and
        // writes the id.
        check(unsafe { create(self.handle, &mut tensor.raw) }, || {
            format!("create tensor `{name}`")
        })
    }

    fn constant(
        &self,
        name: &str,
        data_type: DataType,
        dims: &[u32],
        data: StaticData,
    ) -> Result<OwnedTensor> {
        let mut tensor = OwnedTensor::constant(name, data_type, dims, data)?;
        self.create(&mut tensor, name)?;
        Ok(tensor)
    }

    /// The raw tensor `id`. A static tensor is created at its first use.
    fn tensor(&mut self, node: &Node, id: TensorId) -> Result<ffi::Tensor> {
        let index = id.0 as usize;
        let Some(tensor) = self.graph.tensors.get(index) else {
            return Err(unknown_tensor(node, id));
        };
        if let Some(created) = &self.tensors[index] {
            return Ok(created.raw());
        }
        let TensorKind::Static(source) = &tensor.kind else {
            return Err(unknown_tensor(node, id));
        };
        let created = self.constant(&tensor.name, tensor.data_type, &tensor.dims, source()?)?;
        let raw = created.raw();
        self.tensors[index] = Some(created);
        Ok(raw)
    }

    fn raw_tensors(&mut self, node: &Node, ids: &[TensorId]) -> Result<Vec<ffi::Tensor>> {
        let mut tensors = vec![];
        for &id in ids {
            tensors.push(self.tensor(node, id)?);
        }
        Ok(tensors)
    }

    /// Validates `node`, and adds it if `is_added`.
    fn add(&mut self, node: &Node, is_added: bool) -> Result<()> {
        let (name, type_name) = (c_string(&node.name)?, c_string(node.op)?);
        // `params` points into the strings and tensors.
        let (mut param_names, mut param_tensors, mut params) = (vec![], vec![], vec![]);
        for (param, value) in &node.params {
            let (kind, of) = match param_data(value) {
                ParamData::Scalar(scalar) => (ffi::PARAM_SCALAR, ffi::ParamUnion { scalar }),
                ParamData::Tensor(data_type, dims, bytes) => {
                    let data = StaticData {
                        bytes,
                        encoding: Encoding::None,
                    };
                    let tensor_name = format!("{}.{param}", node.name);
                    let created = self.constant(&tensor_name, data_type, dims, data)?;
                    let tensor = std::mem::ManuallyDrop::new(created.raw());
                    param_tensors.push(created);
                    (ffi::PARAM_TENSOR, ffi::ParamUnion { tensor })
                }
            };
            let param_name = c_string(param)?;
            params.push(ffi::Param {
                kind,
                name: param_name.as_ptr(),
                of,
            });
            param_names.push(param_name);
        }
        let mut inputs = self.raw_tensors(node, &node.inputs)?;
        let beta = self.beta(node)?;
        inputs.extend(beta.iter().map(OwnedTensor::raw));
        let mut outputs = self.raw_tensors(node, &node.outputs)?;
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
            .map_err(|problem| self.rejected(node, problem))?;
        }
        if !is_added {
            return Ok(());
        }
        let add = slot(table.graph_add_node, "graphAddNode")?;
        // SAFETY: as above.
        check(unsafe { add(self.handle, op) }, || "add".into())
            .map_err(|problem| self.rejected(node, problem))
    }

    /// The `beta` of zeros that an RmsNorm without one needs in old releases.
    fn beta(&self, node: &Node) -> Result<Option<OwnedTensor>> {
        if self.context.backend.release.beta_is_optional || node.op != "RmsNorm" {
            return Ok(None);
        }
        let [_, gamma] = node.inputs[..] else {
            return Ok(None);
        };
        let gamma = self.graph.tensor(gamma);
        let elements: u64 = gamma.dims.iter().map(|&dim| u64::from(dim)).product();
        let encoding = match gamma.data_type {
            DataType::Float16 | DataType::Float32 => Encoding::None,
            _ => Encoding::ScaleOffset {
                scale: BETA_STEP,
                offset: 0,
            },
        };
        let data = StaticData {
            bytes: vec![0; (elements * gamma.data_type.size_bytes()) as usize],
            encoding,
        };
        let name = format!("{}.beta", node.name);
        let beta = self.constant(&name, gamma.data_type, &gamma.dims, data)?;
        Ok(Some(beta))
    }

    /// The problem of a node that the backend rejects, with its tensors and parameters.
    fn rejected(&self, node: &Node, cause: Problem) -> Problem {
        let mut text = format!(
            "the backend refuses {} `{}` of graph `{}`",
            node.op, node.name, self.graph.name
        );
        for (role, ids) in [("in", &node.inputs), ("out", &node.outputs)] {
            for id in ids {
                let Some(tensor) = self.graph.tensors.get(id.0 as usize) else {
                    continue;
                };
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
             with fp16 takes `f16`), or build for a newer SoC",
        );
        problem.causes.push(cause.message);
        problem.causes.extend(cause.causes);
        problem
    }
}

/// One problem for the rejected nodes of a graph of `count` nodes: the first in detail, and the
/// names of all by operation. `None` if none was rejected.
fn summarize(rejected: Vec<(&Node, Problem)>, count: usize) -> Option<Problem> {
    let mut kinds: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (node, _) in &rejected {
        kinds.entry(node.op).or_default().push(&node.name);
    }
    let total = rejected.len();
    let (_, mut problem) = rejected.into_iter().next()?;
    if total > 1 {
        let _ = write!(
            problem.message,
            "\n{total} of {count} operations are refused; they would have to run on the CPU:"
        );
        for (op, names) in kinds {
            let shown = names[..names.len().min(NAMED)].join(", ");
            let _ = write!(problem.message, "\n  {} {op}: {shown}", names.len());
            if names.len() > NAMED {
                let _ = write!(problem.message, " and {} more", names.len() - NAMED);
            }
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

/// A parameter in the form of the API.
enum ParamData<'a> {
    Scalar(ffi::Scalar),
    /// Type, dimensions and bytes.
    Tensor(DataType, &'a [u32], Vec<u8>),
}

fn param_data(value: &Param) -> ParamData<'_> {
    // All members of the union of a scalar are at its start, and x86-64 is little-endian, so that a
    // 64-bit number sets each of them.
    let (data_type, bits) = match value {
        Param::U32(value) => (DataType::Uint32, *value),
        Param::I32(value) => (DataType::Int32, *value as u32),
        Param::F32(value) => (DataType::Float32, value.to_bits()),
        Param::Bool(value) => (DataType::Bool8, (*value).into()),
        Param::Uint32s(dims, values) => {
            let mut bytes = vec![];
            for value in values {
                bytes.extend(value.to_le_bytes());
            }
            return ParamData::Tensor(DataType::Uint32, dims, bytes);
        }
        Param::Int32s(dims, values) => {
            let mut bytes = vec![];
            for value in values {
                bytes.extend(value.to_le_bytes());
            }
            return ParamData::Tensor(DataType::Int32, dims, bytes);
        }
    };
    ParamData::Scalar(ffi::Scalar {
        data_type: data_type as u32,
        of: bits.into(),
    })
}
