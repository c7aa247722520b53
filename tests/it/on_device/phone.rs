//! A fake phone: a folder, fake `adb` and `ssh` programs, and a plan that measures a bundle there.
//!
//! The fake programs log each call, reject what the real ones would reject, and run the requested
//! command in a shell, with the folders of the phone in place of the real paths. `fault(...)` makes
//! the next call of that kind fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln::action::{Action, Content, Outputs, Part, PartName};
use kiln::base::CanonJson;
use kiln::store::{ActionCache, ActionResult, Disk};
use serde_json::Value;

use crate::support::contexts::{facts, info};
use crate::support::fetching::sha256;
use crate::support::results::put;
use crate::support::scripts::write_script;
use crate::support::tiny_gguf::TinyGguf;

const PLAN: &str = r#"
[plan]
name = "phone"
[vars]
device = ""
[tools]
qnn = { url = "file:qnn-1-py3-none-any.whl", sha256 = "{wheel}" }
[stage.source]
kind = "fetch"
url = "file:model.gguf"
tracked = true
[stage.model]
kind = "inspect"
gguf = "source"
[stage.weights]
kind = "requant"
tensors = "model"
[stage.graph]
kind = "graph"
model = "model"
weights = "weights"
prefill = 16
context = 40
[stage.npu]
kind = "context-bin"
graph = "graph"
soc = "sm8650"
[stage.bundle]
kind = "package"
model = "model"
context = "npu"
name = "tiny"
platform = "{platform}"
prompt = "the dog"
[stage.phone]
kind = "measure"
bundle = "bundle"
device = "${device}"
[stage.report]
kind = "validate"
inputs = ["phone"]
"#;

/// The beginning of each fake program: `$phone` is the phone, `$@` the call; `run` is its shell.
const COMMON: &str = r#"#!/bin/sh
phone='{phone}'
fault=$(cat "$phone/fault" 2>/dev/null)
{ printf '%s' "${0##*/}"; for word; do printf ' [%s]' "$word"; done; printf '\n'; } >> "$phone/calls"
fails() { case $fault in "$1") rm "$phone/fault"; return 0;; esac; return 1; }
run() {
    case $1 in *--profile*)
        if fails 'lose run'; then echo 'VmHWM:  1 kB'; echo 'connection closed' >&2; exit 255; fi
        if fails flood; then while :; do echo 'VmHWM:  1 kB VmHWM:  1 kB VmHWM:  1 kB VmHWM:  1 kB'; done; fi
    esac
    cd / && sh -c "$(printf '%s' "$1" | sed "s,/data/local/tmp/genie,$phone/genie,g; s,/sys/class/power_supply,$phone,g")"
}
take() {
    to=$(printf '%s' "$1" | sed "s,/data/local/tmp/genie,$phone/genie,")
    if fails 'lose send'; then head -c 5 > "$to"; echo 'connection lost' >&2; exit 1; fi
    if fails 'cut send'; then head -c 5 > "$to"; exit 0; fi
    cat > "$to"
}
"#;

const ADB: &str = r#"
[ "$1" = -s ] && [ "$2" = R5CT1 ] || { echo "error: device '$2' not found" >&2; exit 1; }
shift 2
case $1,$# in
push,3) take "$3" < "$2";;
shell,2) run "$2";;
*) echo "adb: usage" >&2; exit 1;;
esac
"#;

const SSH: &str = r#"
while [ "$1" = -o ]; do shift 2; done
[ "$1" = -- ] && [ "$2" = me@board ] && [ $# = 3 ] || { echo "ssh: Could not resolve hostname" >&2; exit 255; }
case $3 in "cat > "*) take "${3#cat > }";; *) run "$3";; esac
"#;

