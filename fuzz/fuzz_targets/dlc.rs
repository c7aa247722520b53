//! Removing the time stamps of a DLC succeeds or returns a problem.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = kiln::qnn::without_time(&mut bytes.to_vec());
});
