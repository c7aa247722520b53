//! The command line: output and exit codes.

use std::path::{Path, PathBuf};

use crate::support::call::kiln;
use crate::support::tiny_build::TinyBuild;

const FIVE_MISTAKES: &str = r#"
[plan]
name = "five"
[stage.source]
kind = "fetch"
url = "ftp://nowhere"
[stage.model]
kind = "inspekt"
gguf = "source"
[stage.weights]
kind = "requant"
tensors = "modle"
shceme = "native"
[[stage.weights.override]]
match = "blk.*"
scheme = "f61"
"#;

fn with_plan(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.toml");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

#[test]
fn every_mistake_is_shown_with_its_location() {
    let (folder, _) = with_plan(FIVE_MISTAKES);
    let (code, out, err) = kiln(folder.path(), &["check", "plan.toml"]);
    assert_eq!((code, out.as_str()), (2, ""));
    for (place, help) in [
        ("plan.toml:6:7", "https:"),
        ("plan.toml:8:8", "did you mean `inspect`?"),
        ("plan.toml:12:11", "did you mean `model`?"),
        ("plan.toml:13:1", "did you mean `scheme`?"),
        ("plan.toml:16:10", "did you mean `f16`?"),
    ] {
        assert!(err.contains(place), "{place} in:\n{err}");
        assert!(err.contains(help), "{help} in:\n{err}");
    }
    assert_eq!(err.matches("kiln::plan::").count(), 5, "{err}");
    assert!(!err.contains('\x1b'), "colours without a terminal:\n{err}");
    let (_, _, err) = kiln(folder.path(), &["--color", "always", "check", "plan.toml"]);
    assert!(err.contains('\x1b'));
}

#[test]
fn an_invalid_name_is_reported_once() {
    let (folder, _) = with_plan(
        "[plan]\nname = 't'\n[stage.a]\nkind = 'fetch'\nparts = ['file:a', 'file:b']\nname = \
         '../b'\n[stage.b]\nkind = 'fetch'\nparts = ['ftp:a']\nname = 'b'\n[stage.c]\nkind = \
         'command'\nprogram = '/bin/true'\noutputs = ['../x', '', 'y']\n",
    );
    let (code, _, err) = kiln(folder.path(), &["check", "plan.toml"]);
    let problems: Vec<&str> = err.lines().filter(|line| line.contains("×")).collect();
    let expected = ["a.name", "b.parts", "c.outputs.0", "c.outputs.1"];
    assert_eq!((code, problems.len()), (2, expected.len()), "{err}");
    for (line, name) in problems.iter().zip(expected) {
        assert!(line.contains(&format!("`{name}`")), "{name}: {line}");
    }
}

#[test]
fn control_characters_and_secrets_are_removed_from_output() {
    let (folder, path) = with_plan(
        "[plan]\nname = 't'\n# \u{202e}\n[stage.c]\nkind = \"x\\u001b[31m\\n::set-output \
         name=a::b\\r\\u009b\"\n",
    );
    for json in [&[][..], &["--json"]] {
        let (code, out, err) = kiln(folder.path(), &[&["check", "plan.toml"], json].concat());
        assert_eq!(code, 2);
        let output = out + &err;
        let is_control = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!output.contains(is_control), "{output:?}");
        for line in output.lines() {
            assert!(!line.trim_start().starts_with("::"), "{output}");
        }
    }
    std::fs::write(
        path,
        "[plan]\nname = 't'\n[stage.c]\nkind = 'fetch'\nurl = 'http://me:secret@a.example/b?sig=secret'\n",
    )
    .unwrap();
    for json in [&[][..], &["--json"]] {
        let (_, out, err) = kiln(folder.path(), &[&["check", "plan.toml"], json].concat());
        assert!(!(out.clone() + &err).contains("secret"), "{out}{err}");
    }
}

#[test]
fn long_problem_lists_are_truncated() {
    let (folder, path) = with_plan(&"x\n".repeat(50_000));
    let (code, _, err) = kiln(folder.path(), &["check", "plan.toml"]);
    assert!(
        code == 2 && err.contains("more mistakes") && err.len() < 1 << 17,
        "{}",
        err.len()
    );
    // A long line is truncated too.
    std::fs::write(path, format!("[plan]\nname = '{}", "x".repeat(200_000))).unwrap();
    let (code, _, err) = kiln(folder.path(), &["check", "plan.toml"]);
    assert!(code == 2 && err.len() < 1 << 17, "{}", err.len());
}

