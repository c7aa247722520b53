//! The stage `command`: inputs and environment of the program, its outputs, failures, and when it
//! runs again.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use crate::support::alive::{is_alive, wait_until};
use crate::support::command_project::{CommandProject, PLAIN};
use crate::support::fetching::sha256;
use crate::support::results::{changed_result, find_result};
use crate::support::scripts::write_script;
use rustix::process::{Pid, Signal, kill_process};

/// A daemon leaves its parent and its process group, and keeps its files open.
const DAEMON: &str = "setsid sleep 600 & echo $! > \"$PID_FILE\"; echo pot > outputs/pot";

#[test]
fn a_daemon_does_not_block_the_build() {
    let project = CommandProject::new(DAEMON, "");
    let pid_file = project.path("daemon");
    let stage = |more: &str| {
        format!(
            "{PLAIN}\nenv = {{ PID_FILE = '{}', PATH = '/usr/bin:/bin' }}\n{more}",
            pid_file.display()
        )
    };
    project.plan(&stage(""));
    assert_eq!(project.built("pot"), "pot\n");
    assert!(
        !is_alive(fs::read_to_string(&pid_file).unwrap().trim()),
        "it could still write"
    );

    // It does not outlive a build that fails either.
    project.script("tool", &DAEMON.replace("echo pot", "sleep 600; echo pot"));
    project.plan(&stage("timeout = '2s'"));
    let finished = project.run(&["build", "pots.toml"]);
    assert!(
        finished.code == 1 && finished.output.contains("kiln::engine::timeout"),
        "{}",
        finished.output
    );
    assert!(!is_alive(fs::read_to_string(&pid_file).unwrap().trim()));
}

#[test]
fn a_script_that_cannot_start_reports_its_interpreter() {
    let project = CommandProject::new("", PLAIN);
    let write = |text: &str| write_script(&project.path("tool"), text);
    write("#!/bin/sh\r\necho\r\n");
    project.fails(1, &["line endings of Windows", "`/bin/sh\\r`"]);
    write("#!/no/such/python3 -u\n");
    project.fails(1, &["interpreter `/no/such/python3` is not there"]);
}

#[test]
fn reserved_names_are_rejected_as_outputs() {
    for name in [".kiln.json", ".KILN.json", "pots/.kiln-tmp-1/"] {
        let project = CommandProject::new("", &format!("program = 'TOOL'\noutputs = ['{name}']"));
        let finished = project.run(&["build", "pots.toml"]);
        assert!(
            finished.code == 2 && finished.output.contains("cannot name a part"),
            "{name}: {}",
            finished.output
        );
    }
}

#[test]
fn a_program_sees_only_its_inputs() {
    let script = r#"
        { tr '\0' '\n' </proc/$$/environ | sed "s#=$PWD#=HERE#"; echo "$@"; ls -d *; ls outputs tmp
          cat inputs/clay/clay.txt; echo; stat -c %a inputs/clay/clay.txt; cat; basename "$PWD"; } >outputs/pot"#;
    let stage = "program = 'TOOL'\nargs = ['--fire', 'a b']\nenv = { HUE = 'red', PATH = \
                 '/usr/bin:/bin' }\ninputs = ['clay']\noutputs = ['pot']";
    let found = CommandProject::new(script, stage).built("pot");
    let expect = "TMPDIR=HERE/tmp\nHUE=red\nPATH=/usr/bin:/bin\n--fire a \
                  b\ninputs\noutputs\ntmp\noutputs:\npot\n\ntmp:\nclay\n444\nwork\n";
    let sorted = |text: &str| {
        let (env, rest) = text.split_at(text.find("--fire").unwrap());
        let mut env: Vec<&str> = env.lines().collect();
        env.sort();
        env.join("\n") + rest
    };
    assert_eq!(sorted(&found), sorted(expect));
}

#[test]
fn only_declared_outputs_are_collected() {
    let script = "cd outputs; mkdir -p layers/deep empty; echo a >pot; echo b >layers/b; echo c \
                  >layers/deep/c; echo d >stray";
    let project = CommandProject::new(script, "program = 'TOOL'\noutputs = ['pot', 'layers/']");
    assert_eq!(project.built("layers/deep/c"), "c\n");
    let written: Vec<PathBuf> = crate::support::tree::files(&project.path("out/pots/pot"))
        .into_keys()
        .collect();
    assert_eq!(
        written,
        ["layers/b", "layers/deep/c", "pot"].map(PathBuf::from)
    );
}

#[test]
fn an_input_can_be_the_program_and_an_output_can_be_an_input() {
    let project = CommandProject::new("", "");
    let script = b"#!/bin/sh\necho \"$0: $1\" | sed 's#.*/work/##' >outputs/pot\n";
    fs::write(project.path("throw.sh"), script).unwrap();
    let text = format!(
        "[plan]\nname = 'pots'\n[stage.wheel]\nkind = 'fetch'\nurl = 'file:throw.sh'\nsha256 = \
         '{}'\n[stage.first]\nkind = 'command'\nprogram = 'inputs/wheel/throw.sh'\ninputs = \
         ['wheel']\nargs = ['one']\noutputs = ['pot']\nenv = {{ PATH = '/usr/bin:/bin' \
         }}\n[stage.pot]\nkind = 'command'\nprogram = '/bin/cp'\ninputs = ['first']\nargs = \
         ['inputs/first/pot', 'outputs/pot']\noutputs = ['pot']\n",
        sha256(script)
    );
    fs::write(project.path("pots.toml"), text).unwrap();
    assert_eq!(project.built("pot"), "inputs/wheel/throw.sh: one\n");
}

