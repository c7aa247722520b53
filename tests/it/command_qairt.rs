//! The plan `plans/deepseek-qwen-1.5b.qairt.toml`, whose `command` stages call Qualcomm's tools.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::command_project::CommandProject;
use crate::support::fetching::sha256;
use crate::support::peers::{python, stdout_of};
use crate::support::quantize::Quant;
use crate::support::tiny_gguf::TinyGguf;

/// A fake `qairt-converter`: it rejects unknown options and writes a line about its input.
const CONVERTER: &str = r#"
import os, sys
root = os.environ["QNN_SDK_ROOT"]
assert os.environ["PYTHONPATH"] == root + "/lib/python", os.environ
assert os.environ["LD_LIBRARY_PATH"] == root + "/lib/x86_64-linux-clang", os.environ
arguments = iter(sys.argv[1:])
options = {}
for option in arguments:
    count = {"--input_network": 1, "--output_path": 1, "--source_model_input_datatype": 2,
             "--float_bitwidth": 1, "--onnx_skip_simplification": 0, "--target_backend": 1}[option]
    options[option] = [next(arguments) for _ in range(count)]
[network], [output] = options.pop("--input_network"), options.pop("--output_path")
assert options == {"--source_model_input_datatype": ["input_ids", "int32"],
                   "--float_bitwidth": ["16"], "--onnx_skip_simplification": [], "--target_backend": ["HTP"]}, options
assert os.path.exists(os.path.join(os.path.dirname(network), "weights/output_norm.weight/values"))
open(output, "w").write(f"DLC of {os.path.basename(network)}, {os.path.getsize(network)} bytes\n")
"#;

