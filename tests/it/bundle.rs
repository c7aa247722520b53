//! `package` and `generate`: a bundle for Genie, and what libGenie says with it. What needs
//! Qualcomm's libraries is ignored unless asked for.

use std::collections::BTreeMap;

use crate::support::contexts::{facts, info};
use crate::support::fetching::sha256;
use crate::support::stage_runner::StageRunner;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tools;
use kiln::action::{Manifest, PartName};
use kiln::base::{Code, Problem, Result};
use serde_json::{Value, json};

const TEXT: &str = "the quick brown fox jumps over the lazy dog and then the dog jumps over the \
                    quick brown fox again";

/// The parts of a context binary: bytes that nobody executes, beside what would be true of them.
fn context(
    road: &StageRunner,
    model: &Manifest,
    shards: &[(std::ops::Range<u32>, Value, Value)],
) -> Manifest {
    let mut manifest = Manifest::default();
    let count = shards.len();
    for (at, (_, facts, info)) in shards.iter().enumerate() {
        let folder = if count == 1 {
            String::new()
        } else {
            format!("{}-of-{count}/", at + 1)
        };
        let mut add = |name: &str, part| {
            manifest
                .parts
                .insert(PartName::new(format!("{folder}{name}")).unwrap(), part)
        };
        add(
            "model.bin",
            road.part(format!("binary {at}").as_bytes(), facts.clone()),
        );
        add(
            "info.json",
            road.part(info.to_string().as_bytes(), json!({})),
        );
        add("model.json", model.part("model.json").unwrap().clone());
    }
    manifest
}

fn whole(road: &StageRunner, model: &Manifest) -> Manifest {
    context(road, model, &[(0..2, facts(1, 1), info(0..2, 1, 1))])
}

fn package(
    road: &StageRunner,
    model: &Manifest,
    context: &Manifest,
    params: Value,
) -> Result<Manifest> {
    road.run("package", params, &[("model", model), ("context", context)])
}

fn json_of(road: &StageRunner, bundle: &Manifest, name: &str) -> Value {
    serde_json::from_slice(&road.bytes(bundle, name)).unwrap()
}

#[test]
fn a_bundle_says_what_the_file_and_the_binary_say() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path());
    let mut file = TinyGguf::llama().file();
    file.set(
        "tokenizer.ggml.add_bos_token",
        crate::support::gguf_file::Value::Bool(1),
    );
    file.set("tokenizer.ggml.eot_token_id", 284);
    file.set("tokenizer.chat_template", "{{ messages }}");
    let model = road.inspect(&file.write());
    let params = json!({"name": "tiny", "prompt": "the dog", "top_k": 1, "temp": 0.5});
    let bundle = package(&road, &model, &whole(&road, &model), params.clone()).unwrap();
    let names: Vec<&str> = bundle.parts.keys().map(PartName::as_str).collect();
    let files = [
        "README.md",
        "SHA256SUMS",
        "genie_config.json",
        "htp_backend_ext_config.json",
        "metadata.json",
    ];
    let more = [
        "prompt.txt",
        "tiny.bin",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names, [&files[..], &more].concat());

    let dialog = &json_of(&road, &bundle, "genie_config.json")["dialog"];
    let context = json!({"version": 1, "size": 40, "n-vocab": 288, "bos-token": 286, "eos-token": [287, 284, 285]});
    assert_eq!(dialog["context"], context);
    assert_eq!(
        dialog["sampler"],
        json!({"version": 1, "seed": 42, "temp": 0.5, "top-k": 1, "top-p": 0.95})
    );
    assert_eq!(
        dialog["engine"]["model"]["binary"]["ctx-bins"],
        json!(["tiny.bin"])
    );
    let htp = &dialog["engine"]["backend"]["QnnHtp"];
    assert_eq!(
        (&htp["kv-dim"], &htp["pos-id-dim"], &htp["rope-theta"]),
        (&json!(16), &json!(8), &json!(10000))
    );
    let device = &json_of(&road, &bundle, "htp_backend_ext_config.json")["devices"][0];
    assert_eq!(
        (&device["soc_model"], &device["dsp_arch"]),
        (&json!(57), &json!("v75"))
    );
    let tokens = json_of(&road, &bundle, "tokenizer_config.json");
    assert_eq!(
        (&tokens["bos_token"], &tokens["eos_token"]),
        (&json!("<|im_start|>"), &json!("<|im_end|>"))
    );
    assert_eq!(tokens["chat_template"], "{{ messages }}");
    let metadata = json_of(&road, &bundle, "metadata.json");
    assert_eq!(metadata["device"]["tokens_per_second"], "not measured");
    assert_eq!(
        metadata["binaries"][0]["graphs"],
        info(0..2, 1, 1)["graphs"]
    );

    let mut sums = BTreeMap::new();
    for name in names.iter().filter(|name| **name != "SHA256SUMS") {
        sums.insert(*name, sha256(&road.bytes(&bundle, name)));
    }
    let expected: String = sums
        .iter()
        .map(|(name, sum)| format!("{sum}  {name}\n"))
        .collect();
    assert_eq!(
        String::from_utf8(road.bytes(&bundle, "SHA256SUMS")).unwrap(),
        expected
    );
    assert_eq!(
        package(&road, &model, &whole(&road, &model), params).unwrap(),
        bundle
    );
}

