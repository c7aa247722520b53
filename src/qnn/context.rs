//! Backends with their device, and contexts of graphs.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::path::Path;
use std::ptr::null_mut;
use std::rc::Rc;

use super::library::{c_string, check, non_null, open, owned, slot};
use super::release::Release;
use super::tensors::{GraphInfo, TensorInfo};
use super::{Soc, ffi, log};
use crate::base::{Code, Problem, Result};

/// Largest context binary that kiln accepts from a library: device processes map less than 4 GB.
const MAX_BINARY_BYTES: u64 = 16 << 30;

/// An initialized libQnnHtp or libQnnIr. Freed in the order device, backend, log.
pub struct Backend {
    pub(super) interface: ffi::Interface,
    pub(super) release: &'static Release,
    log: ffi::Handle,
    pub(super) handle: ffi::Handle,
    device: ffi::Handle,
}

impl Backend {
    /// The HTP of `soc`, by `folder/libQnnHtp.so`: compiles for the chip, and simulates it.
    pub fn htp(folder: &Path, soc: Soc) -> Result<Rc<Self>> {
        let mut backend = Backend::new(folder, "libQnnHtp.so")?;
        // The architecture follows from the model; to set both is deprecated.
        let config = ffi::HtpDeviceConfig {
            option: ffi::HTP_DEVICE_SOC,
            soc_model_at_4: soc.model,
            soc_model: soc.model,
            ..Default::default()
        };
        let configs = [custom(&config)];
        let create = slot(backend.interface.table.device_create, "deviceCreate")?;
        // SAFETY: the list ends with null; it and what it points to outlive the call.
        let code = unsafe { create(backend.log, list(&configs).as_ptr(), &mut backend.device) };
        check(code, || {
            format!("make a device for {soc} (model {})", soc.model)
        })?;
        non_null(backend.device, "device")?;
        Ok(Rc::new(backend))
    }

    /// The serializer of DLCs, by `folder/libQnnIr.so`.
    pub fn ir(folder: &Path) -> Result<Rc<Self>> {
        Ok(Rc::new(Backend::new(folder, "libQnnIr.so")?))
    }

    fn new(folder: &Path, file: &str) -> Result<Self> {
        let (interface, release) = open(folder, file)?;
        let mut backend = Backend {
            interface,
            release,
            log: null_mut(),
            handle: null_mut(),
            device: null_mut(),
        };
        let log_create = slot(interface.table.log_create, "logCreate")?;
        let create = slot(interface.table.backend_create, "backendCreate")?;
        check(
            // SAFETY: the callback is a function of this library and lives for ever.
            unsafe { log_create(Some(log::collect), ffi::LOG_ERROR, &mut backend.log) },
            || "make a log".into(),
        )?;
        // SAFETY: no configuration is a null list.
        let code = unsafe { create(backend.log, std::ptr::null(), &mut backend.handle) };
        check(code, || format!("make the backend of {file}"))?;
        non_null(backend.handle, "backend")?;
        Ok(backend)
    }

    /// The library's own version: `v2.51.0.260929181845`.
    pub fn build_id(&self) -> Result<String> {
        let build_id = slot(self.interface.table.backend_build_id, "backendGetBuildId")?;
        let mut text = std::ptr::null();
        // SAFETY: the call writes a pointer to a constant string.
        check(unsafe { build_id(&mut text) }, || "get the build id".into())?;
        // SAFETY: null or a C string.
        Ok(unsafe { owned(text) })
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let table = &self.interface.table;
        let handles = [
            (table.device_free, self.device),
            (table.backend_free, self.handle),
            (table.log_free, self.log),
        ];
        for (free, handle) in handles {
            if let (Some(free), false) = (free, handle.is_null()) {
                // SAFETY: the handle came from its create function and is freed once; contexts hold
                // the backend alive.
                unsafe { free(handle) };
            }
        }
    }
}

/// A `CUSTOM` configuration that points to `custom`.
pub(super) fn custom<T>(custom: &T) -> ffi::Config {
    ffi::Config {
        option: ffi::CONFIG_CUSTOM,
        custom: (&raw const *custom).cast(),
    }
}

