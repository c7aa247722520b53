//! Embedding and head on the CPU: which graphs and weights that leaves to the chip, what it
//! computes with them, and what a bundle says of it.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use crate::support::contexts::{facts, info};
use crate::support::fetching::sha256;
use crate::support::peers::{python, said};
use crate::support::place::{both, names, placed};
use crate::support::stage_runner::StageRunner;
use crate::support::tiny_gguf::TinyGguf;
use kiln::action::{Inputs, Manifest, Part, PartName};
use kiln::base::{Code, Problem, Result};
use kiln::model::onnx::{Checked, decode};
use kiln::plan::{self, Plan, Source, SourceMap};
use kiln::stages;
use serde_json::{Value, json};

/// What each prefill graph takes and gives, but for what all layers take and for their caches.
fn ends(road: &StageRunner, graph: &Manifest) -> Vec<String> {
    let line = |file: &str| {
        let model = decode(&road.bytes(graph, file)).unwrap();
        let checked = Checked::new(&model).unwrap();
        let shown = |name: &&str| {
            !["past_", "position_", "attention_mask"]
                .iter()
                .any(|of_all| name.starts_with(of_all))
        };
        let value = |name: &str| format!("{name} {:?}", checked.types[name].dims);
        let inputs: Vec<String> = checked
            .graph
            .input
            .iter()
            .map(|v| v.name.as_str())
            .filter(shown)
            .map(value)
            .collect();
        let outputs: Vec<String> = checked
            .graph
            .output
            .iter()
            .map(|v| v.name.as_str())
            .filter(shown)
            .map(value)
            .collect();
        format!(
            "{file} {}: {} -> {}",
            checked.graph.name,
            inputs.join(", "),
            outputs.join(", ")
        )
    };
    names(graph)
        .into_iter()
        .filter(|name| name.starts_with("prefill"))
        .map(line)
        .collect()
}

#[test]
fn what_one_piece_gives_the_next_takes() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path());
    let model = road.inspect(&TinyGguf::qwen2().write());
    let graph = |place, shards| road.graph(&model, "native", placed(place, shards));
    let whole = "prefill.onnx prompt_ar16_cl40_1_of_1: input_ids [1, 16] -> logits [1, 1, 16, 288]";
    assert_eq!(
        ends(&road, &graph(both(), 1)),
        [
            "prefill-1-of-1.onnx prompt_ar16_cl40_1_of_1: inputs_embeds [1, 16, 64] -> \
             output_norm [1, 1, 16, 64]",
            "prefill-embedding.onnx prompt_ar16_cl40_embedding: input_ids [1, 16] -> \
             inputs_embeds [1, 16, 64]",
            "prefill-head.onnx prompt_ar16_cl40_head: output_norm [1, 1, 16, 64] -> logits [1, 1, \
             16, 288]",
            whole,
        ]
    );
    assert_eq!(
        ends(&road, &graph(json!({"head": "cpu"}), 2)),
        [
            "prefill-1-of-2.onnx prompt_ar16_cl40_1_of_2: input_ids [1, 16] -> blk.0.residual [1, \
             1, 16, 64]",
            "prefill-2-of-2.onnx prompt_ar16_cl40_2_of_2: blk.0.residual [1, 1, 16, 64] -> \
             output_norm [1, 1, 16, 64]",
            "prefill-head.onnx prompt_ar16_cl40_head: output_norm [1, 1, 16, 64] -> logits [1, 1, \
             16, 288]",
            whole,
        ]
    );
    let [npu, cpu] = [json!({}), both()].map(|place| graph(place, 1));
    for (name, part) in &npu.parts {
        assert_eq!(
            cpu.parts.get(name),
            Some(part),
            "{name} of the whole graph is not changed"
        );
    }
}

