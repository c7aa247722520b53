//! Runs stages one after the other with kiln's executor, from a GGUF to a validated candidate.

use std::path::{Path, PathBuf};

use kiln::action::{
    ActionKey, Demand, Inputs, Isolation, Manifest, Part, PartName, Registry, WorkOrder,
};
use kiln::base::{CanonJson, Result};
use kiln::execute::{Executor, Local, Watch};
use kiln::store::{BlobStore, Disk};
use serde_json::{Value, json};

use super::results::put;
use super::workspace::{inputs, part_name};

/// A text for evaluation, about 25 tokens of the tiny vocabulary.
pub const TEXT: &str = "the quick brown fox jumps over the lazy dog and then the dog jumps over \
                        the quick brown fox again";

/// A cache, the stages and the tools.
pub struct StageRunner {
    store: Disk,
    stages: Registry,
    tools: Vec<(String, Manifest)>,
}

/// Ignores progress and never cancels.
pub struct Quiet;

impl Watch for Quiet {
    fn progress(&self, _: u64, _: u64, _: &str) {}

    fn cancelled(&self) -> bool {
        false
    }
}

impl StageRunner {
    pub fn new(home: &Path) -> Self {
        StageRunner {
            store: Disk::open(home).unwrap(),
            stages: kiln::stages::all(),
            tools: vec![],
        }
    }

