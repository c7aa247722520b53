//! `inspect`, `dequant` and `requant` on tiny models: blobs and facts.

use crate::support::gguf_file::GgufFile;
use crate::support::quantize::Quant;
use crate::support::restore;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::workspace::{Folder, inputs};
use kiln::action::{Manifest, Part};
use kiln::base::Result;
use kiln::model::decoder::ModelFacts;
use kiln::model::quant::TensorFacts;
use kiln::model::weight::{Element, ErrorFacts, WeightEncoding, WeightFacts};
use kiln::stages;
use serde_json::{Value, json};

/// A folder with the output of `inspect` for a model.
struct TestModel {
    folder: Folder,
    model: Manifest,
    _root: tempfile::TempDir,
}

impl TestModel {
    fn new(model: TinyGguf) -> TestModel {
        TestModel::of_file(&model.file())
    }

    fn of_file(file: &GgufFile) -> TestModel {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path());
        let model = folder.inspect(&file.write()).unwrap();
        TestModel {
            folder,
            model,
            _root: root,
        }
    }

    fn try_run(&self, kind: &str, params: Value) -> Result<Manifest> {
        let slot = if kind == "dequant" {
            "model"
        } else {
            "tensors"
        };
        self.folder.run(kind, params, &[(slot, &self.model)])
    }

    fn run(&self, kind: &str, params: Value) -> Manifest {
        self.try_run(kind, params).unwrap()
    }

    fn error(&self, kind: &str, params: Value) -> String {
        let problem = self.try_run(kind, params).unwrap_err();
        problem.to_string()
    }

    fn floats(&self, manifest: &Manifest, name: &str) -> Vec<f32> {
        restore::blob(&self.folder, manifest, name).unwrap()
    }

    /// The values of a weight, decoded from its parts.
    fn weight(&self, manifest: &Manifest, name: &str) -> Vec<f32> {
        restore::weight(&self.folder, manifest, name)
    }
}

fn weight_facts(part: &Part) -> WeightFacts {
    part.facts.read().unwrap()
}

fn error_facts(manifest: &Manifest, name: &str) -> ErrorFacts {
    weight_facts(manifest.part(name).unwrap()).error.unwrap()
}

/// Reorders the rows of each head from interleaved to half-split.
fn half_split(values: &[f32], heads: usize, columns: usize) -> Vec<f32> {
    let rows: Vec<&[f32]> = values.chunks(columns).collect();
    let rows_per_head = rows.len() / heads;
    let mut reordered = vec![];
    for head in rows.chunks(rows_per_head) {
        for first in [0, 1] {
            for row in head.iter().skip(first).step_by(2) {
                reordered.extend_from_slice(row);
            }
        }
    }
    reordered
}

#[test]
fn inspect_returns_windows_into_the_file() {
    let gguf = TinyGguf::qwen2().write();
    let test = TestModel::new(TinyGguf::qwen2());
    let facts: ModelFacts = test.model.part("model.json").unwrap().facts.read().unwrap();
    assert_eq!((facts.architecture.as_str(), facts.vocab), ("qwen2", 288));
    let json: Value =
        serde_json::from_slice(&test.folder.bytes(test.model.part("model.json").unwrap())).unwrap();
    assert_eq!(
        (&json["hidden"], &json["metadata"]["general.name"]),
        (&json!(64), &json!("Tiny"))
    );
    assert_eq!(json["metadata"].get("tokenizer.ggml.tokens"), None);
    let tokenizer: Value = serde_json::from_slice(
        &test
            .folder
            .bytes(test.model.part("tokenizer.json").unwrap()),
    )
    .unwrap();
    assert_eq!(
        (
            &tokenizer["tokenizer.ggml.tokens"][65],
            &tokenizer["tokenizer.ggml.merges"][0]
        ),
        (&json!("A"), &json!("Ġ t"))
    );

    let part = test.model.part("tensors/blk.0.attn_k.weight").unwrap();
    let window = part.content.window.expect("a window instead of a copy");
    let start = window.offset as usize;
    assert_eq!(
        &*test.folder.bytes(part),
        &gguf[start..start + 32 * 64 / 32 * 18]
    );
    let facts: TensorFacts = part.facts.read().unwrap();
    assert_eq!(
        facts,
        TensorFacts {
            shape: vec![32, 64],
            ggml_type: "Q4_0".into()
        }
    );
    assert_eq!(test.model.under("tensors").count(), 3 + 2 * 12);
}

