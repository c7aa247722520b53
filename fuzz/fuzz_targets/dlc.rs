//! A DLC loses its time stamps, or is refused.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = kiln::qnn::without_time(&mut bytes.to_vec());
});
