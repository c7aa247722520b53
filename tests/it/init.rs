//! `kiln init`: its plans can be checked, planned and built.

use std::fs;
use std::path::Path;

use sha2::Digest as _;

use crate::support::call::kiln;
use crate::support::gguf_file::{GgufFile, Value};
use crate::support::tiny_gguf::TinyGguf;

/// The standard output of a call, which must succeed.
fn stdout(folder: &Path, arguments: &[&str]) -> String {
    let (code, out, err) = kiln(folder, arguments);
    assert_eq!(code, 0, "{arguments:?}: {err}");
    out
}

/// Checks that a call fails with this exit code and these texts in its error output.
fn check_fails(folder: &Path, arguments: &[&str], code: i32, expect: &[&str]) {
    let (found, _, err) = kiln(folder, arguments);
    assert_eq!(found, code, "{arguments:?}: {err}");
    for text in expect {
        assert!(err.contains(text), "{text} in:\n{err}");
    }
}

#[test]
fn the_plan_for_a_local_model_builds() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("Tiny Pot.gguf"), TinyGguf::qwen2().write()).unwrap();
    let out = stdout(folder, &["init", "file:Tiny Pot.gguf", "--soc", "sm8750"]);
    assert!(out.starts_with("`Tiny`: qwen2, 2 layers, Q4_0 "), "{out}");
    assert!(out.contains("kiln build plans/tiny-pot.toml "), "{out}");

    assert!(stdout(folder, &["check", "plans/tiny-pot.toml"]).contains("no problems"));
    assert!(stdout(folder, &["plan", "plans/tiny-pot.toml"]).contains("would run"));
    let out = stdout(
        folder,
        &["build", "plans/tiny-pot.toml", "model", "weights", "graph"],
    );
    assert!(
        out.contains("prefill.onnx") && out.contains("written to out/tiny-pot"),
        "{out}"
    );

    let path = folder.join("plans/tiny-pot.toml");
    let plan = fs::read_to_string(&path).unwrap();
    assert!(
        plan.contains("context = 512 ") && plan.contains("\"sm8750\"") && !plan.contains('@'),
        "{plan}"
    );
    check_fails(
        folder,
        &["init", "file:Tiny Pot.gguf"],
        2,
        &["plans/tiny-pot.toml already exists", "--out"],
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), plan);
    stdout(
        folder,
        &["init", "file:Tiny Pot.gguf", "--out", "plans/again.toml"],
    );
}

/// The pins and stages are those of the committed plan; only limits and sizes depend on the model.
#[test]
fn the_plan_matches_the_committed_plan() {
    let folder = tempfile::tempdir().unwrap();
    let url = "hf:bartowski/DeepSeek-R1-Distill-Qwen-1.5B-GGUF/DeepSeek-R1-Distill-Qwen-1.5B-Q4_0.\
               gguf@main";
    let out = stdout(folder.path(), &["init", url, "--out", "plan.toml"]);
    assert!(out.contains("kiln build plan.toml source "), "{out}");
    let copied = Path::new(env!("CARGO_MANIFEST_DIR")).join("plans/deepseek-qwen-1.5b.toml");
    let written = folder.path().join("plan.toml");

    let show = |path: &Path| stdout(folder.path(), &["show", path.to_str().unwrap()]);
    assert_eq!(show(&written), show(&copied));
    let read = |path: &Path| -> toml::Table { fs::read_to_string(path).unwrap().parse().unwrap() };
    let (written, copied, mut common) = (
        read(&written),
        read(&copied),
        read(&copied.with_file_name("lib/bundle.toml")),
    );
    assert_eq!(
        written["plan"]["name"].as_str(),
        Some("deepseek-r1-distill-qwen-1.5b-q4_0")
    );
    assert_eq!(written["vars"]["source"].as_str(), Some(url));
    assert_eq!(written["vars"]["sha256"].as_str(), Some(""));
    assert_eq!(written["tools"], common["tools"]);
    assert_eq!(written["stage"]["source"], copied["stage"]["source"]);
    // `init` sets no `key_centre`: its default depends on the model.
    common["stage"]["graph"]
        .as_table_mut()
        .unwrap()
        .remove("key_centre");
    for stage in ["graph", "npu", "reference", "answer", "genie"] {
        assert_eq!(written["stage"][stage], common["stage"][stage], "{stage}");
    }
}

