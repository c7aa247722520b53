//! A GGUF is rejected, or it is read, summarized and its metadata written again. All tensors lie
//! inside the file.
#![no_main]

use kiln::model::decoder::arch::model_facts;
use kiln::model::gguf::{Gguf, Header, Prefix};
use kiln::model::summary::Summary;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // The bytes as two files, after the length of the first.
    if let Some((length, rest)) = bytes.split_first_chunk() {
        let length = u16::from_le_bytes(*length).into();
        if let Some((first, second)) = rest.split_at_checked(length) {
            let _ = Gguf::parse_files(&[Prefix::whole(first), Prefix::whole(second)]);
        }
    }
    let Ok(gguf) = Gguf::parse(bytes) else { return };
    for tensor in &gguf.tensors {
        assert_eq!(
            gguf.data(tensor).len() as u64,
            tensor.range.end - tensor.range.start
        );
    }
    let model = model_facts(&gguf).ok();
    let metadata = serde_json::to_string(&gguf.metadata).unwrap();
    Summary {
        gguf: &gguf,
        model: model.as_ref(),
    }
    .to_string();

    let mut written = vec![];
    Header::new(&gguf.metadata, gguf.alignment)
        .write(&mut written)
        .unwrap();
    let reread = Gguf::parse(&written).unwrap();
    assert_eq!(serde_json::to_string(&reread.metadata).unwrap(), metadata);
});
