//! How fast a header is read: `cargo bench --bench gguf`, of SmolLM2 or the file KILN_GGUF.
//!
//! Held against the floor in the same run: to hop from string to string of the vocabulary, and look
//! at none.

use std::hint::black_box;
use std::time::Instant;

use kiln::model::gguf::{Array, Gguf, Value, ValueType};

#[allow(dead_code)]
#[path = "../tests/it/support/mod.rs"]
mod support;

/// The shortest of some rounds, in milliseconds.
fn best(mut work: impl FnMut()) -> f64 {
    let round = |_| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64() * 1e3
    };
    (0..50).map(round).fold(f64::INFINITY, f64::min)
}

/// Hops over `count` strings that lie one after the other.
fn hop(mut rest: &[u8], count: usize) -> Option<&[u8]> {
    for _ in 0..count {
        let (length, text) = rest.split_first_chunk()?;
        rest = text.get(u64::from_le_bytes(*length) as usize..)?;
    }
    Some(rest)
}

fn main() {
    let path = std::env::var_os("KILN_GGUF")
        .map_or_else(support::tools::smollm2, std::path::PathBuf::from);
    let file = std::fs::read(&path).expect("KILN_GGUF");
    let gguf = Gguf::parse(&file).expect("a good file");
    let header = gguf.tensors.first().map_or(0, |tensor| tensor.range.start);
    let arrays = gguf
        .metadata
        .pairs()
        .iter()
        .filter_map(|(_, value)| match value {
            Value::Array(array) if array.element == ValueType::Str => Some(*array),
            _ => None,
        });
    let arrays: Vec<Array> = arrays.collect();
    let strings: usize = arrays.iter().map(|array| array.len).sum();
    let floor = best(|| {
        for array in &arrays {
            black_box(hop(black_box(array.bytes()), array.len));
        }
    });
    let parse = best(|| drop(black_box(Gguf::parse(black_box(&file)))));
    println!(
        "{}: header of {}, {strings} strings in arrays",
        path.display(),
        kiln::base::bytes(header)
    );
    println!(
        "hop {floor:.2} ms, parse {parse:.2} ms: {:.1} x",
        parse / floor
    );
}
