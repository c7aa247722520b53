//! `measure` on a device: fakes of `adb`, `ssh` and Qualcomm's runner check how they are called.

use laptop::Laptop;
use phone::{PROFILE, Phone, names};
use serde_json::json;

mod laptop;
mod phone;

#[test]
fn a_bundle_is_sent_once_and_measured_in_every_build() {
    let phone = Phone::new();
    let (output, code) = phone.build("adb:R5CT1", &[]);
    assert_eq!(code, 0, "{output}");
    let files = [
        "genie_config.json",
        "htp_backend_ext_config.json",
        "kiln-answer.txt",
        "kiln-config.json",
    ];
    let more = [
        "kiln-profile.json",
        "prompt.txt",
        "tiny.bin",
        "tokenizer.json",
    ];
    assert_eq!(
        names(&phone.path("genie/bundles/bundle")),
        [&files[..], &more].concat()
    );
    let calls = phone.calls();
    for call in calls.lines() {
        let is_adb = call.starts_with("adb ");
        assert!(!is_adb || call.starts_with("adb [-s] [R5CT1] ["), "{calls}");
    }
    assert_eq!(calls.matches("[push] [/").count(), 6, "{calls}");
    assert!(
        calls.contains("] [/data/local/tmp/genie/bundles/bundle/tiny.bin.kiln-part]\n"),
        "{calls}"
    );

    let (text, json) = phone.report();
    for row in [
        "phone: on adb:R5CT1, a prompt of 823 tokens, an answer of 200\n",
        "    time to first token in ms       531.66500\n",
        "    ms per token                     25.95789  (limit 50)\n",
        "    tokens/s                         38.52500  (limit 20)\n",
        "    power in W                        2.50000  (limit 5)\n",
        "passed: 0 of 4 limits missed\n",
    ] {
        assert!(text.contains(row), "{row:?} in\n{text}");
    }
    let figures = &json["devices"]["phone"];
    assert!(
        figures["peak_memory_bytes"].as_f64().unwrap() > 100_000.0,
        "{figures}"
    );
    assert_eq!(figures["load_ms"], 1124.713);

    // The measurement is repeated in every build, and nothing is sent again.
    phone.put("profile", &PROFILE.replace("38.525", "21.5"));
    let (why, _) = phone.kiln(&["explain", "plan.toml", "phone", "--set", "device=adb:R5CT1"]);
    assert!(
        why.contains("phone: would run\n  measured in every build\n"),
        "{why}"
    );
    assert_eq!(phone.calls(), "");
    let (output, code) = phone.build("adb:R5CT1", &[]);
    assert!(output.contains("2 parts ran") && code == 0, "{output}");
    assert!(!phone.calls().contains("[push]"));
    assert!(
        phone
            .report()
            .0
            .contains("tokens/s                         21.50000")
    );
}

#[test]
fn without_a_device_nothing_is_called() {
    let phone = Phone::new();
    let (output, code) = phone.build("", &[]);
    assert_eq!(code, 0, "{output}");
    let (text, json) = phone.report();
    assert!(text.contains("\nphone: no device was given\n"), "{text}");
    assert_eq!(text.matches("not measured").count(), 5, "{text}");
    assert!(
        text.contains("    power in W                   not measured  (limit 5)\n"),
        "{text}"
    );
    assert!(text.ends_with("passed: 0 of 0 limits missed\n"), "{text}");
    assert_eq!(json["devices"]["phone"]["device"], json!(null));
    assert_eq!(
        json["devices"]["phone"]["tokens_per_second"],
        "not measured"
    );
    assert_eq!(phone.calls(), "");
    let (output, _) = phone.build("", &[]);
    assert!(output.contains("nothing to do"), "{output}");
}

#[test]
fn measuring_over_ssh_works() {
    let phone = Phone::new();
    phone.battery("-625000", "4000000", "Charging");
    let (output, code) = phone.build("ssh:me@board", &[]);
    assert_eq!(code, 0, "{output}");
    let calls = phone.calls();
    assert!(
        calls.contains(
            "] [--] [me@board] [cat > /data/local/tmp/genie/bundles/bundle/tiny.bin.kiln-part]\n"
        ),
        "{calls}"
    );
    let text = phone.report().0;
    assert!(
        text.contains("38.52500") && text.contains("power in W                   not measured"),
        "{text}"
    );
}