#[test]
fn the_size_of_expanded_variables_is_limited() {
    let errors = |stages: &str| {
        let (folder, _) = with_plan(&format!(
            "[plan]\nname = 't'\n[vars]\nv = '{}'\n{stages}",
            "x".repeat(30_000)
        ));
        let (code, _, err) = kiln(folder.path(), &["check", "plan.toml"]);
        assert_eq!(code, 2);
        err
    };
    let many = "${v}".repeat(7_000);
    let err = errors(&format!(
        "[stage.a]\nkind = 'command'\nprogram = '/bin/true'\noutputs = ['a']\nargs = ['{many}']\n"
    ));
    assert!(err.contains("more than 65536 bytes"), "{err}");
    // Each value is short enough, but their sum is not.
    let stages = (0..900).map(|n| format!("[stage.a{n}]\nkind = 'fetch'\nurl = 'file:${{v}}'\n"));
    let err = errors(&stages.collect::<String>());
    assert!(
        err.contains("the plan has more than 16777216 bytes"),
        "{}",
        err.len()
    );
}

#[test]
fn problems_are_printed_as_json_lines() {
    let (folder, _) = with_plan(FIVE_MISTAKES);
    let (code, out, err) = kiln(folder.path(), &["check", "--json", "plan.toml"]);
    assert_eq!((code, err.as_str()), (2, ""));
    let mut codes = vec![];
    for line in out.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        codes.push(line["problem"]["code"].clone());
    }
    assert_eq!(codes.len(), 5);
    assert_eq!(codes[1], "kiln::plan::unknown_kind");
}

/// Two schemes on two chips, with one report per chip.
const MATRIX: &str = r#"
include = ["lib/model.toml"]
[plan]
name = "chips"
[matrix]
soc = ["sm8650", "sm8750"]
scheme = ["native", "int8-block"]
[tools]
qnn = { pypi = "onnxruntime-qnn==2.7.0" }
[stage.weights]
kind = "requant"
tensors = "model"
scheme = "${scheme}"
[stage.graph]
kind = "graph"
model = "model"
weights = "weights"
[stage.npu]
kind = "context-bin"
graph = "graph"
soc = "${soc}"
weight_sharing = false
[stage.htp]
kind = "evaluate"
reference = "reference"
context = "npu"
[stage.report]
kind = "validate"
inputs = ["htp"]
across = ["scheme"]
limits = { htp = { kld = 1e-3 }, "htp.sm8650.int8-block" = { kld = 2e-2 } }
"#;

const MODEL: &str = "[stage.source]\nkind = 'fetch'\nurl = 'file:a.gguf'\n[stage.model]\nkind = \
                     'inspect'\ngguf = 'source'\n[stage.reference]\nkind = 'reference'\nmodel = \
                     'model'\ntext = 'source'\n";

fn with_matrix(model: &str) -> tempfile::TempDir {
    let (folder, _) = with_plan(MATRIX);
    std::fs::create_dir(folder.path().join("lib")).unwrap();
    std::fs::write(folder.path().join("lib/model.toml"), model).unwrap();
    folder
}

#[test]
fn an_included_file_and_a_matrix_are_expanded() {
    let folder = with_matrix(MODEL);
    let (code, out, err) = kiln(folder.path(), &["show", "plan.toml", "--set", "soc=sm8850"]);
    let expected = "
  tools.qnn              fetch
  source                 fetch
  model                  inspect      gguf = source
  reference              reference    model = model; text = source
  weights.native         requant      tensors = model
  weights.int8-block     requant      tensors = model
  graph.native           graph        model = model; weights = weights.native
  graph.int8-block       graph        model = model; weights = weights.int8-block
  npu.sm8850.native      context-bin  graph = graph.native; tools.qnn
  npu.sm8850.int8-block  context-bin  graph = graph.int8-block; tools.qnn
  htp.sm8850.native      evaluate     context = npu.sm8850.native; reference = reference; tools.qnn
  htp.sm8850.int8-block  evaluate     context = npu.sm8850.int8-block; reference = reference; \
                    tools.qnn
* report.sm8850          validate     inputs = htp.sm8850.native, htp.sm8850.int8-block
";
    assert_eq!(
        (code, out.as_str()),
        (0, expected.trim_start_matches('\n')),
        "{err}"
    );
    let (code, out, _) = kiln(folder.path(), &["check", "plan.toml"]);
    assert_eq!((code, out.as_str()), (0, "chips: 18 stages, no problems\n"));
}

