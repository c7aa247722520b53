//! A GGUF is read, described and its metadata written again, or it is refused; what is read lies
//! inside.
#![no_main]

use kiln::model::decoder::arch::model_facts;
use kiln::model::gguf::{Gguf, Header, Prefix, Summary, Under};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // As one file, and as two that begin with the length of the first.
    let files = bytes
        .split_first_chunk()
        .and_then(|(length, rest)| rest.split_at_checked(u16::from_le_bytes(*length).into()));
    if let Some((first, second)) = files {
        let _ = Gguf::parse_files(&[Prefix::whole(first), Prefix::whole(second)]);
    }
    let Ok(gguf) = Gguf::parse(bytes) else { return };
    for tensor in &gguf.tensors {
        assert_eq!(
            gguf.data(tensor).len() as u64,
            tensor.range.end - tensor.range.start
        );
    }
    let model = model_facts(&gguf).ok();
    let metadata = serde_json::to_string(&Under(&gguf.metadata, "")).unwrap();
    Summary {
        gguf: &gguf,
        model: model.as_ref(),
    }
    .to_string();

    let mut written = vec![];
    Header::new(&gguf.metadata, gguf.alignment)
        .write(&mut written)
        .unwrap();
    let again = Gguf::parse(&written).unwrap();
    assert_eq!(
        serde_json::to_string(&Under(&again.metadata, "")).unwrap(),
        metadata
    );
});