#[test]
fn tensor_names_that_escape_their_folder_are_rejected() {
    let root = tempfile::tempdir().unwrap();
    let mut file: GgufFile = TinyGguf::llama().file();
    file.tensor("../../evil", &[1], 0, vec![0; 4]);
    let problem = Folder::new(root.path())
        .inspect(&file.write())
        .unwrap_err()
        .to_string();
    assert!(problem.contains("`../../evil`"), "{problem}");
}

#[test]
fn native_weights_equal_the_source_bit_for_bit() {
    for quant in Quant::ALL {
        let test = TestModel::new(TinyGguf::qwen2().layers(1).widths(256, 256).matrices(quant));
        let weights = test.run("requant", json!({}));
        let values = test.run("dequant", json!({}));
        for (name, part) in test.model.under("tensors") {
            let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            let expected = bits(test.floats(&values, &format!("{name}/values")));
            assert_eq!(
                bits(test.weight(&weights, name)),
                expected,
                "{quant:?} {name}"
            );
            let facts: TensorFacts = part.facts.read().unwrap();
            let main = weights
                .get(&format!("{name}/codes"))
                .or(weights.get(&format!("{name}/values")))
                .unwrap();
            let error = ErrorFacts {
                source: facts.ggml_type,
                scheme: "native".into(),
                exact: true,
                sqnr_db: None,
                output_sqnr_db: None,
                max_error: 0.0,
                clipped: None,
            };
            assert_eq!(weight_facts(main).error, Some(error));
        }
    }
}

#[test]
fn native_blobs_have_the_documented_layout() {
    let check = |quant, encoding: WeightEncoding, parts: &[(&str, Element, [u64; 2])]| {
        let test = TestModel::new(TinyGguf::qwen2().layers(1).widths(256, 256).matrices(quant));
        let weights = test.run("requant", json!({}));
        let mut found = vec![];
        for (name, part) in weights.under("blk.0.ffn_up.weight") {
            let facts = weight_facts(part);
            assert_eq!(facts.encoding, encoding);
            assert_eq!((facts.shape, facts.part.name()), (vec![256, 256], name));
            assert_eq!(facts.error.is_some(), ["codes", "values"].contains(&name));
            found.push((name, part.content.digest.size_bytes));
        }
        let size =
            |[rows, columns]: [u64; 2], element: Element| rows * columns * element.bits() / 8;
        let expected = parts
            .iter()
            .map(|(name, element, shape)| (*name, size(*shape, *element)));
        assert_eq!(found, expected.collect::<Vec<_>>());
    };
    let block =
        |codes, block, scales, offsets| WeightEncoding::blocks(codes, block, scales, offsets, 256);
    check(
        Quant::Q4_0,
        block(Element::Int4, 32, Element::F16, None),
        &[
            ("codes", Element::Int4, [256, 256]),
            ("scales", Element::F16, [256, 8]),
        ],
    );
    check(
        Quant::Q4_1,
        block(Element::Uint4, 32, Element::F16, Some(Element::F16)),
        &[
            ("codes", Element::Uint4, [256, 256]),
            ("offsets", Element::F16, [256, 8]),
            ("scales", Element::F16, [256, 8]),
        ],
    );
    check(
        Quant::Q8_0,
        block(Element::Int8, 32, Element::F16, None),
        &[
            ("codes", Element::Int8, [256, 256]),
            ("scales", Element::F16, [256, 8]),
        ],
    );
    check(
        Quant::Q6_K,
        block(Element::Int8, 16, Element::F32, None),
        &[
            ("codes", Element::Int8, [256, 256]),
            ("scales", Element::F32, [256, 16]),
        ],
    );
    let element = Element::Bf16;
    check(
        Quant::Bf16,
        WeightEncoding::Plain { element },
        &[("values", Element::Bf16, [256, 256])],
    );
}

#[test]
fn llama_rope_rows_are_reordered_to_half_split() {
    for quant in [Quant::Q4_1, Quant::F16, Quant::F32] {
        let test = TestModel::new(TinyGguf::llama().bias(true).matrices(quant));
        let weights = test.run("requant", json!({}));
        let values = test.run("dequant", json!({}));
        for layer in 0..2 {
            for (name, heads, columns) in [
                ("attn_q.weight", 4, 64),
                ("attn_k.weight", 2, 64),
                ("attn_q.bias", 4, 1),
                ("attn_k.bias", 2, 1),
            ] {
                let name = format!("blk.{layer}.{name}");
                let stored = test.floats(&values, &format!("{name}/values"));
                assert_eq!(
                    test.weight(&weights, &name),
                    half_split(&stored, heads, columns),
                    "{name}"
                );
            }
            let name = format!("blk.{layer}.attn_v.weight");
            assert_eq!(
                test.weight(&weights, &name),
                test.floats(&values, &format!("{name}/values"))
            );
        }
    }
}

