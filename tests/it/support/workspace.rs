//! A workspace in one folder: runs a stage without an engine.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use kiln::action::{
    Action, Blob, BlobSink, Content, Inputs, Job, Manifest, Part, PartName, Stage, WorkOrder,
    Workspace,
};
use kiln::base::{CanonJson, Digest, Hasher, Result, hash_bytes};
use serde_json::Value;

pub struct Folder {
    root: PathBuf,
    scratch: PathBuf,
}

impl Folder {
    pub fn new(root: &Path) -> Self {
        let scratch = root.join("scratch");
        fs::create_dir_all(root.join("blobs")).unwrap();
        fs::create_dir_all(&scratch).unwrap();
        Folder {
            root: root.into(),
            scratch,
        }
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.hex())
    }

    /// Puts bytes in and makes a part of them.
    pub fn part(&self, bytes: &[u8], facts: Value) -> Part {
        let digest = hash_bytes(bytes);
        fs::write(self.blob_path(&digest), bytes).unwrap();
        Part {
            content: digest.into(),
            facts: CanonJson::from(facts),
        }
    }

    /// The bytes of a part.
    pub fn bytes(&self, part: &Part) -> Blob {
        self.open(&part.content).unwrap()
    }

    /// Expands and runs a stage, order after order, and seals its manifest as the engine does.
    pub fn run_stage(&self, stage: &dyn Stage, params: Value, inputs: &Inputs) -> Result<Manifest> {
        let mut manifest = Manifest::default();
        for order in stage.expand(&params, inputs)? {
            manifest.parts.extend(self.run_order(stage, order)?.parts);
        }
        Ok(manifest)
    }

    pub fn run_order(&self, stage: &dyn Stage, order: WorkOrder) -> Result<Manifest> {
        let name = order.name.clone();
        let action: Action = order.into_action(stage.spec());
        let outputs = stage.run(&action, &Job::new(&action, self))?;
        let full = |output: &PartName| {
            if name.is_empty() {
                output.to_string()
            } else {
                format!("{name}/{output}")
            }
        };
        let parts = outputs
            .into_iter()
            .map(|(output, part)| (PartName::new(full(&output)).unwrap(), part))
            .collect();
        Ok(Manifest { parts })
    }
}

impl Workspace for Folder {
    fn open(&self, content: &Content) -> Result<Blob> {
        let whole = Blob::new(fs::read(self.blob_path(&content.blob())).unwrap());
        let start = content.window.map_or(0, |window| window.offset);
        Ok(whole
            .slice(start..start + content.digest.size_bytes)
            .unwrap())
    }

    fn path(&self, content: &Content) -> Result<PathBuf> {
        let path = self.blob_path(&content.digest);
        if !path.exists() {
            fs::write(&path, &*self.open(content)?).unwrap();
        }
        Ok(path)
    }

    fn create(&self) -> Result<Box<dyn BlobSink>> {
        let file = tempfile::NamedTempFile::new_in(&self.root).unwrap();
        Ok(Box::new(Sink {
            file,
            hasher: Hasher::default(),
            blobs: self.root.join("blobs"),
        }))
    }

    fn scratch(&self) -> Result<&Path> {
        Ok(&self.scratch)
    }

    fn partial(&self, subject: &Digest) -> Result<PathBuf> {
        let folder = self.root.join("partial").join(subject.hex());
        fs::create_dir_all(&folder).unwrap();
        Ok(folder)
    }

    fn progress(&self, _done: u64, _total: u64, _unit: &str) {}

    fn cancelled(&self) -> bool {
        false
    }
}

struct Sink {
    file: tempfile::NamedTempFile,
    hasher: Hasher,
    blobs: PathBuf,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl BlobSink for Sink {
    fn finish(self: Box<Self>) -> Result<Content> {
        let digest = self.hasher.finish();
        self.file.persist(self.blobs.join(digest.hex())).unwrap();
        Ok(digest.into())
    }
}