/// The plan of `text`, or what is wrong with it.
fn read(text: String) -> std::result::Result<Plan, String> {
    let source = Source {
        name: "a.toml".into(),
        text,
        folder: "/plans".into(),
    };
    let map = SourceMap::gather(source, &mut |_| {
        Err(Problem::new(Code::of("test"), "no file"))
    });
    let label = |problem: &Problem| -> String {
        let at = problem.labels.iter().map(|(span, label)| {
            let (source, at) = map.place(span).unwrap();
            format!("\n  {} {label}", &source.text[at])
        });
        at.collect()
    };
    let line = |problem: &Problem| {
        format!(
            "{}{}\n  help: {}",
            problem.message,
            label(problem),
            problem.help.as_deref().unwrap_or_default()
        )
    };
    let read = plan::read(&map, &[], &stages::all());
    read.map_err(|problems| problems.iter().map(line).collect::<Vec<_>>().join("\n"))
}

/// A plan with these tools and this `place`.
fn plan(tools: &str, place: &str) -> std::result::Result<Plan, String> {
    read(format!(
        "[plan]\nname = 'a'\n[tools]\n{tools}\n[stage]\nsource = {{ kind = 'fetch', url = \
         'file:a' }}\nmodel = {{ kind = 'inspect', gguf = 'source' }}\nweights = {{ kind = \
         'requant', tensors = 'model' }}\ngraph = {{ kind = 'graph', model = 'model', weights = \
         'weights', place = {place} }}\nnpu = {{ kind = 'context-bin', graph = 'graph', soc = \
         'sm8650' }}\nreference = {{ kind = 'reference', model = 'model', text = 'source' }}\nhtp \
         = {{ kind = 'evaluate', reference = 'reference', context = 'npu' }}\n"
    ))
}

const QNN: &str = "qnn = { pypi = 'x==1', sha256 = '' }";

/// What is wrong with a plan whose `graph` has this `place`.
fn problems(place: &str) -> String {
    plan(QNN, place).err().unwrap_or("nothing".into())
}

#[test]
fn a_place_that_there_is_not_is_refused() {
    assert_eq!(problems("{ head = 'cpu' }"), "nothing");
    assert_eq!(
        problems("{ head = 'cpus' }"),
        "`graph.place.head`: expected `npu` or `cpu`, found `cpus`\n  'cpus' here\n  \
         help: did you mean `cpu`?"
    );
    assert_eq!(
        problems("{ embeding = 'cpu' }"),
        "`graph.place.embeding`: there is no such key\n  \
         embeding here\n  help: did you mean `embedding`?"
    );
    assert!(
        problems("'cpu'").contains("expected a table with `embedding` or `head`"),
        "{}",
        problems("'cpu'")
    );
}

fn library(road: &StageRunner) -> Manifest {
    let library = road.part(b"a library", Value::Null);
    let files =
        ["libQnnHtp.so", "libQnnSystem.so"].map(|name| (name.parse().unwrap(), library.clone()));
    Manifest {
        parts: files.into(),
    }
}

/// The orders of a `context-bin` by name: their keys, and the names of what they read.
fn orders(graph: &Manifest, tool: &Manifest) -> BTreeMap<String, (String, Vec<String>)> {
    let registry = stages::all();
    let stage = registry.get("context-bin").unwrap();
    let slots = [(
        "graph".to_string(),
        vec![("graph".to_string(), graph.clone())],
    )]
    .into();
    let inputs = Inputs {
        slots,
        tools: [("qnn".to_string(), tool.clone())].into(),
        ..Inputs::default()
    };
    let orders = stage.expand(&json!({"soc": "sm8650"}), &inputs).unwrap();
    let keyed = |order: kiln::action::WorkOrder| {
        let (name, reads) = (order.name.clone(), order.inputs.keys().cloned().collect());
        (
            name,
            (order.into_action(stage.spec()).key().to_string(), reads),
        )
    };
    orders.into_iter().map(keyed).collect()
}