#[test]
fn a_mistake_in_an_included_file_names_that_file() {
    let folder = with_matrix(&format!("{MODEL}[stage.weights]\nkind = 'reqant'\n"));
    let (code, _, err) = kiln(folder.path(), &["check", "plan.toml"]);
    assert_eq!(code, 2);
    for place in ["plan.toml:10:8", "lib/model.toml:11:8"] {
        assert!(err.contains(place), "{place} in:\n{err}");
    }
    let (_, out, _) = kiln(folder.path(), &["check", "plan.toml", "--json"]);
    let line = out
        .lines()
        .find(|line| line.contains("defined_twice"))
        .unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!(
        line["files"],
        serde_json::json!(["plan.toml", "lib/model.toml"])
    );
    let (start, end) = (
        MODEL.len() + "[stage.".len(),
        MODEL.len() + "[stage.weights".len(),
    );
    assert_eq!(
        line["problem"]["labels"][1][0],
        serde_json::json!({"start": start, "end": end})
    );

    std::fs::remove_file(folder.path().join("lib/model.toml")).unwrap();
    let (code, _, err) = kiln(folder.path(), &["check", "plan.toml"]);
    assert!(
        code == 2 && err.contains("plan.toml:2:12") && err.contains("lib/model.toml"),
        "{err}"
    );
}

#[test]
fn the_schema_is_printed() {
    let (code, out, _) = kiln(Path::new("."), &["schema"]);
    let schema: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &schema["$schema"]),
        (0, &"https://json-schema.org/draft/2020-12/schema".into())
    );
}

#[test]
fn invalid_calls_exit_with_code_2() {
    let (folder, _) = with_plan("[plan]\nname = 'empty'\n");
    assert_eq!(
        kiln(folder.path(), &["check", "plan.toml"]),
        (0, "empty: 0 stages, no problems\n".into(), "".into())
    );
    let (code, _, err) = kiln(folder.path(), &["check", "absent.toml"]);
    assert!(code == 2 && err.contains("help: `kiln init"), "{err}");
    assert_eq!(
        kiln(folder.path(), &["check", "plan.toml", "--set", "x=1"]).0,
        2
    );
    assert_eq!(
        kiln(folder.path(), &["check", "plan.toml", "--set", "x"]).0,
        2
    );
    assert_eq!(kiln(folder.path(), &["chekc"]).0, 2);
}

#[test]
fn doctor_works_without_a_plan() {
    let (folder, _) =
        with_plan("[plan]\nname = 'small'\n[stage.clay]\nkind = 'fetch'\nurl = 'file:a.gguf'\n");
    let (_, without, err) = kiln(folder.path(), &["doctor"]);
    assert!(
        without.contains("python3") && !without.contains("clay"),
        "{without}{err}"
    );
    let (_, with, err) = kiln(folder.path(), &["doctor", "plan.toml"]);
    assert!(
        with.contains("clay") && with.contains("a build will fetch it"),
        "{with}{err}"
    );
}

#[test]
fn show_prints_text_mermaid_dot_and_json() {
    let text = "[plan]\nname = 'small'\n[stage.model]\nkind = 'inspect'\ngguf = \
                'source'\n[stage.source]\nkind = 'fetch'\nurl = 'file:a.gguf'\n";
    let (folder, _) = with_plan(text);
    let show = |format| kiln(folder.path(), &["show", "plan.toml", "--format", format]).1;
    assert_eq!(
        show("text"),
        "  source  fetch\n* model   inspect  gguf = source\n"
    );
    assert_eq!(
        show("mermaid"),
        "flowchart LR\n  s0[\"source<br/><i>fetch</i>\"]\n  s1[[\"model<br/><i>inspect</i>\"]]\n  \
         s0 -- gguf --> s1\n"
    );
    assert_eq!(
        show("dot"),
        "digraph \"small\" {\n  rankdir = LR;\n  node [shape = box];\n  \"source\" [label = \
         \"source\\nfetch\"];\n  \"model\" [label = \"model\\ninspect\", peripheries = 2];\n  \
         \"source\" -> \"model\" [label = \"gguf\"];\n}\n"
    );
    let (_, line, _) = kiln(folder.path(), &["show", "plan.toml", "--json"]);
    assert_eq!(line.lines().count(), 1, "{line}");
    let expected = serde_json::json!({"plan": "small", "stages": [
        {"stage": "source", "kind": "fetch", "inputs": {}, "tools": {}, "keep": false, "optional": false},
        {"stage": "model", "kind": "inspect", "inputs": {"gguf": ["source"]}, "tools": {}, "keep": true,
         "optional": false},
    ]});
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&line).unwrap(),
        expected
    );
}