/// The null-terminated list of pointers that the API takes; valid while `configs` is.
pub(super) fn list(configs: &[ffi::Config]) -> Vec<*const ffi::Config> {
    let mut list = vec![];
    for config in configs {
        list.push(&raw const *config);
    }
    list.push(std::ptr::null());
    list
}

/// Graphs of one device, which may share weights.
pub struct Context {
    pub(super) backend: Rc<Backend>,
    pub(super) handle: ffi::Handle,
}

impl Context {
    /// An empty context. Only one in a process: a second one in the same process may produce other
    /// bytes (measured once).
    pub fn new(backend: &Rc<Backend>, weight_sharing: bool) -> Result<Self> {
        let create = slot(backend.interface.table.context_create, "contextCreate")?;
        let mut sharing = ffi::HtpConfig {
            option: ffi::HTP_CONTEXT_WEIGHT_SHARING,
            ..Default::default()
        };
        sharing.values[0] = 1;
        let configs = [custom(&sharing)];
        let configs = list(&configs);
        // libQnnIr refuses any list, even an empty one.
        let configs = if weight_sharing {
            configs.as_ptr()
        } else {
            std::ptr::null()
        };
        let mut context = Context {
            backend: Rc::clone(backend),
            handle: null_mut(),
        };
        // SAFETY: handles are alive; the list outlives the call.
        let code = unsafe { create(backend.handle, backend.device, configs, &mut context.handle) };
        check(code, || "make a context".into())?;
        non_null(context.handle, "context")?;
        Ok(context)
    }

    /// Loads a context binary. One with shared weights runs only on a device.
    pub fn from_binary(backend: &Rc<Backend>, binary: &[u8]) -> Result<Self> {
        let create = slot(
            backend.interface.table.context_from_binary,
            "contextCreateFromBinary",
        )?;
        let mut context = Context {
            backend: Rc::clone(backend),
            handle: null_mut(),
        };
        // SAFETY: handles are alive; the library copies what it needs from `binary`.
        let code = unsafe {
            create(
                backend.handle,
                backend.device,
                std::ptr::null(),
                binary.as_ptr().cast(),
                binary.len() as u64,
                &mut context.handle,
                null_mut(),
            )
        };
        check(code, || "load a context binary".into()).map_err(|problem| {
            problem.help(
                "the simulator cannot load shared weights: build with `weight_sharing = false` to \
                 simulate",
            )
        })?;
        non_null(context.handle, "context")?;
        Ok(context)
    }

    /// The context binary of all finalized graphs.
    pub fn binary(&self) -> Result<Vec<u8>> {
        let table = &self.backend.interface.table;
        let get_size = slot(table.context_binary_size, "contextGetBinarySize")?;
        let get = slot(table.context_binary, "contextGetBinary")?;
        // SAFETY: the handle is alive; the buffer has the length that is passed.
        read_out(
            "context binary",
            |size| unsafe { get_size(self.handle, size) },
            |buffer, length, written| unsafe { get(self.handle, buffer, length, written) },
        )
    }