/// A fake `qnn-context-binary-generator`: it checks its arguments and writes its inputs.
const COMPILER: &str = r#"
root=${0%/bin/*}; lib=$root/lib/x86_64-linux-clang
[ "$LD_LIBRARY_PATH" = "$lib" ] && [ $# = 12 ] || exit 2
[ "$1 $2" = "--backend $lib/libQnnHtp.so" ] && [ -e "$2" ] || exit 3
[ "$3 $4" = "--model $lib/libQnnModelDlc.so" ] && [ -e "$4" ] || exit 4
[ "$5" = --dlc_path ] && [ -e "${6%,*}" ] && [ -e "${6#*,}" ] || exit 5
[ "$7 $8 $9 ${10}" = "--binary_file model --output_dir outputs" ] || exit 6
[ "${11}" = --config_file ] || exit 7
/bin/cat "${6%,*}" "${6#*,}" "${12}" inputs/config/htp.json >"${10}/$8.bin"
"#;

/// A fake Python package `onnx` with the functions that the plan calls.
const FAKE_ONNX: [(&str, &str); 2] = [
    (
        "__init__.py",
        "def load(path, load_external_data):\n    return open(path, 'rb').read()\ndef save(model, \
         path):\n    open(path, 'wb').write(model)\n",
    ),
    (
        "inliner.py",
        "def inline_local_functions(model):\n    return model\n",
    ),
];

/// Builds `stages` of the QAIRT plan on a tiny model, with fakes of its tools. Python finds `onnx`
/// in `python_path`, or a fake of it.
fn build_by_qairt(python_path: Option<&Path>, stages: &[&str]) -> CommandProject {
    let project = CommandProject::new("", "");
    let model = TinyGguf::qwen2()
        .widths(256, 256)
        .tensor_type("output.weight", Quant::Q6_K)
        .tensor_type("blk.0.ffn_down.weight", Quant::Q4_1)
        .write();
    fs::write(project.path("model.gguf"), &model).unwrap();
    for (file, text) in FAKE_ONNX {
        fs::create_dir_all(project.path("fake/onnx")).unwrap();
        fs::write(project.path("fake/onnx").join(file), text).unwrap();
    }
    let path = python_path.map_or(project.path("fake"), Path::to_owned);
    let python3 =
        stdout_of(Command::new("python3").args(["-c", "import sys; print(sys.executable)"]));
    let wrapper = format!(
        ": ${{PYTHONPATH:={}}}; export PYTHONPATH; exec {} \"$@\"",
        path.display(),
        python3.trim()
    );
    project.script("python", &wrapper);
    let bin = "qairt/bin/x86_64-linux-clang";
    project.script(&format!("{bin}/qnn-context-binary-generator"), COMPILER);
    fs::write(project.path(bin).join("qairt-converter"), CONVERTER).unwrap();
    for folder in ["qairt/lib/python", "qairt/lib/x86_64-linux-clang"] {
        fs::create_dir_all(project.path(folder)).unwrap();
    }
    for library in ["libQnnHtp.so", "libQnnModelDlc.so"] {
        fs::write(
            project.path("qairt/lib/x86_64-linux-clang").join(library),
            library,
        )
        .unwrap();
    }
    let plan = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/plans/deepseek-qwen-1.5b.qairt.toml"
    );
    let set = |name: &str, value: &str| ["--set".to_string(), format!("{name}={value}")];
    let mut kiln = project.kiln(&["build", plan]);
    kiln.args(stages).env("QNN_SDK_ROOT", project.path("qairt"));
    for [option, value] in [
        set("python", project.path("python").to_str().unwrap()),
        set("source", "file:model.gguf"),
        set("sha256", &sha256(&model)),
        set("prefill", "16"),
        set("context", "48"),
        set("memory", "100MB"),
    ] {
        kiln.args([option, value]);
    }
    stdout_of(&mut kiln);
    project
}

#[test]
fn the_qairt_plan_passes_the_expected_arguments() {
    let project = build_by_qairt(None, &[]);
    let made =
        fs::read_to_string(project.path("out/deepseek-qwen-1.5b.qairt/npu/model.bin")).unwrap();
    let (dlcs, config) = made.split_at(made.find('{').unwrap());
    let names: Vec<&str> = dlcs
        .lines()
        .map(|line| line.split(',').next().unwrap())
        .collect();
    assert_eq!(names, ["DLC of prefill.onnx", "DLC of decode.onnx"]);
    let config = serde_json::Deserializer::from_str(config).into_iter();
    let config: Vec<serde_json::Value> = config.map(Result::unwrap).collect();
    assert_eq!(
        config[0]["backend_extensions"]["config_file_path"],
        "inputs/config/htp.json"
    );
    assert_eq!(
        config[1]["devices"][0],
        serde_json::json!({"soc_model": 57, "dsp_arch": "v75"})
    );
    assert_eq!(
        config[1]["graphs"][0]["graph_names"],
        serde_json::json!(["prefill", "decode"])
    );

    let plan = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/plans/deepseek-qwen-1.5b.qairt.toml"
    );
    let finished = project.run(&["build", plan]);
    let unset = "the environment variable `QNN_SDK_ROOT` is not set";
    assert_eq!(finished.code, 2, "{}", finished.output);
    assert_eq!(
        finished.output.matches(unset).count(),
        1,
        "{}",
        finished.output
    );
    let mut kiln = project.kiln(&["build", plan]);
    let output = kiln.env("QNN_SDK_ROOT", "/nowhere").output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{errors}");
    assert!(errors.contains("export QNN_SDK_ROOT=/opt/qcom"), "{errors}");
}

#[test]
#[ignore = "needs a package index"]
fn the_qairt_plan_converts_standard_onnx() {
    let peers = python();
    let (_, path) = peers
        .get_envs()
        .find(|(name, _)| *name == "PYTHONPATH")
        .unwrap();
    let project = build_by_qairt(Some(Path::new(path.unwrap())), &["standard"]);
    let check = "import onnx, sys\nonnx.checker.check_model(sys.argv[1], full_check=True)\nmodel \
                 = onnx.load(sys.argv[1], load_external_data=False)\nprint(len(model.functions), \
                 sorted({node.domain for node in model.graph.node}))";
    for graph in ["prefill.onnx", "decode.onnx"] {
        let file = project
            .path("out/deepseek-qwen-1.5b.qairt/standard")
            .join(graph);
        assert_eq!(
            stdout_of(python().args(["-c", check]).arg(file)),
            "0 ['']\n"
        );
    }
}
