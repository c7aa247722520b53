//! The program from outside: what it prints, and how it leaves.

use std::path::{Path, PathBuf};

use crate::support::tiny_build::TinyBuild;
use assert_cmd::Command;

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

fn kiln(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::cargo_bin("kiln").unwrap();
    let output = command
        .env_remove("GITHUB_ACTIONS")
        .current_dir(folder)
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn with_plan(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.toml");
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

#[test]
fn every_mistake_is_shown_at_its_place() {
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
    assert!(
        !err.contains('\x1b'),
        "colours where nobody sees them:\n{err}"
    );
    let (_, _, err) = kiln(folder.path(), &["--color", "always", "check", "plan.toml"]);
    assert!(err.contains('\x1b'));
}

#[test]
fn a_bad_name_is_told_once() {
    let (folder, _) = with_plan(
        "[plan]\nname = 't'\n[stage.a]\nkind = 'fetch'\nparts = ['file:a', 'file:b']\nname = \
         '../b'\n[stage.b]\nkind = 'fetch'\nparts = ['ftp:a']\nname = 'b'\n[stage.c]\nkind = \
         'command'\nprogram = '/bin/true'\noutputs = ['../x', '', 'y']\n",
    );
    let (code, _, err) = kiln(folder.path(), &["check", "plan.toml"]);
    let told: Vec<&str> = err.lines().filter(|line| line.contains("×")).collect();
    let expected = ["a.name", "b.parts", "c.outputs.0", "c.outputs.1"];
    assert_eq!((code, told.len()), (2, expected.len()), "{err}");
    for (line, name) in told.iter().zip(expected) {
        assert!(line.contains(&format!("`{name}`")), "{name}: {line}");
    }
}

#[test]
fn nothing_from_outside_moves_the_cursor_or_commands_the_runner() {
    let (folder, path) = with_plan(
        "[plan]\nname = 't'\n# \u{202e}\n[stage.c]\nkind = \"x\\u001b[31m\\n::set-output \
         name=a::b\\r\\u009b\"\n",
    );
    for json in [&[][..], &["--json"]] {
        let (code, out, err) = kiln(folder.path(), &[&["check", "plan.toml"], json].concat());
        assert_eq!(code, 2);
        let said = out + &err;
        let moves = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!said.contains(moves), "{said:?}");
        assert!(
            !said.lines().any(|line| line.trim_start().starts_with("::")),
            "{said}"
        );
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
fn mistakes_without_end_are_not_told_one_by_one() {
    let (folder, path) = with_plan(&"x\n".repeat(50_000));
    let (code, _, err) = kiln(folder.path(), &["check", "plan.toml"]);
    assert!(
        code == 2 && err.contains("more mistakes") && err.len() < 1 << 17,
        "{}",
        err.len()
    );
    // Nor is a line that is as long as the plan.
    std::fs::write(path, format!("[plan]\nname = '{}", "x".repeat(200_000))).unwrap();
    let (code, _, err) = kiln(folder.path(), &["check", "plan.toml"]);
    assert!(code == 2 && err.len() < 1 << 17, "{}", err.len());
}

#[test]
fn variables_do_not_fill_the_memory() {
    let said = |stages: &str| {
        let (folder, _) = with_plan(&format!(
            "[plan]\nname = 't'\n[vars]\nv = '{}'\n{stages}",
            "x".repeat(30_000)
        ));
        let (code, _, err) = kiln(folder.path(), &["check", "plan.toml"]);
        assert_eq!(code, 2);
        err
    };
    let many = "${v}".repeat(7_000);
    let err = said(&format!(
        "[stage.a]\nkind = 'command'\nprogram = '/bin/true'\noutputs = ['a']\nargs = ['{many}']\n"
    ));
    assert!(err.contains("more than 65536 bytes"), "{err}");
    // Each is short enough, all together are not.
    let stages = (0..900).map(|n| format!("[stage.a{n}]\nkind = 'fetch'\nurl = 'file:${{v}}'\n"));
    let err = said(&stages.collect::<String>());
    assert!(
        err.contains("the plan has more than 16777216 bytes"),
        "{}",
        err.len()
    );
}

#[test]
fn problems_are_json_lines_for_machines() {
    let (folder, _) = with_plan(FIVE_MISTAKES);
    let (code, out, err) = kiln(folder.path(), &["check", "--json", "plan.toml"]);
    assert_eq!((code, err.as_str()), (2, ""));
    let codes: Vec<String> = out
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["problem"]["code"]
                .as_str()
                .unwrap()
                .into()
        })
        .collect();
    assert_eq!(codes.len(), 5);
    assert_eq!(codes[1], "kiln::plan::unknown_kind");
}

/// The file's own grid and signed bytes on two chips; one report a chip.
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
fn a_plan_of_two_files_over_a_matrix() {
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
fn a_mistake_in_an_included_file_is_shown_there() {
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
fn a_wrong_call_leaves_with_two() {
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
fn the_doctor_needs_no_plan() {
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
fn a_plan_is_drawn_three_ways() {
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
fn what_is_optional_is_built_on_demand() {
    let text = "[plan]\nname = 'small'\n[stage.clay]\nkind = 'fetch'\nurl = \
                'file:plan.toml'\ntracked = true\n[stage.glaze]\nkind = 'fetch'\nurl = \
                'file:plan.toml'\ntracked = true\noptional = true\n";
    let (folder, _) = with_plan(text);
    let built = |wanted: &[&str]| {
        let (code, out, err) = kiln(
            folder.path(),
            &[&["build", "plan.toml", "--json"], wanted].concat(),
        );
        assert_eq!(code, 0, "{out}{err}");
        let there = |stage: &str| folder.path().join("out/small").join(stage).exists();
        let found = ["clay", "glaze"].map(there);
        let _ = std::fs::remove_dir_all(folder.path().join("out"));
        found
    };
    assert_eq!(built(&[]), [true, false]);
    assert_eq!(built(&["glaze"]), [false, true]);
    assert_eq!(built(&["clay", "glaze"]), [true, true]);
}

#[test]
fn the_way_of_deepseek() {
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
* bundle            package          context = npu; model = model
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
? bundle-simulated  package          context = npu-simulated; model = model
? answer            generate         bundle = bundle-simulated; reference = reference; tools.qnn
? genie             validate         inputs = answer
";
    assert_eq!(out, expected.trim_start_matches('\n'));
    let (code, _, err) = kiln(Path::new("."), &["show", plan, "--set", "context=64"]);
    assert_eq!(code, 2);
    assert!(err.contains("`graph.context`"), "{err}");
}

#[test]
fn what_is_complete_is_there_though_a_limit_is_missed() {
    let tiny = TinyBuild::new();
    let folder = tiny.room("");
    let plan = std::fs::read_to_string(tiny.plan()).unwrap();
    let build = |limits: &str| {
        let report = format!(
            r#"report = {{ kind = "validate", inputs = ["rounded"], limits = {{ rounded = {limits} }} }}"#
        );
        std::fs::write(tiny.plan(), format!("{plan}\n{report}\n")).unwrap();
        kiln(&folder, &["build", "tiny.toml", "--cache", "cache"])
    };
    let report = || std::fs::read_to_string(folder.join("out/tiny/report/report.txt")).unwrap();
    let there = |file: &str| folder.join("out/tiny").join(file).exists();

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
    assert!(there("model/model.json") && !there("receipt.json"));

    let (code, _, err) = build("{ sqnr_db = 1 }");
    assert_eq!(code, 0, "{err}");
    assert!(
        report().contains("passed: 0 of 1 limits missed"),
        "{}",
        report()
    );
    assert!(there("receipt.json") && there("SHA256SUMS"));

    let (code, ..) = build("{ sqnr_db = 200 }");
    assert_eq!(code, 1);
    assert!(
        report().contains("FAILED: 1 of 1 limits missed"),
        "{}",
        report()
    );
    assert!(
        !there("receipt.json") && !there("SHA256SUMS"),
        "they would tell of another report"
    );
}
