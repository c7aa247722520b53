//! libGenie, Qualcomm's runtime for language models: loads a bundle, encodes and decodes text, and
//! generates tokens.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use libloading::os::unix::Library;

use super::library::{c_string, load, non_null};
use super::log;
use crate::base::{Code, Problem, Result};

type Handle = *mut c_void;
type Status = i32;
type Allocate = unsafe extern "C" fn(usize, *mut *mut c_char);
type OnTokens = unsafe extern "C" fn(*const u32, u32, c_int, *const c_void);
type OnLine = unsafe extern "C" fn(Handle, *const c_char, c_int, u64, *mut c_void);

/// The API version of the signatures below. A higher minor version is compatible.
const API: (u32, u32) = (1, 10);
/// The query is a complete sentence, not a fragment.
const COMPLETE: c_int = 0;
const LOG_WARN: c_int = 1;
/// Most bytes that libGenie may allocate at once: far above the tokens or the text of any prompt.
const MAX_BYTES: usize = 64 << 20;

/// The library's functions.
#[derive(Clone, Copy)]
struct Functions {
    config_from_json: unsafe extern "C" fn(*const c_char, *mut Handle) -> Status,
    config_bind_logger: unsafe extern "C" fn(Handle, Handle) -> Status,
    config_free: unsafe extern "C" fn(Handle) -> Status,
    log_create: unsafe extern "C" fn(Handle, Option<OnLine>, c_int, *mut Handle) -> Status,
    create: unsafe extern "C" fn(Handle, *mut Handle) -> Status,
    free: unsafe extern "C" fn(Handle) -> Status,
    limit: unsafe extern "C" fn(Handle, u32) -> Status,
    query: unsafe extern "C" fn(
        Handle,
        *const u32,
        u32,
        c_int,
        Option<OnTokens>,
        *const c_void,
    ) -> Status,
    tokenizer: unsafe extern "C" fn(Handle, *mut Handle) -> Status,
    encode: unsafe extern "C" fn(
        Handle,
        *const c_char,
        Option<Allocate>,
        *mut *const i32,
        *mut u32,
    ) -> Status,
    decode: unsafe extern "C" fn(
        Handle,
        *const i32,
        u32,
        Option<Allocate>,
        *mut *const c_char,
    ) -> Status,
}

/// A dialog with a model. Its bundle is loaded.
pub struct Dialog {
    functions: Functions,
    config: Handle,
    dialog: Handle,
    tokenizer: Handle,
}

/// Checks the text of a `genie_config.json` with `folder/libGenie.so`, which knows what a
/// configuration may contain. Must be called in a child process.
pub fn check_config(folder: &Path, config: &str) -> Result<()> {
    let functions = Functions::load(folder)?;
    let text = c_string(config)?;
    let mut handle = null_mut();
    // SAFETY: a C string in, a handle out.
    let status = unsafe { (functions.config_from_json)(text.as_ptr(), &mut handle) };
    check(status, "read the configuration of the bundle").map_err(|problem| {
        problem.help(
            "the libGenie of this release does not take a value in it; a `grammar` needs QNN 2.48",
        )
    })?;
    // SAFETY: the handle is the library's, and is freed once.
    unsafe { (functions.config_free)(non_null(handle, "configuration")?) };
    Ok(())
}

impl Dialog {
    /// Loads the bundle of `config`, the text of a `genie_config.json`, with `folder/libGenie.so`.
    /// Must be called in a child process, because libGenie ends the process on some errors.
    pub fn open(folder: &Path, config: &str) -> Result<Self> {
        let functions = Functions::load(folder)?;
        let text = c_string(config)?;
        let mut logger = null_mut();
        check(
            // SAFETY: the callback lives for ever; the call writes a handle.
            unsafe { (functions.log_create)(null_mut(), Some(collect), LOG_WARN, &mut logger) },
            "make a log",
        )?;
        let mut dialog = Dialog {
            functions,
            config: null_mut(),
            dialog: null_mut(),
            tokenizer: null_mut(),
        };
        // SAFETY: a C string in, a handle out.
        let status = unsafe { (functions.config_from_json)(text.as_ptr(), &mut dialog.config) };
        check(status, "read the configuration")?;
        non_null(dialog.config, "configuration")?;
        check(
            // SAFETY: both handles are alive.
            unsafe { (functions.config_bind_logger)(dialog.config, logger) },
            "bind the log",
        )?;
        check(
            // SAFETY: the configuration is alive; the call writes a handle.
            unsafe { (functions.create)(dialog.config, &mut dialog.dialog) },
            "load the bundle",
        )?;
        non_null(dialog.dialog, "dialog")?;
        check(
            // SAFETY: as above; the tokenizer belongs to the dialog.
            unsafe { (functions.tokenizer)(dialog.dialog, &mut dialog.tokenizer) },
            "get the tokenizer",
        )?;
        non_null(dialog.tokenizer, "tokenizer")?;
        Ok(dialog)
    }

