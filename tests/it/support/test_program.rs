//! The helper program of `tests/it/test_program`: kiln with other stage kinds, for what is seen only
//! from outside and from no real stage.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// The helper program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_test-program");
/// The variable that states the version of `make`.
pub const VERSION: &str = "MAKE_VERSION";

/// A plan of these stage kinds.
pub const PLAN: &str = r#"
[plan]
name = "shop"
[vars]
text = "pot"
[tools]
oven = { url = "file:oven.so" }
[stage.clay]
kind = "fetch"
url = "file:clay.txt"
[stage.pots]
kind = "make"
from = "clay"
text = "${text}"
parts = ["a", "b/c"]
keep = ["b"]
[stage.ware]
kind = "make"
from = "pots"
text = "ware"
oven = true
[stage.bill]
kind = "make"
text = "bill"
times = 20000
"#;

/// A folder with that plan and what it reads.
pub struct Project(tempfile::TempDir);

impl Project {
    pub fn open() -> Project {
        let project = Project(tempfile::tempdir().unwrap());
        for (name, text) in [("shop.toml", PLAN), ("oven.so", "hot"), ("clay.txt", "wet")] {
            project.write(name, text);
        }
        project
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Calls the program in the folder, with variables of the environment. Returns its exit code,
    /// its standard output, in which the folder is called HERE, and its standard error.
    pub fn kiln(&self, call: &str, environment: &[(&str, &str)]) -> (i32, String, String) {
        let mut program = Command::new(PROGRAM);
        program
            .args(call.split_whitespace())
            .current_dir(self.0.path());
        for variable in ["GITHUB_ACTIONS", "SOURCE_DATE_EPOCH", "KILN_CACHE", VERSION] {
            program.env_remove(variable);
        }
        let output = program.envs(environment.iter().copied()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code().unwrap(),
            text(output.stdout).replace(self.0.path().to_str().unwrap(), "HERE"),
            text(output.stderr),
        )
    }

    /// What a call says that must succeed.
    pub fn done(&self, call: &str) -> String {
        let (code, out, errors) = self.kiln(call, &[]);
        assert_eq!(code, 0, "{call}: {out}{errors}");
        out
    }
}

/// `text` with every digest as `b3:`.
pub fn plain(text: &str) -> String {
    let mut pieces = text.split("b3:");
    let first = pieces.next().unwrap_or_default().to_string();
    pieces.fold(first, |out, piece| {
        let rest = piece.trim_start_matches(|c: char| c.is_ascii_hexdigit());
        let size = rest
            .strip_prefix('/')
            .map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
        out + "b3:" + size.unwrap_or(rest)
    })
}