#[test]
fn plain_tensors_are_not_copied() {
    let test = TestModel::new(TinyGguf::llama().matrices(Quant::F16));
    let weights = test.run("requant", json!({}));
    for name in ["blk.0.ffn_up.weight", "blk.0.ffn_norm.weight"] {
        let part = weights.part(&format!("{name}/values")).unwrap();
        assert_eq!(
            part.content,
            test.model.part(&format!("tensors/{name}")).unwrap().content
        );
    }
}

#[test]
fn f16_and_int8_block_rounding_errors_are_reported() {
    let test = TestModel::new(TinyGguf::qwen2());
    let params =
        json!({"scheme": "int8-block", "override": [{"match": "*.ffn_*.weight", "scheme": "f16"}]});
    let weights = test.run("requant", params);
    let values = test.run("dequant", json!({}));
    for (name, scheme, at_least_db) in [
        ("blk.0.ffn_up.weight/values", "f16", 65.0),
        ("blk.0.attn_v.weight/codes", "int8-block", 45.0),
    ] {
        let found = error_facts(&weights, name);
        let tensor = name.rsplit_once('/').unwrap().0;
        let stored = test.floats(&values, &format!("{tensor}/values"));
        let errors = test
            .weight(&weights, tensor)
            .into_iter()
            .zip(&stored)
            .map(|(a, b)| (a as f64 - *b as f64).abs());
        assert_eq!(
            (found.exact, found.scheme.as_str(), found.source.as_str()),
            (false, scheme, "Q4_0")
        );
        assert_eq!(found.max_error, errors.fold(0.0, f64::max), "{name}");
        assert!(found.sqnr_db.unwrap() > at_least_db, "{name}: {found:?}");
    }
    let norm = weights.part("blk.0.ffn_norm.weight/values").unwrap();
    let plain = |element| WeightEncoding::Plain { element };
    assert_eq!(
        (
            weight_facts(norm).encoding,
            weight_facts(norm).error.unwrap().exact
        ),
        (plain(Element::F32), true)
    );
}

#[test]
fn the_last_override_wins() {
    let test = TestModel::new(TinyGguf::llama());
    let weights = test.run(
        "requant",
        json!({"override": [
            {"match": "blk.*.ffn_down.weight", "scheme": "f16"},
            {"match": "blk.1.ffn_*.weight", "scheme": "int8-block"},
        ]}),
    );
    let scheme = |name: &str| error_facts(&weights, name).scheme;
    assert_eq!(scheme("blk.0.ffn_down.weight/values"), "f16");
    assert_eq!(scheme("blk.1.ffn_down.weight/codes"), "int8-block");
    assert_eq!(scheme("blk.1.attn_q.weight/codes"), "native");
}

#[test]
fn an_override_changes_only_the_keys_of_matching_tensors() {
    let test = TestModel::new(TinyGguf::llama());
    let stages = stages::all();
    let requant = stages.get("requant").unwrap();
    let keys = |params: Value| {
        let orders = requant.expand(&params, &inputs(&[("tensors", &test.model)]));
        let mut keys = vec![];
        for order in orders.unwrap() {
            keys.push((order.name.clone(), order.into_action(requant.spec()).key()));
        }
        keys
    };
    let changed = |params: Value| {
        let mut changed = vec![];
        for (before, after) in keys(json!({})).into_iter().zip(keys(params)) {
            if before != after {
                changed.push(before.0);
            }
        }
        changed
    };
    let one = json!({"override": [{"match": "blk.1.ffn_down.weight", "scheme": "f16"}]});
    assert_eq!(changed(one), ["blk.1.ffn_down.weight"]);
    let all = changed(json!({"scheme": "f16"}));
    assert!(
        all.len() == 15 && all.iter().all(|name| !name.contains("norm")),
        "{all:?}"
    );
}

#[test]
fn dequant_writes_the_selected_tensors_and_type() {
    let test = TestModel::new(TinyGguf::qwen2());
    let values = test.run(
        "dequant",
        json!({"type": "bf16", "match": ["*.attn_q.*", "output_norm.weight"]}),
    );
    let names: Vec<&str> = values.parts.keys().map(|name| name.as_str()).collect();
    let expected = [
        "0.attn_q.bias",
        "0.attn_q.weight",
        "1.attn_q.bias",
        "1.attn_q.weight",
    ];
    let mut expected: Vec<String> = expected
        .iter()
        .map(|name| format!("blk.{name}/values"))
        .collect();
    expected.push("output_norm.weight/values".into());
    assert_eq!(names, expected);
    let facts = weight_facts(values.part("blk.0.attn_q.weight/values").unwrap());
    let element = Element::Bf16;
    assert_eq!(facts.shape, [64, 64]);
    assert_eq!(facts.encoding, WeightEncoding::Plain { element });
}

