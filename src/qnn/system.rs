//! libQnnSystem: reads context binaries and DLCs, and writes DLCs.
#![allow(unsafe_code)]

use std::ffi::{CString, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::null_mut;

use serde::Serialize;

use super::context::{Context, read_out};
use super::graph::{GraphOptions, HtpGraph};
use super::library::{c_string, check, non_null, open, owned, slot};
use super::release::Release;
use super::tensors::GraphInfo;
use super::{ffi, log};
use crate::base::{Code, Context as _, Problem, Result};

/// Most graphs or context binaries of a DLC.
const MAX_RECORDS: u32 = 4096;

/// The loaded library.
pub struct System {
    table: ffi::SystemTable,
    release: &'static Release,
    log: ffi::Handle,
}

/// The metadata of a context binary.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BinaryInfo {
    /// Version of the libraries that wrote it.
    pub build_id: String,
    /// Version of the QNN API.
    pub core_api: String,
    /// Version of the backend.
    pub backend_api: String,
    /// Version of the format.
    pub blob_version: String,
    /// `socModel` of its chip.
    pub soc_model: u32,
    /// Hexagon architecture of its chip: 75 for v75. `None` if the metadata have another layout.
    pub arch: Option<u32>,
    /// Its graphs, sorted by name.
    pub graphs: Vec<GraphInfo>,
}

impl BinaryInfo {
    /// # Safety
    /// `info` is null or one that libQnnSystem reports, valid for the call.
    unsafe fn read(info: *const ffi::BinaryInfo) -> Result<Self> {
        // SAFETY: what the caller promises.
        let Some(info) = (unsafe { info.as_ref() }) else {
            return Err(Problem::new(
                Code::QnnNull,
                "libQnnSystem returned no binary info though it reports success",
            ));
        };
        if info.version != 3 {
            return Err(Problem::new(
                Code::QnnOddAnswer,
                format!("binary info of version {}, not 3", info.version),
            ));
        }
        let text = |version: ffi::Version| {
            format!("{}.{}.{}", version.major, version.minor, version.patch)
        };
        Ok(BinaryInfo {
            // SAFETY: a C string or null.
            build_id: unsafe { owned(info.build_id) },
            core_api: text(info.core_api),
            backend_api: text(info.backend_api),
            blob_version: text(info.blob_version),
            soc_model: info.soc_model,
            // SAFETY: `metadata_size` bytes of the library, at any address, or null.
            arch: unsafe { arch(info.metadata, info.metadata_size) },
            // SAFETY: the array and its length are the library's.
            graphs: unsafe { GraphInfo::read_all(info.graphs, info.graph_count) }?,
        })
    }
}

/// The architecture in the metadata of a context binary.
///
/// # Safety
/// `metadata` is null or points to `size` bytes.
unsafe fn arch(metadata: *const c_void, size: u32) -> Option<u32> {
    if metadata.is_null() || (size as usize) < size_of::<ffi::ContextMetadata>() {
        return None;
    }
    // SAFETY: there are enough bytes.
    let metadata = unsafe { metadata.cast::<ffi::ContextMetadata>().read_unaligned() };
    (metadata.version == ffi::V1).then_some(metadata.arch)
}

impl System {
    /// Opens `folder/libQnnSystem.so`.
    pub fn open(folder: &Path) -> Result<Self> {
        let (interface, release) = open::<ffi::SystemInterface>(folder, "libQnnSystem.so")?;
        let mut system = System {
            table: interface.table,
            release,
            log: null_mut(),
        };
        let create = slot(system.table.log_create, "systemLogCreate")?;
        check(
            // SAFETY: the callback lives for ever.
            unsafe { create(Some(log::collect), ffi::LOG_ERROR, &mut system.log) },
            || "make a log".into(),
        )?;
        Ok(system)
    }

    /// Reads the metadata of a context binary.
    pub fn binary_info(&self, binary: &[u8]) -> Result<BinaryInfo> {
        let create = slot(self.table.context_create, "systemContextCreate")?;
        let metadata = slot(self.table.context_metadata, "systemContextGetMetaData")?;
        let free = slot(self.table.context_free, "systemContextFree")?;
        let mut handle = null_mut();
        // SAFETY: the call writes a handle.
        check(unsafe { create(&mut handle) }, || {
            "open a context binary".into()
        })?;
        non_null(handle, "system context")?;
        let mut info = std::ptr::null();
        // SAFETY: the call only reads `binary`; its result belongs to the handle and is copied
        // before the handle is freed.
        let code = unsafe {
            metadata(
                handle,
                binary.as_ptr().cast(),
                binary.len() as u64,
                &mut info,
            )
        };
        let result = match check(code, || "read the context binary".into()) {
            // SAFETY: null or valid until the handle is freed.
            Ok(()) => unsafe { BinaryInfo::read(info) },
            Err(problem) => Err(problem),
        };
        // SAFETY: freed once.
        unsafe { free(handle) };
        result
    }

