//! The C ABI of QNN in the x86-64 libraries of the releases in [`super::release`].
//!
//! Layouts follow the public headers (`qualcomm/geniex-qairt-plugin`, `qnn-api/include`) and were
//! checked by running the libraries. The constants at the end check sizes and offsets at compile
//! time. Every C enum is four bytes, every handle a pointer. The libraries may read every byte of a
//! union, so bytes that are not set must be zero.

#![allow(missing_docs)]

use std::ffi::{c_char, c_void};

macro_rules! layout {
    ($($type:ty = $size:literal { $($field:ident @ $offset:literal),* })*) => {
        $(const _: () = {
            assert!(size_of::<$type>() == $size);
            $(assert!(std::mem::offset_of!($type, $field) == $offset);)*
        };)*
    };
}

mod encodings;

pub(super) use encodings::*;

/// Any `Qnn_*Handle_t`.
pub(super) type Handle = *mut c_void;
/// `Qnn_ErrorHandle_t`: zero is success; the error code is in the low 16 bits.
pub(super) type Error = u64;

/// `QNN_TENSOR_VERSION_2`, `QNN_OPCONFIG_VERSION_1`, ...
pub(super) const V1: u32 = 1;
pub(super) const V2: u32 = 2;

pub(super) const TENSOR_APP_WRITE: u32 = 0;
pub(super) const TENSOR_APP_READ: u32 = 1;
pub(super) const TENSOR_NATIVE: u32 = 3;
pub(super) const TENSOR_STATIC: u32 = 4;

pub(super) const PARAM_SCALAR: u32 = 0;
pub(super) const PARAM_TENSOR: u32 = 1;

pub(super) const LOG_ERROR: u32 = 1;

/// `CUSTOM` in the configurations of contexts, graphs and devices alike.
pub(super) const CONFIG_CUSTOM: u32 = 0;
/// `QnnHtpDevice_ConfigOption_t`.
pub(super) const HTP_DEVICE_SOC: u32 = 0;
/// `QnnHtpContext_ConfigOption_t`.
pub(super) const HTP_CONTEXT_WEIGHT_SHARING: u32 = 1;
/// `QnnHtpGraph_ConfigOption_t`.
pub(super) const HTP_GRAPH_OPTIMIZATION: u32 = 1;
pub(super) const HTP_GRAPH_PRECISION: u32 = 2;
pub(super) const HTP_GRAPH_VTCM_MB: u32 = 3;
pub(super) const HTP_GRAPH_FINALIZE_CONFIG: u32 = 7;
/// `QnnHtpGraph_OptimizationType_t`: the effort of finalization.
pub(super) const HTP_FINALIZE_OPTIMIZATION: u32 = 3;
/// `Qnn_Precision_t`.
pub(super) const PRECISION_FLOAT16: u32 = 1;
/// `QnnProfile_Level_t`: figures of a graph, or also names of its operations.
pub(super) const PROFILE_BASIC: u32 = 1;
pub(super) const PROFILE_DETAILED: u32 = 2;
/// `QnnIrGraph_ConfigOption_t`, and its flat-buffer format.
pub(super) const IR_GRAPH_SERIALIZATION: u32 = 1;
pub(super) const IR_FLAT_BUFFER: u32 = 1;

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ClientBuffer {
    pub data: *mut c_void,
    pub data_size: u32,
}

/// `Qnn_TensorV2_t`; `Qnn_TensorV1_t` is its beginning, up to `client_buf`.
#[repr(C)]
pub(super) struct TensorBody {
    pub id: u32,
    pub name: *const c_char,
    pub kind: u32,
    pub data_format: u32,
    pub data_type: u32,
    pub quantize: QuantizeParams,
    pub rank: u32,
    pub dims: *mut u32,
    pub mem_type: u32,
    pub client_buf: ClientBuffer,
    pub is_dynamic_dims: *mut u8,
    /// Layout, then its numbers; layout 0 would mean a sparse tensor.
    pub sparse: [u32; 3],
    pub is_produced: u8,
}

#[repr(C)]
pub(super) struct Tensor {
    pub version: u32,
    pub body: TensorBody,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Scalar {
    pub data_type: u32,
    /// A union of scalars up to 64 bits and a string.
    pub of: u64,
}

#[repr(C)]
pub(super) union ParamUnion {
    pub scalar: Scalar,
    pub tensor: std::mem::ManuallyDrop<Tensor>,
}

#[repr(C)]
pub(super) struct Param {
    pub kind: u32,
    pub name: *const c_char,
    pub of: ParamUnion,
}

/// `Qnn_OpConfig_t` in version 1; the API takes it by value.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct OpConfig {
    pub version: u32,
    pub name: *const c_char,
    pub package: *const c_char,
    pub type_name: *const c_char,
    pub param_count: u32,
    pub params: *mut Param,
    pub input_count: u32,
    pub inputs: *mut Tensor,
    pub output_count: u32,
    pub outputs: *mut Tensor,
}