#[test]
fn changes_to_inputs_do_not_reach_the_cache() {
    let script = "chmod u+w inputs/clay/clay.txt; echo spoilt >>inputs/clay/clay.txt; cp \
                  inputs/clay/clay.txt outputs/pot";
    let project = CommandProject::new(script, PLAIN);
    fs::write(
        project.path("tool"),
        fs::read_to_string(project.path("tool"))
            .unwrap()
            .replace("chmod", "PATH=/bin; chmod"),
    )
    .unwrap();
    assert_eq!(project.built("pot"), "clayspoilt\n");
    let finished = project.run(&["cache", "verify"]);
    assert_eq!(finished.code, 0, "{}", finished.output);
}

#[test]
fn a_failure_shows_the_output_tail_and_the_command_line() {
    let script = "i=0; while [ $i -lt 2000 ]; do echo noise; i=$((i+1)); done; echo 'cannot fire' \
                  >&2; exit 3";
    let project = CommandProject::new(
        script,
        "program = 'TOOL'\nargs = [\"it's\"]\nenv = { HUE = 'dark red' }\noutputs = ['pot']",
    );
    let command_line = r#"env -i TMPDIR="$PWD/tmp" 'HUE=dark red'"#;
    project.fails(
        1,
        &[
            "kiln::command::failed",
            "exit status: 3",
            "noise\n",
            "cannot fire",
            command_line,
            r"'it'\''s'",
        ],
    );
    let output = project.run(&["build", "pots.toml"]).output;
    assert!(
        output.matches("noise").count() < 700,
        "only the tail is shown"
    );

    CommandProject::new("kill -9 $$", PLAIN)
        .fails(1, &["signal: 9", "it printed nothing", "memory"]);
}

#[test]
fn missing_or_irregular_outputs_are_reported() {
    CommandProject::new(">outputs/jug; >outputs/cup", PLAIN)
        .fails(1, &["left no outputs/pot", "outputs/ contains cup, jug"]);
    CommandProject::new("", PLAIN).fails(1, &["left no outputs/pot", "outputs/ contains nothing"]);
    CommandProject::new("/bin/ln -s /etc/hostname outputs/pot", PLAIN)
        .fails(1, &["a symbolic link as outputs/pot"]);
    CommandProject::new("/bin/rmdir outputs; /bin/ln -s /etc outputs", PLAIN)
        .fails(1, &["replaced outputs/ by something else"]);
    CommandProject::new("/bin/mkdir outputs/pot; >outputs/pot/a", PLAIN)
        .fails(1, &["outputs/ contains pot/a"]);
    let folder = "program = 'TOOL'\noutputs = ['etc/']";
    CommandProject::new("/bin/ln -s /etc outputs/etc", folder)
        .fails(1, &["left no outputs/etc/", "outputs/ contains etc"]);
}

#[test]
fn a_missing_program_is_reported_before_anything_runs() {
    let project = CommandProject::new(
        "",
        "program = '/nowhere/wheel'\noutputs = ['pot']\ninstall = '--set wheel=/opt/wheel'",
    );
    project.fails(
        4,
        &[
            "kiln::tool_missing",
            "/nowhere/wheel is not there",
            "help: --set wheel=/opt/wheel",
        ],
    );
    assert!(!project.path("out").exists());
    let finished = project.run(&["doctor", "pots.toml"]);
    assert!(
        finished.code == 4 && finished.output.contains("-> --set wheel=/opt/wheel"),
        "{}",
        finished.output
    );
    project.plan("program = 'TOOL'\ntools = ['/nowhere/lib']\noutputs = ['pot']");
    project.fails(4, &["/nowhere/lib is not there", "--set NAME=PATH"]);
    project.plan("program = 'inputs/clay/kiln'\ninputs = ['clay']\noutputs = ['pot']");
    project.fails(1, &["no input is called `clay/kiln`", "clay/clay.txt"]);
}

#[test]
fn invalid_parameters_are_reported() {
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
        let finished = CommandProject::new("", stage).run(&["check", "pots.toml"]);
        assert!(
            finished.code == 2 && finished.output.contains(expect),
            "{expect} in:\n{}",
            finished.output
        );
    }
}

