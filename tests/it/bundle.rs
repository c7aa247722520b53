//! `package` and `generate`: bundles for Genie, and the answers of libGenie. Tests that need
//! Qualcomm's libraries are ignored by default.

use std::collections::BTreeMap;

use crate::support::contexts::{facts, info};
use crate::support::fetching::sha256;
use crate::support::gguf_file::{self, GgufFile};
use crate::support::stage_runner::StageRunner;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tools;
use kiln::action::{Manifest, ParamProblem, PartName};
use kiln::base::{Code, Problem, Result};
use serde_json::{Value, json};

/// A fake context binary: bytes that are never run, and their description.
fn context(
    runner: &StageRunner,
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
            runner.part(format!("binary {at}").as_bytes(), facts.clone()),
        );
        add(
            "info.json",
            runner.part(info.to_string().as_bytes(), json!({})),
        );
        add("model.json", model.part("model.json").unwrap().clone());
    }
    manifest
}

pub fn unsharded(runner: &StageRunner, model: &Manifest) -> Manifest {
    context(runner, model, &[(0..2, facts(1, 1), info(0..2, 1, 1))])
}

pub fn package(
    runner: &StageRunner,
    model: &Manifest,
    context: &Manifest,
    params: Value,
) -> Result<Manifest> {
    runner.run("package", params, &[("model", model), ("context", context)])
}

/// A model that requires a first token.
fn with_first_token() -> GgufFile {
    let mut file = TinyGguf::llama().file();
    file.set("tokenizer.ggml.add_bos_token", gguf_file::Value::Bool(1));
    file
}

#[test]
fn bundle_metadata_matches_model_and_binary() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path());
    let mut file = with_first_token();
    file.set("tokenizer.ggml.eot_token_id", 284);
    file.set("tokenizer.chat_template", "{{ messages }}");
    let model = runner.inspect(&file.write());
    let params = json!({"name": "tiny", "prompt": "the dog", "top_k": 1, "temp": 0.5});
    let bundle = package(&runner, &model, &unsharded(&runner, &model), params.clone()).unwrap();
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

    let dialog = &runner.json(&bundle, "genie_config.json")["dialog"];
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
    let device = &runner.json(&bundle, "htp_backend_ext_config.json")["devices"][0];
    assert_eq!(
        (&device["soc_model"], &device["dsp_arch"]),
        (&json!(57), &json!("v75"))
    );
    let tokens = runner.json(&bundle, "tokenizer_config.json");
    assert_eq!(
        (&tokens["bos_token"], &tokens["eos_token"]),
        (&json!("<|im_start|>"), &json!("<|im_end|>"))
    );
    assert_eq!(tokens["chat_template"], "{{ messages }}");
    let metadata = runner.json(&bundle, "metadata.json");
    assert_eq!(metadata["device"]["tokens_per_second"], "not measured");
    assert_eq!(
        metadata["binaries"][0]["graphs"],
        info(0..2, 1, 1)["graphs"]
    );

    let mut sums = BTreeMap::new();
    for name in names.iter().filter(|name| **name != "SHA256SUMS") {
        sums.insert(*name, sha256(&runner.bytes(&bundle, name)));
    }
    let expected: String = sums
        .iter()
        .map(|(name, sum)| format!("{sum}  {name}\n"))
        .collect();
    assert_eq!(runner.text(&bundle, "SHA256SUMS"), expected);
    assert_eq!(
        package(&runner, &model, &unsharded(&runner, &model), params).unwrap(),
        bundle
    );
}

