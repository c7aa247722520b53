//! What kiln says of itself: help, completions, manual pages.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

const SHELLS: [&str; 5] = ["bash", "elvish", "fish", "powershell", "zsh"];

/// Standard output and standard error of a call that leaves with `code`; `env` is all that is said
/// of colours.
fn kiln(arguments: &[&str], env: &[(&str, &str)], code: i32) -> (String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command
        .env_remove("NO_COLOR")
        .env_remove("CLICOLOR_FORCE")
        .env("TERM", "xterm");
    let output = command
        .args(arguments)
        .envs(env.iter().copied())
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {err}");
    (out, err)
}

/// What `command` says of `input`; none where it is not installed.
fn peer(command: &str, arguments: &[&str], input: &str) -> Option<(bool, String)> {
    let mut command = Command::new(command);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().ok()?;
    child.stdin.take()?.write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    Some((
        output.status.success(),
        String::from_utf8(output.stderr).unwrap(),
    ))
}

/// The subcommands that the help of `path` lists.
fn subcommands(path: &[&str]) -> Vec<String> {
    let (help, _) = kiln(&[path, &["--help"]].concat(), &[], 0);
    let list = help
        .split("Commands:\n")
        .nth(1)
        .unwrap_or_default()
        .split("\n\n")
        .next()
        .unwrap_or_default();
    // A line that goes on is indented further.
    let names = list
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    names
        .filter(|name| !["", "help"].contains(name))
        .map(String::from)
        .collect()
}

#[test]
fn without_a_subcommand_the_first_steps_are_shown() {
    let (_, err) = kiln(&[], &[], 2);
    for text in [
        "kiln doctor",
        "kiln init hf:",
        "kiln build plans/",
        "Exit codes: 0 success",
    ] {
        assert!(err.contains(text), "{text} in:\n{err}");
    }
    assert!(!subcommands(&[]).contains(&"work".to_string()));
}

#[test]
fn every_shell_gets_a_script_without_what_is_hidden() {
    for shell in SHELLS {
        let (script, _) = kiln(&["completions", shell], &[], 0);
        for word in ["doctor", "keep-going", "max-size"] {
            assert!(script.contains(word), "{word} in the script for {shell}");
        }
        assert!(
            !script.contains("ACTION.json")
                && !script.contains("kiln__work")
                && !script.contains("kiln work"),
            "{shell}"
        );
        if let Some((good, said)) =
            peer(shell, &["-n"], &script).filter(|_| shell == "bash" || shell == "zsh")
        {
            assert!(good && said.is_empty(), "{shell}: {said}");
        }
    }
    kiln(&["completions", "tcsh"], &[], 2);
}

#[test]
fn every_subcommand_has_a_manual_page() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("man1");
    kiln(&["man", folder.to_str().unwrap()], &[], 0);
    let mut expect = vec!["kiln.1".to_string()];
    for command in subcommands(&[]) {
        expect.extend(
            subcommands(&[&command])
                .iter()
                .map(|inner| format!("kiln-{command}-{inner}.1")),
        );
        expect.push(format!("kiln-{command}.1"));
    }
    expect.sort();
    let mut found: Vec<String> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    assert_eq!(found, expect);
    assert!(
        expect.len() > 12 && expect.contains(&"kiln-cache-gc.1".into()),
        "{expect:?}"
    );

    let page = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    assert_eq!(page("kiln.1"), kiln(&["man"], &[], 0).0);
    for name in &found {
        let page = page(name);
        for part in [".TH ", ".SH NAME", ".SH SYNOPSIS"] {
            assert!(page.contains(part), "{part} in {name}");
        }
        assert!(!page.contains("work(1)"), "the hidden subcommand in {name}");
        if let Some((good, said)) = peer("groff", &["-man", "-ww", "-z", "-Tutf8"], &page) {
            assert!(good && said.is_empty(), "{name}: {said}");
        }
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let (_, err) = kiln(&["man", "/proc/nowhere"], &[], 2);
    assert!(err.contains("/proc/nowhere"), "{err}");
}

/// Help, and mistakes of the call, are clap's; problems are kiln's. All heed the same words.
#[test]
fn colours_are_as_asked_for_everywhere() {
    let check = |arguments: &[&str], env: &[(&str, &str)], expect: bool| {
        let calls = [
            (&["build", "--help"][..], 0),
            (&["chekc"], 2),
            (&["check", "absent.toml"], 2),
        ];
        for (call, code) in calls {
            let (out, err) = kiln(&[arguments, call].concat(), env, code);
            assert_eq!(
                (out + &err).contains('\x1b'),
                expect,
                "{arguments:?} {call:?} {env:?}"
            );
        }
    };
    check(&[], &[], false);
    check(&["--color", "always"], &[], true);
    check(&["--color=always"], &[("NO_COLOR", "1")], true);
    check(&[], &[("CLICOLOR_FORCE", "1")], true);
    check(&["--color", "never"], &[("CLICOLOR_FORCE", "1")], false);
    check(&[], &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], false);
}
