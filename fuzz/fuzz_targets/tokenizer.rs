//! The tokenizer of a GGUF is rejected, or it encodes and decodes a text.
#![no_main]

use kiln::model::tokenizer::Tokenizer;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(tokenizer) = Tokenizer::from_metadata(bytes) else {
        return;
    };
    if let Ok(tokens) = tokenizer.encode("clay is fired") {
        let _ = tokenizer.decode(&tokens);
    }
});