    /// Opens the DLC at `path`.
    pub fn open_dlc(&self, path: &Path) -> Result<Dlc<'_>> {
        let open = slot(self.table.dlc_open, "systemDlcCreateFromFile")?;
        let c_path = CString::new(path.as_os_str().as_bytes()).context(Code::QnnName, || {
            format!("name {} to a library", path.display())
        })?;
        let mut dlc = Dlc {
            system: self,
            handle: null_mut(),
        };
        check(
            // SAFETY: the path is a C string.
            unsafe { open(self.log, c_path.as_ptr(), &mut dlc.handle) },
            || format!("open DLC {}", path.display()),
        )?;
        non_null(dlc.handle, "DLC")?;
        Ok(dlc)
    }

    /// A DLC with the finished binary of `context`.
    pub fn wrap(&self, context: &Context) -> Result<Vec<u8>> {
        let create = slot(self.table.dlc_create, "systemDlcCreateWithDestinationDir")?;
        let add = slot(
            context.backend.interface.table.context_add_to_dlc,
            "contextAddToDlc",
        )?;
        let get_size = slot(self.table.dlc_binary_size, "systemDlcGetBinarySize")?;
        let get = slot(self.table.dlc_binary, "systemDlcGetBinary")?;
        let mut dlc = Dlc {
            system: self,
            handle: null_mut(),
        };
        check(
            // SAFETY: no folder is non_null, so nothing is written to disk.
            unsafe { create(self.log, std::ptr::null(), &mut dlc.handle) },
            || "make a DLC".into(),
        )?;
        non_null(dlc.handle, "DLC")?;
        // SAFETY: both handles are alive.
        check(unsafe { add(context.handle, dlc.handle) }, || {
            "add the context binary to a DLC".into()
        })?;
        // SAFETY: the handle is alive; the buffer has the length that is passed.
        read_out(
            "DLC",
            |size| unsafe { get_size(dlc.handle, size) },
            |buffer, length, written| unsafe { get(dlc.handle, buffer, length, written) },
        )
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if let (Some(free), false) = (self.table.log_free, self.log.is_null()) {
            // SAFETY: freed once, after every DLC (they borrow the system).
            unsafe { free(self.log) };
        }
    }
}

/// An open DLC.
pub struct Dlc<'a> {
    system: &'a System,
    handle: ffi::Handle,
}