#[test]
fn optional_stages_are_built_on_demand() {
    let text = "[plan]\nname = 'small'\n[stage.clay]\nkind = 'fetch'\nurl = \
                'file:plan.toml'\ntracked = true\n[stage.glaze]\nkind = 'fetch'\nurl = \
                'file:plan.toml'\ntracked = true\noptional = true\n";
    let (folder, _) = with_plan(text);
    let built = |targets: &[&str]| {
        let arguments = [&["build", "plan.toml", "--json"], targets].concat();
        let (code, out, err) = kiln(folder.path(), &arguments);
        assert_eq!(code, 0, "{out}{err}");
        let exists = |stage: &str| folder.path().join("out/small").join(stage).exists();
        let found = ["clay", "glaze"].map(exists);
        let _ = std::fs::remove_dir_all(folder.path().join("out"));
        found
    };
    assert_eq!(built(&[]), [true, false]);
    assert_eq!(built(&["glaze"]), [false, true]);
    assert_eq!(built(&["clay", "glaze"]), [true, true]);
}

#[test]
fn the_deepseek_plan_has_the_expected_stages() {
    let plan = concat!(env!("CARGO_MANIFEST_DIR"), "/plans/deepseek-qwen-1.5b.toml");
    let (code, out, _) = kiln(
        Path::new("."),
        &[
            "show",
            plan,
            "--set",
            "context=256",
            "--set",
            "source=file:tiny.gguf",
        ],
    );
    assert_eq!(code, 0);
    let expected = "
  tools.qnn         fetch
  tools.ort         fetch
  source            fetch
* model             inspect          gguf = source
  weights           requant          tensors = model
* graph             graph            model = model; weights = weights
* npu               context-bin      graph = graph; tools.qnn
* container         dlc              context = npu; tools.qnn
* bundle            package          context = npu; model = model; tools.qnn
  text              fetch
  reference         reference        model = model; text = text
  onnx              evaluate         graph = graph; reference = reference; tools.ort
  graph-by-layer    graph            model = model; weights = weights
  npu-layers        context-bin      graph = graph-by-layer; tools.qnn
  layers            evaluate-layers  context = npu-layers; graph = graph-by-layer; reference = \
                    reference; tools.ort; tools.qnn
  phone             measure          bundle = bundle
* report            validate         inputs = onnx, layers, bundle, phone
? npu-simulated     context-bin      graph = graph; tools.qnn
? htp               evaluate         context = npu-simulated; reference = reference; tools.ort; \
                    tools.qnn
? simulated         validate         inputs = htp
? bundle-simulated  package          context = npu-simulated; model = model; tools.qnn
? answer            generate         bundle = bundle-simulated; reference = reference; tools.qnn
? genie             validate         inputs = answer
";
    assert_eq!(out, expected.trim_start_matches('\n'));
    let (code, _, err) = kiln(Path::new("."), &["show", plan, "--set", "context=64"]);
    assert_eq!(code, 2);
    assert!(err.contains("`graph.context`"), "{err}");
}

#[test]
fn completed_artifacts_are_written_although_a_limit_is_missed() {
    let tiny = TinyBuild::new();
    let folder = tiny.workspace("");
    let plan = std::fs::read_to_string(tiny.plan()).unwrap();
    let build = |limits: &str| {
        let report = format!(
            r#"report = {{ kind = "validate", inputs = ["rounded"], limits = {{ rounded = {limits} }} }}"#
        );
        std::fs::write(tiny.plan(), format!("{plan}\n{report}\n")).unwrap();
        kiln(&folder, &["build", "tiny.toml", "--cache", "cache"])
    };
    let report = || std::fs::read_to_string(folder.join("out/tiny/report/report.txt")).unwrap();
    let exists = |file: &str| folder.join("out/tiny").join(file).exists();

    let (code, _, err) = build("{ exact = true }");
    assert_eq!(code, 1, "{err}");
    assert!(
        err.contains("see report.json, report.txt in out/tiny/report"),
        "{err}"
    );
    assert!(
        report().contains("FAILED: 1 of 1 limits missed"),
        "{}",
        report()
    );
    assert!(exists("model/model.json") && !exists("receipt.json"));

    let (code, _, err) = build("{ sqnr_db = 1 }");
    assert_eq!(code, 0, "{err}");
    assert!(
        report().contains("passed: 0 of 1 limits missed"),
        "{}",
        report()
    );
    assert!(exists("receipt.json") && exists("SHA256SUMS"));

    let (code, ..) = build("{ sqnr_db = 200 }");
    assert_eq!(code, 1);
    assert!(
        report().contains("FAILED: 1 of 1 limits missed"),
        "{}",
        report()
    );
    assert!(
        !exists("receipt.json") && !exists("SHA256SUMS"),
        "they would describe another report"
    );
}