#[test]
fn a_tweak_of_the_cpus_head_compiles_nothing() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path());
    let tool = library(&road);
    // A qwen2 graph has f16 layers whatever its weights are: they centre its keys.
    for (gguf, head, proofs) in [
        (TinyGguf::qwen2().write(), "output.weight", &[][..]),
        (
            TinyGguf::llama().write(),
            "token_embd.weight",
            &["proof/f16", "proof/lookup-f16"][..],
        ),
    ] {
        let model = road.inspect(&gguf);
        let anew = |place: Value| -> Vec<String> {
            let orders = |schemes: Value| {
                let weights = road
                    .run("requant", schemes, &[("tensors", &model)])
                    .unwrap();
                let slots = [("model", &model), ("weights", &weights)];
                orders(
                    &road.run("graph", placed(place.clone(), 2), &slots).unwrap(),
                    &tool,
                )
            };
            let before = orders(json!({"scheme": "int8-block"}));
            let tweak = json!([{"match": head, "scheme": "f16"}]);
            let after = orders(json!({"scheme": "int8-block", "override": tweak}));
            let changed = after
                .iter()
                .filter(|(name, (key, _))| before.get(*name).map(|(key, _)| key) != Some(key));
            changed.map(|(name, _)| name.clone()).collect()
        };
        assert_eq!(
            anew(both()),
            [""],
            "{head}: the quantization report, and what the CPU reads"
        );
        let on_npu = anew(json!({}));
        assert!(on_npu.contains(&"2-of-2".to_string()), "{head}: {on_npu:?}");
        let proved: Vec<&String> = on_npu
            .iter()
            .filter(|name| name.starts_with("proof/"))
            .collect();
        assert_eq!(proved, proofs, "{head}");
    }
}

#[test]
fn each_weight_goes_where_it_is_read() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path());
    let graph = road.graph(
        &road.inspect(&TinyGguf::llama().write()),
        "f16",
        placed(json!({"head": "cpu"}), 1),
    );
    let orders = orders(&graph, &library(&road));
    let tables = |name: &str| -> Vec<String> {
        orders[name]
            .1
            .iter()
            .filter(|input| !input.contains("blk."))
            .cloned()
            .collect()
    };
    // The table of a tied model is its embedding too.
    assert_eq!(
        tables("1-of-1"),
        [
            "decode.onnx",
            "prefill.onnx",
            "weights/output_norm.weight/values",
            "weights/token_embd.weight/values"
        ]
    );
    assert_eq!(
        tables(""),
        [
            "cpu/decode-head.onnx",
            "cpu/prefill-head.onnx",
            "cpu/weights/token_embd.weight/values",
            "quantization.json",
            "model.json"
        ]
    );
}

#[test]
fn a_dlc_of_pieces_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path());
    let graph = road.graph(
        &road.inspect(&TinyGguf::llama().write()),
        "f16",
        placed(both(), 1),
    );
    let problem = road
        .run("dlc", json!({}), &[("graph", &graph)])
        .unwrap_err();
    assert_eq!(problem.code, Code::DlcPlace);
    assert!(
        problem
            .message
            .ends_with("this graph leaves embedding and head to the CPU"),
        "{problem}"
    );
}

/// A `context-bin` of a tiny llama whose binary nobody executes, and what would be true of it.
fn context(road: &StageRunner, model: &Manifest, place: &Value) -> Manifest {
    let graph = road.graph(model, "native", placed(place.clone(), 1));
    let (mut facts, mut info) = (facts(1, 1), info(0..2, 1, 1));
    for role in ["prefill", "decode"] {
        let of = graph.part(&format!("{role}-1-of-1.onnx")).unwrap();
        facts["graphs"][role] = of.facts.value().clone();
    }
    for (at, tokens) in [(0, 16), (1, 1)] {
        if place.get("embedding").is_some() {
            let inputs = info["graphs"][at]["inputs"].as_array_mut().unwrap();
            inputs.retain(|tensor| tensor["name"] != "input_ids");
            inputs.push(json!({"name": "inputs_embeds", "shape": [1, tokens, 64], "type": "f16"}));
        }
        if place.get("head").is_some() {
            info["graphs"][at]["outputs"] =
                json!([{"name": "output_norm", "shape": [1, 1, tokens, 64], "type": "f16"}]);
        }
    }
    let mut parts: BTreeMap<PartName, Part> = BTreeMap::new();
    let mut add = |name: String, part: Part| parts.insert(PartName::new(name).unwrap(), part);
    add("1-of-1/model.bin".into(), road.part(b"a binary", facts));
    add(
        "1-of-1/info.json".into(),
        road.part(info.to_string().as_bytes(), json!({})),
    );
    add(
        "model.json".into(),
        model.part("model.json").unwrap().clone(),
    );
    for end in place.as_object().unwrap().keys() {
        for role in ["prefill", "decode"] {
            let file = format!("{role}-{end}.onnx");
            add(format!("cpu/{file}"), graph.part(&file).unwrap().clone());
        }
    }
    for (name, part) in graph.under("weights/token_embd.weight") {
        add(
            format!("cpu/weights/token_embd.weight/{name}"),
            part.clone(),
        );
    }
    Manifest { parts }
}