#[test]
fn unsupported_models_are_rejected_before_writing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut mamba = TinyGguf::llama().file();
    mamba.set("general.architecture", "mamba");
    fs::write(folder.join("mamba.gguf"), mamba.write()).unwrap();
    check_fails(
        folder,
        &["init", "file:mamba.gguf"],
        1,
        &[
            "architecture `mamba` is not supported",
            "kiln supports gemma2, gemma3, granite, llama",
        ],
    );
    check_fails(
        folder,
        &["init", "file:absent.gguf"],
        2,
        &["absent.gguf", "No such file"],
    );
    check_fails(
        folder,
        &["init", "mamba.gguf"],
        2,
        &["no scheme", "write file:mamba.gguf"],
    );
    check_fails(folder, &["init", "hf:a/b"], 2, &["OWNER/REPO/FILE"]);
    check_fails(
        folder,
        &["init", "https://a.example/c.bin"],
        2,
        &["`c.bin` is not a GGUF"],
    );
    check_fails(
        folder,
        &["init", "hf:a/b/c.gguf", "--soc", "sm8651"],
        2,
        &["did you mean `sm8650`?"],
    );
    assert!(!folder.join("plans").exists());

    fs::create_dir_all(folder.join("plans/data")).unwrap();
    fs::write(folder.join("plans/data/eval.txt"), "another text").unwrap();
    check_fails(
        folder,
        &["init", "hf:a/b/c.gguf"],
        2,
        &["plans/data/eval.txt already exists", "--out"],
    );
    assert!(!folder.join("plans/c.toml").exists());
}

#[test]
fn unusable_files_and_tokenizers_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (text, what) in [
        ("<!doctype html>\n<html>", "it is a web page"),
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
            "it is a Git LFS pointer",
        ),
        ("", "it is an empty file"),
    ] {
        fs::write(folder.join("pot.gguf"), text).unwrap();
        check_fails(folder, &["init", "file:pot.gguf"], 2, &[what]);
        check_fails(folder, &["inspect", "pot.gguf"], 2, &[what]);
    }
    fs::write(folder.join("pot.gguf"), TinyGguf::llama().write()).unwrap();
    stdout(folder, &["init", "file:pot.gguf"]);
    let long = stdout(
        folder,
        &["check", "plans/pot.toml", "--set", "context=1024"],
    );
    assert!(
        long.contains(
            "warning: `graph` has a context of 1024 tokens, the model was trained for 512"
        ),
        "{long}"
    );
}

