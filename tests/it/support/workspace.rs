//! A workspace in one folder, which runs stages without an engine.

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

    /// Stores bytes as a part.
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

    /// A manifest of one file.
    pub fn file(&self, name: &str, bytes: &[u8]) -> Manifest {
        let part = self.part(bytes, Value::Null);
        Manifest {
            parts: [(PartName::new(name).unwrap(), part)].into(),
        }
    }

    /// Runs a stage of kiln with these inputs.
    pub fn run(&self, kind: &str, params: Value, slots: &[(&str, &Manifest)]) -> Result<Manifest> {
        let stages = kiln::stages::all();
        self.run_stage(stages.get(kind).unwrap(), params, &inputs(slots))
    }

    /// The model in `gguf`.
    pub fn inspect(&self, gguf: &[u8]) -> Result<Manifest> {
        let file = self.file("model.gguf", gguf);
        self.run(
            "inspect",
            Value::Object(Default::default()),
            &[("gguf", &file)],
        )
    }

    /// Expands and runs a stage, one order after the other, and returns its manifest.
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
        let mut manifest = Manifest::default();
        for (output, part) in outputs {
            manifest.parts.insert(part_name(&name, &output), part);
        }
        Ok(manifest)
    }
}

/// The name in the stage's manifest of an output of an order.
pub fn part_name(order: &str, output: &PartName) -> PartName {
    if order.is_empty() {
        output.clone()
    } else {
        PartName::new(format!("{order}/{output}")).unwrap()
    }
}

/// Inputs with these manifests. A slot may occur several times.
pub fn inputs(slots: &[(&str, &Manifest)]) -> Inputs {
    let mut inputs = Inputs::default();
    for (slot, manifest) in slots {
        let stages = inputs.slots.entry(slot.to_string()).or_default();
        let stage = match stages.len() {
            0 => slot.to_string(),
            count => format!("{slot}-{count}"),
        };
        stages.push((stage, (*manifest).clone()));
    }
    inputs
}

impl Workspace for Folder {
    fn open(&self, content: &Content) -> Result<Blob> {
        let blob = Blob::new(fs::read(self.blob_path(&content.blob())).unwrap());
        let start = content.window.map_or(0, |window| window.offset);
        Ok(blob
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