#[test]
fn shards_stand_in_order() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path());
    let model = road.inspect(&TinyGguf::llama().layers(11).write());
    let shard = |at: u32| (at - 1..at, facts(at, 11), info(at - 1..at, at, 11));
    let shards: Vec<_> = (1..=11).map(shard).collect();
    let bundle = package(&road, &model, &context(&road, &model, &shards), json!({})).unwrap();
    let config = json_of(&road, &bundle, "genie_config.json");
    let expected: Vec<String> = (1..=11)
        .map(|at| format!("model_part_{at}_of_11.bin"))
        .collect();
    assert_eq!(
        config["dialog"]["engine"]["model"]["binary"]["ctx-bins"],
        json!(expected)
    );
    assert_eq!(road.bytes(&bundle, "model_part_10_of_11.bin"), b"binary 9");

    let mut twice = shards.clone();
    twice[3].2 = info(2..3, 4, 11);
    let problem = package(&road, &model, &context(&road, &model, &twice), json!({})).unwrap_err();
    assert_eq!(
        problem.message,
        "two binaries have layer 2 of the decode graph"
    );
    let mut other = shards.clone();
    other[10].1["soc"] = json!("sm8750");
    let problem = package(&road, &model, &context(&road, &model, &other), json!({})).unwrap_err();
    assert!(
        problem
            .message
            .starts_with("`11-of-11/model.bin` has another chip"),
        "{problem}"
    );
    let mut lacking = context(&road, &model, &shards);
    lacking.parts.remove("4-of-11/model.bin");
    assert_eq!(
        package(&road, &model, &lacking, json!({}))
            .unwrap_err()
            .code,
        Code::PartMissing
    );
}

/// The message when a binary is packaged of which `change` makes other facts and another
/// description.
fn refused(change: impl Fn(&mut Value, &mut Value)) -> Problem {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path());
    let model = road.inspect(&TinyGguf::llama().write());
    let (mut facts, mut info) = (facts(1, 1), info(0..2, 1, 1));
    change(&mut facts, &mut info);
    package(
        &road,
        &model,
        &context(&road, &model, &[(0..2, facts, info)]),
        json!({}),
    )
    .unwrap_err()
}

#[test]
fn what_does_not_fit_is_refused() {
    let remove =
        |value: &mut Value, field: &str| value.as_object_mut().unwrap().remove(field).unwrap();
    for (problem, expected) in [
        (
            refused(|facts, _| drop(remove(&mut facts["graphs"], "decode"))),
            "`model.bin` has prefill, and Genie needs prefill and decode",
        ),
        (
            refused(|facts, _| facts["graphs"]["decode"]["context"] = json!(64)),
            "`model.bin` decodes 1 tokens in a context of 64, and its prefill has a context of 40",
        ),
        (
            refused(|facts, _| {
                facts["graphs"]["prefill"]["tokens"] = json!(20);
            }),
            "the context of 40 is twice the prefill of 20: there libGenie corrupts its caches",
        ),
        (
            refused(|_, info| info["soc_model"] = json!(69)),
            "`context/model.bin` is for SoC model 69, not for sm8650",
        ),
        (
            refused(|_, info| info["graphs"][1]["inputs"][2]["shape"] = json!([2, 1, 32, 39])),
            "`past_key_0_in` of `token_ar1_cl40_1_of_1` is [2, 1, 32, 39]; 16 was expected",
        ),
        (
            refused(|_, info| info["graphs"][0]["outputs"][0]["shape"] = json!([1, 1, 16, 287])),
            "`logits` of `prompt_ar16_cl40_1_of_1` is [1, 1, 16, 287]; 288 was expected",
        ),
        (
            refused(|_, info| drop(info["graphs"].as_array_mut().unwrap().remove(0))),
            "`context/model.bin` has no prefill graph `prompt_ar16_cl40_1_of_1`",
        ),
    ] {
        assert_eq!(problem.message, expected);
    }
}