#[test]
fn invalid_parameters_are_reported() {
    let test = TestModel::new(TinyGguf::llama());
    let nothing = json!({"override": [{"match": "blk.*.ffn_dwn.weight", "scheme": "f16"}]});
    assert!(
        test.error("requant", nothing)
            .contains("`blk.*.ffn_dwn.weight` matches no matrix")
    );
    let vectors = json!({"override": [{"match": "*norm*", "scheme": "f16"}]});
    assert!(
        test.error("requant", vectors)
            .contains("`*norm*` matches no matrix")
    );
    assert!(
        test.error("dequant", json!({"match": ["nope"]}))
            .contains("`nope` matches no tensor")
    );

    let path = |kind: &str, params: Value| {
        let stages = stages::all();
        let problems = stages.get(kind).unwrap().check(&params, &[]).unwrap_err();
        problems[0].path.clone()
    };
    let bad =
        |pattern: &str, scheme: &str| json!({"override": [{"match": pattern, "scheme": scheme}]});
    assert_eq!(path("requant", bad("[", "f16")), "override/0/match");
    assert_eq!(path("requant", bad("*", "int3")), "override/0/scheme");
    assert_eq!(path("dequant", json!({"match": ["*", "{"]})), "match/1");
    assert_eq!(path("dequant", json!({"type": "f8"})), "type");
}

#[test]
fn non_finite_weights_are_rejected() {
    let with_data = |quant: Quant, change: fn(&mut Vec<u8>)| {
        let mut file = TinyGguf::qwen2().matrices(quant).file();
        let mut tensors = file.tensors.iter_mut();
        let tensor = tensors.find(|tensor| tensor.name == "blk.0.ffn_up.weight");
        change(&mut tensor.unwrap().data);
        TestModel::of_file(&file)
    };
    let test = with_data(Quant::Q4_1, |data| data[5 * 20 + 3] = 0x7c);
    for (kind, params) in [
        ("requant", json!({})),
        ("requant", json!({"scheme": "f16"})),
        ("requant", json!({"scheme": "int8-block"})),
        ("dequant", json!({})),
    ] {
        let problem = test.error(kind, params.clone());
        assert!(
            problem.contains("row 2, column 32, in block 5 of type Q4_1"),
            "{kind} {params}: {problem}"
        );
    }
    let test = with_data(Quant::F32, |data| {
        data[7 * 4..8 * 4].copy_from_slice(&f32::NAN.to_le_bytes())
    });
    assert!(
        test.error("requant", json!({}))
            .contains("NaN: row 0, column 7")
    );
    let test = with_data(Quant::F32, |data| {
        data[64 * 4..65 * 4].copy_from_slice(&1e6f32.to_le_bytes())
    });
    assert!(
        test.error("dequant", json!({"type": "f16"}))
            .contains("1e6 does not fit f16 (row 1, column 0")
    );
}

/// f64 is decoded to f32, so `native` is exact only for values that f32 can represent.
#[test]
fn f64_is_exact_if_f32_can_represent_it() {
    for (odd, exact) in [(0.25, true), (0.1, false)] {
        let mut file = TinyGguf::llama().file();
        let tensor = file
            .tensors
            .iter_mut()
            .find(|tensor| tensor.name == "blk.0.ffn_up.weight")
            .unwrap();
        let values = tensor.dims.iter().product::<u64>();
        let doubles = (0..values).map(|i| if i == 5 { odd } else { 1.5 });
        (tensor.type_id, tensor.data) = (28, doubles.flat_map(f64::to_le_bytes).collect());
        let test = TestModel::of_file(&file);
        let weights = test.run("requant", json!({}));
        let facts: WeightFacts = weights
            .part("blk.0.ffn_up.weight/values")
            .unwrap()
            .facts
            .read()
            .unwrap();
        let error = facts.error.unwrap();
        assert_eq!((error.source.as_str(), error.exact), ("F64", exact));
        assert_eq!(error.max_error, (odd - f64::from(odd as f32)).abs());
    }
}

#[test]
fn output_does_not_depend_on_the_number_of_threads() {
    let test = TestModel::new(TinyGguf::qwen2().widths(256, 512).matrices(Quant::Q6_K));
    let params =
        json!({"scheme": "int8-block", "override": [{"match": "*.ffn_*", "scheme": "f16"}]});
    let many = test.run("requant", params.clone());
    let one = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .unwrap();
    assert_eq!(one.install(|| test.run("requant", params)), many);
}