/// `QnnGraph_Config_t`, `QnnContext_Config_t`, `QnnDevice_Config_t`: one layout.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Config {
    pub option: u32,
    pub custom: *const c_void,
}

/// `QnnHtpDevice_CustomConfig_t`. Its union begins at 8, in QNN 2.49 at 4. Each release ignores the
/// other place.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct HtpDeviceConfig {
    pub option: u32,
    pub soc_model_at_4: u32,
    pub soc_model: u32,
    pub rest: [u32; 3],
}

/// `QnnHtpGraph_CustomConfig_t`, `QnnHtpContext_CustomConfig_t`: an option and a union at 8.
#[repr(C, align(8))]
#[derive(Clone, Copy, Default)]
pub(super) struct HtpConfig {
    pub option: u32,
    pub padding: u32,
    pub values: [u32; 12],
}

/// `QnnIrGraph_CustomConfig_t`. The path is read again when the graph is finalized.
#[repr(C)]
pub(super) struct IrGraphConfig {
    pub option: u32,
    pub padding: u32,
    pub serialization: u32,
    pub output_path: *const c_char,
}

/// `QnnSystemDlc_GraphConfigInfo_t` in version 1.
#[repr(C)]
pub(super) struct DlcGraphConfig {
    pub version: u32,
    pub graph_name: *const c_char,
    pub configs: *const *const Config,
    pub config_count: u32,
}

/// The part that all versions of `QnnSystemContext_GraphInfo_t` share, and
/// `QnnSystemDlc_ComposableGraphInfo_t`.
#[repr(C)]
pub(super) struct GraphInfo {
    pub version: u32,
    pub name: *const c_char,
    pub input_count: u32,
    pub inputs: *const Tensor,
    pub output_count: u32,
    pub outputs: *const Tensor,
}

/// `QnnSystemContext_GraphInfo_t` in version 3, which has the size of an element of an array of any
/// version.
#[repr(C)]
pub(super) struct GraphInfoV3 {
    pub info: GraphInfo,
    pub updateable_count: u32,
    pub updateable: *const Tensor,
    pub blob_size: u32,
    pub blob: *const GraphBlob,
    pub ops: [u32; 2],
}

/// The beginning of `QnnHtpSystemContext_GraphBlobInfo_t` in version 1.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct GraphBlob {
    pub version: u32,
    pub spill_fill_bytes: u64,
    pub vtcm_bytes: u32,
}

/// `QnnHtpSystemContext_HwBlobInfo_t` in version 1: the metadata of a context binary.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ContextMetadata {
    pub version: u32,
    pub arch: u32,
}

/// `QnnSystemContext_BinaryInfo_t` in version 3.
#[repr(C)]
pub(super) struct BinaryInfo {
    pub version: u32,
    pub padding: u32,
    pub backend_id: u32,
    pub build_id: *const c_char,
    pub core_api: Version,
    pub backend_api: Version,
    pub soc_version: *const c_char,
    pub blob_version: Version,
    pub blob_size: u64,
    pub context_tensor_count: u32,
    pub context_tensors: *const Tensor,
    pub graph_count: u32,
    pub graphs: *const GraphInfo,
    pub platform: *const c_void,
    pub metadata_size: u32,
    pub metadata: *const c_void,
    pub soc_model: u32,
}

/// `QnnProfile_EventId_t`.
pub(super) type EventId = u64;

/// `QnnProfile_EventData_t`.
#[repr(C)]
pub(super) struct EventData {
    pub kind: u32,
    pub unit: u32,
    pub value: u64,
    pub name: *const c_char,
}

/// Returns a list of events that belong to the profile.
pub(super) type ProfileEvents<T> = unsafe extern "C" fn(T, *mut *const EventId, *mut u32) -> Error;

/// `QnnLog_Callback_t`: format, level, time stamp and a `va_list`, which x86-64 passes as a
/// pointer.
pub(super) type LogCallback = unsafe extern "C" fn(*const c_char, u32, u64, *mut c_void);

/// A function slot that kiln does not call.
type Slot = *const c_void;

/// `QnnInterface_getProviders`, `QnnSystemInterface_getProviders`.
pub(super) type GetProviders<T> = unsafe extern "C" fn(*mut *const *const T, *mut u32) -> Error;

/// `QnnInterface_t`. libQnnSystem takes it by value, so that its size is part of the ABI.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Interface {
    pub backend_id: u32,
    pub provider: *const c_char,
    pub core_api: Version,
    pub backend_api: Version,
    pub table: Table,
}

/// The functions in [`Interface`].
pub(super) const INTERFACE_SLOTS: usize = size_of::<Table>() / size_of::<Slot>();

