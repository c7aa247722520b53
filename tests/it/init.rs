//! `kiln init`: what it writes can be checked, planned and built.

use std::fs;
use std::path::Path;

use crate::support::gguf_file::{GgufFile, Value};
use crate::support::tiny_gguf::TinyGguf;
use assert_cmd::Command;

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

/// What the call says where it must succeed.
fn said(folder: &Path, arguments: &[&str]) -> String {
    let (code, out, err) = kiln(folder, arguments);
    assert_eq!(code, 0, "{arguments:?}: {err}");
    out
}

/// What the call complains of, by which the text must be found.
fn refused(folder: &Path, arguments: &[&str], code: i32, expect: &[&str]) {
    let (found, _, err) = kiln(folder, arguments);
    assert_eq!(found, code, "{arguments:?}: {err}");
    expect
        .iter()
        .for_each(|text| assert!(err.contains(text), "{text} in:\n{err}"));
}

#[test]
fn a_local_model_is_built_by_its_plan() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("Tiny Pot.gguf"), TinyGguf::qwen2().write()).unwrap();
    let out = said(folder, &["init", "file:Tiny Pot.gguf", "--soc", "sm8750"]);
    assert!(out.starts_with("`Tiny`: qwen2, 2 layers, Q4_0 "), "{out}");
    assert!(out.contains("kiln build plans/tiny-pot.toml "), "{out}");

    assert!(said(folder, &["check", "plans/tiny-pot.toml"]).contains("no problems"));
    assert!(said(folder, &["plan", "plans/tiny-pot.toml"]).contains("would run"));
    let out = said(
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
    refused(
        folder,
        &["init", "file:Tiny Pot.gguf"],
        2,
        &["plans/tiny-pot.toml already exists", "--out"],
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), plan);
    said(
        folder,
        &["init", "file:Tiny Pot.gguf", "--out", "plans/again.toml"],
    );
}

/// The pins and the stages are those of the plan that is tried out; only limits and sizes are the
/// model's own.
#[test]
fn the_plan_is_the_one_that_people_copy() {
    let folder = tempfile::tempdir().unwrap();
    let url = "hf:bartowski/DeepSeek-R1-Distill-Qwen-1.5B-GGUF/DeepSeek-R1-Distill-Qwen-1.5B-Q4_0.\
               gguf@main";
    let out = said(folder.path(), &["init", url, "--out", "plan.toml"]);
    assert!(out.contains("kiln build plan.toml source "), "{out}");
    let copied = Path::new(env!("CARGO_MANIFEST_DIR")).join("plans/deepseek-qwen-1.5b.toml");
    let written = folder.path().join("plan.toml");

    let show = |path: &Path| said(folder.path(), &["show", path.to_str().unwrap()]);
    assert_eq!(show(&written), show(&copied));
    let read = |path: &Path| -> toml::Table { fs::read_to_string(path).unwrap().parse().unwrap() };
    let (written, copied, mut common) = (
        read(&written),
        read(&copied),
        read(&copied.with_file_name("lib/qwen2.toml")),
    );
    assert_eq!(
        written["plan"]["name"].as_str(),
        Some("deepseek-r1-distill-qwen-1.5b-q4_0")
    );
    assert_eq!(written["vars"]["source"].as_str(), Some(url));
    assert_eq!(written["vars"]["sha256"].as_str(), Some(""));
    assert_eq!(written["tools"], common["tools"]);
    assert_eq!(written["stage"]["source"], copied["stage"]["source"]);
    // Which keys are centred is the model's affair, unless somebody wants to see what goes wrong.
    common["stage"]["graph"]
        .as_table_mut()
        .unwrap()
        .remove("key_centre");
    for stage in ["graph", "npu", "reference", "answer", "genie"] {
        assert_eq!(written["stage"][stage], common["stage"][stage], "{stage}");
    }
}

#[test]
fn what_cannot_be_built_is_said_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut mamba = TinyGguf::llama().file();
    mamba.set("general.architecture", "mamba");
    fs::write(folder.join("mamba.gguf"), mamba.write()).unwrap();
    refused(
        folder,
        &["init", "file:mamba.gguf"],
        1,
        &[
            "architecture `mamba` is not supported",
            "kiln knows llama and qwen2",
        ],
    );
    refused(
        folder,
        &["init", "file:absent.gguf"],
        2,
        &["absent.gguf", "No such file"],
    );
    refused(
        folder,
        &["init", "mamba.gguf"],
        2,
        &["no scheme", "write file:mamba.gguf"],
    );
    refused(folder, &["init", "hf:a/b"], 2, &["OWNER/REPO/FILE"]);
    refused(
        folder,
        &["init", "https://a.example/c.bin"],
        2,
        &["`c.bin` is not a GGUF"],
    );
    refused(
        folder,
        &["init", "hf:a/b/c.gguf", "--soc", "sm8651"],
        2,
        &["did you mean `sm8650`?"],
    );
    assert!(!folder.join("plans").exists());

    fs::create_dir_all(folder.join("plans/data")).unwrap();
    fs::write(folder.join("plans/data/eval.txt"), "another text").unwrap();
    refused(
        folder,
        &["init", "hf:a/b/c.gguf"],
        2,
        &["plans/data/eval.txt already exists", "--out"],
    );
    assert!(!folder.join("plans/c.toml").exists());
}