    /// The tokens of `text` by the bundle's tokenizer, in libGenie.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let text = c_string(text)?;
        let (mut ids, mut count) = (null(), 0);
        let _lock = lock_buffer();
        // SAFETY: the tokenizer is alive; the ids are written to the buffer of `allocate`.
        let status = unsafe {
            (self.functions.encode)(
                self.tokenizer,
                text.as_ptr(),
                Some(allocate),
                &mut ids,
                &mut count,
            )
        };
        check(status, "encode a text")?;
        let mut tokens = vec![];
        for id in buffer_bytes()
            .as_chunks::<4>()
            .0
            .iter()
            .take(count as usize)
        {
            tokens.push(u32::from_le_bytes(*id));
        }
        Ok(tokens)
    }

    /// The text of `tokens`, with the names of special tokens. If a token ends inside a character,
    /// libGenie omits it and all tokens after it.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        if tokens.is_empty() {
            return Ok(String::new());
        }
        let ids: Vec<i32> = tokens.iter().map(|token| *token as i32).collect();
        let mut text = null();
        let _lock = lock_buffer();
        // SAFETY: the tokenizer is alive; the text is written to the buffer of `allocate`.
        let status = unsafe {
            (self.functions.decode)(
                self.tokenizer,
                ids.as_ptr(),
                ids.len() as u32,
                Some(allocate),
                &mut text,
            )
        };
        check(status, "decode tokens")?;
        let bytes = buffer_bytes();
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    /// The tokens that the model generates after `prompt`: at most `max_tokens`, without the end
    /// token. `on_progress` receives the number of tokens so far.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        max_tokens: u32,
        on_progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Vec<u32>> {
        check(
            // SAFETY: the dialog is alive.
            unsafe { (self.functions.limit)(self.dialog, max_tokens) },
            "limit the answer",
        )?;
        let generated = Generated {
            tokens: Mutex::new(vec![]),
            on_progress,
        };
        let user: *const Generated = &generated;
        // SAFETY: the prompt has the length that is passed; `generated` outlives the call, which
        // returns after its last callback.
        let status = unsafe {
            (self.functions.query)(
                self.dialog,
                prompt.as_ptr(),
                prompt.len() as u32,
                COMPLETE,
                Some(on_tokens),
                user.cast(),
            )
        };
        check(status, "query the model")?;
        let tokens = generated.tokens.into_inner();
        Ok(tokens.unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Dialog {
    fn drop(&mut self) {
        if !self.dialog.is_null() {
            // SAFETY: freed once, together with its tokenizer.
            unsafe { (self.functions.free)(self.dialog) };
        }
        if !self.config.is_null() {
            // SAFETY: freed once, after the dialog.
            unsafe { (self.functions.config_free)(self.config) };
        }
    }
}

impl Functions {
    fn load(folder: &Path) -> Result<Self> {
        let library = load(folder, "libGenie.so")?;
        // SAFETY: the signatures are those of Genie's public headers, `GenieCommon.h` to
        // `GenieTokenizer.h`.
        unsafe {
            let major: unsafe extern "C" fn() -> u32 = symbol(library, "Genie_getApiMajorVersion")?;
            let minor: unsafe extern "C" fn() -> u32 = symbol(library, "Genie_getApiMinorVersion")?;
            let found = (major(), minor());
            if found.0 != API.0 || found.1 < API.1 {
                let what = format!(
                    "libGenie.so has API {}.{}; kiln supports {}.{}",
                    found.0, found.1, API.0, API.1
                );
                return Err(Problem::new(Code::ToolMissing, what));
            }
            Ok(Functions {
                config_from_json: symbol(library, "GenieDialogConfig_createFromJson")?,
                config_bind_logger: symbol(library, "GenieDialogConfig_bindLogger")?,
                config_free: symbol(library, "GenieDialogConfig_free")?,
                log_create: symbol(library, "GenieLog_create")?,
                create: symbol(library, "GenieDialog_create")?,
                free: symbol(library, "GenieDialog_free")?,
                limit: symbol(library, "GenieDialog_setMaxNumTokens")?,
                query: symbol(library, "GenieDialog_tokenQuery")?,
                tokenizer: symbol(library, "GenieDialog_getTokenizer")?,
                encode: symbol(library, "GenieTokenizer_encode")?,
                decode: symbol(library, "GenieTokenizer_decode")?,
            })
        }
    }
}

/// The function called `name`.
///
/// # Safety
/// `F` is its signature.
unsafe fn symbol<F: Copy>(library: &'static Library, name: &str) -> Result<F> {
    // SAFETY: what the caller promises; the library is never closed.
    match unsafe { library.get::<F>(name) } {
        Ok(symbol) => Ok(*symbol),
        Err(error) => Err(Problem::new(
            Code::QnnNoFunction,
            format!("libGenie.so does not have {name}"),
        )
        .because(&error)),
    }
}

/// The tokens of a query, filled by its callback.
struct Generated<'a> {
    tokens: Mutex<Vec<u32>>,
    on_progress: &'a (dyn Fn(u64) + Sync),
}

/// The callback of a query.
unsafe extern "C" fn on_tokens(tokens: *const u32, count: u32, _code: c_int, user: *const c_void) {
    // SAFETY: `user` is the `Generated` of the query that is running.
    let Some(generated) = (unsafe { user.cast::<Generated>().as_ref() }) else {
        return;
    };
    if tokens.is_null() || count == 0 {
        return;
    }
    // SAFETY: libGenie passes `count` tokens, valid for the call.
    let tokens = unsafe { std::slice::from_raw_parts(tokens, count as usize) };
    let all = generated.tokens.lock();
    let mut all = all.unwrap_or_else(PoisonError::into_inner);
    all.extend_from_slice(tokens);
    (generated.on_progress)(all.len() as u64);
}

/// The callback of libGenie's log.
unsafe extern "C" fn collect(
    _: Handle,
    format: *const c_char,
    level: c_int,
    time: u64,
    arguments: *mut c_void,
) {
    // SAFETY: libGenie passes a format and its matching `va_list`.
    unsafe { log::collect(format, level as u32, time, arguments) };
}

/// The buffer that libGenie's tokenizer writes to. The callback that allocates it has no user data,
/// so the buffer must be a global.
static BUFFER: Mutex<Vec<u64>> = Mutex::new(Vec::new());
/// Locked by the caller that uses the buffer.
static BUFFER_LOCK: Mutex<()> = Mutex::new(());

fn buffer() -> MutexGuard<'static, Vec<u64>> {
    BUFFER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks and clears the buffer.
fn lock_buffer() -> MutexGuard<'static, ()> {
    let lock = BUFFER_LOCK.lock();
    buffer().clear();
    lock.unwrap_or_else(PoisonError::into_inner)
}