    /// Adds the shared libraries of `folder` as tool `name`.
    pub fn tool(mut self, name: &str, folder: &Path) -> Self {
        let mut tool = Manifest::default();
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let file = entry.file_name().to_string_lossy().into_owned();
            if file.contains(".so") {
                let bytes = std::fs::read(entry.path()).unwrap();
                let name = PartName::new(file).unwrap();
                tool.parts.insert(name, self.part(&bytes, Value::Null));
            }
        }
        self.tools.push((name.into(), tool));
        self
    }

    /// Expands a stage and runs its orders, one after the other.
    pub fn run(&self, kind: &str, params: Value, slots: &[(&str, &Manifest)]) -> Result<Manifest> {
        Ok(self.run_as(kind, params, slots, |demand| demand)?.0)
    }

    /// The same with each order in its own process. Also returns the largest peak memory, including
    /// mapped files.
    pub fn measure(
        &self,
        kind: &str,
        params: Value,
        slots: &[(&str, &Manifest)],
    ) -> (Manifest, u64) {
        self.run_as(kind, params, slots, |demand| Demand {
            isolation: Isolation::Process,
            ..demand
        })
        .unwrap()
    }

    /// The keys of a stage's actions, in the order of its parts.
    pub fn keys(&self, kind: &str, params: &Value, slots: &[(&str, &Manifest)]) -> Vec<ActionKey> {
        let stage = self.stages.get(kind).unwrap();
        let mut keys = vec![];
        for order in stage.expand(params, &self.inputs(kind, slots)).unwrap() {
            keys.push(order.into_action(stage.spec()).key());
        }
        keys
    }

    /// The version of a stage kind.
    pub fn version(&self, kind: &str) -> u32 {
        self.stages.get(kind).unwrap().spec().version
    }

    fn inputs(&self, kind: &str, slots: &[(&str, &Manifest)]) -> Inputs {
        let spec = self.stages.get(kind).unwrap().spec();
        let mut inputs = Inputs {
            tools: self.tools.iter().cloned().collect(),
            ..Inputs::default()
        };
        for (name, manifest) in slots {
            // `validate` has one slot for all artifacts. Here each stage has the name of its
            // artifact.
            let mut slot = *name;
            if kind == "validate" {
                let [all] = spec.inputs else { panic!() };
                let artifact = all.accepts.iter().find(|kind| *kind == name).unwrap();
                inputs.artifacts.insert(name.to_string(), artifact);
                slot = all.name;
            }
            let stages = inputs.slots.entry(slot.to_string()).or_default();
            stages.push((name.to_string(), (*manifest).clone()));
        }
        inputs
    }

    fn run_as(
        &self,
        kind: &str,
        params: Value,
        slots: &[(&str, &Manifest)],
        change_demand: fn(Demand) -> Demand,
    ) -> Result<(Manifest, u64)> {
        let stage = self.stages.get(kind).unwrap();
        let program = PathBuf::from(env!("CARGO_BIN_EXE_kiln"));
        let executor = Local {
            store: &self.store,
            stages: &self.stages,
            program,
        };
        let (mut manifest, mut largest) = (Manifest::default(), 0);
        for order in stage.expand(&params, &self.inputs(kind, slots))? {
            let (name, demand) = (order.name.clone(), change_demand(order.demand));
            let start = std::time::Instant::now();
            let ran = executor.run(&order.into_action(stage.spec()), &demand, &Quiet)?;
            let seconds = start.elapsed().as_secs_f64();
            if let Some(peak) = ran.peak_memory_bytes {
                largest = largest.max(peak);
                let (peak, demand) = (
                    kiln::base::bytes(peak),
                    kiln::base::bytes(demand.memory_bytes),
                );
                println!("{kind} {name}: {seconds:.1} s, peak {peak} of {demand}");
            }
            for (output, part) in ran.outputs {
                manifest.parts.insert(part_name(&name, &output), part);
            }
        }
        Ok((manifest, largest))
    }

    /// Stores bytes as a part.
    pub fn part(&self, bytes: &[u8], facts: Value) -> Part {
        Part {
            content: put(&self.store, bytes),
            facts: CanonJson::from(facts),
        }
    }

    /// A manifest of one file.
    pub fn file(&self, bytes: &[u8]) -> Manifest {
        Manifest {
            parts: [(
                PartName::new("file").unwrap(),
                self.part(bytes, Value::Null),
            )]
            .into(),
        }
    }

    /// The model in `gguf`, and its ONNX graphs with weights in `scheme`.
    pub fn model(&self, gguf: &[u8], scheme: &str, graph: Value) -> (Manifest, Manifest) {
        let model = self.inspect(gguf);
        let graph = self.graph(&model, scheme, graph);
        (model, graph)
    }

    /// The model in `gguf`.
    pub fn inspect(&self, gguf: &[u8]) -> Manifest {
        self.run("inspect", json!({}), &[("gguf", &self.file(gguf))])
            .unwrap()
    }

    /// The ONNX graphs of `model`.
    pub fn graph(&self, model: &Manifest, scheme: &str, params: Value) -> Manifest {
        let weights = self
            .run("requant", json!({"scheme": scheme}), &[("tensors", model)])
            .unwrap();
        self.run("graph", params, &[("model", model), ("weights", &weights)])
            .unwrap()
    }

    /// The reference of `model` on [`TEXT`].
    pub fn reference(&self, model: &Manifest, params: Value) -> Manifest {
        let text = self.file(TEXT.as_bytes());
        self.run("reference", params, &[("model", model), ("text", &text)])
            .unwrap()
    }

    /// The evaluation of a candidate, whose slot is `graph` or `context`.
    pub fn evaluate(&self, reference: &Manifest, slot: &str, candidate: &Manifest) -> Manifest {
        let slots = [("reference", reference), (slot, candidate)];
        self.run("evaluate", json!({}), &slots).unwrap()
    }

    /// A part as text.
    pub fn text(&self, manifest: &Manifest, name: &str) -> String {
        String::from_utf8(self.bytes(manifest, name)).unwrap()
    }

    /// A part as JSON.
    pub fn json(&self, manifest: &Manifest, name: &str) -> Value {
        serde_json::from_slice(&self.bytes(manifest, name)).unwrap()
    }

    /// The bytes of a part.
    pub fn bytes(&self, manifest: &Manifest, name: &str) -> Vec<u8> {
        let content = manifest.part(name).unwrap().content;
        let blob = self.store.open(&content.blob()).unwrap().unwrap();
        let start = content.window.map_or(0, |window| window.offset as usize);
        blob[start..start + content.digest.size_bytes as usize].to_vec()
    }

    /// Writes the parts to files.
    pub fn write_to(&self, manifest: &Manifest, folder: &Path) {
        for name in manifest.parts.keys() {
            let path = folder.join(name.as_str());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, self.bytes(manifest, name.as_str())).unwrap();
        }
    }

    /// A tool `qnn` with fake libraries, to expand stages.
    pub fn fake_qnn(&self) -> Manifest {
        let library = self.part(b"a library", Value::Null);
        let mut tool = Manifest::default();
        for name in ["libQnnHtp.so", "libQnnSystem.so"] {
            tool.parts
                .insert(PartName::new(name).unwrap(), library.clone());
        }
        tool
    }

    /// Expands `context-bin` for a graph, with fake libraries.
    pub fn context_orders(&self, graph: &Manifest, params: &Value) -> Vec<WorkOrder> {
        self.orders("context-bin", graph, params)
    }

    /// Expands a stage that compiles a graph, with fake libraries.
    pub fn orders(&self, kind: &str, graph: &Manifest, params: &Value) -> Vec<WorkOrder> {
        let inputs = Inputs {
            tools: [("qnn".to_string(), self.fake_qnn())].into(),
            ..inputs(&[("graph", graph)])
        };
        let stage = self.stages.get(kind).unwrap();
        stage.expand(params, &inputs).unwrap()
    }

    /// Changes the bytes of a part.
    pub fn change_bytes(
        &self,
        manifest: &mut Manifest,
        name: &str,
        change: impl FnOnce(&mut Vec<u8>),
    ) {
        let mut bytes = self.bytes(manifest, name);
        change(&mut bytes);
        let changed = self.part(&bytes, manifest.part(name).unwrap().facts.value().clone());
        manifest.parts.insert(PartName::new(name).unwrap(), changed);
    }
}
