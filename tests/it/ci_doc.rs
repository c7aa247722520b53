//! What `docs/ci.md` gives to copy can be copied.

use std::process::Command;

use assert_cmd::Command as Kiln;

const DOC: &str = include_str!("../../docs/ci.md");

/// The block of `language`.
fn block(language: &str) -> &'static str {
    let after = DOC.split(&format!("```{language}\n")).nth(1).unwrap();
    after.split("```").next().unwrap()
}

/// Whether `program` takes `text` as its last argument; none where it cannot.
fn takes(program: &str, arguments: &[&str], text: &str) -> Option<bool> {
    let output = Command::new(program)
        .args(arguments)
        .arg(text)
        .output()
        .ok()?;
    Some(output.status.success())
}

#[test]
fn the_workflow_is_yaml() {
    if takes("python3", &["-c", "import sys, yaml"], "") != Some(true) {
        return;
    }
    let check = "import sys, yaml
jobs = yaml.safe_load(sys.argv[1])['jobs']
assert all('uses' in step or 'run' in step for job in jobs.values() for step in job['steps'])
assert len(jobs['build']['steps']) > 5";
    assert_eq!(takes("python3", &["-c", check], block("yaml")), Some(true));
    assert_eq!(
        takes(
            "python3",
            &["-c", check],
            &block("yaml").replace("steps:", "steps")
        ),
        Some(false)
    );
}

#[test]
fn the_script_is_shell() {
    assert_ne!(takes("bash", &["-n", "-c"], block("sh")), Some(false));
    assert_ne!(
        takes("bash", &["-n", "-c"], &block("sh").replace("esac", "")),
        Some(true)
    );
}

/// Every flag that the page names is one that kiln has.
#[test]
fn the_flags_are_there() {
    let calls = [block("yaml"), block("sh")].concat();
    let mut found = 0;
    for call in calls.lines().flat_map(|line| line.split("kiln ").skip(1)) {
        let call = call.split(['&', '|', '#']).next().unwrap().replace('"', "");
        let command: Vec<&str> = call
            .split_whitespace()
            .take_while(|word| word.chars().all(char::is_alphabetic))
            .collect();
        if command.is_empty() {
            continue;
        }
        let output = Kiln::cargo_bin("kiln")
            .unwrap()
            .args(&command)
            .arg("--help")
            .output()
            .unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "kiln {}", command.join(" "));
        for flag in call
            .split_whitespace()
            .filter(|word| word.starts_with("--"))
        {
            assert!(
                help.contains(&format!("{flag} ")) || help.contains(&format!("{flag}\n")),
                "{flag} of: kiln {call}"
            );
            found += 1;
        }
    }
    assert!(found > 5);
}
