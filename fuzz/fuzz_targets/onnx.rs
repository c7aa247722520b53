//! An ONNX graph is checked, summarized and lowered, or rejected.
#![no_main]

use kiln::action::Blob;
use kiln::lower::lower;
use kiln::model::onnx::{Summary, decode};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(model) = decode(bytes) else { return };
    Summary::of(&model).to_string();
    let _ = lower(&model, &|_| Ok(Blob::new(vec![0u8; 64])));
});
