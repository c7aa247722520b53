//! The throughput of decoding and encoding weights, as a ratio to a memory copy in the same run:
//! `cargo bench --bench weights`. With KILN_GGML, the libggml-base.so of llama.cpp (as in npm's
//! `@node-llama-cpp/linux-x64`), also as a ratio to ggml's decoder.

// The modules in `support` belong to several crates.
#![allow(unreachable_pub)]

#[path = "support/memory.rs"]
mod memory;

use std::hint::black_box;
use std::time::Instant;

use half::f16;
use kiln::model::quant::TensorFacts;
use kiln::model::quant::*;
use kiln::model::weight::Element;
use memory::{Ggml, fill};

const ROWS: u64 = 16384;
const COLUMNS: u64 = 4096;
const VALUES: usize = (ROWS * COLUMNS) as usize;
const ROUNDS: usize = 5;

/// The shortest time of some rounds, in seconds.
fn best(mut work: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        work();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

/// Every format with every scheme, in memory, on one thread.
fn main() {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .expect("a pool of one thread");
    pool.install(|| {
        let source = vec![1u8; VALUES * 4];
        let mut target = vec![0u8; VALUES * 4];
        let copy = 2.0 * source.len() as f64
            / best(|| black_box(&mut target).copy_from_slice(black_box(&source)));
        println!(
            "{VALUES} values, one thread; copy: {:.1} GB/s read and written\n",
            copy / 1e9
        );
        far();
        println!(
            "{:<6} {:<12}{:>16}{:>12}{:>10}",
            "from", "to", "Mvalues/s", "GB/s", "/ copy"
        );
        for name in ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "Q6_K"] {
            let ggml = GgmlType::by_name(name).expect("a known type");
            let blocks = blocks(ggml);
            let facts = TensorFacts {
                shape: vec![ROWS, COLUMNS],
                ggml_type: name.into(),
            };
            let tensor =
                BlockTensor::new(&facts, &blocks, RowOrder::Stored).expect("a good tensor");
            let report = |scheme: &str, bits: usize, seconds: f64| {
                let moved = (blocks.len() + VALUES * bits / 8) as f64 / seconds;
                let rate = VALUES as f64 / seconds / 1e6;
                println!(
                    "{name:<6} {scheme:<12}{rate:>16.0}{:>12.2}{:>10.2}",
                    moved / 1e9,
                    moved / copy
                );
            };
            let mut values = vec![0.0; BAND_VALUES];
            let seconds = best(|| {
                for band in tensor.bands() {
                    decode(&tensor, &band, black_box(&mut values));
                }
            });
            report("f32", 32, seconds);
            if let NativeEncoding::Blocks(grid) = tensor.format().native_encoding() {
                let layout = grid.layout();
                let [mut codes, mut scales, mut offsets] =
                    layout.bytes(BAND_VALUES).map(|size| vec![0; size]);
                let seconds = best(|| {
                    for band in tensor.bands() {
                        let out = Split {
                            codes: &mut codes,
                            scales: &mut scales,
                            offsets: &mut offsets,
                        };
                        split(&tensor, &band, grid, black_box(out));
                    }
                });
                report(
                    "native",
                    layout.bytes(VALUES).iter().sum::<usize>() * 8 / VALUES,
                    seconds,
                );
            }
            let roundings: [(&str, &dyn Rounding); 2] =
                [("f16", &Plain(Element::F16)), ("int8-block", &Int8Blocks)];
            for (scheme, rounding) in roundings {
                let [mut codes, mut scales] = rounding.bytes(BAND_VALUES).map(|size| vec![0; size]);
                let seconds = best(|| {
                    for band in tensor.bands() {
                        round(&tensor, &band, rounding, &mut codes, black_box(&mut scales))
                            .expect("small values");
                    }
                });
                report(
                    scheme,
                    rounding.bytes(VALUES).iter().sum::<usize>() * 8 / VALUES,
                    seconds,
                );
            }
        }
    });
}

/// Decodes blocks to f32 in memory that is much larger than the caches. It is compared with
/// non-temporal stores of a constant, the limit of one thread, and with ggml.
fn far() {
    let mut out = vec![1.0f32; VALUES];
    let limit = best(|| fill(black_box(&mut out)));
    let ggml = Ggml::load();
    println!(
        "stores past the caches: {:.1} GB/s",
        VALUES as f64 * 4.0 / limit / 1e9
    );
    println!(
        "{:<6} {:<12}{:>16}{:>12}{:>10}{:>10}",
        "from", "kernels", "Mvalues/s", "GB/s", "/ stores", "/ ggml"
    );
    for name in ["Q4_0", "Q4_1", "Q8_0", "Q6_K"] {
        let ggml_type = GgmlType::by_name(name).expect("a known type");
        let blocks = blocks(ggml_type);
        let format = ggml_type.format;
        let seconds =
            best(|| decode_streaming(ggml_type, format, black_box(&blocks), black_box(&mut out)));
        let report = |kernels: &str, seconds: f64, ggml_seconds: Option<f64>| {
            let ratio = match ggml_seconds {
                Some(ggml_seconds) => format!("{:.2}", ggml_seconds / seconds),
                None => "not measured".into(),
            };
            let (rate, moved) = (
                VALUES as f64 / seconds / 1e6,
                VALUES as f64 * 4.0 / seconds / 1e9,
            );
            println!(
                "{name:<6} {kernels:<12}{rate:>16.0}{moved:>12.2}{:>10.2}{ratio:>10}",
                limit / seconds
            );
        };
        let mut ggml_seconds = None;
        if let Some(ggml) = &ggml {
            let expected = out.clone();
            let seconds = best(|| ggml.decode(name, black_box(&blocks), black_box(&mut out)));
            assert!(out == expected, "ggml decodes {name} differently");
            ggml_seconds = Some(seconds);
        }
        report(kernels::widest().name, seconds, ggml_seconds);
        if let Some(seconds) = ggml_seconds {
            report("ggml", seconds, ggml_seconds);
        }
    }
    println!();
}

/// Random blocks with small scales.
fn blocks(ggml: &GgmlType) -> Vec<u8> {
    let mut state = 1u64;
    let mut blocks = vec![0; ggml.bytes(VALUES as u64).expect("complete blocks") as usize];
    for byte in &mut blocks {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        *byte = (state >> 56) as u8;
    }
    let f16_offsets: &[usize] = match ggml.name {
        "Q4_1" => &[0, 2],
        "Q6_K" => &[208],
        _ => &[0],
    };
    for block in blocks.chunks_mut(ggml.block_bytes as usize) {
        match block.len() {
            4 => block.copy_from_slice(&(block[0] as f32 / 256.0).to_le_bytes()),
            2 => block[1] = 0x3c,
            _ => {
                for at in f16_offsets {
                    block[*at..at + 2].copy_from_slice(&f16::from_f32(0.01).to_le_bytes());
                }
            }
        }
    }
    blocks
}
