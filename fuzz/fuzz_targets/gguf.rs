//! A GGUF is read and described, or refused; what is read lies inside.
#![no_main]

use kiln::model::arch::model_facts;
use kiln::model::gguf::{Gguf, Summary, Under};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(gguf) = Gguf::parse(bytes) else { return };
    for tensor in &gguf.tensors {
        assert_eq!(gguf.data(tensor).len() as u64, tensor.range.end - tensor.range.start);
    }
    let model = model_facts(&gguf).ok();
    serde_json::to_string(&Under(&gguf.metadata, "")).unwrap();
    Summary { gguf: &gguf, model: model.as_ref() }.to_string();
});
