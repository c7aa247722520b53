//! The time to parse a GGUF header: `cargo bench --bench gguf`, with SmolLM2 or the file KILN_GGUF.
//!
//! It is compared with a lower bound in the same run: skipping all strings of the vocabulary by
//! their lengths.

// The modules in `support` belong to several crates.
#![allow(unreachable_pub)]

use std::hint::black_box;
use std::time::Instant;

use kiln::model::gguf::{Array, Gguf, Value, ValueType};

#[allow(dead_code)]
#[path = "../tests/it/support/mod.rs"]
mod support;

/// The shortest time of 50 rounds, in milliseconds.
fn best(mut work: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..50 {
        let start = Instant::now();
        work();
        best = best.min(start.elapsed().as_secs_f64() * 1e3);
    }
    best
}

/// Skips `count` consecutive strings.
fn skip_strings(mut rest: &[u8], count: usize) -> Option<&[u8]> {
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
    let (mut arrays, mut strings): (Vec<Array>, usize) = (vec![], 0);
    for (_, value) in gguf.metadata.pairs() {
        match value {
            Value::Array(array) if array.element == ValueType::Str => {
                arrays.push(*array);
                strings += array.len;
            }
            _ => {}
        }
    }
    let bound = best(|| {
        for array in &arrays {
            black_box(skip_strings(black_box(array.bytes()), array.len));
        }
    });
    let parse = best(|| drop(black_box(Gguf::parse(black_box(&file)))));
    println!(
        "{}: header of {}, {strings} strings in arrays",
        path.display(),
        kiln::base::bytes(header)
    );
    println!(
        "skip {bound:.2} ms, parse {parse:.2} ms: {:.1} x",
        parse / bound
    );
}
