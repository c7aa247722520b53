//! What the vendor libraries say, kept so that a refusal can quote it.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::{Mutex, PoisonError};

/// Lines kept: enough for one refusal, however much a library chatters.
const MAX_LINES: usize = 24;

/// The C callback carries no user data, so its lines can only go to a global.
static LINES: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

unsafe extern "C" {
    fn vsnprintf(
        buffer: *mut c_char,
        size: usize,
        format: *const c_char,
        arguments: *mut c_void,
    ) -> c_int;
}

/// The callback given to `QnnLog_create`.
pub unsafe extern "C" fn collect(
    format: *const c_char,
    _level: u32,
    _time: u64,
    arguments: *mut c_void,
) {
    let mut buffer = [0u8; 1024];
    if format.is_null() {
        return;
    }
    // SAFETY: the library gives a format and its matching `va_list`, which on x86-64 is passed as a
    // pointer; vsnprintf ends within `buffer.len()` bytes, NUL included.
    unsafe { vsnprintf(buffer.as_mut_ptr().cast(), buffer.len(), format, arguments) };
    let Ok(text) = CStr::from_bytes_until_nul(&buffer) else {
        return;
    };
    let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    for line in text
        .to_string_lossy()
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
    {
        if lines.len() == MAX_LINES {
            lines.pop_front();
        }
        lines.push_back(line.to_string());
    }
}

/// The lines said since the last call, each once.
pub fn take() -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in LINES
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .drain(..)
    {
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines
}
