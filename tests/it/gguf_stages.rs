//! `inspect`, `dequant` and `requant` on tiny models, from the file to blobs and facts.

use crate::support::gguf_file::GgufFile;
use crate::support::quantize::Quant;
use crate::support::restore;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::workspace::Folder;
use kiln::action::{Inputs, Manifest, Part};
use kiln::base::Result;
use kiln::model::facts::{ModelFacts, TensorFacts};
use kiln::model::weight::{Element, ErrorFacts, WeightEncoding, WeightFacts};
use kiln::stages;
use serde_json::{Value, json};

/// A folder, the GGUF in it, and what `inspect` makes of it.
struct Bench {
    folder: Folder,
    model: Manifest,
    _root: tempfile::TempDir,
}

fn inputs(slot: &str, manifest: Manifest) -> Inputs {
    Inputs {
        slots: [(slot.to_string(), vec![("giver".to_string(), manifest)])].into(),
        ..Inputs::default()
    }
}

fn inspect(folder: &Folder, gguf: &[u8]) -> Result<Manifest> {
    let file = folder.part(gguf, json!({}));
    let file = Manifest {
        parts: [("tiny.gguf".parse().unwrap(), file)].into(),
    };
    folder.run_stage(
        stages::all().get("inspect").unwrap(),
        json!({}),
        &inputs("gguf", file),
    )
}

impl Bench {
    fn new(model: TinyGguf) -> Bench {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path());
        let model = inspect(&folder, &model.write()).unwrap();
        Bench {
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
        self.folder.run_stage(
            stages::all().get(kind).unwrap(),
            params,
            &inputs(slot, self.model.clone()),
        )
    }

    fn run(&self, kind: &str, params: Value) -> Manifest {
        self.try_run(kind, params).unwrap()
    }

    fn refused(&self, kind: &str, params: Value) -> String {
        self.try_run(kind, params)
            .expect_err("it should be refused")
            .to_string()
    }

    fn floats(&self, manifest: &Manifest, name: &str) -> Vec<f32> {
        restore::blob(&self.folder, manifest, name).unwrap()
    }

    /// The weight that `NAME/codes` and its companions, or `NAME/values`, stand for.
    fn weight(&self, manifest: &Manifest, name: &str) -> Vec<f32> {
        restore::weight(&self.folder, manifest, name)
    }
}

fn weight(part: &Part) -> WeightFacts {
    part.facts.read().unwrap()
}

fn error(manifest: &Manifest, name: &str) -> ErrorFacts {
    weight(manifest.part(name).unwrap()).error.unwrap()
}

/// Rows of each head from interleaved to half-split order, written down as the definition has it.
fn half_split(values: &[f32], heads: usize, columns: usize) -> Vec<f32> {
    let rows: Vec<&[f32]> = values.chunks(columns).collect();
    let halves = |start: usize| [start, start + 1].map(|first| (first, rows.len() / heads / 2));
    let starts = (0..heads).map(|head| head * rows.len() / heads);
    let order = starts
        .flat_map(halves)
        .flat_map(|(first, pairs)| (0..pairs).map(move |pair| first + 2 * pair));
    order.flat_map(|row| rows[row]).copied().collect()
}

#[test]
fn inspect_gives_windows_into_the_file() {
    let gguf = TinyGguf::qwen2().write();
    let bench = Bench::new(TinyGguf::qwen2());
    let facts: ModelFacts = bench
        .model
        .part("model.json")
        .unwrap()
        .facts
        .read()
        .unwrap();
    assert_eq!((facts.architecture.as_str(), facts.vocab), ("qwen2", 288));
    let json: Value =
        serde_json::from_slice(&bench.folder.bytes(bench.model.part("model.json").unwrap()))
            .unwrap();
    assert_eq!(
        (&json["hidden"], &json["metadata"]["general.name"]),
        (&json!(64), &json!("Tiny"))
    );
    assert_eq!(json["metadata"].get("tokenizer.ggml.tokens"), None);
    let tokenizer: Value = serde_json::from_slice(
        &bench
            .folder
            .bytes(bench.model.part("tokenizer.json").unwrap()),
    )
    .unwrap();
    assert_eq!(
        (
            &tokenizer["tokenizer.ggml.tokens"][65],
            &tokenizer["tokenizer.ggml.merges"][0]
        ),
        (&json!("A"), &json!("Ġ t"))
    );

    let part = bench.model.part("tensors/blk.0.attn_k.weight").unwrap();
    let window = part.content.window.expect("a window, no copy");
    let start = window.offset as usize;
    assert_eq!(
        &*bench.folder.bytes(part),
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
    assert_eq!(bench.model.under("tensors").count(), 3 + 2 * 12);
}

#[test]
fn tensor_names_that_leave_their_folder_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let mut file: GgufFile = TinyGguf::llama().file();
    file.tensor("../../evil", &[1], 0, vec![0; 4]);
    let problem = inspect(&Folder::new(root.path()), &file.write())
        .unwrap_err()
        .to_string();
    assert!(problem.contains("`../../evil`"), "{problem}");
}

