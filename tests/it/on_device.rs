//! `validate` on a device: stand-ins for `adb`, `ssh` and Qualcomm's runner check how they are
//! called.

use crate::support::phone::{PROFILE, Phone, names};
use serde_json::json;

#[test]
fn a_bundle_is_sent_once_and_measured_in_every_build() {
    let phone = Phone::new();
    let (said, code) = phone.build("adb:R5CT1", &[]);
    assert_eq!(code, 0, "{said}");
    let there = [
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
        [&there[..], &more].concat()
    );
    let calls = phone.calls();
    assert!(
        calls
            .lines()
            .filter(|line| line.starts_with("adb "))
            .all(|line| line.starts_with("adb [-s] [R5CT1] [")),
        "{calls}"
    );
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

    // Nothing is served from the cache but what comes before, and nothing is sent again.
    phone.put("profile", &PROFILE.replace("38.525", "21.5"));
    let (why, _) = phone.kiln(&["explain", "plan.toml", "phone", "--set", "device=adb:R5CT1"]);
    assert!(
        why.contains("phone: would run\n  measured anew in every build\n"),
        "{why}"
    );
    assert_eq!(phone.calls(), "");
    let (said, code) = phone.build("adb:R5CT1", &[]);
    assert!(said.contains("2 parts ran") && code == 0, "{said}");
    assert!(!phone.calls().contains("[push]"));
    assert!(
        phone
            .report()
            .0
            .contains("tokens/s                         21.50000")
    );
}

#[test]
fn without_a_device_nothing_is_measured_and_nothing_called() {
    let phone = Phone::new();
    let (said, code) = phone.build("", &[]);
    assert_eq!(code, 0, "{said}");
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
    let (said, _) = phone.build("", &[]);
    assert!(said.contains("nothing to do"), "{said}");
}