#[test]
fn a_binary_of_another_model_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path());
    let model = road.inspect(&TinyGguf::llama().write());
    let other = road.inspect(&TinyGguf::llama().widths(32, 64).write());
    let problem = package(&road, &other, &whole(&road, &model), json!({})).unwrap_err();
    assert_eq!(problem.code, Code::PackageModel);

    let mut file = TinyGguf::llama().file();
    file.keys.retain(|(key, _)| {
        !["tokenizer.ggml.eos_token_id", "tokenizer.ggml.token_type"].contains(&key.as_str())
    });
    let endless = road.inspect(&file.write());
    let problem = package(&road, &endless, &whole(&road, &endless), json!({})).unwrap_err();
    assert_eq!(problem.code, Code::PackageEos);
}

#[test]
fn mistakes_in_a_plan_are_named() {
    let wrong = |kind: &str, params: Value| -> Vec<String> {
        let problems = kiln::stages::all()
            .get(kind)
            .unwrap()
            .check(&params, &[])
            .unwrap_err();
        problems
            .into_iter()
            .map(|problem| format!("{}: {}", problem.path, problem.problem.message))
            .collect()
    };
    let params = json!({"name": "a b", "temp": 0.0, "top_k": 0, "top_p": 1.5});
    let expected = [
        "temp: expected a number above 0 and at most 100, found 0.0",
        "top_k: expected an integer from 1 to 1048576, found 0",
        "top_p: expected a number above 0 and at most 1, found 1.5",
        "name: `name` is \"a b\"",
    ];
    assert_eq!(wrong("package", params), expected);
    assert_eq!(
        wrong("generate", json!({"tokens": 0})),
        ["tokens: expected an integer of at least 1, found 0"]
    );
}

/// The tiny model's graphs, each with its own weights, and the reference's answer to a prompt.
fn tiny(road: &StageRunner, gguf: &[u8], prompt: &str) -> (Manifest, Manifest, Manifest) {
    let (model, graph) = road.model(gguf, "native", json!({"prefill": 16, "context": 256}));
    let params = json!({"soc": "sm8650", "weight_sharing": false});
    let context = road
        .run("context-bin", params, &[("graph", &graph)])
        .unwrap();
    let params = json!({"windows": 1, "tokens": 8, "prompt": prompt, "greedy": 6});
    let reference = road
        .run(
            "reference",
            params,
            &[("model", &model), ("text", &road.file(TEXT.as_bytes()))],
        )
        .unwrap();
    (model, context, reference)
}

#[test]
#[ignore = "needs the QNN libraries"]
fn genie_says_what_the_reference_says() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path()).tool("qnn", &tools::qnn());
    // Its answers hang on all that came before; the prompt is longer than a prefill. In a context
    // of 128 libGenie loses the first prefill's cache.
    let gguf = TinyGguf::qwen2().seed(60).write();
    let (model, context, reference) = tiny(&road, &gguf, "<|im_start|>the dog and the fox\n is é");
    let bundle = package(&road, &model, &context, json!({"name": "tiny"})).unwrap();
    let generate = |params: Value| {
        road.run(
            "generate",
            params,
            &[("bundle", &bundle), ("reference", &reference)],
        )
    };
    let logged = generate(json!({})).unwrap();
    let said = json_of(&road, &logged, "generation.json");
    println!("{said}");
    assert_eq!(
        said["tokens"],
        json_of(&road, &reference, "greedy.json")["tokens"]
    );
    assert_eq!(generate(json!({})).unwrap(), logged);
    // An answer of one token over and over would tell nothing of the caches.
    assert_eq!(said["tokens"], json!([48, 95, 48, 95, 142, 61]));
    let three = json_of(
        &road,
        &generate(json!({"tokens": 3})).unwrap(),
        "generation.json",
    );
    assert_eq!(
        (&three["tokens"], &three["text"]),
        (&json!([48, 95, 48]), &json!("0_0"))
    );
    assert_eq!(
        generate(json!({"tokens": 7})).unwrap_err().code,
        Code::GenerateTokens
    );
}

