//! Builds a plan with a tiny model by the real program: downloads, parts on threads, and a part in
//! its own process.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::fetching::sha256;
use super::tiny_gguf::TinyGguf;
use super::tree::files;
use super::web::{Reply, Server};

const TEXT: &str = "clay is shaped, dried, fired and glazed, and then it is fired again";

/// The files that were written, by stage.
pub type Written = BTreeMap<String, BTreeMap<PathBuf, Vec<u8>>>;

/// The plan and the model. Each workspace is a folder with its own cache and artifacts.
pub struct TinyBuild {
    root: tempfile::TempDir,
    pub model: Vec<u8>,
    _server: Option<Server>,
}

impl TinyBuild {
    /// With the model as a local file, and more stages.
    pub fn new() -> TinyBuild {
        let more = r#"
            rounded = { kind = "requant", tensors = "model", scheme = "int8-block" }
            plain = { kind = "dequant", model = "model" }"#;
        Self::with("file:model.gguf", None, more)
    }

    /// With the model on a web server that supports ranges.
    pub fn downloading() -> TinyBuild {
        let model = TinyGguf::llama().write();
        let server = Server::new(move |_, request| Reply::range(&model, request));
        let url = server.url("/model.gguf");
        Self::with(&url, Some(server), "")
    }

    fn with(url: &str, server: Option<Server>, more: &str) -> TinyBuild {
        let root = tempfile::tempdir().unwrap();
        let model = TinyGguf::llama().write();
        fs::write(root.path().join("model.gguf"), &model).unwrap();
        fs::write(root.path().join("text.txt"), TEXT).unwrap();
        let (of_model, of_text) = (sha256(&model), sha256(TEXT.as_bytes()));
        let plan = format!(
            r#"
            [plan]
            name = "tiny"
            [stage]
            source = {{ kind = "fetch", url = "{url}", sha256 = "{of_model}" }}
            text = {{ kind = "fetch", url = "file:text.txt", sha256 = "{of_text}" }}
            model = {{ kind = "inspect", gguf = "source", keep = true }}
            weights = {{ kind = "requant", tensors = "model" }}
            reference = {{ kind = "reference", model = "model", text = "text", windows = 2, tokens = 8 }}
            {more}
            "#
        );
        fs::write(root.path().join("tiny.toml"), plan).unwrap();
        TinyBuild {
            root,
            model,
            _server: server,
        }
    }

    pub fn plan(&self) -> PathBuf {
        self.root.path().join("tiny.toml")
    }

    pub fn workspace(&self, workspace: &str) -> PathBuf {
        self.root.path().join(workspace)
    }

    pub fn cache(&self, workspace: &str) -> PathBuf {
        self.workspace(workspace).join("cache")
    }

    /// The arguments of a build in `workspace`.
    pub fn arguments(&self, workspace: &str) -> Vec<PathBuf> {
        let mut all: Vec<PathBuf> = ["build", "--json", "--jobs", "2", "--cache"]
            .map(PathBuf::from)
            .into();
        all.extend([
            self.cache(workspace),
            "--out".into(),
            self.workspace(workspace).join("out"),
            self.plan(),
        ]);
        all
    }

    pub fn build(&self, workspace: &str) -> Command {
        let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
        kiln.args(self.arguments(workspace));
        kiln
    }

    /// Builds to the end and returns all events.
    #[track_caller]
    pub fn events(&self, workspace: &str) -> Vec<serde_json::Value> {
        let output = self.build(workspace).output().unwrap();
        assert!(output.status.success(), "{}", printed(&output));
        let lines = String::from_utf8(output.stdout).unwrap();
        let event = |line| serde_json::from_str(line).unwrap();
        lines.lines().map(event).collect()
    }

    /// Builds to the end; returns the numbers of hits and of parts that ran.
    #[track_caller]
    pub fn build_to_end(&self, workspace: &str) -> (u64, u64) {
        let mut events = self.events(workspace).into_iter();
        let finished = events.find(|event| event["event"] == "finished").unwrap();
        let count = |name: &str| finished[name].as_u64().unwrap();
        (count("hits"), count("ran"))
    }

    /// The artifacts of an undisturbed build, in the workspace `expected`.
    pub fn expected(&self) -> Written {
        self.build_to_end("expected");
        self.written("expected")
    }

    pub fn written(&self, workspace: &str) -> Written {
        written(&self.workspace(workspace).join("out"))
    }

    /// Whether `kiln cache verify` succeeds.
    pub fn verifies(&self, workspace: &str) -> bool {
        let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
        let output = kiln
            .args(["cache", "verify", "--cache"])
            .arg(self.cache(workspace))
            .output()
            .unwrap();
        if !output.status.success() {
            println!("{}", printed(&output));
        }
        output.status.success()
    }
}

/// The files in `out`, except those in temporary folders.
pub fn written(out: &Path) -> Written {
    let mut written = BTreeMap::new();
    let Ok(entries) = fs::read_dir(out) else {
        return written;
    };
    for entry in entries {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() && !name.starts_with(".kiln-tmp-") {
            written.insert(name, files(&entry.path()));
        }
    }
    written
}

/// Everything that a program printed.
pub fn printed(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The codes of the final problems in the output of `--json`; problems in events do not count.
pub fn codes(output: &Output) -> Vec<String> {
    let mut codes = vec![];
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(line) = serde_json::from_str::<serde_json::Value>(line) else {
            continue;
        };
        if let (None, Some(code)) = (line.get("event"), line["problem"]["code"].as_str()) {
            codes.push(code.to_owned());
        }
    }
    codes
}