#[test]
fn ssh_is_as_good() {
    let phone = Phone::new();
    phone.battery("-625000", "4000000", "Charging");
    let (said, code) = phone.build("ssh:me@board", &[]);
    assert_eq!(code, 0, "{said}");
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
fn a_missed_target_fails_the_stage() {
    let phone = Phone::new();
    phone.put("profile", &PROFILE.replace("38.525", "19.5"));
    phone.battery("1500000", "4000000", "Discharging");
    let (said, code) = phone.build("adb:R5CT1", &[]);
    assert!(
        code == 1 && said.contains("kiln::validate::missed"),
        "{said}"
    );
    assert!(
        said.contains(
            "MISSED phone            tokens/s                                 19.50000 (limit 20)"
        ),
        "{said}"
    );
    assert!(
        said.contains(
            "MISSED phone            power in W                               6 (limit 5)"
        ),
        "{said}"
    );
    phone.edit(
        "inputs = [\"phone\"]",
        "inputs = [\"phone\"]\nlimits = { phone = { tokens_per_second = 19, power_w = 6 } }",
    );
    assert_eq!(phone.build("adb:R5CT1", &[]).1, 0);
}

#[test]
fn a_broken_connection_is_told_and_loses_nothing() {
    let phone = Phone::new();
    for (fault, said) in [
        (
            "lose send",
            "adb:R5CT1: /data/local/tmp/genie/bundles/bundle/genie_config.json.kiln-part did not",
        ),
        ("cut send", "did not arrive as it was sent"),
        (
            "lose run",
            "adb:R5CT1: a command did not come to its end (exit status: 255)",
        ),
        (
            "flood",
            "adb:R5CT1 says more than any answer of a device is long",
        ),
    ] {
        phone.fault(fault);
        let (told, code) = phone.build("adb:R5CT1", &[]);
        let told = told
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .replace("│ ", "");
        assert!(
            code == 1 && told.contains("kiln::measure::device") && told.contains(said),
            "{fault}: {told}"
        );
        let there = phone.path("genie/bundles/bundle/genie_config.json");
        assert_eq!(
            there.exists(),
            !fault.ends_with("send"),
            "a half file is not taken for a whole one"
        );
    }
    phone.calls();
    let (told, code) = phone.build("adb:R5CT1", &[]);
    assert_eq!(code, 0, "{told}");
    assert!(
        !phone.calls().contains("[push]"),
        "everything had arrived before the connection broke"
    );
}

#[test]
fn a_file_that_was_changed_on_the_device_is_sent_again() {
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
fn what_is_not_there_has_a_way_out() {
    let phone = Phone::new();
    let (said, code) = phone.build("adb:OTHER", &[]);
    assert!(
        code == 1
            && said.contains("device 'OTHER' not found")
            && said.contains("adb -s OTHER shell"),
        "{said}"
    );
    std::fs::remove_file(phone.path("genie/genie-t2t-run")).unwrap();
    let (said, code) = phone.build("adb:R5CT1", &[]);
    assert!(
        code == 4 && said.contains("has no program /data/local/tmp/genie/genie-t2t-run"),
        "{said}"
    );
    assert!(said.contains("QAIRT SDK"), "{said}");
    assert!(
        !phone.path("genie/bundles").exists(),
        "nothing is sent for nothing"
    );
    std::fs::remove_file(phone.path("../bin/adb")).unwrap();
    let (said, code) = phone.build("adb:R5CT1", &[]);
    assert!(code == 4 && said.contains("`adb` does not start"), "{said}");
}

#[test]
fn what_the_runner_says_is_not_believed() {
    let phone = Phone::new();
    phone.put("says", "\u{1b}[2JSegmentation fault");
    let (said, code) = phone.build("adb:R5CT1", &[]);
    assert!(
        code == 1 && said.contains("139") && said.contains("[2JSegmentation fault"),
        "{said}"
    );
    assert!(!said.contains("\u{1b}[2J"), "{said:?}");
    std::fs::remove_file(phone.path("says")).unwrap();
    for hostile in [
        "",
        "{}",
        "[[[[",
        "\0\u{1b}",
        "kiln exit 0\nkiln end\n",
        r#"{"components":[{"events":[null]}]}"#,
    ] {
        phone.put("profile", hostile);
        let (said, code) = phone.build("adb:R5CT1", &[]);
        assert!(
            code == 1 && said.contains("kiln::measure::device"),
            "{hostile:?}: {said}"
        );
    }
    phone.put(
        "profile",
        &PROFILE
            .replace("38.525", "1e999")
            .replace("5191579", "-1")
            .replace("531665", "\"x\""),
    );
    let (said, code) = phone.build("adb:R5CT1", &[]);
    assert_eq!(code, 1, "{said}");
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
fn a_device_can_be_no_option_and_no_command() {
    let phone = Phone::new();
    for device in [
        "adb:-s",
        "adb:$(x)",
        "ssh:-oProxyCommand=x",
        "R5CT1",
        "ssh:a b",
    ] {
        let (said, code) = phone.build(device, &[]);
        assert!(
            code == 2 && said.contains("kiln::plan::parameter"),
            "{device}: {said}"
        );
    }
    phone.edit(
        "device = \"${device}\"",
        "device = \"${device}\"\nrunner = \"/x;reboot\"",
    );
    let (said, code) = phone.build("", &[]);
    assert!(code == 2 && said.contains("`runner` is"), "{said}");
    phone.edit("runner = \"/x;reboot\"", "answer_tokens = 0");
    let (said, _) = phone.build("", &[]);
    assert!(said.contains("expected an integer of at least 1"), "{said}");
    phone.edit("bundle = \"bundle\"", "");
    phone.edit("answer_tokens = 0", "");
    let (said, code) = phone.build("adb:R5CT1", &[]);
    assert!(
        code == 2 && said.contains("`phone` needs the input `bundle`"),
        "{said}"
    );
    assert_eq!(phone.calls(), "");
}

#[test]
fn a_check_does_not_ask_a_device_for_the_same_figures_twice() {
    let phone = Phone::new();
    let (said, code) = phone.build("adb:R5CT1", &["--check"]);
    // The context binary is not one: what cannot run again is not of interest here.
    assert!(
        !said.contains("other bytes in the second run"),
        "{code} {said}"
    );
    assert_eq!(phone.calls().matches("--profile").count(), 1);
}
