//! A project with one `command` stage.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::fetching::sha256;
use super::scripts::write_script;

/// The smallest `command` stage of a [`CommandProject`].
pub const PLAIN: &str = "program = 'TOOL'\ninputs = ['clay']\noutputs = ['pot']";

/// A folder with a plan with an input `clay` and a stage `pot` that runs the program `tool`.
pub struct CommandProject {
    root: tempfile::TempDir,
}

/// The exit code and the output on both streams.
pub struct Finished {
    pub code: i32,
    pub output: String,
}

impl CommandProject {
    /// `stage` is the rest of the table of the stage. `TOOL` in it is replaced by the path of the
    /// shell script `script`.
    pub fn new(script: &str, stage: &str) -> CommandProject {
        let project = CommandProject {
            root: tempfile::tempdir().unwrap(),
        };
        project.script("tool", script);
        fs::write(project.path("clay.txt"), "clay").unwrap();
        project.plan(stage);
        project
    }

    /// The path of a file.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Writes a shell script.
    pub fn script(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        write_script(&path, &format!("#!/bin/sh\n{text}\n"));
    }

    /// Writes the plan.
    pub fn plan(&self, stage: &str) {
        let text = format!(
            "[plan]\nname = 'pots'\n[stage.clay]\nkind = 'fetch'\nurl = 'file:clay.txt'\nsha256 = \
             '{}'\n[stage.pot]\nkind = 'command'\n{}\n",
            sha256(b"clay"),
            stage.replace("TOOL", self.path("tool").to_str().unwrap())
        );
        fs::write(self.path("pots.toml"), text).unwrap();
    }

    /// A call of kiln.
    pub fn kiln(&self, args: &[&str]) -> Command {
        let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
        kiln.current_dir(&self.root)
            .env("SECRET", "seen")
            .args(args);
        kiln
    }

    /// Calls kiln.
    pub fn run(&self, args: &[&str]) -> Finished {
        let output = self.kiln(args).output().unwrap();
        Finished {
            code: output.status.code().unwrap(),
            output: String::from_utf8([output.stdout, output.stderr].concat()).unwrap(),
        }
    }

    /// Builds, which must succeed, and returns the content of the part `name` of the stage.
    #[track_caller]
    pub fn built(&self, name: &str) -> String {
        let finished = self.run(&["build", "pots.toml"]);
        assert_eq!(finished.code, 0, "{}", finished.output);
        fs::read_to_string(self.path("out/pots/pot").join(name)).unwrap()
    }

    /// Builds, which must fail with `code` and print all of `expect`.
    #[track_caller]
    pub fn fails(&self, code: i32, expect: &[&str]) {
        let finished = self.run(&["build", "pots.toml"]);
        assert_eq!(finished.code, code, "{}", finished.output);
        for text in expect {
            assert!(
                finished.output.contains(text),
                "{text} in:\n{}",
                finished.output
            );
        }
        assert!(!self.path("out/pots/pot").exists());
    }
}