/// [`Interface`] with 72 functions, as QNN 2.47, 2.48 and 2.49 have it.
#[repr(C)]
pub(super) struct Interface72([u64; 77]);

/// The functions of a backend.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Table {
    _0: Slot,
    pub backend_create:
        Option<unsafe extern "C" fn(Handle, *const *const Config, *mut Handle) -> Error>,
    _2: [Slot; 2],
    pub backend_build_id: Option<unsafe extern "C" fn(*mut *const c_char) -> Error>,
    _5: [Slot; 2],
    pub validate_op: Option<unsafe extern "C" fn(Handle, OpConfig) -> Error>,
    pub backend_free: Option<unsafe extern "C" fn(Handle) -> Error>,
    pub context_create:
        Option<unsafe extern "C" fn(Handle, Handle, *const *const Config, *mut Handle) -> Error>,
    _10: Slot,
    pub context_binary_size: Option<unsafe extern "C" fn(Handle, *mut u64) -> Error>,
    pub context_binary: Option<unsafe extern "C" fn(Handle, *mut c_void, u64, *mut u64) -> Error>,
    pub context_from_binary: Option<ContextFromBinary>,
    pub context_free: Option<unsafe extern "C" fn(Handle, Handle) -> Error>,
    pub graph_create: Option<
        unsafe extern "C" fn(Handle, *const c_char, *const *const Config, *mut Handle) -> Error,
    >,
    _16: [Slot; 2],
    pub graph_add_node: Option<unsafe extern "C" fn(Handle, OpConfig) -> Error>,
    pub graph_finalize: Option<unsafe extern "C" fn(Handle, Handle, Handle) -> Error>,
    pub graph_retrieve: Option<unsafe extern "C" fn(Handle, *const c_char, *mut Handle) -> Error>,
    pub graph_execute: Option<GraphExecute>,
    _22: [Slot; 2],
    pub graph_tensor: Option<unsafe extern "C" fn(Handle, *mut Tensor) -> Error>,
    pub log_create: Option<unsafe extern "C" fn(Option<LogCallback>, u32, *mut Handle) -> Error>,
    _26: Slot,
    pub log_free: Option<unsafe extern "C" fn(Handle) -> Error>,
    pub profile_create: Option<unsafe extern "C" fn(Handle, u32, *mut Handle) -> Error>,
    _29: Slot,
    pub profile_events: Option<ProfileEvents<Handle>>,
    pub profile_sub_events: Option<ProfileEvents<EventId>>,
    pub profile_event_data: Option<unsafe extern "C" fn(EventId, *mut EventData) -> Error>,
    _33: Slot,
    pub profile_free: Option<unsafe extern "C" fn(Handle) -> Error>,
    _35: [Slot; 5],
    pub device_create:
        Option<unsafe extern "C" fn(Handle, *const *const Config, *mut Handle) -> Error>,
    _41: [Slot; 2],
    pub device_free: Option<unsafe extern "C" fn(Handle) -> Error>,
    _44: [Slot; 4],
    pub error_message: Option<unsafe extern "C" fn(Error, *mut *const c_char) -> Error>,
    _49: [Slot; 22],
    pub context_add_to_dlc: Option<unsafe extern "C" fn(Handle, Handle) -> Error>,
    _72: [Slot; 3],
}

type ContextFromBinary = unsafe extern "C" fn(
    Handle,
    Handle,
    *const *const Config,
    *const c_void,
    u64,
    *mut Handle,
    Handle,
) -> Error;
type GraphExecute =
    unsafe extern "C" fn(Handle, *const Tensor, u32, *mut Tensor, u32, Handle, Handle) -> Error;

/// `QnnSystemInterface_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct SystemInterface {
    pub backend_id: u32,
    pub provider: *const c_char,
    pub system_api: Version,
    pub table: SystemTable,
}

/// The functions of libQnnSystem, up to the last that kiln calls.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct SystemTable {
    pub context_create: Option<unsafe extern "C" fn(*mut Handle) -> Error>,
    _1: Slot,
    /// Unlike `systemContextGetBinaryInfo`, it promises not to write to the buffer.
    pub context_metadata:
        Option<unsafe extern "C" fn(Handle, *const c_void, u64, *mut *const BinaryInfo) -> Error>,
    pub context_free: Option<unsafe extern "C" fn(Handle) -> Error>,
    _4: Slot,
    pub log_create: Option<unsafe extern "C" fn(Option<LogCallback>, u32, *mut Handle) -> Error>,
    _6: Slot,
    pub log_free: Option<unsafe extern "C" fn(Handle) -> Error>,
    pub dlc_open: Option<unsafe extern "C" fn(Handle, *const c_char, *mut Handle) -> Error>,
    _9: Slot,
    pub dlc_compose: Option<DlcCompose<Interface>>,
    _11: Slot,
    pub dlc_free: Option<unsafe extern "C" fn(Handle) -> Error>,
    _13: [Slot; 11],
    pub dlc_binary_size: Option<unsafe extern "C" fn(Handle, *mut u64) -> Error>,
    pub dlc_binary: Option<unsafe extern "C" fn(Handle, *mut c_void, u64, *mut u64) -> Error>,
    pub dlc_create: Option<unsafe extern "C" fn(Handle, *const c_char, *mut Handle) -> Error>,
    pub dlc_graphs: Option<DlcHandles>,
    pub dlc_contexts: Option<DlcHandles>,
    pub dlc_graph_info: Option<unsafe extern "C" fn(Handle, *mut *const GraphInfo) -> Error>,
    pub dlc_context_info: Option<unsafe extern "C" fn(Handle, *mut *const BinaryInfo) -> Error>,
}

