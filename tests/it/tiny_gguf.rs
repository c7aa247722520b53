//! The generator of tiny models is itself held to its word.

use crate::support::quantize::Quant;
use crate::support::tiny_gguf::TinyGguf;

#[test]
fn the_same_model_gives_the_same_bytes() {
    let file = TinyGguf::llama().matrices(Quant::Q8_0).write();
    assert_eq!(file, TinyGguf::llama().matrices(Quant::Q8_0).write());
    assert_ne!(
        file,
        TinyGguf::llama().matrices(Quant::Q8_0).seed(2).write()
    );
}

/// `KILN_TINY_GGUF=folder cargo test --test it tiny_gguf:: -- --ignored` writes samples for other
/// readers.
#[test]
#[ignore = "writes files for other readers"]
fn write_samples() {
    let thrown_away = tempfile::tempdir().unwrap();
    let folder = std::env::var_os("KILN_TINY_GGUF")
        .map_or(thrown_away.path().into(), std::path::PathBuf::from);
    let all = [
        Quant::F32,
        Quant::F16,
        Quant::Bf16,
        Quant::Q4_0,
        Quant::Q4_1,
        Quant::Q8_0,
        Quant::Q6_K,
    ];
    for quant in all {
        for (arch, model) in [("llama", TinyGguf::llama()), ("qwen2", TinyGguf::qwen2())] {
            let model = model.widths(256, 512).matrices(quant);
            std::fs::write(folder.join(format!("{arch}-{quant:?}.gguf")), model.write()).unwrap();
        }
    }
    std::fs::write(folder.join("default.gguf"), TinyGguf::qwen2().write()).unwrap();
}
