//! Any program as a stage: what it sees, what is taken from it, how it ends, and when it runs
//! again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::alive::{is_alive, wait_until};
use crate::support::fetching::sha256;
use crate::support::peers::{python, said};
use crate::support::quantize::Quant;
use crate::support::scripts::write_script;
use crate::support::tiny_gguf::TinyGguf;
use rustix::process::{Pid, Signal, kill_process};

/// A folder with a plan of two inputs, `clay` and `glaze/a`, and a stage that runs the program
/// `tool`.
struct Bench {
    root: tempfile::TempDir,
}

/// How a build left, and what it said on both channels.
struct Left {
    code: i32,
    said: String,
}

impl Bench {
    /// `stage` is the rest of the stage's table; `TOOL` in it is the path of a program, the shell
    /// script `script`.
    fn new(script: &str, stage: &str) -> Bench {
        let bench = Bench {
            root: tempfile::tempdir().unwrap(),
        };
        bench.script("tool", script);
        fs::write(bench.path("clay.txt"), "clay").unwrap();
        bench.plan(stage);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn script(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        write_script(&path, &format!("#!/bin/sh\n{text}\n"));
    }

    fn plan(&self, stage: &str) {
        let text = format!(
            "[plan]\nname = 'pots'\n[stage.clay]\nkind = 'fetch'\nurl = 'file:clay.txt'\nsha256 = \
             '{}'\n[stage.pot]\nkind = 'command'\n{}\n",
            sha256(b"clay"),
            stage.replace("TOOL", self.path("tool").to_str().unwrap())
        );
        fs::write(self.path("pots.toml"), text).unwrap();
    }

    fn kiln(&self, args: &[&str]) -> Command {
        let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
        kiln.current_dir(&self.root)
            .env("SECRET", "seen")
            .args(args);
        kiln
    }

    fn run(&self, args: &[&str]) -> Left {
        let output = self.kiln(args).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        Left {
            code: output.status.code().unwrap(),
            said: String::from_utf8(said).unwrap(),
        }
    }

    /// Builds, which must go well, and yields what the part `name` of the stage holds.
    #[track_caller]
    fn built(&self, name: &str) -> String {
        let left = self.run(&["build", "pots.toml"]);
        assert_eq!(left.code, 0, "{}", left.said);
        fs::read_to_string(self.path("out/pots/pot").join(name)).unwrap()
    }

    /// Builds, which must fail with `code` and say all of `expect`.
    #[track_caller]
    fn fails(&self, code: i32, expect: &[&str]) {
        let left = self.run(&["build", "pots.toml"]);
        assert_eq!(left.code, code, "{}", left.said);
        expect
            .iter()
            .for_each(|piece| assert!(left.said.contains(piece), "{piece} in:\n{}", left.said));
        assert!(!self.path("out/pots/pot").exists());
    }
}

/// A daemon leaves its parent and its group, and closes nothing.
const DAEMON: &str = "setsid sleep 600 & echo $! > \"$PLACE\"; echo pot > outputs/pot";

#[test]
fn a_daemon_holds_no_build() {
    let bench = Bench::new(DAEMON, "");
    let place = bench.path("daemon");
    let stage = |more: &str| {
        format!(
            "{PLAIN}\nenv = {{ PLACE = '{}', PATH = '/usr/bin:/bin' }}\n{more}",
            place.display()
        )
    };
    bench.plan(&stage(""));
    assert_eq!(bench.built("pot"), "pot\n");
    assert!(
        !is_alive(fs::read_to_string(&place).unwrap().trim()),
        "it would go on writing"
    );

    // Nor does it outlive a build that is called off.
    bench.script("tool", &DAEMON.replace("echo pot", "sleep 600; echo pot"));
    bench.plan(&stage("timeout = '2s'"));
    let left = bench.run(&["build", "pots.toml"]);
    assert!(
        left.code == 1 && left.said.contains("kiln::engine::timeout"),
        "{}",
        left.said
    );
    assert!(!is_alive(fs::read_to_string(&place).unwrap().trim()));
}

#[test]
fn a_script_that_cannot_start_names_its_interpreter() {
    let bench = Bench::new("", PLAIN);
    let write = |text: &str| write_script(&bench.path("tool"), text);
    write("#!/bin/sh\r\necho\r\n");
    bench.fails(1, &["end as Windows ends them", "`/bin/sh\\r`"]);
    write("#!/no/such/python3 -u\n");
    bench.fails(1, &["interpreter `/no/such/python3` is not there"]);
}

#[test]
fn kilns_own_names_are_not_for_artifacts() {
    for name in [".kiln.json", ".KILN.json", "pots/.kiln-tmp-1/"] {
        let bench = Bench::new("", &format!("program = 'TOOL'\noutputs = ['{name}']"));
        let left = bench.run(&["build", "pots.toml"]);
        assert!(
            left.code == 2 && left.said.contains("cannot name a part"),
            "{name}: {}",
            left.said
        );
    }
}

/// The least that a stage says.
const PLAIN: &str = "program = 'TOOL'\ninputs = ['clay']\noutputs = ['pot']";

#[test]
fn a_program_sees_its_inputs_and_nothing_else() {
    let script = r#"
        { tr '\0' '\n' </proc/$$/environ | sed "s#=$PWD#=HERE#"; echo "$@"; ls -d *; ls outputs tmp
          cat inputs/clay/clay.txt; echo; stat -c %a inputs/clay/clay.txt; cat; basename "$PWD"; } >outputs/pot"#;
    let stage = "program = 'TOOL'\nargs = ['--fire', 'a b']\nenv = { HUE = 'red', PATH = \
                 '/usr/bin:/bin' }\ninputs = ['clay']\noutputs = ['pot']";
    let seen = Bench::new(script, stage).built("pot");
    let expect = "TMPDIR=HERE/tmp\nHUE=red\nPATH=/usr/bin:/bin\n--fire a \
                  b\ninputs\noutputs\ntmp\noutputs:\npot\n\ntmp:\nclay\n444\nwork\n";
    let sorted = |text: &str| {
        let (env, rest) = text.split_at(text.find("--fire").unwrap());
        let mut env: Vec<&str> = env.lines().collect();
        env.sort();
        env.join("\n") + rest
    };
    assert_eq!(sorted(&seen), sorted(expect));
}

#[test]
fn files_and_folders_are_taken_and_nothing_else() {
    let script = "cd outputs; mkdir -p layers/deep empty; echo a >pot; echo b >layers/b; echo c \
                  >layers/deep/c; echo d >stray";
    let bench = Bench::new(script, "program = 'TOOL'\noutputs = ['pot', 'layers/']");
    assert_eq!(bench.built("layers/deep/c"), "c\n");
    let written: Vec<PathBuf> = crate::support::tree::files(&bench.path("out/pots/pot"))
        .into_keys()
        .collect();
    assert_eq!(
        written,
        ["layers/b", "layers/deep/c", "pot"].map(PathBuf::from)
    );
}

#[test]
fn an_input_may_be_the_program_and_an_output_may_feed_any_stage() {
    let bench = Bench::new("", "");
    let script = b"#!/bin/sh\necho \"$0: $1\" | sed 's#.*/work/##' >outputs/pot\n";
    fs::write(bench.path("throw.sh"), script).unwrap();
    let text = format!(
        "[plan]\nname = 'pots'\n[stage.wheel]\nkind = 'fetch'\nurl = 'file:throw.sh'\nsha256 = \
         '{}'\n[stage.first]\nkind = 'command'\nprogram = 'inputs/wheel/throw.sh'\ninputs = \
         ['wheel']\nargs = ['one']\noutputs = ['pot']\nenv = {{ PATH = '/usr/bin:/bin' \
         }}\n[stage.pot]\nkind = 'command'\nprogram = '/bin/cp'\ninputs = ['first']\nargs = \
         ['inputs/first/pot', 'outputs/pot']\noutputs = ['pot']\n",
        sha256(script)
    );
    fs::write(bench.path("pots.toml"), text).unwrap();
    assert_eq!(bench.built("pot"), "inputs/wheel/throw.sh: one\n");
}

#[test]
fn what_a_program_does_to_its_inputs_stays_with_it() {
    let script = "chmod u+w inputs/clay/clay.txt; echo spoilt >>inputs/clay/clay.txt; cp \
                  inputs/clay/clay.txt outputs/pot";
    let bench = Bench::new(script, PLAIN);
    fs::write(
        bench.path("tool"),
        fs::read_to_string(bench.path("tool"))
            .unwrap()
            .replace("chmod", "PATH=/bin; chmod"),
    )
    .unwrap();
    assert_eq!(bench.built("pot"), "clayspoilt\n");
    let left = bench.run(&["cache", "verify"]);
    assert_eq!(left.code, 0, "{}", left.said);
}

#[test]
fn a_bad_end_says_what_it_said_and_how_to_try_again() {
    let script = "i=0; while [ $i -lt 2000 ]; do echo noise; i=$((i+1)); done; echo 'cannot fire' \
                  >&2; exit 3";
    let bench = Bench::new(
        script,
        "program = 'TOOL'\nargs = [\"it's\"]\nenv = { HUE = 'dark red' }\noutputs = ['pot']",
    );
    let by_hand = r#"env -i TMPDIR="$PWD/tmp" 'HUE=dark red'"#;
    bench.fails(
        1,
        &[
            "kiln::command::failed",
            "exit status: 3",
            "noise\n",
            "cannot fire",
            by_hand,
            r"'it'\''s'",
        ],
    );
    let said = bench.run(&["build", "pots.toml"]).said;
    assert!(
        said.matches("noise").count() < 700,
        "only the tail is shown"
    );

    Bench::new("kill -9 $$", PLAIN).fails(1, &["signal: 9", "it printed nothing", "memory"]);
}

#[test]
fn what_it_must_leave_must_be_there_and_be_a_file() {
    Bench::new(">outputs/jug; >outputs/cup", PLAIN)
        .fails(1, &["wrote no outputs/pot", "outputs/ holds cup, jug"]);
    Bench::new("", PLAIN).fails(1, &["wrote no outputs/pot", "`outputs/` holds nothing"]);
    Bench::new("/bin/ln -s /etc/hostname outputs/pot", PLAIN)
        .fails(1, &["a symbolic link as outputs/pot"]);
    Bench::new("/bin/rmdir outputs; /bin/ln -s /etc outputs", PLAIN)
        .fails(1, &["something else where outputs/ was"]);
    Bench::new("/bin/mkdir outputs/pot; >outputs/pot/a", PLAIN).fails(1, &["outputs/ holds pot/a"]);
    let folder = "program = 'TOOL'\noutputs = ['etc/']";
    Bench::new("/bin/ln -s /etc outputs/etc", folder)
        .fails(1, &["wrote no outputs/etc/", "outputs/ holds etc"]);
}

#[test]
fn a_program_that_is_not_there_is_said_before_anything_runs() {
    let bench = Bench::new(
        "",
        "program = '/nowhere/wheel'\noutputs = ['pot']\ninstall = '--set wheel=/opt/wheel'",
    );
    bench.fails(
        4,
        &[
            "kiln::tool_missing",
            "/nowhere/wheel is not there",
            "help: --set wheel=/opt/wheel",
        ],
    );
    assert!(!bench.path("out").exists());
    let left = bench.run(&["doctor", "pots.toml"]);
    assert!(
        left.code == 4 && left.said.contains("-> --set wheel=/opt/wheel"),
        "{}",
        left.said
    );
    bench.plan("program = 'TOOL'\ntools = ['/nowhere/lib']\noutputs = ['pot']");
    bench.fails(4, &["/nowhere/lib is not there", "--set NAME=PATH"]);
    bench.plan("program = 'inputs/clay/kiln'\ninputs = ['clay']\noutputs = ['pot']");
    bench.fails(1, &["no input is called `clay/kiln`", "clay/clay.txt"]);
}

#[test]
fn mistakes_are_shown_at_their_place() {
    for (stage, expect) in [
        (
            "program = 'python3'\noutputs = ['a']",
            "`python3` is a name, not a path",
        ),
        (
            "program = 'bin/fire'\noutputs = ['a']",
            "`bin/fire` is not an absolute path",
        ),
        (
            "program = 'inputs/clay/a'\noutputs = ['a']",
            "is an input, but there are none",
        ),
        (
            "program = 'inputs/../a'\ninputs = ['clay']\noutputs = ['a']",
            "names no input",
        ),
        ("program = '/a'\noutputs = []", "needs at least one output"),
        (
            "program = '/a'\noutputs = ['../a']",
            "`../a` cannot name a part",
        ),
        (
            "program = '/a'\noutputs = ['a']\ntools = ['lib']",
            "`lib` is not an absolute path",
        ),
        (
            "program = '/a'\noutputs = ['a']\nenv = { 'A=B' = '' }",
            "`A=B` cannot name a variable",
        ),
        (
            "program = '/a'\noutputs = ['a']\nmemory = '8 Gb'",
            "expected a number of bytes",
        ),
        (
            "program = '/a'\noutputs = ['a']\nthreads = 0",
            "expected an integer of at least 1",
        ),
        (
            "program = '/a'\noutputs = ['a']\ninputs = ['caly']",
            "did you mean `clay`?",
        ),
    ] {
        let left = Bench::new("", stage).run(&["check", "pots.toml"]);
        assert!(
            left.code == 2 && left.said.contains(expect),
            "{expect} in:\n{}",
            left.said
        );
    }
}

#[test]
fn it_runs_again_when_a_tool_changes_and_explain_says_which() {
    let bench = Bench::new("cat \"${0%/*}/lib/hue\" >outputs/pot", "");
    bench.plan("program = 'TOOL'\ntools = ['LIB']\nenv = { PATH = '/bin' }\noutputs = ['pot']");
    let plan = fs::read_to_string(bench.path("pots.toml")).unwrap();
    fs::write(
        bench.path("pots.toml"),
        plan.replace("LIB", bench.path("lib").to_str().unwrap()),
    )
    .unwrap();
    fs::create_dir(bench.path("lib")).unwrap();
    fs::write(bench.path("lib/hue"), "red").unwrap();
    assert_eq!(bench.built("pot"), "red");
    assert!(
        bench
            .run(&["build", "pots.toml"])
            .said
            .contains("nothing to do")
    );

    // Neither need nor advice, nor where the plan lies, is in the key.
    let plan = fs::read_to_string(bench.path("pots.toml")).unwrap();
    fs::create_dir(bench.path("elsewhere")).unwrap();
    fs::copy(bench.path("clay.txt"), bench.path("elsewhere/clay.txt")).unwrap();
    let other = plan.clone() + "memory = '2GB'\nthreads = 2\ninstall = 'buy one'\n";
    fs::write(bench.path("elsewhere/pots.toml"), other).unwrap();
    let left = bench.run(&["build", "elsewhere/pots.toml", "--out", "other"]);
    assert!(left.said.contains("0 parts ran"), "{}", left.said);

    fs::write(bench.path("lib/hue"), "blue").unwrap();
    let left = bench.run(&["explain", "pots.toml", "pot"]);
    let expect = format!("files/{}: ", bench.path("lib").display());
    assert!(left.said.contains(&expect), "{expect} in:\n{}", left.said);
    assert_eq!(bench.built("pot"), "blue");
}

#[test]
fn its_peak_of_memory_is_measured() {
    let bench = Bench::new(
        "a=$(/usr/bin/head -c 40000000 /dev/zero | /usr/bin/tr '\\0' a); echo ${#a} >outputs/pot",
        PLAIN,
    );
    assert_eq!(bench.built("pot"), "40000000\n");
    let stats = bench.run(&["cache", "stats", "--json"]).said;
    let stats: serde_json::Value = serde_json::from_str(stats.lines().next().unwrap()).unwrap();
    let peak = stats["stages"]["command"]["peak_memory_bytes"].as_u64();
    assert!(peak.is_some_and(|peak| peak > 40_000_000), "{stats}");
}

/// A build at work on a program that never ends, and that has a child which never ends.
fn endless() -> (Bench, std::process::Child, [String; 2]) {
    let script = format!(
        "/bin/sleep 1000 & echo $$ $! >{0}.new; /bin/mv {0}.new {0}; wait",
        "\"${0%/*}/pids\""
    );
    let bench = Bench::new(&script, PLAIN);
    let build = bench
        .kiln(&["build", "pots.toml"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the program should start", || bench.path("pids").exists());
    let pids = fs::read_to_string(bench.path("pids")).unwrap();
    let (program, child) = pids.trim().split_once(' ').unwrap();
    assert!(is_alive(program) && is_alive(child));
    let pids = [program.to_string(), child.to_string()];
    (bench, build, pids)
}

#[test]
fn it_ends_with_the_build_however_that_ends() {
    for signal in [Signal::KILL, Signal::TERM] {
        let (_bench, mut build, pids) = endless();
        kill_process(Pid::from_child(&build), signal).unwrap();
        build.wait().unwrap();
        wait_until("the program and its child should be gone", || {
            !pids.iter().any(|pid| is_alive(pid))
        });
    }
}

/// What stands in for `qairt-converter`: refuses whatever it would not know, then gives what it was
/// given.
const CONVERTER: &str = r#"
import os, sys
root = os.environ["QNN_SDK_ROOT"]
assert os.environ["PYTHONPATH"] == root + "/lib/python", os.environ
assert os.environ["LD_LIBRARY_PATH"] == root + "/lib/x86_64-linux-clang", os.environ
arguments = iter(sys.argv[1:])
given = {}
for option in arguments:
    count = {"--input_network": 1, "--output_path": 1, "--source_model_input_datatype": 2, "--float_bitwidth": 1,
             "--onnx_skip_simplification": 0, "--target_backend": 1}[option]
    given[option] = [next(arguments) for _ in range(count)]
[network], [output] = given.pop("--input_network"), given.pop("--output_path")
assert given == {"--source_model_input_datatype": ["input_ids", "int32"], "--float_bitwidth": ["16"],
                 "--onnx_skip_simplification": [], "--target_backend": ["HTP"]}, given
assert os.path.exists(os.path.join(os.path.dirname(network), "weights/output_norm.weight/values"))
open(output, "w").write(f"DLC of {os.path.basename(network)}, {os.path.getsize(network)} bytes\n")
"#;

/// What stands in for `qnn-context-binary-generator`.
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

/// The `onnx` of a Python that has none: as much of it as the plan calls.
const NO_ONNX: [(&str, &str); 2] = [
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

/// Builds `stages` of the plan for QAIRT on a tiny model, with stand-ins for its tools; `onnx` is
/// that in `python_path`.
fn build_by_qairt(python_path: Option<&Path>, stages: &[&str]) -> Bench {
    let bench = Bench::new("", "");
    let model = TinyGguf::qwen2()
        .widths(256, 256)
        .tensor_type("output.weight", Quant::Q6_K)
        .tensor_type("blk.0.ffn_down.weight", Quant::Q4_1)
        .write();
    fs::write(bench.path("model.gguf"), &model).unwrap();
    for (file, text) in NO_ONNX {
        fs::create_dir_all(bench.path("no/onnx")).unwrap();
        fs::write(bench.path("no/onnx").join(file), text).unwrap();
    }
    let path = python_path.map_or(bench.path("no"), Path::to_owned);
    let python3 = said(Command::new("python3").args(["-c", "import sys; print(sys.executable)"]));
    let wrapper = format!(
        ": ${{PYTHONPATH:={}}}; export PYTHONPATH; exec {} \"$@\"",
        path.display(),
        python3.trim()
    );
    bench.script("python", &wrapper);
    let bin = "qairt/bin/x86_64-linux-clang";
    bench.script(&format!("{bin}/qnn-context-binary-generator"), COMPILER);
    fs::write(bench.path(bin).join("qairt-converter"), CONVERTER).unwrap();
    for folder in ["qairt/lib/python", "qairt/lib/x86_64-linux-clang"] {
        fs::create_dir_all(bench.path(folder)).unwrap();
    }
    for library in ["libQnnHtp.so", "libQnnModelDlc.so"] {
        fs::write(
            bench.path("qairt/lib/x86_64-linux-clang").join(library),
            library,
        )
        .unwrap();
    }
    let plan = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/plans/deepseek-qwen-1.5b.qairt.toml"
    );
    let set = |name: &str, value: &str| ["--set".to_string(), format!("{name}={value}")];
    let mut kiln = bench.kiln(&["build", plan]);
    kiln.args(stages);
    for [option, value] in [
        set("qairt", bench.path("qairt").to_str().unwrap()),
        set("python", bench.path("python").to_str().unwrap()),
        set("source", "file:model.gguf"),
        set("sha256", &sha256(&model)),
        set("prefill", "16"),
        set("context", "48"),
        set("memory", "100MB"),
    ] {
        kiln.args([option, value]);
    }
    said(&mut kiln);
    bench
}

#[test]
fn the_plan_for_qairt_calls_its_tools_as_they_want() {
    let bench = build_by_qairt(None, &[]);
    let made =
        fs::read_to_string(bench.path("out/deepseek-qwen-1.5b.qairt/npu/model.bin")).unwrap();
    let (dlcs, config) = made.split_at(made.find('{').unwrap());
    let heads: Vec<&str> = dlcs
        .lines()
        .filter_map(|line| line.split(',').next())
        .collect();
    assert_eq!(heads, ["DLC of prefill.onnx", "DLC of decode.onnx"]);
    let config: Vec<serde_json::Value> = serde_json::Deserializer::from_str(config)
        .into_iter()
        .map(|value| value.unwrap())
        .collect();
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
    let left = bench.run(&["build", plan]);
    assert_eq!(left.code, 4, "{}", left.said);
    assert!(
        left.said.contains("--set qairt=/opt/qcom/aistack/qairt/"),
        "{}",
        left.said
    );
}

#[test]
#[ignore = "needs a package index"]
fn the_plan_for_qairt_hands_standard_onnx_to_the_converter() {
    let peers = python();
    let (_, path) = peers
        .get_envs()
        .find(|(name, _)| *name == "PYTHONPATH")
        .unwrap();
    let bench = build_by_qairt(Some(Path::new(path.unwrap())), &["standard"]);
    let check = "import onnx, sys\nonnx.checker.check_model(sys.argv[1], full_check=True)\nmodel \
                 = onnx.load(sys.argv[1], load_external_data=False)\nprint(len(model.functions), \
                 sorted({node.domain for node in model.graph.node}))";
    for graph in ["prefill.onnx", "decode.onnx"] {
        let file = bench
            .path("out/deepseek-qwen-1.5b.qairt/standard")
            .join(graph);
        assert_eq!(said(python().args(["-c", check]).arg(file)), "0 ['']\n");
    }
}

#[test]
fn two_kilns_that_want_the_same_run_it_once() {
    let bench = Bench::new(
        "echo ran >> $1; sleep 1; cp inputs/clay/clay.txt outputs/a",
        "",
    );
    let log = bench.path("log");
    bench.plan(&format!(
        "inputs = ['clay']\nprogram = 'TOOL'\nargs = ['{}']\noutputs = ['a']",
        log.display()
    ));
    let start = || {
        bench
            .kiln(&["build", "pots.toml"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let kilns = [start(), start(), start()];
    for mut kiln in kilns {
        assert!(kiln.wait().unwrap().success());
    }
    assert_eq!(fs::read_to_string(log).unwrap(), "ran\n");
    assert_eq!(
        fs::read_dir(bench.path("cache/partial")).unwrap().count(),
        0
    );
}

#[test]
fn a_result_without_the_outputs_that_are_named_does_not_count() {
    let bench = Bench::new(
        "echo a > outputs/a; mkdir outputs/b; echo c > outputs/b/c",
        "program = 'TOOL'\noutputs = ['a', 'b/']",
    );
    bench.built("b/c");
    // As somebody may have brought it.
    let entries = fs::read_dir(bench.path("cache/actions"))
        .unwrap()
        .flat_map(|shelf| fs::read_dir(shelf.unwrap().path()).unwrap());
    let entry = entries
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            fs::read_to_string(path)
                .unwrap()
                .contains("\"stage\":\"command\"")
        })
        .unwrap();
    let text = fs::read_to_string(&entry).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let mut body: serde_json::Value = serde_json::from_str(lines[1]).unwrap();
    body["outputs"]
        .as_object_mut()
        .unwrap()
        .remove("b/c")
        .unwrap();
    let (body, action) = (body.to_string(), lines[2]);
    let digest = kiln::base::hash_bytes(body.as_bytes());
    fs::write(entry, format!("{digest}\n{body}\n{action}\n")).unwrap();
    fs::remove_dir_all(bench.path("cache/notes")).unwrap();
    fs::remove_dir_all(bench.path("out")).unwrap();

    let left = bench.run(&["plan", "pots.toml"]);
    assert!(
        left.said
            .contains("the cached result does not match `outputs`"),
        "{}",
        left.said
    );
    assert_eq!(bench.built("b/c"), "c\n");
}
