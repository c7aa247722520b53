//! Opens the vendor libraries and finds their function tables.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char};
use std::path::Path;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::{ffi, log};
use crate::base::{Code, Problem, Result};

/// The versions whose layouts `ffi` describes; both are part of QAIRT 2.51.
const CORE_API: (u32, u32) = (2, 40);
const SYSTEM_API: (u32, u32) = (1, 15);
/// The wheel that contains them.
const SUPPORTED_WHEEL: &str = "onnxruntime-qnn==2.7.0 (QAIRT 2.51)";

/// A provider table of type `T`.
pub(super) trait Provider: Sized + 'static {
    /// The symbol of the function that returns the list of providers.
    const SYMBOL: &'static str;
    /// The version found, and the supported one.
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
            "unpack {SUPPORTED_WHEEL} there; that folder needs every shared library of the wheel"
        )));
    }
    // SAFETY: loading runs the initializers of a vendor library, which is why this happens in a
    // child process. The path contains a slash, so that exactly this file is opened; its $ORIGIN
    // finds libc++ beside it.
    let library =
        unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) }.map_err(|error| {
            unusable(format!("{} cannot be loaded", path.display())).because(&error)
        })?;
    Ok(Box::leak(Box::new(library)))
}

fn unusable(message: String) -> Problem {
    Problem::new(Code::ToolMissing, message).help(format!("pin {SUPPORTED_WHEEL} in [tools]"))
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
    // SAFETY: the list has `count > 0` pointers, each null or to a table that lives as long as
    // the library.
    let provider = unsafe { (*list).as_ref() };
    let Some(provider) = provider else {
        return Err(unusable(format!("{} has a null provider", path.display())));
    };
    let (found, supported) = provider.versions();
    if (found.major, found.minor) != supported {
        return Err(unusable(format!(
            "{} has API {}.{}; kiln supports the layouts of {}.{}",
            path.display(),
            found.major,
            found.minor,
            supported.0,
            supported.1
        )));
    }
    Ok(provider)
}

/// A function that the table must have.
pub(super) fn slot<F>(function: Option<F>, name: &str) -> Result<F> {
    match function {
        Some(function) => Ok(function),
        None => Err(Problem::new(
            Code::QnnNoFunction,
            format!("the QNN library does not have {name}"),
        )),
    }
}

/// Converts an error code to a problem that quotes the library. `what` completes "failed to ...".
pub(super) fn check(code: ffi::Error, what: impl FnOnce() -> String) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    let code = code & 0xFFFF;
    let mut message = format!("failed to {}: error {code}", what());
    if let Some(meaning) = error_text(code) {
        message = format!("{message}, {meaning}");
    }
    let mut problem = Problem::new(Code::QnnRefused, message);
    problem.causes = log::take();
    Err(problem)
}

/// The text of common errors, from `QnnCommon.h` and related headers.
fn error_text(code: u64) -> Option<&'static str> {
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

/// Checks the handle that a successful call returned.
pub(super) fn non_null(handle: ffi::Handle, what: &str) -> Result<ffi::Handle> {
    if handle.is_null() {
        return Err(Problem::new(
            Code::QnnNull,
            format!("the QNN library returned no {what} though it reports success"),
        ));
    }
    Ok(handle)
}

/// `text` for C.
pub(super) fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| {
        Problem::new(
            Code::QnnName,
            format!("a name contains a NUL: {}", text.escape_debug()),
        )
    })
}

/// A copy of a C string; empty for null.
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
