//! The bytes of a stage change only with its version: a cache would else go on handing out the old
//! ones.

use crate::support::tiny_gguf::TinyGguf;
use crate::support::workspace::Folder;
use kiln::action::{Inputs, Manifest};
use kiln::base::hash_bytes;
use kiln::stages;
use serde_json::{Value, json};

/// Kind, version, what is done, and the digest of all that comes of it.
const GOLDEN: &str = r#"inspect 3 {} b3:c385e45fd03a
dequant 2 {"type":"f32"} b3:f70435de3057
dequant 2 {"type":"f16"} b3:a3d8ccc8d3b2
dequant 2 {"type":"bf16"} b3:27d7b02cba08
requant 4 {"scheme":"f16"} b3:eb4819bd8f03
graph 6 {"context":24,"prefill":8} b3:b07ea088ce22
requant 4 {"scheme":"int8-block"} b3:11daf00c395e
graph 6 {"context":24,"prefill":8} b3:77a8c4fd9469
requant 4 {"scheme":"native"} b3:d919957b6dce
graph 6 {"context":24,"prefill":8} b3:c042e58e2022
requant 4 {"scheme":"native-safe"} b3:9d448f59634f
graph 6 {"context":24,"prefill":8} b3:1bf638e844c2
requant 4 {"scheme":"int8-channel"} b3:2cc20ef16e38
graph 6 {"context":24,"prefill":8} b3:110cd2b976b8
requant 4 {"scheme":"int4-channel"} b3:9c91fa8e0119
graph 6 {"context":24,"prefill":8} b3:6514148c966b
export-gguf 1 {} b3:e262a0d20d72
requant 4 {"scheme":"lpbq-32"} b3:56811e7b3f94
graph 6 {"context":24,"prefill":8} b3:3a0e5767b4b0
"#;

fn digest(manifest: &Manifest) -> String {
    let line = |(name, part): (_, &kiln::action::Part)| {
        format!("{name} {} {}\n", part.content.digest, part.facts)
    };
    hash_bytes(
        manifest
            .parts
            .iter()
            .map(line)
            .collect::<String>()
            .as_bytes(),
    )
    .short()
}

#[test]
fn bytes_change_with_the_version_only() {
    let root = tempfile::tempdir().unwrap();
    let folder = Folder::new(root.path());
    let registry = stages::all();
    let mut found = String::new();
    let mut run = |kind: &str, params: Value, slots: &[(&str, &Manifest)]| {
        let slot = |(slot, given): &(&str, &Manifest)| {
            (slot.to_string(), vec![("giver".into(), (*given).clone())])
        };
        let inputs = Inputs {
            slots: slots.iter().map(slot).collect(),
            ..Inputs::default()
        };
        let stage = registry.get(kind).unwrap();
        let manifest = folder.run_stage(stage, params.clone(), &inputs).unwrap();
        found += &format!(
            "{kind} {} {params} {}\n",
            stage.spec().version,
            digest(&manifest)
        );
        manifest
    };
    let gguf = folder.part(&TinyGguf::qwen2().write(), json!({}));
    let file = Manifest {
        parts: [("tiny.gguf".parse().unwrap(), gguf)].into(),
    };
    let model = run("inspect", json!({}), &[("gguf", &file)]);
    for to in ["f32", "f16", "bf16"] {
        run("dequant", json!({ "type": to }), &[("model", &model)]);
    }
    for scheme in [
        "f16",
        "int8-block",
        "native",
        "native-safe",
        "int8-channel",
        "int4-channel",
        "lpbq-32",
    ] {
        let weights = run(
            "requant",
            json!({ "scheme": scheme }),
            &[("tensors", &model)],
        );
        run(
            "graph",
            json!({"prefill": 8, "context": 24}),
            &[("model", &model), ("weights", &weights)],
        );
        if scheme == "int4-channel" {
            run(
                "export-gguf",
                json!({}),
                &[("model", &model), ("weights", &weights)],
            );
        }
    }
    assert!(
        found == GOLDEN,
        "these stages give other bytes than before; raise the version of each in its SPEC, then \
         write here:\n{found}"
    );
}