#[test]
fn shards_are_listed_in_order() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path());
    let model = runner.inspect(&TinyGguf::llama().layers(11).write());
    let shard = |at: u32| (at - 1..at, facts(at, 11), info(at - 1..at, at, 11));
    let shards: Vec<_> = (1..=11).map(shard).collect();
    let bundle = package(
        &runner,
        &model,
        &context(&runner, &model, &shards),
        json!({}),
    )
    .unwrap();
    let config = runner.json(&bundle, "genie_config.json");
    let expected: Vec<String> = (1..=11)
        .map(|at| format!("model_part_{at}_of_11.bin"))
        .collect();
    assert_eq!(
        config["dialog"]["engine"]["model"]["binary"]["ctx-bins"],
        json!(expected)
    );
    assert_eq!(
        runner.bytes(&bundle, "model_part_10_of_11.bin"),
        b"binary 9"
    );

    let mut duplicate = shards.clone();
    duplicate[3].2 = info(2..3, 4, 11);
    let problem = package(
        &runner,
        &model,
        &context(&runner, &model, &duplicate),
        json!({}),
    )
    .unwrap_err();
    assert_eq!(
        problem.message,
        "two binaries have layer 2 of the decode graph"
    );
    let mut other = shards.clone();
    other[10].1["soc"] = json!("sm8750");
    let problem = package(
        &runner,
        &model,
        &context(&runner, &model, &other),
        json!({}),
    )
    .unwrap_err();
    assert!(
        problem
            .message
            .starts_with("`11-of-11/model.bin` has another chip"),
        "{problem}"
    );
    let mut lacking = context(&runner, &model, &shards);
    lacking.parts.remove("4-of-11/model.bin");
    assert_eq!(
        package(&runner, &model, &lacking, json!({}))
            .unwrap_err()
            .code,
        Code::PartMissing
    );
}

/// The problem when a binary with changed facts and description is packaged.
fn package_error(change: impl Fn(&mut Value, &mut Value)) -> Problem {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path());
    let model = runner.inspect(&TinyGguf::llama().write());
    let (mut facts, mut info) = (facts(1, 1), info(0..2, 1, 1));
    change(&mut facts, &mut info);
    package(
        &runner,
        &model,
        &context(&runner, &model, &[(0..2, facts, info)]),
        json!({}),
    )
    .unwrap_err()
}

#[test]
fn inconsistent_binaries_are_rejected() {
    let remove =
        |value: &mut Value, field: &str| value.as_object_mut().unwrap().remove(field).unwrap();
    for (problem, expected) in [
        (
            package_error(|facts, _| drop(remove(&mut facts["graphs"], "decode"))),
            "`model.bin` has prefill, and Genie needs prefill and decode",
        ),
        (
            package_error(|facts, _| facts["graphs"]["decode"]["context"] = json!(64)),
            "`model.bin` decodes 1 tokens in a context of 64, and its prefill has a context of 40",
        ),
        (
            package_error(|facts, _| {
                facts["graphs"]["prefill"]["tokens"] = json!(20);
            }),
            "the context of 40 is twice the prefill of 20: there libGenie corrupts its caches",
        ),
        (
            package_error(|_, info| info["soc_model"] = json!(69)),
            "`context/model.bin` is for SoC model 69, not for sm8650",
        ),
        (
            package_error(|_, info| {
                info["graphs"][1]["inputs"][2]["shape"] = json!([2, 1, 32, 39])
            }),
            "`past_key_0_in` of `token_ar1_cl40_1_of_1` is [2, 1, 32, 39]; 16 was expected",
        ),
        (
            package_error(|_, info| {
                info["graphs"][0]["outputs"][0]["shape"] = json!([1, 1, 16, 287])
            }),
            "`logits` of `prompt_ar16_cl40_1_of_1` is [1, 1, 16, 287]; 288 was expected",
        ),
        (
            package_error(|_, info| drop(info["graphs"].as_array_mut().unwrap().remove(0))),
            "`context/model.bin` has no prefill graph `prompt_ar16_cl40_1_of_1`",
        ),
    ] {
        assert_eq!(problem.message, expected);
    }
}

