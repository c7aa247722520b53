//! What `package` writes for a platform, and for Genie's other abilities.

use kiln::base::Code;
use serde_json::{Value, json};

use crate::bundle::{package, unsharded};
use crate::support::stage_runner::StageRunner;
use crate::support::tiny_gguf::TinyGguf;
use crate::support::tools;

#[test]
fn a_bundle_is_for_the_platform_of_its_device() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path());
    let model = runner.inspect(&TinyGguf::llama().write());
    let context = unsharded(&runner, &model);
    for (platform, maps, commands) in [
        (
            "android",
            true,
            ["adb push . $ON", "lib/aarch64-android/lib$lib.so"],
        ),
        (
            "windows",
            false,
            ["Copy-Item", "hexagon-v75\\unsigned\\libqnnhtpv75.cat"],
        ),
        (
            "linux",
            true,
            ["TARGET=aarch64-oe-linux-gcc11.2", "libQnnHtpV75Skel.so ."],
        ),
    ] {
        let params = json!({"name": "tiny", "platform": platform});
        let bundle = package(&runner, &model, &context, params).unwrap();
        let config = runner.json(&bundle, "genie_config.json");
        let htp = &config["dialog"]["engine"]["backend"]["QnnHtp"];
        assert_eq!(htp["use-mmap"], maps, "{platform}");
        assert_eq!(runner.json(&bundle, "metadata.json")["platform"], platform);
        let readme = runner.text(&bundle, "README.md");
        for command in commands {
            assert!(readme.contains(command), "{command} in {readme}");
        }
        assert!(readme.contains("2.51 or later"), "{readme}");
    }
    let check = |name: &str| {
        let params = json!({"name": name, "platform": "windows"});
        kiln::stages::all()
            .get("package")
            .unwrap()
            .check(&params, &[])
    };
    for name in ["con", "Aux.x", "lpt1", "model."] {
        let [problem] = &check(name).unwrap_err()[..] else {
            panic!("{name}");
        };
        let expected = format!("Windows has no files called {name:?}");
        assert_eq!(problem.problem.message, expected);
    }
    assert!(check("console").is_ok() && check("lpt10").is_ok());
}

/// What Genie can do without another graph.
fn levers() -> Value {
    json!({
        "name": "tiny", "stop": ["dog", "\n\n"], "max_tokens": 5,
        "penalty": {"last": 64, "repetition": 1.25, "presence": 0.5},
        "grammar": {"type": "json-schema", "text": "{\"type\": \"object\"}"},
    })
}

#[test]
fn a_bundle_configures_how_genie_answers() {
    let home = tempfile::tempdir().unwrap();
    let runner = StageRunner::new(home.path());
    let model = runner.inspect(&TinyGguf::llama().write());
    let context = unsharded(&runner, &model);
    let bundle = package(&runner, &model, &context, levers()).unwrap();
    let dialog = &runner.json(&bundle, "genie_config.json")["dialog"];
    assert_eq!(dialog["stop-sequence"], json!(["dog", "\n\n"]));
    assert_eq!(dialog["max-num-tokens"], 5);
    assert_eq!(
        dialog["sampler"]["token-penalty"],
        json!({
            "version": 1, "penalize-last-n": 64, "repetition-penalty": 1.25,
            "presence-penalty": 0.5, "frequency-penalty": 0.0,
        })
    );
    assert_eq!(
        dialog["context"]["grammar"],
        json!({
            "backend": "xgrammar", "type": "json-schema", "file": "grammar.txt",
            "tokenizer-json": "tokenizer.json",
        })
    );
    assert_eq!(
        runner.text(&bundle, "grammar.txt"),
        "{\"type\": \"object\"}"
    );
    assert!(
        runner
            .text(&bundle, "SHA256SUMS")
            .contains("  grammar.txt\n")
    );
}

#[test]
#[ignore = "needs the QNN libraries"]
fn genie_accepts_each_configuration() {
    let home = tempfile::tempdir().unwrap();
    let mut releases = tools::older_qnn().to_vec();
    releases.push(tools::qnn());
    for (index, libraries) in releases.iter().enumerate() {
        let runner = StageRunner::new(home.path()).tool("qnn", libraries);
        let model = runner.inspect(&TinyGguf::llama().write());
        let context = unsharded(&runner, &model);
        let mut params = levers();
        if index == 0 {
            let problem = package(&runner, &model, &context, params.clone()).unwrap_err();
            assert_eq!(problem.code, Code::GenieRefused);
            assert!(problem.help.unwrap().contains("a `grammar` needs QNN 2.48"));
            params.as_object_mut().unwrap().remove("grammar");
        }
        package(&runner, &model, &context, params).unwrap();
    }
}
