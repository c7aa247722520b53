//! A plan over a tiny model, built by the real program: downloads, parts on threads, a part in a
//! process of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::fetching::sha256;
use super::tiny_gguf::TinyGguf;
use super::tree::files;
use super::web::{Reply, Server};

const TEXT: &str = "clay is shaped, dried, fired and glazed, and then it is fired again";

/// For each stage that was written out, its files and their bytes.
pub type Written = BTreeMap<String, BTreeMap<PathBuf, Vec<u8>>>;

/// The plan and the model. Each room is a folder with a cache and artifacts of its own.
pub struct TinyBuild {
    root: tempfile::TempDir,
    pub model: Vec<u8>,
    _server: Option<Server>,
}

impl TinyBuild {
    /// With the model as a file beside the plan, and more stages.
    pub fn new() -> TinyBuild {
        let more = r#"
            rounded = { kind = "requant", tensors = "model", scheme = "int8-block" }
            plain = { kind = "dequant", model = "model" }"#;
        Self::with("file:model.gguf", None, more)
    }

    /// With the model on a web server that knows ranges: the smallest build that has every kind of
    /// work.
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

    pub fn room(&self, room: &str) -> PathBuf {
        self.root.path().join(room)
    }

    pub fn cache(&self, room: &str) -> PathBuf {
        self.room(room).join("cache")
    }

    /// The arguments of a build in `room`.
    pub fn arguments(&self, room: &str) -> Vec<PathBuf> {
        let mut all: Vec<PathBuf> = ["build", "--json", "--jobs", "2", "--cache"]
            .map(PathBuf::from)
            .into();
        all.extend([
            self.cache(room),
            "--out".into(),
            self.room(room).join("out"),
            self.plan(),
        ]);
        all
    }

    pub fn build(&self, room: &str) -> Command {
        let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
        kiln.args(self.arguments(room));
        kiln
    }

    /// Builds to the end and yields every event.
    #[track_caller]
    pub fn events(&self, room: &str) -> Vec<serde_json::Value> {
        let output = self.build(room).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Builds to the end; yields the numbers of hits and of parts that ran.
    #[track_caller]
    pub fn build_to_end(&self, room: &str) -> (u64, u64) {
        let finished = self
            .events(room)
            .into_iter()
            .find(|event| event["event"] == "finished")
            .unwrap();
        (
            finished["hits"].as_u64().unwrap(),
            finished["ran"].as_u64().unwrap(),
        )
    }

    /// What a build must give, by one in the room `whole`.
    pub fn whole(&self) -> Written {
        self.build_to_end("whole");
        self.written("whole")
    }

    pub fn written(&self, room: &str) -> Written {
        written(&self.room(room).join("out"))
    }

    /// Whether `kiln cache verify` finds nothing.
    pub fn is_whole(&self, room: &str) -> bool {
        let mut kiln = Command::new(env!("CARGO_BIN_EXE_kiln"));
        let output = kiln
            .args(["cache", "verify", "--cache"])
            .arg(self.cache(room))
            .output()
            .unwrap();
        if !output.status.success() {
            println!("{}", said(&output));
        }
        output.status.success()
    }
}

/// What lies in `out`; folders that are still being written do not count.
pub fn written(out: &Path) -> Written {
    let Ok(entries) = fs::read_dir(out) else {
        return BTreeMap::new();
    };
    let folders = entries
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_dir());
    let name = |entry: &fs::DirEntry| entry.file_name().into_string().unwrap();
    let whole = folders.filter(|entry| !name(entry).starts_with(".kiln-tmp-"));
    whole
        .map(|entry| (name(&entry), files(&entry.path())))
        .collect()
}

/// Everything that a program printed.
pub fn said(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The codes of the problems in what `--json` printed.
pub fn codes(output: &Output) -> Vec<String> {
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = lines
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    // Events that tell of a problem are not the last word.
    let problems = lines.filter(|line| line.get("event").is_none());
    problems
        .filter_map(|line| Some(line.get("problem")?.get("code")?.as_str()?.to_owned()))
        .collect()
}