#[test]
fn a_binary_of_another_model_is_rejected() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path());
    let model = runner.inspect(&TinyGguf::llama().write());
    let other = runner.inspect(&TinyGguf::llama().widths(32, 64).write());
    let problem = package(&runner, &other, &unsharded(&runner, &model), json!({})).unwrap_err();
    assert_eq!(problem.code, Code::PackageModel);

    let mut file = TinyGguf::llama().file();
    file.keys.retain(|(key, _)| {
        !["tokenizer.ggml.eos_token_id", "tokenizer.ggml.token_type"].contains(&key.as_str())
    });
    let endless = runner.inspect(&file.write());
    let problem = package(&runner, &endless, &unsharded(&runner, &endless), json!({})).unwrap_err();
    assert_eq!(problem.code, Code::PackageEos);
}

#[test]
fn invalid_parameters_are_reported() {
    let problems = |kind: &str, params: Value| -> Vec<String> {
        let stages = kiln::stages::all();
        let problems = stages.get(kind).unwrap().check(&params, &[]).unwrap_err();
        let line =
            |problem: &ParamProblem| format!("{}: {}", problem.path, problem.problem.message);
        problems.iter().map(line).collect()
    };
    let params = json!({"name": "a b", "temp": 0.0, "top_k": 0, "top_p": 1.5});
    let expected = [
        "temp: expected a number above 0 and at most 100, found 0.0",
        "top_k: expected an integer from 1 to 1048576, found 0",
        "top_p: expected a number above 0 and at most 1, found 1.5",
        "name: `name` is \"a b\"",
    ];
    assert_eq!(problems("package", params), expected);
    assert_eq!(
        problems("generate", json!({"tokens": 0})),
        ["tokens: expected an integer of at least 1, found 0"]
    );
}

/// The parameters of a reference with an answer to `prompt`.
fn answer_params(prompt: &str) -> Value {
    json!({"windows": 1, "tokens": 8, "context": 256, "prompt": prompt, "greedy": 6})
}

/// The tiny model, its context binary without shared weights, and the reference's answer to a
/// prompt.
fn tiny(runner: &StageRunner, gguf: &[u8], prompt: &str) -> (Manifest, Manifest, Manifest) {
    let (model, graph) = runner.model(gguf, "native", json!({"prefill": 16, "context": 256}));
    let params = json!({"soc": "sm8650", "weight_sharing": false});
    let context = runner
        .run("context-bin", params, &[("graph", &graph)])
        .unwrap();
    let reference = runner.reference(&model, answer_params(prompt));
    (model, context, reference)
}

#[test]
#[ignore = "needs the QNN libraries"]
fn genie_generates_the_reference_tokens() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path()).tool("qnn", &tools::qnn());
    // With this seed, answers depend on all earlier tokens; the prompt is longer than a prefill.
    // With a context of 128, libGenie loses the cache of the first prefill.
    let gguf = TinyGguf::qwen2().seed(60).write();
    let (model, context, reference) =
        tiny(&runner, &gguf, "<|im_start|>the dog and the fox\n is é");
    let bundle = package(&runner, &model, &context, json!({"name": "tiny"})).unwrap();
    let generate = |params: Value| {
        runner.run(
            "generate",
            params,
            &[("bundle", &bundle), ("reference", &reference)],
        )
    };
    let answer = generate(json!({})).unwrap();
    let generation = runner.json(&answer, "generation.json");
    println!("{generation}");
    assert_eq!(
        generation["tokens"],
        runner.json(&reference, "greedy.json")["tokens"]
    );
    assert_eq!(generate(json!({})).unwrap(), answer);
    // An answer that repeats one token would not test the caches.
    assert_eq!(generation["tokens"], json!([48, 95, 48, 95, 142, 61]));
    let three = runner.json(&generate(json!({"tokens": 3})).unwrap(), "generation.json");
    assert_eq!(
        (&three["tokens"], &three["text"]),
        (&json!([48, 95, 48]), &json!("0_0"))
    );
    assert_eq!(
        generate(json!({"tokens": 7})).unwrap_err().code,
        Code::GenerateTokens
    );
}