#[test]
#[ignore = "needs sshd and a package index"]
fn a_laptop_with_windows_is_measured_over_a_real_sshd() {
    let laptop = Laptop::new();
    let phone = &laptop.phone;
    let (output, code) = phone.build("ssh:laptop", &[]);
    assert_eq!(code, 0, "{output}");
    let (text, json) = phone.report();
    for row in [
        "phone: on ssh:laptop, a prompt of 823 tokens, an answer of 200, NPU driver 1.0.3510.0\n",
        "    time to first token in ms       531.66500\n",
        "    power in W                              3  (limit 5)\n",
    ] {
        assert!(text.contains(row), "{row:?} in\n{text}");
    }
    assert_eq!(json["devices"]["phone"]["peak_memory_bytes"], 204_800_000.0);
    // Complete files are not sent again; a damaged one is.
    let bundle = phone.path("windows/C:/kiln/genie/bundles/bundle");
    let sent = |name: &str| {
        std::fs::metadata(bundle.join(name))
            .unwrap()
            .modified()
            .unwrap()
    };
    let (binary, tokenizer) = (sent("tiny.bin"), sent("tokenizer.json"));
    std::fs::write(bundle.join("tiny.bin"), "damaged").unwrap();
    std::fs::write(bundle.join("tiny.bin.kiln-part"), "a part").unwrap();
    assert_eq!(phone.build("ssh:laptop", &[]).1, 0);
    assert!(sent("tiny.bin") > binary && sent("tokenizer.json") == tokenizer);
    assert!(!bundle.join("tiny.bin.kiln-part").exists());

    std::fs::remove_file(phone.path("windows/C:/kiln/genie/genie-t2t-run.exe")).unwrap();
    let (output, code) = phone.build("ssh:laptop", &[]);
    let words: Vec<&str> = output.split_whitespace().collect();
    assert!(
        code == 4
            && words
                .join(" ")
                .contains("no program C:/kiln/genie/genie-t2t-run.exe"),
        "{output}"
    );
    let (output, code) = phone.build("adb:R5CT1", &[]);
    assert!(code == 1 && output.contains("is for Windows"), "{output}");
}

#[test]
fn a_missed_limit_fails_the_stage() {
    let phone = Phone::new();
    phone.put("profile", &PROFILE.replace("38.525", "19.5"));
    phone.battery("1500000", "4000000", "Discharging");
    let (output, code) = phone.build("adb:R5CT1", &[]);
    assert!(
        code == 1 && output.contains("kiln::validate::missed"),
        "{output}"
    );
    assert!(
        output.contains(
            "MISSED phone            tokens/s                                 19.50000 (limit 20)"
        ),
        "{output}"
    );
    assert!(
        output.contains(
            "MISSED phone            power in W                               6 (limit 5)"
        ),
        "{output}"
    );
    phone.edit(
        "inputs = [\"phone\"]",
        "inputs = [\"phone\"]\nlimits = { phone = { tokens_per_second = 19, power_w = 6 } }",
    );
    assert_eq!(phone.build("adb:R5CT1", &[]).1, 0);
}

#[test]
fn a_broken_connection_is_reported_and_the_next_build_resumes() {
    let phone = Phone::new();
    for (fault, expected) in [
        (
            "lose send",
            "adb:R5CT1: /data/local/tmp/genie/bundles/bundle/genie_config.json.kiln-part did not",
        ),
        ("cut send", "did not arrive as it was sent"),
        (
            "lose run",
            "adb:R5CT1: a command did not complete (exit status: 255)",
        ),
        ("flood", "adb:R5CT1 printed more than 4 MiB"),
    ] {
        phone.fault(fault);
        let (output, code) = phone.build("adb:R5CT1", &[]);
        let words: Vec<&str> = output.split_whitespace().collect();
        let output = words.join(" ").replace("│ ", "");
        assert!(
            code == 1 && output.contains("kiln::measure::device") && output.contains(expected),
            "{fault}: {output}"
        );
        let file = phone.path("genie/bundles/bundle/genie_config.json");
        assert_eq!(
            file.exists(),
            !fault.ends_with("send"),
            "a truncated file does not get its name"
        );
    }
    phone.calls();
    let (output, code) = phone.build("adb:R5CT1", &[]);
    assert_eq!(code, 0, "{output}");
    assert!(
        !phone.calls().contains("[push]"),
        "all files arrived before the connection broke"
    );
}

