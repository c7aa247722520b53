//! Runs stages one after the other, from a GGUF to a validated candidate, with kiln's own executor.

use std::path::{Path, PathBuf};

use kiln::action::{Demand, Inputs, Isolation, Manifest, Part, PartName, Registry};
use kiln::base::{CanonJson, Result};
use kiln::execute::{Executor, Local, Watch};
use kiln::store::{BlobStore, Disk};
use serde_json::{Value, json};

/// A cache folder, the stages, and the tools that were found.
pub struct StageRunner {
    store: Disk,
    stages: Registry,
    tools: Vec<(String, Manifest)>,
}

struct Quiet;

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
        for entry in std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap())
        {
            let file = entry.file_name().to_string_lossy().into_owned();
            if file.contains(".so") {
                tool.parts.insert(
                    PartName::new(file).unwrap(),
                    self.part(&std::fs::read(entry.path()).unwrap(), Value::Null),
                );
            }
        }
        self.tools.push((name.into(), tool));
        self
    }

    /// Expands a stage and runs its orders, one after the other.
    pub fn run(&self, kind: &str, params: Value, slots: &[(&str, &Manifest)]) -> Result<Manifest> {
        Ok(self.run_as(kind, params, slots, |demand| demand)?.0)
    }

    /// The same, each order in a process of its own, and the largest of their peaks of memory,
    /// mapped files included.
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

    fn run_as(
        &self,
        kind: &str,
        params: Value,
        slots: &[(&str, &Manifest)],
        demanded: fn(Demand) -> Demand,
    ) -> Result<(Manifest, u64)> {
        let stage = self.stages.get(kind).unwrap();
        let mut inputs = Inputs {
            tools: self.tools.iter().cloned().collect(),
            ..Inputs::default()
        };
        for (name, given) in slots {
            // `validate` has one slot for whatever can be checked; its stages are named by what they
            // give.
            let mut slot = *name;
            if kind == "validate" {
                let [all] = stage.spec().inputs else { panic!() };
                let artifact = all.accepts.iter().find(|kind| *kind == name).unwrap();
                inputs.artifacts.insert(name.to_string(), artifact);
                slot = all.name;
            }
            let stages = inputs.slots.entry(slot.to_string()).or_default();
            stages.push((name.to_string(), (*given).clone()));
        }
        let program = PathBuf::from(env!("CARGO_BIN_EXE_kiln"));
        let executor = Local {
            store: &self.store,
            stages: &self.stages,
            program,
        };
        let (mut manifest, mut largest) = (Manifest::default(), 0);
        for order in stage.expand(&params, &inputs)? {
            let (name, demand) = (order.name.clone(), demanded(order.demand));
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
            let full = |output: &PartName| {
                if name.is_empty() {
                    output.to_string()
                } else {
                    format!("{name}/{output}")
                }
            };
            let parts = ran
                .outputs
                .into_iter()
                .map(|(output, part)| (PartName::new(full(&output)).unwrap(), part));
            manifest.parts.extend(parts);
        }
        Ok((manifest, largest))
    }

    /// Stores bytes as a part.
    pub fn part(&self, bytes: &[u8], facts: Value) -> Part {
        let mut sink = self.store.create().unwrap();
        sink.write_all(bytes).unwrap();
        Part {
            content: sink.finish().unwrap(),
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

    /// The model in `gguf`, and its ONNX graphs with weights held by `scheme`.
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

    /// The bytes of a part.
    pub fn bytes(&self, manifest: &Manifest, name: &str) -> Vec<u8> {
        let content = manifest.part(name).unwrap().content;
        let blob = self.store.open(&content.blob()).unwrap().unwrap();
        let start = content.window.map_or(0, |window| window.offset as usize);
        blob[start..start + content.digest.size_bytes as usize].to_vec()
    }

    /// Makes `change` to the bytes of a part.
    pub fn spoil(&self, manifest: &mut Manifest, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = self.bytes(manifest, name);
        change(&mut bytes);
        let spoiled = self.part(&bytes, manifest.part(name).unwrap().facts.value().clone());
        manifest.parts.insert(PartName::new(name).unwrap(), spoiled);
    }
}