/// Models whose RoPE Genie computes from other settings than a base, and the same models with another
/// RoPE.
fn rotaries() -> Vec<[TinyGguf; 2]> {
    let plain = || TinyGguf::llama().tied(false);
    let yarn = plain().keys(&[
        ("rope.scaling.type", "yarn".into()),
        ("rope.scaling.factor", 16.0.into()),
        ("rope.scaling.original_context_length", 16.into()),
    ]);
    let linear = plain().keys(&[
        ("rope.scaling.type", "linear".into()),
        ("rope.scaling.factor", 8.0.into()),
    ]);
    let divisors = [4.0, 1.0, 0.5, 2.0, 4.0, 8.0, 8.0, 8.0];
    let without_magnitude = [("rope.scaling.attn_factor", 1.0.into())];
    let window = [("attention.sliding_window", 256.into())];
    let gemma3 = || TinyGguf::gemma3().tied(false).keys(&window);
    vec![
        [yarn, plain()],
        [linear, plain()],
        [plain().divisors("rope_freqs", &divisors), plain()],
        [TinyGguf::phi3(), TinyGguf::phi3().keys(&without_magnitude)],
        [
            gemma3(),
            gemma3().keys(&[("rope.freq_base_swa", 1e6.into())]),
        ],
    ]
}

#[test]
#[ignore = "needs the QNN libraries"]
fn genie_computes_every_rotary_embedding() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path()).tool("qnn", &tools::qnn());
    for [model, other] in rotaries() {
        check_genie_tells_apart(
            &runner,
            &model,
            &other,
            "<|im_start|>the dog and the fox\n is é",
        );
    }
}

/// Checks that Genie's answer to `prompt` is the reference's: of `model`, with the first seed for
/// which `other` has another answer.
#[track_caller]
fn check_genie_tells_apart(runner: &StageRunner, model: &TinyGguf, other: &TinyGguf, prompt: &str) {
    let greedy = |model: &TinyGguf| {
        let model = runner.inspect(&model.write());
        let reference = runner.reference(&model, answer_params(prompt));
        runner.json(&reference, "greedy.json")["tokens"].clone()
    };
    let mut seeds = (1..100).map(|seed| [model, other].map(|model| model.clone().seed(seed)));
    let [model, _] = seeds
        .find(|[model, other]| greedy(model) != greedy(other))
        .unwrap();
    let (description, context, reference) = tiny(runner, &model.write(), prompt);
    let bundle = package(runner, &description, &context, json!({})).unwrap();
    let slots = [("bundle", &bundle), ("reference", &reference)];
    let answer = runner.run("generate", json!({}), &slots).unwrap();
    let generation = runner.json(&answer, "generation.json");
    println!("{model:?} {generation}");
    assert_eq!(generation["tokens"], generation["expected"], "{model:?}");
}

/// The prompt is longer than the window, which is longer or shorter than a prefill.
#[test]
#[ignore = "needs the QNN libraries"]
fn genie_slides_a_window() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path()).tool("qnn", &tools::qnn());
    let prompt = "<|im_start|>the dog and the fox\n is é the dog is the fox and the dog is";
    for (model, window) in [
        (TinyGguf::gemma3().tied(false), 24),
        (TinyGguf::gemma3().tied(false), 8),
        (TinyGguf::gemma2(), 24),
    ] {
        let [model, other] = [window, 256].map(|window: u32| {
            let window = [("attention.sliding_window", window.into())];
            model.clone().keys(&window)
        });
        check_genie_tells_apart(&runner, &model, &other, prompt);
    }
}

#[test]
#[ignore = "needs the QNN libraries"]
fn genie_stops_at_the_same_end_token() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path()).tool("qnn", &tools::qnn());
    let mut file = TinyGguf::qwen2().seed(60).file();
    // The fifth token of the answer above. `<|endoftext|>` and `<|im_end|>` are end tokens too.
    file.set("tokenizer.ggml.eot_token_id", 142);
    let (model, context, reference) = tiny(
        &runner,
        &file.write(),
        "<|im_start|>the dog and the fox\n is é",
    );
    assert_eq!(
        runner.json(&reference, "greedy.json")["tokens"],
        json!([48, 95, 48, 95, 142])
    );
    let bundle = package(&runner, &model, &context, json!({"name": "tiny"})).unwrap();
    let slots = [("bundle", &bundle), ("reference", &reference)];
    let answer = |params: Value| {
        runner.json(
            &runner.run("generate", params, &slots).unwrap(),
            "generation.json",
        )
    };
    let generation = answer(json!({"tokens": 9}));
    assert_eq!(
        (&generation["tokens"], &generation["ended"]),
        (&json!([48, 95, 48, 95]), &json!(true))
    );
    assert_eq!(generation["tokens"], generation["expected"]);
    assert_eq!(answer(json!({"tokens": 4}))["ended"], false);
}