/// A fake of Qualcomm's runner: it checks its arguments, environment and files, and writes a
/// profile.
const RUNNER: &str = r#"#!/bin/sh
phone='{phone}'
[ "$*" = '-c kiln-config.json --prompt_file prompt.txt --profile kiln-profile.json' ] || { echo "usage: $*"; exit 1; }
[ "$LD_LIBRARY_PATH,$ADSP_LIBRARY_PATH" = "$phone/genie,$phone/genie" ] || { echo 'cannot find libGenie.so'; exit 1; }
[ ! -e kiln-profile.json ] || { echo 'kiln-profile.json already exists'; exit 1; }
grep -q '"max-num-tokens":128' kiln-config.json || { echo 'the answer has no end'; exit 1; }
sha256sum -c ../../sums >&2 || exit 1
[ ! -e "$phone/crash" ] || { cat "$phone/crash"; exit 139; }
sleep 1.3
cp "$phone/profile" kiln-profile.json
"#;

/// A profile in the format of Genie 2.51.
pub const PROFILE: &str = r#"{
  "header": { "artifact_type": "GENIE_PROFILE" },
  "components": [ { "name": "dialog0", "type": "dialog", "events": [
    { "type": "GenieDialog_create", "duration": 1124864, "init-time": { "value": 1124713, "unit": "us" } },
    { "type": "GenieDialog_query", "duration": 5726945,
      "num-prompt-tokens": { "value": 823, "unit": "" },
      "prompt-processing-rate": { "value": 1547.98, "unit": "toks/sec" },
      "time-to-first-token": { "value": 531665, "unit": "us" },
      "num-generated-tokens": { "value": 200, "unit": "" },
      "token-generation-rate": { "value": 38.525, "unit": "toks/sec" },
      "token-generation-time": { "value": 5191579, "unit": "us" } },
    { "type": "GenieDialog_free", "duration": 32347 } ] } ]
}
"#;

pub struct Phone {
    home: tempfile::TempDir,
}

impl Phone {
    /// The phone with the runner, and a cache with a fake context binary, since a real one needs
    /// Qualcomm's libraries.
    pub fn new() -> Phone {
        Phone::of_platform("android")
    }

    /// The same, with a bundle for another platform.
    pub fn of_platform(platform: &str) -> Phone {
        let phone = Phone {
            home: tempfile::tempdir().unwrap(),
        };
        let home = phone.home.path();
        for folder in ["phone/genie", "phone/battery", "bin"] {
            fs::create_dir_all(home.join(folder)).unwrap();
        }
        let script = |path: &str, text: String| {
            let phone = home.join("phone").display().to_string();
            write_script(&home.join(path), &text.replace("{phone}", &phone));
        };
        script("bin/adb", format!("{COMMON}{ADB}"));
        script("bin/ssh", format!("{COMMON}{SSH}"));
        script("phone/genie/genie-t2t-run", RUNNER.into());
        phone.put("profile", PROFILE);
        phone.battery("-625000", "4000000", "Discharging");
        phone.write_plan(platform);
        phone.compile();
        phone
    }

