//! The stage `export-gguf`: exported models equal their sources, also as gguf-py and llama.cpp read
//! them.

use crate::support::gguf_file::{self, GgufFile};
use crate::support::peers::{python, stdout_of};
use crate::support::quantize::Quant;
use crate::support::restore;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::workspace::Folder;
use kiln::action::Manifest;
use kiln::base::Result;
use kiln::model::gguf::Gguf;
use serde_json::{Value, json};

struct Exporter {
    folder: Folder,
    _root: tempfile::TempDir,
}

impl Exporter {
    fn new() -> Exporter {
        let root = tempfile::tempdir().unwrap();
        Exporter {
            folder: Folder::new(root.path()),
            _root: root,
        }
    }

    fn run(&self, kind: &str, params: Value, slots: &[(&str, &Manifest)]) -> Result<Manifest> {
        self.folder.run(kind, params, slots)
    }

    fn inspect(&self, files: &[Vec<u8>]) -> Result<Manifest> {
        let mut manifests = vec![];
        for (index, bytes) in files.iter().enumerate() {
            manifests.push(self.folder.file(&format!("{index}.gguf"), bytes));
        }
        let slots: Vec<_> = manifests.iter().map(|file| ("gguf", file)).collect();
        self.run("inspect", json!({}), &slots)
    }

    /// Runs `inspect`, `requant` and `export-gguf`, and returns the exported file.
    fn export(&self, files: &[Vec<u8>], requant: Value, gguf: Value) -> Result<Vec<u8>> {
        let model = self.inspect(files)?;
        let weights = self.run("requant", requant, &[("tensors", &model)])?;
        let file = self.run(
            "export-gguf",
            gguf,
            &[("model", &model), ("weights", &weights)],
        )?;
        Ok(self.folder.bytes(file.part("model.gguf")?).to_vec())
    }
}

#[test]
fn a_native_model_round_trips_bit_for_bit() {
    for quant in Quant::ALL {
        for model in [
            TinyGguf::llama().bias(true),
            TinyGguf::qwen2(),
            TinyGguf::qwen2().tied(true),
        ] {
            let file = model.layers(1).widths(256, 256).matrices(quant).write();
            assert!(
                Exporter::new()
                    .export(std::slice::from_ref(&file), json!({}), json!({}))
                    .unwrap()
                    == file,
                "{quant:?}"
            );
        }
    }
}

#[test]
fn alignment_is_kept() {
    for alignment in [8, 64, 4096] {
        let mut file = GgufFile {
            alignment,
            ..TinyGguf::llama().file()
        };
        file.set("general.alignment", alignment as u32);
        let file = file.write();
        assert!(
            Exporter::new()
                .export(std::slice::from_ref(&file), json!({}), json!({}))
                .unwrap()
                == file,
            "{alignment}"
        );
    }
}

/// The weights of the exported file are those that `requant` wrote.
#[test]
fn other_schemes_are_written_in_the_row_order_of_the_source() {
    for (scheme, to, file_type) in [
        ("f16", "f32", 1),
        ("int8-block", "f32", 0),
        ("int8-block", "f16", 1),
        ("lpbq-32-shifted", "f32", 0),
    ] {
        let exporter = Exporter::new();
        let mut file = TinyGguf::llama().bias(true).file();
        file.set("general.file_type", 3);
        let file = file.write();
        let requant = json!({"scheme": scheme, "override": [{"match": "*.attn_v.weight", "scheme": "native"}]});
        let written = exporter
            .export(
                std::slice::from_ref(&file),
                requant.clone(),
                json!({"type": to}),
            )
            .unwrap();
        let gguf = Gguf::parse(&written).unwrap();
        assert_eq!(
            gguf.metadata.get::<u32>("general.file_type").unwrap(),
            Some(file_type)
        );
        let ggml = |name: &str| {
            let mut tensors = gguf.tensors.iter();
            tensors
                .find(|tensor| tensor.name == name)
                .unwrap()
                .ggml
                .name
        };
        let matrix = if scheme == "f16" || to == "f16" {
            "F16"
        } else {
            "F32"
        };
        assert_eq!(ggml("blk.0.attn_q.weight"), matrix);
        assert_eq!(
            (ggml("blk.0.attn_v.weight"), ggml("blk.0.attn_q.bias")),
            ("Q4_1", "F32")
        );
        // Requantized natively, the exported file has the weights of the first `requant`.
        let [first, second] = [file, written].map(|file| exporter.inspect(&[file]).unwrap());
        let first = exporter
            .run("requant", requant, &[("tensors", &first)])
            .unwrap();
        let second = exporter
            .run("requant", json!({}), &[("tensors", &second)])
            .unwrap();
        for (name, tolerance) in [
            ("blk.1.attn_q.weight", 5e-4),
            ("blk.0.attn_k.bias", 0.0),
            ("output_norm.weight", 0.0),
        ] {
            let [first, second] = [&first, &second].map(|weights| exporter.values(weights, name));
            let tolerance = if to == "f32" { 0.0 } else { tolerance };
            assert_eq!(first.len(), second.len());
            let close = |(a, b): (&f32, &f32)| (a - b).abs() <= tolerance * a.abs().max(1e-3);
            assert!(first.iter().zip(&second).all(close), "{scheme} {to} {name}");
        }
    }
}