/// What cannot be made of a model is known from its header: `inspect` says it, the plan of `init`
/// leaves it out, and `check` refuses a plan with it.
#[test]
fn what_cannot_be_made_is_known_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let write = |file: &GgufFile| fs::write(folder.join("pot.gguf"), file.write()).unwrap();
    let mut unknown = TinyGguf::llama().file();
    unknown.set("tokenizer.ggml.pre", "bloom");
    let mut mute = TinyGguf::llama().file();
    mute.keys.retain(|(key, _)| !key.starts_with("tokenizer."));
    let smaller = TinyGguf::llama().keys(&[("rope.scaling.attn_factor", 0.5.into())]);
    for (file, what, left_out, kept) in [
        (
            &unknown,
            "the pre-tokenizer `bloom` is not known",
            &["reference", "layers", "report", "bundle", "answer"][..],
            &["graph", "npu", "container"][..],
        ),
        (
            &mute,
            "the file has no tokenizer",
            &["reference", "bundle"],
            &["graph"],
        ),
        (
            &smaller.file(),
            "multiplied by 0.5",
            &["bundle", "phone", "bundle-simulated", "answer", "genie"],
            &["reference", "report", "simulated"],
        ),
    ] {
        write(file);
        let _ = fs::remove_dir_all(folder.join("plans"));
        let inspected = stdout(folder, &["inspect", "pot.gguf"]);
        assert!(
            inspected.contains("graph, binary      yes\n"),
            "{inspected}"
        );
        for line in inspected.lines().filter(|line| line.contains("  no: ")) {
            assert!(line.contains(what), "{line}");
        }
        let out = stdout(folder, &["init", "file:pot.gguf"]);
        assert!(
            out.contains("No bundle for Genie: ") && out.contains(what),
            "{out}"
        );
        let plan = fs::read_to_string(folder.join("plans/pot.toml")).unwrap();
        for stage in left_out {
            assert!(
                !plan.contains(&format!("[stage.{stage}]")),
                "{stage}:\n{plan}"
            );
        }
        for stage in kept {
            assert!(
                plan.contains(&format!("[stage.{stage}]")),
                "{stage}:\n{plan}"
            );
        }
        assert!(!plan.contains('@'), "{plan}");
        stdout(folder, &["check", "plans/pot.toml"]);
        stdout(folder, &["build", "plans/pot.toml", "graph"]);

        // The plan for an ordinary model.
        write(&TinyGguf::llama().file());
        fs::remove_dir_all(folder.join("plans")).unwrap();
        stdout(folder, &["init", "file:pot.gguf"]);
        write(file);
        check_fails(
            folder,
            &["check", "plans/pot.toml"],
            1,
            &["the stage `bundle` would fail", what],
        );
        // A build ends when it has read the header.
        let (_, _, err) = kiln(folder, &["build", "plans/pot.toml", "--set", &pin(file)]);
        assert!(
            err.contains(what) && !err.contains("begin  weights"),
            "{err}"
        );
    }
}

/// `sha256=...` of a file.
fn pin(file: &GgufFile) -> String {
    let mut text = "sha256=".to_string();
    for byte in sha2::Sha256::digest(file.write()) {
        text += &format!("{byte:02x}");
    }
    text
}

#[test]
fn an_unused_invalid_token_id_is_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut file = TinyGguf::llama().file();
    file.set("tokenizer.ggml.padding_token_id", 288_u32);
    fs::write(folder.join("pot.gguf"), file.write()).unwrap();
    let warning = "warning: `tokenizer.ggml.padding_token_id` is 288, beyond a vocabulary of 288";
    for call in [
        &["init", "file:pot.gguf"][..],
        &["inspect", "pot.gguf"],
        &["check", "plans/pot.toml"],
    ] {
        let out = stdout(folder, call);
        assert!(out.contains(warning), "{call:?}: {out}");
    }
}

#[test]
fn model_metadata_cannot_inject_stages() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for key in ["tokenizer.ggml.pre", "tokenizer.ggml.model", "general.name"] {
        let mut file = TinyGguf::llama().file();
        file.set(
            key,
            "x`\n[stage.evil]\nkind = 'command'\nprogram = '/bin/sh'\noutputs = ['a']\n# \
             \u{1b}[31m",
        );
        fs::write(folder.join("pot.gguf"), file.write()).unwrap();
        let out = stdout(folder, &["init", "file:pot.gguf", "--out", "pot.toml"]);
        let plan = fs::read_to_string(folder.join("pot.toml")).unwrap();
        assert!(
            !plan.contains("\n[stage.evil]") && !plan.contains('\u{1b}') && !out.contains('\u{1b}'),
            "{key}: {plan}"
        );
        fs::remove_file(folder.join("pot.toml")).unwrap();
    }
}