    /// A file of the phone.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join("phone").join(name)
    }

    pub fn put(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Sets what the battery reports: µA, µV and state.
    pub fn battery(&self, current: &str, voltage: &str, status: &str) {
        for (name, text) in [
            ("current_now", current),
            ("voltage_now", voltage),
            ("status", status),
        ] {
            self.put(&format!("battery/{name}"), &format!("{text}\n"));
        }
    }

    /// Makes the next call of a kind fail.
    pub fn fault(&self, fault: &str) {
        self.put("fault", fault);
    }

    /// The calls since the last time, each with its arguments in brackets.
    pub fn calls(&self) -> String {
        let calls = fs::read_to_string(self.path("calls")).unwrap_or_default();
        fs::remove_file(self.path("calls")).ok();
        calls
    }

    /// The output of kiln on both streams, and its exit code.
    pub fn kiln(&self, call: &[&str]) -> (String, i32) {
        let mut path = self.home.path().join("bin").into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap());
        let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
        kiln.args(call)
            .args(["--cache", "cache"])
            .current_dir(self.home.path())
            .env("PATH", path);
        let output = kiln.output().unwrap();
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (text.into_owned(), output.status.code().unwrap())
    }

    /// Builds for `device`, with more arguments.
    pub fn build(&self, device: &str, more: &[&str]) -> (String, i32) {
        let set = format!("device={device}");
        self.kiln(&[&["build", "plan.toml", "--set", &set], more].concat())
    }

    /// The report as text and as JSON.
    pub fn report(&self) -> (String, Value) {
        let read = |name: &str| {
            fs::read_to_string(self.home.path().join("out/phone/report").join(name)).unwrap()
        };
        (
            read("report.txt"),
            serde_json::from_str(&read("report.json")).unwrap(),
        )
    }

    /// Replaces a line of the plan.
    pub fn edit(&self, old: &str, new: &str) {
        let path = self.home.path().join("plan.toml");
        let plan = fs::read_to_string(&path).unwrap();
        assert!(plan.contains(old), "{old}");
        fs::write(path, plan.replace(old, new)).unwrap();
    }

    fn write_plan(&self, platform: &str) {
        let home = self.home.path();
        let mut wheel = zip::ZipWriter::new(std::io::Cursor::new(vec![]));
        for library in ["libQnnHtp.so", "libQnnSystem.so"] {
            wheel
                .start_file(library, zip::write::SimpleFileOptions::default())
                .unwrap();
        }
        let wheel = wheel.finish().unwrap().into_inner();
        fs::write(home.join("qnn-1-py3-none-any.whl"), &wheel).unwrap();
        fs::write(home.join("model.gguf"), TinyGguf::llama().write()).unwrap();
        fs::write(
            home.join("plan.toml"),
            PLAN.replace("{wheel}", &sha256(&wheel))
                .replace("{platform}", platform),
        )
        .unwrap();
    }

    /// Puts a fake result of `context-bin` into the cache: a binary that is never run, and its
    /// description.
    fn compile(&self) {
        let (output, code) = self.kiln(&["build", "plan.toml", "graph", "tools.qnn"]);
        assert_eq!(code, 0, "{output}");
        let (output, code) = self.kiln(&["explain", "plan.toml", "npu", "--json"]);
        assert_eq!(code, 0, "{output}");
        let store = Disk::open(&self.home.path().join("cache")).unwrap();
        for line in output.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let action: Action = serde_json::from_value(line["action"].clone()).unwrap();
            let outputs = if line["part"] == "npu" {
                binary(&store, &action)
            } else {
                proof(&store)
            };
            let action = action.canonical_text();
            store
                .put(&ActionResult {
                    action,
                    outputs,
                    took_ms: 1,
                    peak_memory_bytes: None,
                })
                .unwrap();
        }
        drop(store);
        let (output, code) = self.kiln(&["build", "plan.toml", "bundle"]);
        assert_eq!(code, 0, "{output}");
        // The fake runner checks the files that it needs.
        let path = self.home.path().join("out/phone/bundle/SHA256SUMS");
        let mut sums = String::new();
        for line in fs::read_to_string(path).unwrap().lines() {
            let (_, name) = line.split_once("  ").unwrap();
            let is_config = name.ends_with("config.json") && name != "tokenizer_config.json";
            if is_config
                || name.ends_with("bin")
                || ["tokenizer.json", "prompt.txt"].contains(&name)
            {
                sums += &format!("{line}\n");
            }
        }
        self.put("genie/sums", &sums);
    }
}

fn part(store: &Disk, bytes: &[u8], facts: Value) -> Part {
    Part {
        content: put(store, bytes),
        facts: CanonJson::from(facts),
    }
}

fn proof(store: &Disk) -> Outputs {
    [(
        PartName::new("figures.json").unwrap(),
        part(store, b"{}", Value::Null),
    )]
    .into()
}

fn binary(store: &Disk, action: &Action) -> Outputs {
    let model = &action.inputs["model.json"];
    let model = Part {
        content: Content::from(model.digest),
        facts: model.facts.clone(),
    };
    let parts = [
        ("model.bin", part(store, &[7; 3000], facts(1, 1))),
        (
            "info.json",
            part(store, info(0..2, 1, 1).to_string().as_bytes(), Value::Null),
        ),
        ("model.json", model),
    ];
    parts
        .map(|(name, part)| (PartName::new(name).unwrap(), part))
        .into()
}

/// The relative paths of all files below `folder`.
pub fn names(folder: &Path) -> Vec<String> {
    let files = crate::support::tree::files(folder);
    let mut names: Vec<_> = files
        .keys()
        .map(|name| name.display().to_string())
        .collect();
    names.sort();
    names
}