/// Genie puts the first token before every prompt. Twice the token is another prompt.
#[test]
#[ignore = "needs the QNN libraries"]
fn genie_begins_with_the_first_token() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path()).tool("qnn", &tools::qnn());
    let file = with_first_token();
    for prompt in ["the dog", "<|im_start|>the dog"] {
        let (model, context, reference) = tiny(&runner, &file.write(), prompt);
        let params = json!({"name": "tiny", "prompt": prompt});
        let bundle = package(&runner, &model, &context, params).unwrap();
        let text = runner.bytes(&bundle, "prompt.txt");
        assert_eq!(String::from_utf8(text).unwrap(), "the dog");
        let slots = [("bundle", &bundle), ("reference", &reference)];
        let answer = runner.run("generate", json!({}), &slots).unwrap();
        let generation = runner.json(&answer, "generation.json");
        assert_eq!(generation["prompt"][0], 286);
        assert_eq!(generation["tokens"], generation["expected"]);
    }
}

#[test]
#[ignore = "needs the QNN libraries"]
fn generate_rejects_unsuitable_inputs() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path()).tool("qnn", &tools::qnn());
    let file = with_first_token();
    let (model, context, reference) = tiny(&runner, &file.write(), "the dog");
    let bundle = package(&runner, &model, &context, json!({})).unwrap();
    let generate = |bundle: &Manifest, reference: &Manifest| {
        runner
            .run(
                "generate",
                json!({}),
                &[("bundle", bundle), ("reference", reference)],
            )
            .unwrap_err()
    };
    let other = runner.inspect(&TinyGguf::llama().write());
    let without_bos = runner.reference(&other, answer_params("the dog"));
    let problem = generate(&bundle, &without_bos);
    assert_eq!(
        problem.message,
        "Genie puts \"<|im_start|>\" before the prompt, and the reference's prompt does not begin \
         with it"
    );
    let mut without_prompt = reference.clone();
    without_prompt.parts.remove("greedy.json");
    assert_eq!(
        generate(&bundle, &without_prompt).code,
        Code::GenerateNoPrompt
    );
    let shared = package(&runner, &model, &unsharded(&runner, &model), json!({})).unwrap();
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
    let runner = StageRunner::new(home.path()).tool("qnn", &tools::qnn());
    let (model, graph) = runner.model(
        &std::fs::read(tools::smollm2()).unwrap(),
        "native",
        json!({"prefill": 32, "context": 128}),
    );
    let context = runner
        .run(
            "context-bin",
            json!({"soc": "sm8650", "weight_sharing": false}),
            &[("graph", &graph)],
        )
        .unwrap();
    let prompt = "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n";
    let params = json!({"windows": 1, "tokens": 8, "prompt": prompt, "greedy": 16});
    let text = runner.file(include_bytes!("../../plans/data/eval.txt"));
    let reference = runner
        .run("reference", params, &[("model", &model), ("text", &text)])
        .unwrap();
    let bundle = package(
        &runner,
        &model,
        &context,
        json!({"name": "smollm2", "prompt": prompt}),
    )
    .unwrap();
    let answer = runner
        .run(
            "generate",
            json!({}),
            &[("bundle", &bundle), ("reference", &reference)],
        )
        .unwrap();
    let generation = runner.json(&answer, "generation.json");
    println!("{generation}");
    assert_eq!(generation["tokens"], generation["expected"]);
    assert_eq!(generation["text"], generation["expected_text"]);
}