fn package(road: &StageRunner, place: Value, params: Value) -> Result<Manifest> {
    let model = road.inspect(&TinyGguf::llama().write());
    let context = context(road, &model, &place);
    road.run(
        "package",
        params,
        &[("model", &model), ("context", &context)],
    )
}

#[test]
fn a_bundle_says_what_is_the_cpus() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path());
    let bundle = package(&road, both(), json!({"name": "tiny"})).unwrap();
    let own = names(&bundle)
        .into_iter()
        .filter(|name| name.starts_with("cpu/"));
    let graphs = [
        "decode-embedding",
        "decode-head",
        "prefill-embedding",
        "prefill-head",
    ];
    let graphs = graphs.iter().map(|graph| format!("cpu/{graph}.onnx"));
    let weights =
        ["codes", "offsets", "scales"].map(|blob| format!("cpu/weights/token_embd.weight/{blob}"));
    assert_eq!(
        own.collect::<Vec<_>>(),
        graphs.chain(weights).collect::<Vec<_>>()
    );

    let metadata: Value = serde_json::from_slice(&road.bytes(&bundle, "metadata.json")).unwrap();
    let of = |end: &str| json!({"prefill": format!("cpu/prefill-{end}.onnx"), "decode": format!("cpu/decode-{end}.onnx")});
    assert_eq!(
        metadata["cpu"],
        json!({"embedding": of("embedding"), "head": of("head")})
    );
    let readme = String::from_utf8(road.bytes(&bundle, "README.md")).unwrap();
    println!("{readme}");
    assert!(
        readme.contains("`cpu/ROLE-embedding.onnx` -> `tiny.bin` -> `cpu/ROLE-head.onnx`"),
        "{readme}"
    );
    assert!(
        readme.contains("for another host than Genie") && !readme.contains("genie-t2t-run"),
        "{readme}"
    );

    let sums = String::from_utf8(road.bytes(&bundle, "SHA256SUMS")).unwrap();
    for name in names(&bundle)
        .into_iter()
        .filter(|name| *name != "SHA256SUMS")
    {
        let line = format!("{}  {name}\n", sha256(&road.bytes(&bundle, name)));
        assert!(sums.contains(&line), "{name} in {sums}");
    }

    let bundle = package(&road, json!({"embedding": "cpu"}), json!({"name": "tiny"})).unwrap();
    let readme = String::from_utf8(road.bytes(&bundle, "README.md")).unwrap();
    assert!(
        readme.contains("`cpu/ROLE-embedding.onnx` -> `tiny.bin`\n"),
        "{readme}"
    );
    assert!(readme.contains("GenieDialog_embeddingQuery"), "{readme}");
}

/// The files of a bundle under their names: their sums are right, and ONNX Runtime finds the
/// weights of what is the CPU's.
#[test]
#[ignore = "needs a package index"]
fn what_is_the_cpus_runs_where_it_lies() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path());
    let bundle = package(&road, both(), json!({"embedding_table": true})).unwrap();
    let out = tempfile::tempdir().unwrap();
    for name in names(&bundle) {
        let path = out.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, road.bytes(&bundle, name)).unwrap();
    }
    println!(
        "{}",
        said(
            Command::new("sha256sum")
                .args(["--check", "SHA256SUMS"])
                .current_dir(out.path())
        )
    );
    // The table has the rows that the graph gives.
    let script = "import numpy, onnxruntime