#[test]
fn what_a_file_is_instead_is_said() {
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
        refused(folder, &["init", "file:pot.gguf"], 2, &[what]);
        refused(folder, &["inspect", "pot.gguf"], 2, &[what]);
    }
    let mut file = TinyGguf::llama().file();
    file.set("tokenizer.ggml.pre", "llama-bpe");
    fs::write(folder.join("pot.gguf"), file.write()).unwrap();
    let out = said(folder, &["init", "file:pot.gguf"]);
    let help = [
        "`bundle` would fail",
        "the pre-tokenizer `llama-bpe` is not known",
    ];
    refused(folder, &["check", "plans/pot.toml"], 1, &help);
    let mut mute = TinyGguf::llama().file();
    mute.keys.retain(|(key, _)| !key.starts_with("tokenizer."));
    fs::write(folder.join("mute.gguf"), mute.write()).unwrap();
    assert!(said(folder, &["init", "file:mute.gguf"]).contains("the file has no tokenizer"));
    refused(
        folder,
        &["check", "plans/mute.toml"],
        1,
        &["`bundle` would fail", "the file has no tokenizer"],
    );
    fs::write(folder.join("pot.gguf"), TinyGguf::llama().write()).unwrap();
    let long = said(
        folder,
        &["check", "plans/pot.toml", "--set", "context=1024"],
    );
    assert!(
        long.contains("warning: `graph` has a context of 1024, the model was trained for 512"),
        "{long}"
    );
    assert!(
        out.contains(
            "No stage can read or write its text: the pre-tokenizer `llama-bpe` is not known"
        ),
        "{out}"
    );
}

#[test]
fn what_is_odd_and_changes_nothing_is_a_warning() {
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
        let out = said(folder, call);
        assert!(out.contains(warning), "{call:?}: {out}");
    }
}

#[test]
fn a_model_writes_no_stages_into_its_plan() {
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
        let out = said(folder, &["init", "file:pot.gguf", "--out", "pot.toml"]);
        let plan = fs::read_to_string(folder.join("pot.toml")).unwrap();
        assert!(
            !plan.contains("\n[stage.evil]") && !plan.contains('\u{1b}') && !out.contains('\u{1b}'),
            "{key}: {plan}"
        );
        fs::remove_file(folder.join("pot.toml")).unwrap();
    }
}

#[test]
fn a_model_in_pieces_is_fetched_whole() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let out = said(
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
    assert!(said(folder, &["check", "a plan.toml"]).contains("no problems"));

    said(
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
    assert!(said(folder, &["check", "plans/pot.toml"]).contains("no problems"));

    // Files of this machine are pinned, each.
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
    let out = said(folder, &["init", "file:jar-00002-of-00002.gguf"]);
    assert!(out.starts_with("`Tiny`: qwen2, 2 layers, "), "{out}");
    assert!(said(folder, &["build", "plans/jar.toml", "model"]).contains("summary.txt"));
    refused(
        folder,
        &["init", "hf:a/b/pot.gguf-split-a"],
        2,
        &["`parts` of a `fetch` stage"],
    );
    // What makes a plan too long is told of the file.
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
fn characters_of_a_plan_may_be_in_a_name() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (name, out) in [
        ("${x} $${y}.gguf", "a.toml"),
        ("a #1@SOC@.gguf", "b.toml"),
        ("it's \"{1..2}\".gguf", "c.toml"),
    ] {
        fs::write(folder.join(name), TinyGguf::qwen2().write()).unwrap();
        said(folder, &["init", &format!("file:{name}"), "--out", out]);
        assert!(
            said(folder, &["build", out, "model"]).contains("summary.txt"),
            "{name}"
        );
    }
    let plan = fs::read_to_string(folder.join("b.toml")).unwrap();
    assert!(plan.contains("name = \"a--1-soc-\""), "{plan}");
    for url in ["hf:a/b:Q4_0", "a/b:Q4_0"] {
        refused(
            folder,
            &["init", url],
            2,
            &["name the file: hf:a/b/NAME-Q4_0.gguf"],
        );
    }
}

#[test]
fn no_chip_of_another_family_is_suggested() {
    let folder = tempfile::tempdir().unwrap();
    let (code, _, err) = kiln(
        folder.path(),
        &["init", "hf:o/r/x.gguf", "--soc", "sa8775p"],
    );
    assert!(
        code == 2
            && err.contains("known are sm8450")
            && !err.contains("similar")
            && !err.contains("did you"),
        "{err}"
    );
}