#[test]
#[ignore = "needs the QNN libraries"]
fn genie_ends_where_the_reference_ends() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path()).tool("qnn", &tools::qnn());
    let mut file = TinyGguf::qwen2().seed(60).file();
    // The fifth token of the answer above; `<|endoftext|>` and `<|im_end|>` end one too.
    file.set("tokenizer.ggml.eot_token_id", 142);
    let (model, context, reference) = tiny(
        &road,
        &file.write(),
        "<|im_start|>the dog and the fox\n is é",
    );
    assert_eq!(
        json_of(&road, &reference, "greedy.json")["tokens"],
        json!([48, 95, 48, 95, 142])
    );
    let bundle = package(&road, &model, &context, json!({"name": "tiny"})).unwrap();
    let slots = [("bundle", &bundle), ("reference", &reference)];
    let logged = |params: Value| {
        json_of(
            &road,
            &road.run("generate", params, &slots).unwrap(),
            "generation.json",
        )
    };
    let said = logged(json!({"tokens": 9}));
    assert_eq!(
        (&said["tokens"], &said["ended"]),
        (&json!([48, 95, 48, 95]), &json!(true))
    );
    assert_eq!(said["tokens"], said["expected"]);
    assert_eq!(logged(json!({"tokens": 4}))["ended"], false);
}

#[test]
#[ignore = "needs the QNN libraries"]
fn genie_is_not_asked_what_it_cannot_answer() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path()).tool("qnn", &tools::qnn());
    let mut file = TinyGguf::llama().file();
    file.set(
        "tokenizer.ggml.add_bos_token",
        crate::support::gguf_file::Value::Bool(1),
    );
    let (model, context, reference) = tiny(&road, &file.write(), "the dog");
    let bundle = package(&road, &model, &context, json!({})).unwrap();
    let generate = |bundle: &Manifest, reference: &Manifest| {
        road.run(
            "generate",
            json!({}),
            &[("bundle", bundle), ("reference", reference)],
        )
        .unwrap_err()
    };
    let problem = generate(&bundle, &reference);
    assert_eq!(
        problem.message,
        "Genie puts \"<|im_start|>\" before the prompt, and the reference's prompt does not begin \
         with it"
    );
    let mut silent = reference.clone();
    silent.parts.remove("greedy.json");
    assert_eq!(generate(&bundle, &silent).code, Code::GenerateNoPrompt);
    let shared = package(&road, &model, &whole(&road, &model), json!({})).unwrap();
    assert_eq!(
        generate(&shared, &reference).code,
        Code::GenerateSharedWeights
    );
}

/// SmolLM2-135M-Instruct: `cargo test --release --test it bundle::big_ -- --ignored --nocapture`.
#[test]
#[ignore = "needs the QNN libraries, SmolLM2 and minutes"]
fn big_smollm2_in_genie() {
    let home = tempfile::tempdir().unwrap();
    let road = StageRunner::new(home.path()).tool("qnn", &tools::qnn());
    let (model, graph) = road.model(
        &std::fs::read(tools::smollm2()).unwrap(),
        "native",
        json!({"prefill": 32, "context": 128}),
    );
    let context = road
        .run(
            "context-bin",
            json!({"soc": "sm8650", "weight_sharing": false}),
            &[("graph", &graph)],
        )
        .unwrap();
    let prompt = "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n";
    let params = json!({"windows": 1, "tokens": 8, "prompt": prompt, "greedy": 16});
    let text = road.file(include_bytes!("../../plans/data/eval.txt"));
    let reference = road
        .run("reference", params, &[("model", &model), ("text", &text)])
        .unwrap();
    let bundle = package(
        &road,
        &model,
        &context,
        json!({"name": "smollm2", "prompt": prompt}),
    )
    .unwrap();
    let logged = road
        .run(
            "generate",
            json!({}),
            &[("bundle", &bundle), ("reference", &reference)],
        )
        .unwrap();
    let said = json_of(&road, &logged, "generation.json");
    println!("{said}");
    assert_eq!(said["tokens"], said["expected"]);
    assert_eq!(said["text"], said["expected_text"]);
}