impl Dlc<'_> {
    /// The graphs that can be composed on a backend.
    pub fn graphs(&self) -> Result<Vec<GraphInfo>> {
        let handles = self.handles(
            self.system.table.dlc_graphs,
            "systemDlcGetComposableGraphInfoHandles",
        )?;
        let get = slot(
            self.system.table.dlc_graph_info,
            "systemDlcGetComposableGraphInfo",
        )?;
        let mut graphs = vec![];
        for &handle in handles {
            let mut info = std::ptr::null();
            // SAFETY: the handle is the library's; the answer lives as long as the DLC and is
            // copied.
            check(unsafe { get(handle, &mut info) }, || {
                "read a graph of a DLC".into()
            })?;
            // SAFETY: null or valid until the DLC is freed.
            match unsafe { info.as_ref() } {
                Some(info) if info.version == ffi::V1 => {
                    // SAFETY: as above.
                    graphs.push(unsafe { GraphInfo::read(info) }?)
                }
                _ => {
                    return Err(Problem::new(
                        Code::QnnOddAnswer,
                        "libQnnSystem describes a graph of a DLC in an unknown way",
                    ));
                }
            }
        }
        Ok(graphs)
    }

    /// The finished context binaries.
    pub fn binaries(&self) -> Result<Vec<BinaryInfo>> {
        let handles = self.handles(
            self.system.table.dlc_contexts,
            "systemDlcGetContextBinaryInfoHandles",
        )?;
        let get = slot(
            self.system.table.dlc_context_info,
            "systemDlcGetContextBinaryInfo",
        )?;
        let mut binaries = vec![];
        for &handle in handles {
            let mut info = std::ptr::null();
            // SAFETY: as in `graphs`.
            check(unsafe { get(handle, &mut info) }, || {
                "read a context binary of a DLC".into()
            })?;
            // SAFETY: null or valid until the DLC is freed.
            binaries.push(unsafe { BinaryInfo::read(info) }?);
        }
        Ok(binaries)
    }

    fn handles(&self, list: Option<ffi::DlcHandles>, name: &str) -> Result<&[ffi::Handle]> {
        let list = slot(list, name)?;
        let (mut handles, mut count) = (std::ptr::null(), 0);
        check(
            // SAFETY: the DLC is alive; the answer lives as long as it.
            unsafe { list(self.handle, &mut handles, &mut count) },
            || format!("call {name}"),
        )?;
        if count > MAX_RECORDS || (count > 0 && handles.is_null()) {
            return Err(Problem::new(
                Code::QnnOddAnswer,
                format!("{name} reports {count} records"),
            ));
        }
        Ok(if count == 0 {
            &[]
        } else {
            // SAFETY: `count` handles, not null.
            unsafe { std::slice::from_raw_parts(handles, count as usize) }
        })
    }

    /// Composes and finalizes graph `name` in `context`, on the HTP.
    pub fn compose(&self, context: &Context, name: &str, options: HtpGraph) -> Result<()> {
        let compose = slot(self.system.table.dlc_compose, "systemDlcComposeGraphs")?;
        let release = context.backend.release;
        // The size of the table of functions is that of both libraries.
        if self.system.release != release {
            let message = format!(
                "libQnnSystem is of QNN {}, libQnnHtp of {}",
                self.system.release.qnn, release.qnn
            );
            return Err(Problem::new(Code::QnnNoFunction, message)
                .help("take all libraries from one release"));
        }
        if !release.composes_dlcs {
            let message = format!("QNN {} does not compile DLCs right", release.qnn);
            return Err(Problem::new(Code::QnnNoFunction, message).help(
                "give `context-bin` the `graph` itself, or pin onnxruntime-qnn 2.5.0 (QNN 2.49) or \
                 2.7.0 (QNN 2.51)",
            ));
        }
        let c_name = c_string(name)?;
        let options = GraphOptions::Htp(options).raw();
        let configs = options.configs();
        let configs = super::context::list(&configs);
        let config = ffi::DlcGraphConfig {
            version: ffi::V1,
            graph_name: c_name.as_ptr(),
            configs: configs.as_ptr(),
            config_count: (configs.len() - 1) as u32,
        };
        let backend = &context.backend;
        // SAFETY: the configuration and what it points to outlive the call. The interface has the
        // size that it has in this release.
        let code = unsafe {
            if backend.release.backend_slots == ffi::INTERFACE_SLOTS {
                self.call_compose(compose, backend.interface, context, &config)
            } else {
                let compose: ffi::DlcCompose<ffi::Interface72> = std::mem::transmute(compose);
                let whole = &raw const backend.interface;
                self.call_compose(
                    compose,
                    whole.cast::<ffi::Interface72>().read(),
                    context,
                    &config,
                )
            }
        };
        check(code, || {
            format!("compose graph `{name}` of a DLC on the HTP")
        })?;
        context.finalize(context.retrieve(name)?, name, None)
    }

    /// Calls `systemDlcComposeGraphs`, which takes the table of functions by value.
    ///
    /// # Safety
    /// `I` is the table in the size of this release. What `config` points to is alive.
    unsafe fn call_compose<I>(
        &self,
        compose: ffi::DlcCompose<I>,
        interface: I,
        context: &Context,
        config: &ffi::DlcGraphConfig,
    ) -> ffi::Error {
        let configs = [&raw const *config];
        let (mut graphs, mut count) = (std::ptr::null(), 0);
        // SAFETY: all handles are alive and all lists outlive the call; the rest is what the caller
        // promises.
        unsafe {
            compose(
                self.handle,
                configs.as_ptr(),
                1,
                context.backend.handle,
                context.handle,
                interface,
                ffi::V1,
                &mut graphs,
                &mut count,
            )
        }
    }
}

impl Drop for Dlc<'_> {
    fn drop(&mut self) {
        if let (Some(free), false) = (self.system.table.dlc_free, self.handle.is_null()) {
            // SAFETY: freed once.
            unsafe { free(self.handle) };
        }
    }
}