/// The bytes in the buffer.
fn buffer_bytes() -> Vec<u8> {
    let mut bytes = vec![];
    for word in buffer().iter() {
        bytes.extend(word.to_ne_bytes());
    }
    bytes
}

/// The callback that allocates memory for the tokenizer's results.
unsafe extern "C" fn allocate(size: usize, allocated: *mut *mut c_char) {
    // SAFETY: libGenie passes the address of a pointer, or null.
    let Some(allocated) = (unsafe { allocated.as_mut() }) else {
        return;
    };
    let mut words = buffer();
    words.clear();
    *allocated = null_mut();
    if size <= MAX_BYTES {
        // One more word, so that a text always ends with a NUL.
        words.resize(size.div_ceil(8) + 1, 0);
        *allocated = words.as_mut_ptr().cast();
    }
}

/// Converts a status to a problem that quotes the library. `what` completes "failed to ...".
fn check(status: Status, what: &str) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    let meaning = match status {
        1 => "aborted",
        2 => "the handle is in use",
        3 => "paused",
        4 => "the context is full",
        -1 => "general error",
        -2 => "invalid argument",
        -3 => "out of memory",
        -4 => "invalid configuration",
        -5 => "invalid handle",
        -6 => "the query failed",
        -7 => "no JSON",
        -8 => "a field that it does not know, or lacks",
        -9 => "a value that it does not take",
        -10 => "nothing could be generated",
        _ => "see GenieCommon.h",
    };
    let message = format!("libGenie failed to {what}: status {status}, {meaning}");
    let mut problem = Problem::new(Code::GenieRefused, message);
    problem.causes = log::take();
    Err(problem)
}
