//! Opens the vendor libraries and finds their function tables.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char};
use std::mem::{MaybeUninit, offset_of};
use std::path::Path;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::release::{Release, how_to_get};
use super::{ffi, log};
use crate::base::{Code, Problem, Result};

/// A provider: a header and a table of functions, in the layout of the newest release.
pub(super) trait Provider: Copy {
    /// The symbol of the function that returns the list of providers.
    const SYMBOL: &'static str;
    /// Where the functions begin.
    const TABLE_AT: usize;
    /// Where its version is.
    const VERSION_AT: usize;

    /// The version of the API in a release, and the number of functions.
    fn in_release(release: &Release) -> ((u32, u32), usize);
}

impl Provider for ffi::Interface {
    const SYMBOL: &'static str = "QnnInterface_getProviders";
    const TABLE_AT: usize = offset_of!(ffi::Interface, table);
    const VERSION_AT: usize = offset_of!(ffi::Interface, core_api);

    fn in_release(release: &Release) -> ((u32, u32), usize) {
        (release.core_api, release.backend_slots)
    }
}

impl Provider for ffi::SystemInterface {
    const SYMBOL: &'static str = "QnnSystemInterface_getProviders";
    const TABLE_AT: usize = offset_of!(ffi::SystemInterface, table);
    const VERSION_AT: usize = offset_of!(ffi::SystemInterface, system_api);

    fn in_release(release: &Release) -> ((u32, u32), usize) {
        (release.system_api, release.system_slots)
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
        .help("that folder needs every shared library of the wheel onnxruntime-qnn"));
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
    Problem::new(Code::ToolMissing, message).help(how_to_get())
}

/// Opens `folder/file` and copies its provider. Functions that the release does not have are absent
/// in the copy.
pub(super) fn open<T: Provider>(folder: &Path, file: &str) -> Result<(T, &'static Release)> {
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
    // SAFETY: the list has `count > 0` pointers.
    let provider = unsafe { *list };
    if provider.is_null() {
        return Err(unusable(format!("{} has a null provider", path.display())));
    }
    // SAFETY: every provider has a version there, whatever its size.
    let found = unsafe {
        provider
            .byte_add(T::VERSION_AT)
            .cast::<ffi::Version>()
            .read()
    };
    for release in Release::all() {
        let (api, slots) = T::in_release(release);
        if api == (found.major, found.minor) {
            // SAFETY: the provider has the functions of its release.
            return Ok((unsafe { copy(provider, slots) }, release));
        }
    }
    Err(unusable(format!(
        "{} has the API {}.{}, whose layouts kiln does not know",
        path.display(),
        found.major,
        found.minor
    )))
}

/// A copy of a provider with `slots` functions.
///
/// # Safety
/// `provider` points to the header of a `T` and as many functions.
unsafe fn copy<T: Provider>(provider: *const T, slots: usize) -> T {
    let size = (T::TABLE_AT + slots * size_of::<usize>()).min(size_of::<T>());
    let mut copy = MaybeUninit::<T>::zeroed();
    // SAFETY: both have `size` bytes. Each field of a `T` may be zero: an absent function, a null
    // pointer or a number.
    unsafe {
        std::ptr::copy_nonoverlapping(provider.cast::<u8>(), copy.as_mut_ptr().cast(), size);
        copy.assume_init()
    }
}

/// A function that the table must have.
pub(super) fn slot<F>(function: Option<F>, name: &str) -> Result<F> {
    match function {
        Some(function) => Ok(function),
        None => Err(Problem::new(
            Code::QnnNoFunction,
            format!("this release of QNN does not have {name}"),
        )
        .help(how_to_get())),
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