run = lambda file, feeds: onnxruntime.InferenceSession(f'cpu/{file}.onnx').run(None, feeds)[0]
table = numpy.fromfile('model_embedding.bin', numpy.float32).reshape(288, 64)
rows = run('prefill-embedding', {'input_ids': numpy.arange(16, dtype=numpy.int32)[None]})
assert (rows[0] == table[:16]).all()
logits = run('decode-head', {'output_norm': table[7][None, None, None]})
assert numpy.allclose(logits[0, 0, 0], table @ table[7], atol=1e-5)";
    said(python().args(["-c", script]).current_dir(out.path()));
}

#[test]
fn a_table_holds_the_rows_of_all_tokens() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path());
    let params = json!({"name": "tiny", "embedding_table": true});
    let bundle = package(&road, json!({"embedding": "cpu"}), params.clone()).unwrap();
    let model = road.inspect(&TinyGguf::llama().write());
    let values = road
        .run("dequant", json!({"type": "f32"}), &[("model", &model)])
        .unwrap();
    let table = road.bytes(&bundle, "tiny_embedding.bin");
    assert!(table == road.bytes(&values, "token_embd.weight/values"));
    let config: Value = serde_json::from_slice(&road.bytes(&bundle, "genie_config.json")).unwrap();
    let lookup = json!({"version": 1, "type": "lut", "lut-path": "tiny_embedding.bin", "size": 64, "datatype": "float32"});
    assert_eq!(config["dialog"]["embedding"], lookup);
    let sums = String::from_utf8(road.bytes(&bundle, "SHA256SUMS")).unwrap();
    assert!(
        sums.contains(&format!("{}  tiny_embedding.bin\n", sha256(&table))),
        "{sums}"
    );
    let problem = package(&road, json!({"head": "cpu"}), params).unwrap_err();
    assert_eq!(problem.code, Code::PackageTable);
}

#[test]
fn a_binary_that_lacks_an_end_is_not_taken_for_a_whole_one() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path());
    let model = road.inspect(&TinyGguf::llama().write());
    let mut context = context(&road, &model, &both());
    let binary = context.parts.get_mut("1-of-1/model.bin").unwrap();
    let mut facts = binary.facts.value().clone();
    facts["graphs"]["prefill"]
        .as_object_mut()
        .unwrap()
        .remove("shard");
    facts["graphs"]["decode"]
        .as_object_mut()
        .unwrap()
        .remove("shard");
    binary.facts = facts.into();
    let problem = road
        .run(
            "package",
            json!({}),
            &[("model", &model), ("context", &context)],
        )
        .unwrap_err();
    assert_eq!(
        problem.message,
        "`token_ar1_cl40_1_of_1` has no `input_ids`"
    );
}

#[test]
fn onnx_runtime_is_taken_where_the_plan_has_it() {
    let tools = |tools: &str| -> Vec<String> {
        let plan = plan(tools, "{ head = 'cpu' }").unwrap();
        let score = plan
            .stages
            .iter()
            .find(|stage| stage.name == "htp")
            .unwrap();
        score.tools.keys().cloned().collect()
    };
    assert_eq!(tools(QNN), ["qnn"]);
    assert_eq!(
        tools(&format!("{QNN}\nort = {{ pypi = 'y==1', sha256 = '' }}")),
        ["ort", "qnn"]
    );
}

#[test]
fn what_is_the_cpus_wants_onnx_runtime() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path()).tool("qnn", &fake_library(&home));
    let model = road.inspect(&TinyGguf::llama().write());
    let context = context(&road, &model, &json!({"head": "cpu"}));
    let slots = [("reference", &Manifest::default()), ("context", &context)];
    let problem = road.run("evaluate", json!({}), &slots).unwrap_err();
    assert_eq!(problem.code, Code::ToolMissing);
    assert!(problem.help.unwrap().contains("ort ="));
}

/// A folder with libraries that nobody loads.
fn fake_library(home: &tempfile::TempDir) -> std::path::PathBuf {
    let folder = home.path().join("libraries");
    fs::create_dir_all(&folder).unwrap();
    for name in ["libQnnHtp.so", "libQnnSystem.so"] {
        fs::write(folder.join(name), "a library").unwrap();
    }
    folder
}
