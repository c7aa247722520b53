//! `context-bin` and `dlc`. Tests that need the vendor's libraries are ignored by default; the
//! libraries are fetched, or loaded from the folder KILN_QNN. The stages run in child processes, as
//! in a build.

use std::path::Path;

use crate::support::quantize::Quant;
use crate::support::stage_runner::StageRunner;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tools;
use kiln::action::{InputStage, Manifest, ParamProblem};
use kiln::base::Code;
use kiln::{base, stages};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A runner with a tool `qnn` that has no libraries.
fn without_libraries(home: &TempDir) -> StageRunner {
    let libraries = home.path().join("libraries");
    std::fs::create_dir_all(&libraries).unwrap();
    StageRunner::new(&home.path().join("cache")).tool("qnn", &libraries)
}

/// A runner with the libraries in the folder KILN_QNN, or with those of the package index.
fn with_libraries(home: &TempDir) -> StageRunner {
    let folder = std::env::var_os("KILN_QNN").map_or_else(tools::qnn, Into::into);
    let libraries = home.path().join("libraries");
    std::fs::create_dir(&libraries).unwrap();
    for folder in [folder.with_extension("libs"), folder] {
        let Ok(files) = folder.read_dir() else {
            continue;
        };
        for file in files {
            let path = file.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if ["libQnnHtp.so", "libQnnIr.so", "libQnnSystem.so"].contains(&name.as_str())
                || name.starts_with("libc++")
                || name.starts_with("libunwind")
            {
                std::os::unix::fs::symlink(&path, libraries.join(name)).unwrap();
            }
        }
    }
    without_libraries(home)
}

fn temporary_folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// The ONNX graphs of a model.
fn onnx(runner: &StageRunner, gguf: &[u8], scheme: &str, graph: Value) -> Manifest {
    runner.graph(&runner.inspect(gguf), scheme, graph)
}

fn tiny() -> Vec<u8> {
    TinyGguf::llama()
        .tensor_type("token_embd.weight", Quant::Q8_0)
        .write()
}

fn small() -> Value {
    json!({"prefill": 6, "context": 16})
}

fn names(manifest: &Manifest) -> Vec<&str> {
    manifest.parts.keys().map(|name| name.as_str()).collect()
}

fn digests(manifest: &Manifest) -> Vec<String> {
    manifest
        .parts
        .iter()
        .map(|(name, part)| format!("{name} {}", part.content.digest))
        .collect()
}

#[track_caller]
fn check_problems(kind: &str, params: Value, slots: &[&str], expected: &str) {
    let input = |slot: &&str| InputStage {
        slot: slot.to_string(),
        stage: slot.to_string(),
        ..InputStage::default()
    };
    let inputs: Vec<InputStage> = slots.iter().map(input).collect();
    let problems = stages::all()
        .get(kind)
        .unwrap()
        .check(&params, &inputs)
        .unwrap_err();
    let mut lines = vec![];
    for ParamProblem { path, problem } in problems {
        let help = problem.help.as_deref().unwrap_or("");
        lines.push(format!("{path}: {problem} ({help})"));
    }
    assert_eq!(lines.join("\n"), expected);
}

#[test]
fn invalid_parameters_are_reported() {
    let either = ": a context binary is made of either a `graph` or a `dlc` (give one of them)";
    check_problems("context-bin", json!({"soc": "sm8650"}), &[], either);
    check_problems(
        "context-bin",
        json!({"soc": "sm8650"}),
        &["graph", "dlc"],
        either,
    );
    check_problems(
        "context-bin",
        json!({"soc": "sm8560", "graphs": ["prefill", "prefill"], "optimization": 4}),
        &["graph"],
        "graphs/1: \"prefill\" is in the list twice ()\noptimization: expected an integer from 1 to \
         3, found 4 (Optimization level of the compiler.)\nsoc: unknown SoC `sm8560` \
         (did you mean `sm8550`?)",
    );
    check_problems(
        "dlc",
        json!({}),
        &[],
        ": a DLC is made of either a `graph` or a `context` (give one of them)",
    );
}

#[test]
fn dlc_rejects_encodings_it_cannot_store() {
    let home = temporary_folder();
    let runner = without_libraries(&home);
    let graph = onnx(&runner, &tiny(), "native", small());
    let problem = runner
        .run("dlc", json!({}), &[("graph", &graph)])
        .unwrap_err();
    assert_eq!(problem.code, Code::DlcEncoding);
    assert!(
        problem
            .message
            .contains("`blk.0.attn_k.weight` and 14 other tensors"),
        "{problem}"
    );

    let binary = Manifest {
        parts: [("model.bin".parse().unwrap(), runner.part(b"", json!({})))].into(),
    };
    assert_eq!(
        runner
            .run("dlc", json!({}), &[("context", &binary)])
            .unwrap_err()
            .code,
        Code::DlcNoContainer
    );
}

#[test]
fn a_missing_library_is_reported() {
    let home = temporary_folder();
    let runner = without_libraries(&home);
    let graph = onnx(&runner, &tiny(), "f16", small());
    for kind in ["dlc", "context-bin"] {
        let params = if kind == "dlc" {
            json!({})
        } else {
            json!({"soc": "sm8650"})
        };
        assert_eq!(
            runner
                .run(kind, params, &[("graph", &graph)])
                .unwrap_err()
                .code,
            Code::ToolFileMissing
        );
    }
}