impl Exporter {
    /// The values of a weight in f32, f16 or int8 blocks with f16 scales.
    fn values(&self, weights: &Manifest, name: &str) -> Vec<f32> {
        let half = |bytes: &[u8; 2]| half::f16::from_le_bytes(*bytes).to_f32();
        let bytes = |blob: &str| {
            self.folder
                .bytes(weights.part(&format!("{name}/{blob}")).unwrap())
        };
        if weights.get(&format!("{name}/block_scales")).is_some() {
            return restore::weight(&self.folder, weights, name);
        }
        if weights.get(&format!("{name}/codes")).is_some() {
            let scales: Vec<f32> = bytes("scales").as_chunks().0.iter().map(half).collect();
            let codes = bytes("codes");
            let value = |i| codes[i] as i8 as f32 * scales[i / 32];
            return (0..codes.len()).map(value).collect();
        }
        let values = bytes("values");
        let facts = &weights.part(&format!("{name}/values")).unwrap().facts;
        if facts.to_string().contains("\"f16\"") {
            return values.as_chunks().0.iter().map(half).collect();
        }
        let single = |bytes: &[u8; 4]| f32::from_le_bytes(*bytes);
        values.as_chunks().0.iter().map(single).collect()
    }
}

#[test]
fn a_split_model_becomes_one_file() {
    let complete = TinyGguf::qwen2().file();
    let third = complete.tensors.len() / 3 + 1;
    let parts: Vec<Vec<u8>> = (0..3)
        .map(|number| {
            let tensors = complete.tensors.chunks(third).nth(number).unwrap().to_vec();
            let mut file = GgufFile {
                tensors,
                ..complete.clone()
            };
            file.keys.retain(|_| number == 0);
            file.set("split.no", gguf_file::Value::U16(number as u16));
            file.set("split.count", gguf_file::Value::U16(3));
            file.set(
                "split.tensors.count",
                gguf_file::Value::I32(complete.tensors.len() as i32),
            );
            file.write()
        })
        .collect();
    let exporter = Exporter::new();
    assert!(exporter.export(&parts, json!({}), json!({})).unwrap() == complete.write());
    let [joined, alone] = [
        exporter.inspect(&parts).unwrap(),
        exporter.inspect(&[complete.write()]).unwrap(),
    ];
    let digest = |model: &Manifest, name: &str| model.part(name).unwrap().content.digest;
    for name in [
        "model.json",
        "tokenizer.json",
        "metadata.gguf",
        "tensors/output.weight",
    ] {
        assert_eq!(digest(&joined, name), digest(&alone, name), "{name}");
    }
    assert!(
        joined
            .under("tensors")
            .all(|(_, part)| part.content.window.is_some()),
        "nothing is copied"
    );
    let problem = exporter.inspect(&parts[..2]).unwrap_err().to_string();
    assert!(problem.contains("part 3 of 3 is missing"), "{problem}");
}

#[test]
fn weights_of_another_model_are_rejected() {
    let exporter = Exporter::new();
    let [one, other] = [
        TinyGguf::llama(),
        TinyGguf::llama().widths(128, 128).heads(8, 2),
    ]
    .map(|model| exporter.inspect(&[model.write()]).unwrap());
    let weights = exporter
        .run("requant", json!({}), &[("tensors", &other)])
        .unwrap();
    let problem = exporter
        .run(
            "export-gguf",
            json!({}),
            &[("model", &one), ("weights", &weights)],
        )
        .unwrap_err()
        .to_string();
    assert!(
        problem.contains("tensor `") && problem.contains("in the weights"),
        "{problem}"
    );
}

