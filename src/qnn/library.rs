//! Opening the vendor libraries and calling through their tables.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char};
use std::path::Path;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::{ffi, log};
use crate::base::{Code, Problem, Result};

/// The versions whose layouts `ffi` describes; both are part of QAIRT 2.51.
const CORE_API: (u32, u32) = (2, 40);
const SYSTEM_API: (u32, u32) = (1, 15);
/// The wheel that carries them.
const KNOWN_WHEEL: &str = "onnxruntime-qnn==2.7.0 (QAIRT 2.51)";

/// A provider table of type `T`.
pub(super) trait Provider: Sized + 'static {
    /// The symbol that gives the list of providers.
    const SYMBOL: &'static str;
    /// Version found, and version known.
    fn versions(&self) -> (ffi::Version, (u32, u32));
}

impl Provider for ffi::Interface {
    const SYMBOL: &'static str = "QnnInterface_getProviders";

    fn versions(&self) -> (ffi::Version, (u32, u32)) {
        (self.core_api, CORE_API)
    }
}

impl Provider for ffi::SystemInterface {
    const SYMBOL: &'static str = "QnnSystemInterface_getProviders";

    fn versions(&self) -> (ffi::Version, (u32, u32)) {
        (self.system_api, SYSTEM_API)
    }
}

/// Opens `folder/file`. The libraries start threads and register handlers, so they are never
/// closed.
pub(super) fn load(folder: &Path, file: &str) -> Result<&'static Library> {
    let path = folder.join(file);
    if !path.is_file() {
        return Err(Problem::new(
            Code::ToolFileMissing,
            format!("there is no {}", path.display()),
        )
        .help(format!(
            "unpack {KNOWN_WHEEL} there; every shared library of the wheel must lie in that folder"
        )));
    }
    // SAFETY: loading runs the initializers of a vendor library, which is why this happens in a
    // child process. The path holds a slash, so that exactly this file is opened; its $ORIGIN
    // finds libc++ beside it.
    let library =
        unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| {
            unusable(format!("{} cannot be loaded", path.display())).because(&error)
        })?;
    Ok(Box::leak(Box::new(library)))
}

fn unusable(message: String) -> Problem {
    Problem::new(Code::ToolMissing, message).help(format!("pin {KNOWN_WHEEL} in [tools]"))
}

/// Opens `folder/file` and finds its provider table, which is `'static` because the library is
/// never closed.
pub(super) fn open<T: Provider>(folder: &Path, file: &str) -> Result<&'static T> {
    let path = folder.join(file);
    let library = load(folder, file)?;
    // SAFETY: both provider getters have this signature.
    let get_providers = unsafe { library.get::<ffi::GetProviders<T>>(T::SYMBOL) };
    let get_providers = get_providers.map_err(|error| {
        unusable(format!(
            "{} is no QNN library: it does not export {}",
            path.display(),
            T::SYMBOL
        ))
        .because(&error)
    })?;
    let (mut list, mut count) = (std::ptr::null(), 0);
    // SAFETY: the getter writes the list and its length.
    let code = unsafe { get_providers(&mut list, &mut count) };
    if code != 0 || count == 0 || list.is_null() {
        return Err(unusable(format!(
            "{} has no provider (error {})",
            path.display(),
            code & 0xFFFF
        )));
    }
    // SAFETY: the list holds `count > 0` pointers, each null or to a table that lives as long as
    // the library.
    let provider = unsafe { (*list).as_ref() };
    let provider =
        provider.ok_or_else(|| unusable(format!("{} gives a null provider", path.display())))?;
    let (found, known) = provider.versions();
    if (found.major, found.minor) != known {
        return Err(unusable(format!(
            "{} has API {}.{}; kiln knows the layouts of {}.{}",
            path.display(),
            found.major,
            found.minor,
            known.0,
            known.1
        )));
    }
    Ok(provider)
}

/// A function that the table must hold.
pub(super) fn slot<F>(function: Option<F>, name: &str) -> Result<F> {
    function.ok_or_else(|| {
        Problem::new(
            Code::QnnNoFunction,
            format!("the QNN library does not offer {name}"),
        )
    })
}

/// Turns an error code into a problem that quotes the library. `what` completes "failed to ...".
pub(super) fn check(code: ffi::Error, what: impl FnOnce() -> String) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    let code = code & 0xFFFF;
    let meaning = meaning(code).map_or(String::new(), |meaning| format!(", {meaning}"));
    let mut problem = Problem::new(
        Code::QnnRefused,
        format!("failed to {}: error {code}{meaning}", what()),
    );
    problem.causes = log::take();
    Err(problem)
}

/// The errors that people meet, from `QnnCommon.h` and its siblings.
fn meaning(code: u64) -> Option<&'static str> {
    Some(match code {
        1000 => "not supported",
        1002 => "out of memory, or the graph cannot be prepared",
        1004 => "invalid argument",
        1008 => "incompatible binary",
        1100 => "general error",
        3110 => "operation refused by validation",
        4005 => "unknown operation package",
        5000 => "invalid context argument",
        5004 => "binary of another version",
        5005 => "no context binary",
        6003 => "invalid or duplicate name",
        6004 => "invalid tensor",
        6005 => "invalid operation",
        6007 => "node not connected",
        6021 | 6022 => "finalization failed",
        7003 => "tensor name used twice",
        7004 => "invalid tensor parameter",
        14001 => "invalid device configuration",
        30001 => "invalid argument",
        30002 => "DLC operation failed",
        30010 => "malformed binary",
        _ => return None,
    })
}

/// A handle that the call really gave.
pub(super) fn given(handle: ffi::Handle, what: &str) -> Result<ffi::Handle> {
    if handle.is_null() {
        return Err(Problem::new(
            Code::QnnNull,
            format!("the QNN library gave no {what} though it reports success"),
        ));
    }
    Ok(handle)
}

/// `text` for C.
pub(super) fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| {
        Problem::new(
            Code::QnnName,
            format!("a name holds a NUL: {}", text.escape_debug()),
        )
    })
}

/// Text from C; empty for null.
///
/// # Safety
/// `text` is null or points to a NUL-terminated string that does not change meanwhile.
pub(super) unsafe fn owned(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: what the caller promises.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}
