//! The bytes of a stage change only with its version: a cache would else go on handing out the old
//! ones.

use crate::support::tiny_gguf::TinyGguf;
use crate::support::workspace::Folder;
use kiln::action::{Inputs, Manifest};
use kiln::base::hash_bytes;
use kiln::stages;
use serde_json::{Value, json};

/// Kind, version, what is done, and the digest of all that comes of it.
const GOLDEN: &str = r#"inspect 2 {} b3:c385e45fd03a
dequant 1 {"type":"f32"} b3:be5ab4048173
dequant 1 {"type":"f16"} b3:89ceda098478
dequant 1 {"type":"bf16"} b3:86d3dabe6d28
requant 3 {"scheme":"f16"} b3:3da937a194e2
graph 4 {"context":24,"prefill":8} b3:fed1e0b24160
requant 3 {"scheme":"int8-block"} b3:d26d5cda294a
graph 4 {"context":24,"prefill":8} b3:da51f142c18d
requant 3 {"scheme":"native"} b3:f317e2d285e8
graph 4 {"context":24,"prefill":8} b3:481099ff4297
requant 3 {"scheme":"native-safe"} b3:01277e3776e9
graph 4 {"context":24,"prefill":8} b3:94791f88286e
requant 3 {"scheme":"int8-channel"} b3:bba5543bdc60
graph 4 {"context":24,"prefill":8} b3:ad235f1660b2
requant 3 {"scheme":"int4-channel"} b3:79376bc01bfa
graph 4 {"context":24,"prefill":8} b3:c96038270739
export-gguf 1 {} b3:e262a0d20d72
requant 3 {"scheme":"lpbq-32"} b3:dc6647c0cba7
graph 4 {"context":24,"prefill":8} b3:788bf5357694
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