/// Returns a list of handles that belong to the DLC.
pub(super) type DlcHandles = unsafe extern "C" fn(Handle, *mut *const Handle, *mut u32) -> Error;
/// `I` is the table of a backend's functions.
pub(super) type DlcCompose<I> = unsafe extern "C" fn(
    Handle,
    *const *const DlcGraphConfig,
    u32,
    Handle,
    Handle,
    I,
    u32,
    *mut *const GraphInfo,
    *mut u32,
) -> Error;

layout! {
    Version = 12 { minor @ 4 }
    Scalar = 16 { of @ 8 }
    ClientBuffer = 16 { data_size @ 8 }
    TensorBody = 136 { name @ 8, kind @ 16, data_format @ 20, data_type @ 24, quantize @ 32, rank @ 72, dims @ 80, mem_type @ 88,
        client_buf @ 96, is_dynamic_dims @ 112, sparse @ 120, is_produced @ 132 }
    Tensor = 144 { body @ 8 }
    Param = 160 { name @ 8, of @ 16 }
    OpConfig = 80 { name @ 8, package @ 16, type_name @ 24, param_count @ 32, params @ 40, input_count @ 48,
        inputs @ 56, output_count @ 64, outputs @ 72 }
    Config = 16 { custom @ 8 }
    HtpDeviceConfig = 24 { soc_model_at_4 @ 4, soc_model @ 8 }
    HtpConfig = 56 { values @ 8 }
    IrGraphConfig = 24 { serialization @ 8, output_path @ 16 }
    DlcGraphConfig = 32 { graph_name @ 8, configs @ 16, config_count @ 24 }
    GraphInfo = 48 { name @ 8, input_count @ 16, inputs @ 24, output_count @ 32, outputs @ 40 }
    GraphInfoV3 = 88 { updateable_count @ 48, updateable @ 56, blob_size @ 64, blob @ 72, ops @ 80 }
    ContextMetadata = 8 { arch @ 4 }
    GraphBlob = 24 { spill_fill_bytes @ 8, vtcm_bytes @ 16 }
    BinaryInfo = 144 { backend_id @ 8, build_id @ 16, core_api @ 24, backend_api @ 36, soc_version @ 48,
        blob_version @ 56, blob_size @ 72, context_tensor_count @ 80, context_tensors @ 88, graph_count @ 96,
        graphs @ 104, platform @ 112, metadata_size @ 120, metadata @ 128, soc_model @ 136 }
    EventData = 24 { unit @ 4, value @ 8, name @ 16 }
    Interface72 = 616 {}
    Interface = 640 { provider @ 8, core_api @ 16, backend_api @ 28, table @ 40 }
    Table = 600 { validate_op @ 56, context_from_binary @ 104, graph_execute @ 168, graph_tensor @ 192,
        profile_create @ 224, profile_events @ 240, profile_event_data @ 256, profile_free @ 272, device_create @ 320, error_message @ 384, context_add_to_dlc @ 568 }
    SystemInterface = 280 { provider @ 8, system_api @ 16, table @ 32 }
    SystemTable = 248 { dlc_open @ 64, dlc_compose @ 80, dlc_binary_size @ 192, dlc_context_info @ 240 }
}

impl Tensor {
    /// A dense raw tensor in version 2 with nothing set.
    pub(super) fn empty() -> Self {
        use std::ptr::null_mut;
        let body = TensorBody {
            id: 0,
            name: std::ptr::null(),
            kind: TENSOR_NATIVE,
            data_format: 0,
            data_type: UNDEFINED,
            quantize: QuantizeParams::scale_offset(None),
            rank: 0,
            dims: null_mut(),
            mem_type: 0,
            client_buf: ClientBuffer {
                data: null_mut(),
                data_size: 0,
            },
            is_dynamic_dims: null_mut(),
            sparse: [UNDEFINED, 0, 0],
            is_produced: 0,
        };
        Tensor { version: V2, body }
    }
}