    /// Runs a graph on the simulator. Inputs and outputs of `graph` are bytes, by name.
    pub fn execute(
        &self,
        graph: &GraphInfo,
        inputs: &BTreeMap<String, Vec<u8>>,
    ) -> Result<BTreeMap<String, Vec<u8>>> {
        let execute = slot(self.backend.interface.table.graph_execute, "graphExecute")?;
        for name in inputs.keys() {
            if !graph.inputs.iter().any(|input| input.name == *name) {
                return Err(invalid_binding(format!(
                    "graph `{}` has no input `{name}`",
                    graph.name
                )));
            }
        }
        let handle = self.retrieve(&graph.name)?;
        let mut bound_inputs = Vec::new();
        for info in &graph.inputs {
            let Some(bytes) = inputs.get(&info.name) else {
                return Err(invalid_binding(format!(
                    "graph `{}` lacks its input `{}`",
                    graph.name, info.name
                )));
            };
            if info.size_bytes() != Some(bytes.len() as u64) {
                return Err(invalid_binding(format!(
                    "input `{}` of graph `{}` is {} {:?}, but got {} bytes",
                    info.name,
                    graph.name,
                    info.type_name,
                    info.shape,
                    bytes.len()
                )));
            }
            bound_inputs.push(Bound::new(info, ffi::TENSOR_APP_WRITE, bytes.clone())?);
        }
        let mut bound_outputs = Vec::new();
        for info in &graph.outputs {
            let bytes = match info.size_bytes() {
                Some(size) if size <= u32::MAX.into() => vec![0; size as usize],
                _ => {
                    return Err(invalid_binding(format!(
                        "output `{}` is {} {:?}",
                        info.name, info.type_name, info.shape
                    )));
                }
            };
            bound_outputs.push(Bound::new(info, ffi::TENSOR_APP_READ, bytes)?);
        }
        let raw_inputs: Vec<ffi::Tensor> = bound_inputs.iter_mut().map(Bound::raw).collect();
        let mut raw_outputs: Vec<ffi::Tensor> = bound_outputs.iter_mut().map(Bound::raw).collect();
        // SAFETY: the tensors point into `bound_*`, which are alive and have the sizes that they
        // state.
        let code = unsafe {
            execute(
                handle,
                raw_inputs.as_ptr(),
                raw_inputs.len() as u32,
                raw_outputs.as_mut_ptr(),
                raw_outputs.len() as u32,
                null_mut(),
                null_mut(),
            )
        };
        check(code, || format!("run graph `{}`", graph.name))?;
        let mut outputs = BTreeMap::new();
        for bound in bound_outputs {
            outputs.insert(bound.info.name, bound.bytes);
        }
        Ok(outputs)
    }
}

fn invalid_binding(message: String) -> Problem {
    Problem::new(Code::QnnBinding, message)
}

impl Drop for Context {
    fn drop(&mut self) {
        if let (Some(free), false) = (
            self.backend.interface.table.context_free,
            self.handle.is_null(),
        ) {
            // SAFETY: the handle came from a create function and is freed once, before its backend.
            unsafe { free(self.handle, null_mut()) };
        }
    }
}

/// Reads `what` from the library: gets its size, allocates a buffer, and gets the bytes.
pub(super) fn read_out(
    what: &str,
    get_size: impl FnOnce(&mut u64) -> ffi::Error,
    get: impl FnOnce(*mut c_void, u64, &mut u64) -> ffi::Error,
) -> Result<Vec<u8>> {
    let (mut size, mut written) = (0, 0);
    check(get_size(&mut size), || {
        format!("get the size of the {what}")
    })?;
    if size == 0 || size > MAX_BINARY_BYTES {
        return Err(Problem::new(
            Code::QnnOddAnswer,
            format!("the library reports a {what} of {size} bytes"),
        ));
    }
    let mut buffer = vec![0u8; size as usize];
    check(get(buffer.as_mut_ptr().cast(), size, &mut written), || {
        format!("get the {what}")
    })?;
    if written > size {
        return Err(Problem::new(
            Code::QnnOddAnswer,
            format!("the library wrote {written} of {size} bytes"),
        ));
    }
    buffer.truncate(written as usize);
    Ok(buffer)
}

/// An input or output of a finalized graph, with its bytes.
struct Bound {
    info: TensorInfo,
    name: std::ffi::CString,
    kind: u32,
    bytes: Vec<u8>,
}

impl Bound {
    fn new(info: &TensorInfo, kind: u32, bytes: Vec<u8>) -> Result<Self> {
        Ok(Bound {
            info: info.clone(),
            name: c_string(&info.name)?,
            kind,
            bytes,
        })
    }

    /// The tensor as the API takes it. It points into `self`.
    fn raw(&mut self) -> ffi::Tensor {
        let mut tensor = ffi::Tensor::empty();
        let body = &mut tensor.body;
        body.id = self.info.id;
        body.name = self.name.as_ptr();
        body.kind = self.kind;
        body.data_type = self.info.data_type;
        body.quantize = ffi::QuantizeParams::scale_offset(self.info.scale_offset);
        body.rank = self.info.shape.len() as u32;
        body.dims = self.info.shape.as_mut_ptr();
        body.client_buf = ffi::ClientBuffer {
            data: self.bytes.as_mut_ptr().cast(),
            data_size: self.bytes.len() as u32,
        };
        tensor
    }
}