#[test]
fn a_tensor_in_fp16_is_refused_for_a_chip_without_fp16_before_a_library_is_loaded() {
    let home = temporary_folder();
    let folder = home.path().join("libraries");
    std::fs::create_dir(&folder).unwrap();
    for library in ["libQnnHtp.so", "libQnnSystem.so"] {
        std::fs::write(folder.join(library), "no library").unwrap();
    }
    let runner = without_libraries(&home);
    let graph = onnx(&runner, &tiny(), "int8-channel", small());
    let problem = runner
        .run(
            "context-bin",
            json!({"soc": "sm8635"}),
            &[("graph", &graph)],
        )
        .unwrap_err();
    assert_eq!(problem.code, Code::QnnNoF16, "{problem}");
    assert_eq!(
        problem.message,
        "`attention_mask` of graph `prompt_ar6_cl16_1_of_1` needs fp16, which the HTP of sm8635 \
         does not have"
    );
    let help = problem.help.unwrap();
    assert!(help.contains("`float = \"never\"`"), "{help}");
}

#[test]
#[ignore = "needs the QNN libraries"]
fn native_weights_compile_to_a_context_binary_and_container() {
    let home = temporary_folder();
    let runner = with_libraries(&home);
    let graph = onnx(&runner, &tiny(), "native", small());
    let params = json!({"soc": "sm8650", "container": true});
    let context = runner
        .run("context-bin", params.clone(), &[("graph", &graph)])
        .unwrap();
    let proofs = [
        "float-block-4x32-offset",
        "float-block-8x32",
        "lookup-float-block-8x32",
    ]
    .map(|name| format!("proof/{name}/figures.json"));
    assert_eq!(
        names(&context),
        [
            &["container", "info.json", "model.bin", "model.json"][..],
            &proofs.each_ref().map(|s| s.as_str()),
            &["quantization.json"]
        ]
        .concat()
    );
    println!("{}", runner.text(&context, "info.json"));
    println!("{}", runner.text(&context, &proofs[0]));
    let second = runner
        .run("context-bin", params, &[("graph", &graph)])
        .unwrap();
    assert_eq!(digests(&context), digests(&second));

    let container = runner
        .run("dlc", json!({}), &[("context", &context)])
        .unwrap();
    assert_eq!(
        container.part("model.dlc").unwrap(),
        context.part("container").unwrap()
    );
}

#[test]
#[ignore = "needs the QNN libraries"]
fn f16_weights_compile_through_a_dlc() {
    let home = temporary_folder();
    let runner = with_libraries(&home);
    let graph = onnx(&runner, &tiny(), "f16", small());
    let dlc = runner.run("dlc", json!({}), &[("graph", &graph)]).unwrap();
    assert_eq!(
        names(&dlc),
        [
            "decode.dlc",
            "model.json",
            "prefill.dlc",
            "quantization.json"
        ]
    );
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(
        digests(&dlc),
        digests(&runner.run("dlc", json!({}), &[("graph", &graph)]).unwrap())
    );
    let context = runner
        .run("context-bin", json!({"soc": "sm8750"}), &[("dlc", &dlc)])
        .unwrap();
    for proof in ["proof/f16/figures.json", "proof/lookup-f16/figures.json"] {
        assert!(names(&context).contains(&proof), "{proof}");
    }
    let second = runner
        .run("context-bin", json!({"soc": "sm8750"}), &[("dlc", &dlc)])
        .unwrap();
    assert_eq!(digests(&context), digests(&second));
}

/// A real model, with and without a DLC: `KILN_GGUF=... cargo test --release --test it
/// qnn_stages::big_ -- --ignored --nocapture`.
#[test]
#[ignore = "needs the QNN libraries, SmolLM2 and minutes"]
fn big_smollm2_compiles_with_and_without_a_dlc() {
    let home = temporary_folder();
    let runner = with_libraries(&home);
    let gguf = std::fs::read(std::env::var_os("KILN_GGUF").map_or_else(tools::smollm2, Into::into))
        .unwrap();
    let size = json!({"prefill": 128, "context": 512});
    let graph = onnx(&runner, &gguf, "native", size.clone());
    let print = |name: &str, manifest: &Manifest| {
        let sizes = manifest
            .parts
            .values()
            .map(|part| part.content.digest.size_bytes);
        let largest = base::bytes(sizes.max().unwrap_or(0));
        println!("{name}: {largest}\n{}", digests(manifest).join("\n"));
    };
    let params = json!({"soc": "sm8650", "container": true});
    let first = runner
        .run("context-bin", params.clone(), &[("graph", &graph)])
        .unwrap();
    print("native", &first);
    let second = runner
        .run("context-bin", params, &[("graph", &graph)])
        .unwrap();
    assert_eq!(digests(&first), digests(&second));
    let graph = onnx(&runner, &gguf, "f16", size);
    let dlc = runner.run("dlc", json!({}), &[("graph", &graph)]).unwrap();
    print("dlc", &dlc);
    let params = json!({"soc": "sm8650", "weight_sharing": false});
    print(
        "f16",
        &runner.run("context-bin", params, &[("dlc", &dlc)]).unwrap(),
    );
    if let Some(folder) = std::env::var_os("KEEP") {
        std::fs::write(
            Path::new(&folder).join("native.bin"),
            runner.bytes(&first, "model.bin"),
        )
        .unwrap();
    }
}
