//! Runs the `fetch` stage with its own proxies, tokens and Python.

use std::path::PathBuf;
use std::time::Duration;

use kiln::action::{Erased, Inputs, Job, Outputs, Stage};
use kiln::base::{Problem, Result};
use kiln::stages::fetch::{Fetch, Machine, Proxies, run_on};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::workspace::Folder;

pub struct FetchRunner {
    root: tempfile::TempDir,
    pub folder: Folder,
    pub machine: Machine,
}

impl FetchRunner {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::new(root.path());
        let machine = Machine {
            hf_endpoint: "http://127.0.0.1:9".into(),
            hf_token: None,
            certificates: None,
            proxies: Proxies::default(),
            python: "python3".into(),
            first_pause: Duration::from_millis(1),
        };
        FetchRunner {
            root,
            folder,
            machine,
        }
    }

    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.root.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub fn run(&self, params: Value) -> Result<Outputs> {
        let stage = Erased::new(Fetch);
        let order = stage.expand(&params, &Inputs::default())?.remove(0);
        let action = order.into_action(stage.spec());
        let target = serde_json::from_value(action.params.clone()).unwrap();
        run_on(&self.machine, &target, &Job::new(&action, &self.folder))
    }

    /// Fetches `url`, pinned to the digest of `bytes`. Returns the name and bytes of the only part.
    pub fn fetch(&self, url: &str, bytes: &[u8]) -> Result<(String, Vec<u8>)> {
        let outputs = self.run(json!({"url": url, "sha256": sha256(bytes)}))?;
        assert_eq!(outputs.len(), 1);
        let (name, part) = outputs.first_key_value().unwrap();
        Ok((name.to_string(), self.folder.bytes(part).to_vec()))
    }

    /// The problem of a fetch that must fail.
    pub fn fails(&self, url: &str, bytes: &[u8]) -> Problem {
        self.fetch(url, bytes).unwrap_err()
    }

    /// The names of all files in the folders of partial downloads.
    pub fn partial(&self) -> Vec<String> {
        let mut names = vec![];
        for folder in std::fs::read_dir(self.root.path().join("partial")).unwrap() {
            for file in std::fs::read_dir(folder.unwrap().path()).unwrap() {
                names.push(file.unwrap().file_name().into_string().unwrap());
            }
        }
        names.sort();
        names
    }

    /// The number of blobs.
    pub fn blobs(&self) -> usize {
        std::fs::read_dir(self.root.path().join("blobs"))
            .unwrap()
            .count()
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