#[test]
fn a_file_modified_on_the_device_is_sent_again() {
    let phone = Phone::new();
    assert_eq!(phone.build("adb:R5CT1", &[]).1, 0);
    phone.put("genie/bundles/bundle/tiny.bin", "short");
    phone.calls();
    assert_eq!(phone.build("adb:R5CT1", &[]).1, 0);
    let calls = phone.calls();
    assert!(
        calls.contains("tiny.bin.kiln-part]") && calls.matches("[push]").count() == 1,
        "{calls}"
    );
}

#[test]
fn a_missing_device_runner_or_adb_is_reported_with_help() {
    let phone = Phone::new();
    let (output, code) = phone.build("adb:OTHER", &[]);
    assert!(
        code == 1
            && output.contains("device 'OTHER' not found")
            && output.contains("adb -s OTHER shell"),
        "{output}"
    );
    std::fs::remove_file(phone.path("genie/genie-t2t-run")).unwrap();
    let (output, code) = phone.build("adb:R5CT1", &[]);
    assert!(
        code == 4 && output.contains("has no program /data/local/tmp/genie/genie-t2t-run"),
        "{output}"
    );
    assert!(output.contains("QAIRT SDK"), "{output}");
    assert!(
        !phone.path("genie/bundles").exists(),
        "nothing is sent without a runner"
    );
    std::fs::remove_file(phone.path("../bin/adb")).unwrap();
    let (output, code) = phone.build("adb:R5CT1", &[]);
    assert!(
        code == 4 && output.contains("`adb` does not start"),
        "{output}"
    );
}

#[test]
fn runner_output_is_not_trusted() {
    let phone = Phone::new();
    phone.put("crash", "\u{1b}[2JSegmentation fault");
    let (output, code) = phone.build("adb:R5CT1", &[]);
    assert!(
        code == 1 && output.contains("139") && output.contains("[2JSegmentation fault"),
        "{output}"
    );
    assert!(!output.contains("\u{1b}[2J"), "{output:?}");
    std::fs::remove_file(phone.path("crash")).unwrap();
    for hostile in [
        "",
        "{}",
        "[[[[",
        "\0\u{1b}",
        "kiln exit 0\nkiln end\n",
        r#"{"components":[{"events":[null]}]}"#,
    ] {
        phone.put("profile", hostile);
        let (output, code) = phone.build("adb:R5CT1", &[]);
        assert!(
            code == 1 && output.contains("kiln::measure::device"),
            "{hostile:?}: {output}"
        );
    }
    phone.put(
        "profile",
        &PROFILE
            .replace("38.525", "1e999")
            .replace("5191579", "-1")
            .replace("531665", "\"x\""),
    );
    let (output, code) = phone.build("adb:R5CT1", &[]);
    assert_eq!(code, 1, "{output}");
    phone.put(
        "profile",
        &PROFILE
            .replace("38.525", "null")
            .replace("5191579", "-1")
            .replace("531665", "\"x\""),
    );
    assert_eq!(phone.build("adb:R5CT1", &[]).1, 0);
    assert_eq!(phone.report().0.matches("not measured").count(), 3);
}

#[test]
fn device_names_cannot_inject_options_or_commands() {
    let phone = Phone::new();
    for device in [
        "adb:-s",
        "adb:$(x)",
        "ssh:-oProxyCommand=x",
        "R5CT1",
        "ssh:a b",
    ] {
        let (output, code) = phone.build(device, &[]);
        assert!(
            code == 2 && output.contains("kiln::plan::parameter"),
            "{device}: {output}"
        );
    }
    phone.edit(
        "device = \"${device}\"",
        "device = \"${device}\"\nrunner = \"/x;reboot\"",
    );
    let (output, code) = phone.build("", &[]);
    assert!(code == 2 && output.contains("`runner` is"), "{output}");
    phone.edit("runner = \"/x;reboot\"", "answer_tokens = 0");
    let (said, _) = phone.build("", &[]);
    assert!(said.contains("expected an integer of at least 1"), "{said}");
    phone.edit("bundle = \"bundle\"", "");
    phone.edit("answer_tokens = 0", "");
    let (output, code) = phone.build("adb:R5CT1", &[]);
    assert!(
        code == 2 && output.contains("`phone` needs the input `bundle`"),
        "{output}"
    );
    assert_eq!(phone.calls(), "");
}

#[test]
fn check_does_not_measure_twice() {
    let phone = Phone::new();
    let (output, code) = phone.build("adb:R5CT1", &["--check"]);
    // The fake context binary cannot be compiled again, so the exit code does not matter.
    assert!(
        !output.contains("had other bytes in the second run"),
        "{code} {output}"
    );
    assert_eq!(phone.calls().matches("--profile").count(), 1);
}