#[test]
fn values_outside_the_f16_range_are_rejected() {
    let mut file = TinyGguf::llama().matrices(Quant::F32).file();
    let tensor = file
        .tensors
        .iter_mut()
        .find(|tensor| tensor.name == "blk.0.attn_q.weight")
        .unwrap();
    tensor.data[..4].copy_from_slice(&1e6f32.to_le_bytes());
    let params = json!({"scheme": "int8-block"});
    let exporter = Exporter::new();
    let problem = exporter
        .export(&[file.write()], params.clone(), json!({"type": "f16"}))
        .unwrap_err()
        .to_string();
    assert!(
        problem.contains("blk.0.attn_q.weight") && problem.contains("does not fit f16"),
        "{problem}"
    );
    exporter.export(&[file.write()], params, json!({})).unwrap();
}

/// gguf-py writes a model in every form: split, big-endian and with other alignments. All of them
/// are the same model for kiln, and gguf-py finds the keys and tensors of the source in the export.
#[test]
#[ignore = "needs Python packages"]
fn files_from_gguf_py_round_trip() {
    let home = tempfile::tempdir().unwrap();
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/peers/gguf_py.py");
    let peer = |verb: &str, a: &std::path::Path, b: &std::path::Path| {
        stdout_of(python().arg(&script).arg(verb).args([a, b]))
    };
    let types = Quant::ALL;
    let mut model = TinyGguf::llama()
        .bias(true)
        .widths(256, 512)
        .matrices(Quant::Q8_0);
    for (quant, name) in types.iter().zip([
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_up",
        "ffn_gate",
        "ffn_down",
    ]) {
        model = model.tensor_type(&format!("blk.0.{name}.weight"), *quant);
    }
    let source = home.path().join("source.gguf");
    std::fs::write(&source, model.write()).unwrap();
    peer("write", &source, home.path());

    let exporter = Exporter::new();
    let read = |name: &str| std::fs::read(home.path().join(name)).unwrap();
    let parts = |name: &str| {
        let all = (1..).map(|number| format!("{name}-{number:05}-of-00003.gguf"));
        all.take(3).map(|name| read(&name)).collect::<Vec<_>>()
    };
    let expected = exporter.inspect(&[read("source.gguf")]).unwrap();
    let mut files = vec![
        ("big", vec![read("big.gguf")]),
        ("split", parts("split")),
        ("both", parts("both")),
    ];
    files.extend(
        ["aligned-8", "aligned-64", "aligned-4096"]
            .map(|name| (name, vec![read(&format!("{name}.gguf"))])),
    );
    for (name, files) in files {
        let found = exporter.inspect(&files).unwrap();
        let tensors = |model: &Manifest| {
            let digest = |(name, part): (&str, &kiln::action::Part)| {
                (name.to_string(), part.content.digest, part.facts.clone())
            };
            model.under("tensors").map(digest).collect::<Vec<_>>()
        };
        assert_eq!(tensors(&found), tensors(&expected), "{name}");
        let digest = |model: &Manifest| model.part("tokenizer.json").unwrap().content.digest;
        assert_eq!(digest(&found), digest(&expected), "{name}");
        let written = home.path().join("written.gguf");
        std::fs::write(
            &written,
            exporter.export(&files, json!({}), json!({})).unwrap(),
        )
        .unwrap();
        assert_eq!(peer("same", &source, &written), "", "{name}");
    }
}

/// llama.cpp computes the same logits with an exported model as with its source. Rows of q and k in
/// the wrong order would change the logits.
#[test]
#[ignore = "needs Python packages"]
fn llama_cpp_runs_exported_models() {
    let home = tempfile::tempdir().unwrap();
    let script =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/peers/llama_cpp.py");
    for (name, model) in [("llama", TinyGguf::llama()), ("qwen2", TinyGguf::qwen2())] {
        let source = model.matrices(Quant::F32).write();
        for (scheme, to, tolerance) in [
            ("f16", "f32", 2e-3),
            ("int8-block", "f32", 2e-2),
            ("int8-block", "f16", 2e-2),
        ] {
            let written = Exporter::new()
                .export(
                    std::slice::from_ref(&source),
                    json!({"scheme": scheme}),
                    json!({"type": to}),
                )
                .unwrap();
            let [a, b] =
                [("source.gguf", &source), ("written.gguf", &written)].map(|(name, bytes)| {
                    let path = home.path().join(name);
                    std::fs::write(&path, bytes).unwrap();
                    path
                });
            let difference = stdout_of(
                python()
                    .arg(&script)
                    .args([a, b])
                    .stderr(std::process::Stdio::null()),
            );
            let difference: f64 = difference.trim().parse().unwrap();
            assert!(
                difference > 0.0 && difference < tolerance,
                "{name}, {scheme} as {to}: {difference}"
            );
        }
    }
}
