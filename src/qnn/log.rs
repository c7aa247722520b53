//! Collects the log lines of the vendor libraries, so that a problem can quote them.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::{Mutex, PoisonError};

/// Most lines that are kept: enough for one error, even from a verbose library.
const MAX_LINES: usize = 24;

/// The C callback has no user data, so its lines must go to a global.
static LINES: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

unsafe extern "C" {
    fn vsnprintf(
        buffer: *mut c_char,
        size: usize,
        format: *const c_char,
        arguments: *mut c_void,
    ) -> c_int;
}

/// The callback for `QnnLog_create`.
pub(super) unsafe extern "C" fn collect(
    format: *const c_char,
    _level: u32,
    _time: u64,
    arguments: *mut c_void,
) {
    let mut buffer = [0u8; 1024];
    if format.is_null() {
        return;
    }
    // SAFETY: the library passes a format and its matching `va_list`, which on x86-64 is a pointer;
    // vsnprintf ends within `buffer.len()` bytes, NUL included.
    unsafe { vsnprintf(buffer.as_mut_ptr().cast(), buffer.len(), format, arguments) };
    let Ok(text) = CStr::from_bytes_until_nul(&buffer) else {
        return;
    };
    let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    for line in text.to_string_lossy().lines() {
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        if lines.len() == MAX_LINES {
            lines.pop_front();
        }
        lines.push_back(line.to_string());
    }
}

/// Removes and returns the collected lines, without duplicates.
pub(super) fn take() -> Vec<String> {
    let mut collected = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    let mut lines: Vec<String> = Vec::new();
    for line in collected.drain(..) {
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines
}