#[test]
fn native_weights_are_the_files_own_bit_for_bit() {
    for quant in [
        Quant::Q4_0,
        Quant::Q4_1,
        Quant::Q8_0,
        Quant::Q6_K,
        Quant::F16,
        Quant::Bf16,
        Quant::F32,
    ] {
        let bench = Bench::new(TinyGguf::qwen2().layers(1).widths(256, 256).matrices(quant));
        let weights = bench.run("requant", json!({}));
        let values = bench.run("dequant", json!({}));
        for (name, part) in bench.model.under("tensors") {
            let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            let expected = bits(bench.floats(&values, &format!("{name}/values")));
            assert_eq!(
                bits(bench.weight(&weights, name)),
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
                max_error: 0.0,
                clipped: None,
            };
            assert_eq!(weight(main).error, Some(error));
        }
    }
}

#[test]
fn blobs_are_as_the_documents_say() {
    let check = |quant, encoding: WeightEncoding, parts: &[(&str, Element, [u64; 2])]| {
        let bench = Bench::new(TinyGguf::qwen2().layers(1).widths(256, 256).matrices(quant));
        let weights = bench.run("requant", json!({}));
        let mut found = vec![];
        for (name, part) in weights.under("blk.0.ffn_up.weight") {
            let facts = weight(part);
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
fn rope_rows_of_llama_are_put_into_half_split_order() {
    for quant in [Quant::Q4_1, Quant::F16, Quant::F32] {
        let bench = Bench::new(TinyGguf::llama().bias(true).matrices(quant));
        let weights = bench.run("requant", json!({}));
        let values = bench.run("dequant", json!({}));
        for layer in 0..2 {
            for (name, heads, columns) in [
                ("attn_q.weight", 4, 64),
                ("attn_k.weight", 2, 64),
                ("attn_q.bias", 4, 1),
                ("attn_k.bias", 2, 1),
            ] {
                let name = format!("blk.{layer}.{name}");
                let stored = bench.floats(&values, &format!("{name}/values"));
                assert_eq!(
                    bench.weight(&weights, &name),
                    half_split(&stored, heads, columns),
                    "{name}"
                );
            }
            let name = format!("blk.{layer}.attn_v.weight");
            assert_eq!(
                bench.weight(&weights, &name),
                bench.floats(&values, &format!("{name}/values"))
            );
        }
    }
}

#[test]
fn what_is_plain_already_is_not_copied() {
    let bench = Bench::new(TinyGguf::llama().matrices(Quant::F16));
    let weights = bench.run("requant", json!({}));
    for name in ["blk.0.ffn_up.weight", "blk.0.ffn_norm.weight"] {
        let part = weights.part(&format!("{name}/values")).unwrap();
        assert_eq!(
            part.content,
            bench
                .model
                .part(&format!("tensors/{name}"))
                .unwrap()
                .content
        );
    }
}

#[test]
fn f16_and_int8_blocks_are_rounded_and_measured() {
    let bench = Bench::new(TinyGguf::qwen2());
    let params =
        json!({"scheme": "int8-block", "override": [{"match": "*.ffn_*.weight", "scheme": "f16"}]});
    let weights = bench.run("requant", params);
    let values = bench.run("dequant", json!({}));
    for (name, scheme, at_least_db) in [
        ("blk.0.ffn_up.weight/values", "f16", 65.0),
        ("blk.0.attn_v.weight/codes", "int8-block", 45.0),
    ] {
        let found = error(&weights, name);
        let tensor = name.rsplit_once('/').unwrap().0;
        let stored = bench.floats(&values, &format!("{tensor}/values"));
        let errors = bench
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
        (weight(norm).encoding, weight(norm).error.unwrap().exact),
        (plain(Element::F32), true)
    );
}

#[test]
fn the_last_override_wins() {
    let bench = Bench::new(TinyGguf::llama());
    let weights = bench.run(
        "requant",
        json!({"override": [
            {"match": "blk.*.ffn_down.weight", "scheme": "f16"},
            {"match": "blk.1.ffn_*.weight", "scheme": "int8-block"},
        ]}),
    );
    let scheme = |name: &str| error(&weights, name).scheme;
    assert_eq!(scheme("blk.0.ffn_down.weight/values"), "f16");
    assert_eq!(scheme("blk.1.ffn_down.weight/codes"), "int8-block");
    assert_eq!(scheme("blk.1.attn_q.weight/codes"), "native");
}

#[test]
fn an_override_changes_only_the_orders_it_matches() {
    let bench = Bench::new(TinyGguf::llama());
    let stages = stages::all();
    let requant = stages.get("requant").unwrap();
    let keys = |params: Value| {
        let orders = requant
            .expand(&params, &inputs("tensors", bench.model.clone()))
            .unwrap();
        orders
            .into_iter()
            .map(|order| (order.name.clone(), order.into_action(requant.spec()).key()))
            .collect::<Vec<_>>()
    };
    let changed = |params: Value| {
        let pairs = keys(json!({})).into_iter().zip(keys(params));
        pairs
            .filter(|(a, b)| a.1 != b.1)
            .map(|(a, _)| a.0)
            .collect::<Vec<_>>()
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
fn dequant_gives_the_type_and_tensors_asked_for() {
    let bench = Bench::new(TinyGguf::qwen2());
    let values = bench.run(
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
    let facts = weight(values.part("blk.0.attn_q.weight/values").unwrap());
    let element = Element::Bf16;
    assert_eq!(facts.shape, [64, 64]);
    assert_eq!(facts.encoding, WeightEncoding::Plain { element });
}

#[test]
fn mistakes_in_the_plan_are_told() {
    let bench = Bench::new(TinyGguf::llama());
    let nothing = json!({"override": [{"match": "blk.*.ffn_dwn.weight", "scheme": "f16"}]});
    assert!(
        bench
            .refused("requant", nothing)
            .contains("`blk.*.ffn_dwn.weight` matches no matrix")
    );
    let vectors = json!({"override": [{"match": "*norm*", "scheme": "f16"}]});
    assert!(
        bench
            .refused("requant", vectors)
            .contains("`*norm*` matches no matrix")
    );
    assert!(
        bench
            .refused("dequant", json!({"match": ["nope"]}))
            .contains("`nope` matches no tensor")
    );

    let path = |kind: &str, params: Value| {
        let stages = stages::all();
        let problems = stages
            .get(kind)
            .unwrap()
            .check(&params, &[])
            .expect_err("it should be refused");
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
fn weights_that_are_no_numbers_are_refused() {
    let spoilt = |quant: Quant, spoil: fn(&mut Vec<u8>)| {
        let mut file = TinyGguf::qwen2().matrices(quant).file();
        let tensor = file
            .tensors
            .iter_mut()
            .find(|tensor| tensor.name == "blk.0.ffn_up.weight")
            .unwrap();
        spoil(&mut tensor.data);
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path());
        let model = inspect(&folder, &file.write()).unwrap();
        Bench {
            folder,
            model,
            _root: root,
        }
    };
    let bench = spoilt(Quant::Q4_1, |data| data[5 * 20 + 3] = 0x7c);
    for (kind, params) in [
        ("requant", json!({})),
        ("requant", json!({"scheme": "f16"})),
        ("requant", json!({"scheme": "int8-block"})),
        ("dequant", json!({})),
    ] {
        let problem = bench.refused(kind, params.clone());
        assert!(
            problem.contains("row 2, column 32, in block 5 of type Q4_1"),
            "{kind} {params}: {problem}"
        );
    }
    let bench = spoilt(Quant::F32, |data| {
        data[7 * 4..8 * 4].copy_from_slice(&f32::NAN.to_le_bytes())
    });
    assert!(
        bench
            .refused("requant", json!({}))
            .contains("NaN: row 0, column 7")
    );
    let bench = spoilt(Quant::F32, |data| {
        data[64 * 4..65 * 4].copy_from_slice(&1e6f32.to_le_bytes())
    });
    assert!(
        bench
            .refused("dequant", json!({"type": "f16"}))
            .contains("1e6 does not fit f16 (row 1, column 0")
    );
}

/// Doubles are decoded to singles: `native` says exact only where those hold them.
#[test]
fn doubles_are_exact_where_singles_hold_them() {
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
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path());
        let model = inspect(&folder, &file.write()).unwrap();
        let bench = Bench {
            folder,
            model,
            _root: root,
        };
        let weights = bench.run("requant", json!({}));
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

/// The same bytes, whatever the number of threads.
#[test]
fn one_thread_gives_the_bytes_of_many() {
    let bench = Bench::new(TinyGguf::qwen2().widths(256, 512).matrices(Quant::Q6_K));
    let params =
        json!({"scheme": "int8-block", "override": [{"match": "*.ffn_*", "scheme": "f16"}]});
    let many = bench.run("requant", params.clone());
    let one = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .unwrap();
    assert_eq!(one.install(|| bench.run("requant", params)), many);
}