#[test]
fn a_split_model_is_fetched_completely() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let out = stdout(
        folder,
        &[
            "init",
            "hf:a/b/pot-00002-of-00003.gguf@v1",
            "--out",
            "a plan.toml",
        ],
    );
    assert!(
        out.contains("kiln build 'a plan.toml' source-1 source-2 source-3 "),
        "{out}"
    );
    let read = |name: &str| -> toml::Table {
        fs::read_to_string(folder.join(name))
            .unwrap()
            .parse()
            .unwrap()
    };
    let plan = read("a plan.toml");
    assert_eq!(plan["plan"]["name"].as_str(), Some("pot"));
    assert_eq!(
        plan["stage"]["source-3"]["url"].as_str(),
        Some("hf:a/b/pot-00003-of-00003.gguf@v1")
    );
    assert_eq!(plan["stage"]["model"]["gguf"].as_array().unwrap().len(), 3);
    assert!(stdout(folder, &["check", "a plan.toml"]).contains("no problems"));

    stdout(
        folder,
        &[
            "init",
            "https://a.example/x/pot.gguf.part2of2?download=true",
        ],
    );
    let plan = read("plans/pot.toml");
    assert_eq!(
        plan["vars"]["source"].as_str(),
        Some("https://a.example/x/pot.gguf.part{1..2}of2?download=true")
    );
    assert!(stdout(folder, &["check", "plans/pot.toml"]).contains("no problems"));

    // Each local file is pinned.
    let mut first = TinyGguf::qwen2().file();
    let mut second = GgufFile {
        tensors: first.tensors.split_off(3),
        ..GgufFile::default()
    };
    for (number, file) in [&mut first, &mut second].into_iter().enumerate() {
        file.set("split.no", Value::U16(number as u16));
        file.set("split.count", Value::U16(2));
        fs::write(
            folder.join(format!("jar-0000{}-of-00002.gguf", number + 1)),
            file.write(),
        )
        .unwrap();
    }
    let out = stdout(folder, &["init", "file:jar-00002-of-00002.gguf"]);
    assert!(out.starts_with("`Tiny`: qwen2, 2 layers, "), "{out}");
    assert!(stdout(folder, &["build", "plans/jar.toml", "model"]).contains("summary.txt"));
    check_fails(
        folder,
        &["init", "hf:a/b/pot.gguf-split-a"],
        2,
        &["`parts` of a `fetch` stage"],
    );
    // A plan that becomes too long is reported with the name of the file.
    let long = format!(
        "https://a.example/{}/pot-00001-of-00900.gguf",
        "x".repeat(2000)
    );
    let (code, _, err) = kiln(folder, &["init", &long, "--out", "long.toml"]);
    assert!(
        code == 2
            && err.contains("failed to make a plan for pot-00001-of-00900.gguf")
            && err.contains("at most 1048576")
            && !err.contains("long.toml"),
        "{err}"
    );
}

#[test]
fn special_characters_in_file_names_are_escaped() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (name, out) in [
        ("${x} $${y}.gguf", "a.toml"),
        ("a #1@SOC@.gguf", "b.toml"),
        ("it's \"{1..2}\".gguf", "c.toml"),
    ] {
        fs::write(folder.join(name), TinyGguf::qwen2().write()).unwrap();
        stdout(folder, &["init", &format!("file:{name}"), "--out", out]);
        assert!(
            stdout(folder, &["build", out, "model"]).contains("summary.txt"),
            "{name}"
        );
    }
    let plan = fs::read_to_string(folder.join("b.toml")).unwrap();
    assert!(plan.contains("name = \"a--1-soc-\""), "{plan}");
    for url in ["hf:a/b:Q4_0", "a/b:Q4_0"] {
        check_fails(
            folder,
            &["init", url],
            2,
            &["name the file: hf:a/b/NAME-Q4_0.gguf"],
        );
    }
}

#[test]
fn unrelated_chips_are_not_suggested() {
    let folder = tempfile::tempdir().unwrap();
    let (code, _, err) = kiln(
        folder.path(),
        &["init", "hf:o/r/x.gguf", "--soc", "kirin9000"],
    );
    assert!(
        code == 2
            && err.contains("docs/plan-format.md has a table of them")
            && !err.contains("similar")
            && !err.contains("did you"),
        "{err}"
    );
}