#[test]
fn a_changed_tool_reruns_the_stage_and_explain_names_it() {
    let project = CommandProject::new("cat \"${0%/*}/lib/hue\" >outputs/pot", "");
    project.plan("program = 'TOOL'\ntools = ['LIB']\nenv = { PATH = '/bin' }\noutputs = ['pot']");
    let plan = fs::read_to_string(project.path("pots.toml")).unwrap();
    fs::write(
        project.path("pots.toml"),
        plan.replace("LIB", project.path("lib").to_str().unwrap()),
    )
    .unwrap();
    fs::create_dir(project.path("lib")).unwrap();
    fs::write(project.path("lib/hue"), "red").unwrap();
    assert_eq!(project.built("pot"), "red");
    assert!(
        project
            .run(&["build", "pots.toml"])
            .output
            .contains("nothing to do")
    );

    // Memory, threads, `install` and the folder of the plan are not part of the key.
    let plan = fs::read_to_string(project.path("pots.toml")).unwrap();
    fs::create_dir(project.path("elsewhere")).unwrap();
    fs::copy(project.path("clay.txt"), project.path("elsewhere/clay.txt")).unwrap();
    let other = plan.clone() + "memory = '2GB'\nthreads = 2\ninstall = 'buy one'\n";
    fs::write(project.path("elsewhere/pots.toml"), other).unwrap();
    let finished = project.run(&["build", "elsewhere/pots.toml", "--out", "other"]);
    assert!(
        finished.output.contains("0 parts ran"),
        "{}",
        finished.output
    );

    fs::write(project.path("lib/hue"), "blue").unwrap();
    let finished = project.run(&["explain", "pots.toml", "pot"]);
    let expect = format!("files/{}: ", project.path("lib").display());
    assert!(
        finished.output.contains(&expect),
        "{expect} in:\n{}",
        finished.output
    );
    assert_eq!(project.built("pot"), "blue");
}

#[test]
fn peak_memory_is_measured() {
    let project = CommandProject::new(
        "a=$(/usr/bin/head -c 40000000 /dev/zero | /usr/bin/tr '\\0' a); echo ${#a} >outputs/pot",
        PLAIN,
    );
    assert_eq!(project.built("pot"), "40000000\n");
    let stats = project.run(&["cache", "stats", "--json"]).output;
    let stats: serde_json::Value = serde_json::from_str(stats.lines().next().unwrap()).unwrap();
    let peak = stats["stages"]["command"]["peak_memory_bytes"].as_u64();
    assert!(peak.is_some_and(|peak| peak > 40_000_000), "{stats}");
}

/// A running build, and the process ids of its program, which never ends, and of a child of it.
fn endless_build() -> (CommandProject, std::process::Child, [String; 2]) {
    let script = format!(
        "/bin/sleep 1000 & echo $$ $! >{0}.new; /bin/mv {0}.new {0}; wait",
        "\"${0%/*}/pids\""
    );
    let project = CommandProject::new(&script, PLAIN);
    let build = project
        .kiln(&["build", "pots.toml"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the program should start", || project.path("pids").exists());
    let pids = fs::read_to_string(project.path("pids")).unwrap();
    let (program, child) = pids.trim().split_once(' ').unwrap();
    assert!(is_alive(program) && is_alive(child));
    let pids = [program.to_string(), child.to_string()];
    (project, build, pids)
}

#[test]
fn the_program_ends_with_the_build() {
    for signal in [Signal::KILL, Signal::TERM] {
        let (_bench, mut build, pids) = endless_build();
        kill_process(Pid::from_child(&build), signal).unwrap();
        build.wait().unwrap();
        wait_until("the program and its child should end", || {
            !pids.iter().any(|pid| is_alive(pid))
        });
    }
}

#[test]
fn concurrent_builds_run_the_same_action_once() {
    let project = CommandProject::new(
        "echo ran >> $1; sleep 1; cp inputs/clay/clay.txt outputs/a",
        "",
    );
    let log = project.path("log");
    project.plan(&format!(
        "inputs = ['clay']\nprogram = 'TOOL'\nargs = ['{}']\noutputs = ['a']",
        log.display()
    ));
    let start = || {
        project
            .kiln(&["build", "pots.toml"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let builds = [start(), start(), start()];
    for mut build in builds {
        assert!(build.wait().unwrap().success());
    }
    assert_eq!(fs::read_to_string(log).unwrap(), "ran\n");
    assert_eq!(
        fs::read_dir(project.path("cache/partial")).unwrap().count(),
        0
    );
}

#[test]
fn a_cached_result_without_declared_outputs_is_ignored() {
    let project = CommandProject::new(
        "echo a > outputs/a; mkdir outputs/b; echo c > outputs/b/c",
        "program = 'TOOL'\noutputs = ['a', 'b/']",
    );
    project.built("b/c");
    // Such a result can come from an import.
    let (path, text) = find_result(&project.path("cache"), "command");
    let changed = changed_result(&text, |body| {
        let outputs = body["outputs"].as_object_mut().unwrap();
        outputs.remove("b/c").unwrap();
    });
    fs::write(path, changed).unwrap();
    fs::remove_dir_all(project.path("cache/notes")).unwrap();
    fs::remove_dir_all(project.path("out")).unwrap();

    let finished = project.run(&["plan", "pots.toml"]);
    assert!(
        finished
            .output
            .contains("the cached result does not match `outputs`"),
        "{}",
        finished.output
    );
    assert_eq!(project.built("b/c"), "c\n");
}
