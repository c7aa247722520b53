//! Help, completions and manual pages.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

const SHELLS: [&str; 5] = ["bash", "elvish", "fish", "powershell", "zsh"];

/// Standard output and standard error of a call that exits with `code`. Only `env` sets variables
/// for colours.
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

/// Whether `command` accepts `input`, and its error output; `None` if it is not installed.
fn check_with(command: &str, arguments: &[&str], input: &str) -> Option<(bool, String)> {
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
    let Some((_, commands)) = help.split_once("Commands:\n") else {
        return vec![];
    };
    let list = commands.split("\n\n").next().unwrap();
    let mut names = vec![];
    for line in list.lines() {
        // Continuation lines are indented more.
        let line = line.strip_prefix("  ").unwrap_or_default();
        let name = line.split(' ').next().unwrap();
        if !["", "help"].contains(&name) {
            names.push(name.to_string());
        }
    }
    names
}

#[test]
fn no_subcommand_prints_the_first_steps() {
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
fn completion_scripts_omit_hidden_commands() {
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
        if shell != "bash" && shell != "zsh" {
            continue;
        }
        if let Some((is_valid, errors)) = check_with(shell, &["-n"], &script) {
            assert!(is_valid && errors.is_empty(), "{shell}: {errors}");
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
        for inner in subcommands(&[&command]) {
            expect.push(format!("kiln-{command}-{inner}.1"));
        }
        expect.push(format!("kiln-{command}.1"));
    }
    expect.sort();
    let mut found = vec![];
    for entry in fs::read_dir(&folder).unwrap() {
        found.push(entry.unwrap().file_name().into_string().unwrap());
    }
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
        let groff = check_with("groff", &["-man", "-ww", "-z", "-Tutf8"], &page);
        if let Some((is_valid, errors)) = groff {
            assert!(is_valid && errors.is_empty(), "{name}: {errors}");
        }
    }
}

#[test]
fn an_unwritable_folder_is_reported() {
    let (_, err) = kiln(&["man", "/proc/nowhere"], &[], 2);
    assert!(err.contains("/proc/nowhere"), "{err}");
}

/// clap prints help and call errors, kiln prints problems. All follow the same options and
/// variables.
#[test]
fn colour_options_apply_to_all_output() {
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
