//! Descriptions of context binaries and DLCs, with libQnnSystem.
//!
//! The library runs in this process, which is a child process for this purpose: see `run_in_child`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::slice;

use serde::Serialize;
use serde_json::json;

use crate::action::Inputs;
use crate::base::{Code, Context, Problem, Result, bytes};
use crate::engine::is_proved;
use crate::qnn::{BinaryInfo, GraphInfo, GraphMemory, Soc, System};
use crate::stages;
use crate::store::{ActionCache, BlobStore, Disk, LocalStore};

/// The wheel that the shipped plans pin as the tool `qnn`.
const WHEEL: &str = "onnxruntime-qnn==2.7.0";
const WHEEL_SHA256: &str = "c56c01562b8534fe8980cfea4601408d950c065f8251fb862ce82101c52c9849";

/// Whether a file begins like a context binary of QAIRT 2.51.
pub(super) fn is_context_binary(start: &[u8]) -> bool {
    start.starts_with(&[0, 0, 0, 2, 0, 0, 0, 3])
}

/// Whether a file begins like a DLC, which is a zip file.
pub(super) fn is_dlc(start: &[u8]) -> bool {
    start.starts_with(b"PK\x03\x04")
}

/// Where to find the libraries.
pub(super) struct Libraries<'a> {
    /// The folder of `--qnn`.
    pub(super) folder: Option<&'a Path>,
    /// The cache, which may have the libraries of a build.
    pub(super) cache: &'a Path,
}

/// The description of a file.
#[derive(Serialize)]
struct Description {
    format: &'static str,
    size_bytes: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    graphs: Vec<GraphInfo>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    binaries: Vec<BinaryInfo>,
    /// What each compiled graph takes of the chip's memory.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    memory: BTreeMap<String, GraphMemory>,
}

pub(super) fn describe_binary(path: &Path, libraries: &Libraries, json: bool) -> Result<String> {
    let folder = libraries.open()?;
    let binary = std::fs::read(path).context(Code::CallUnreadable, || "read it".into())?;
    let info = System::open(folder.path())?.binary_info(&binary)?;
    let description = Description {
        format: "context-binary",
        size_bytes: binary.len() as u64,
        graphs: vec![],
        memory: memory(slice::from_ref(&info)),
        binaries: vec![info],
    };
    description.render(json)
}

pub(super) fn describe_dlc(
    path: &Path,
    file: &File,
    libraries: &Libraries,
    json: bool,
) -> Result<String> {
    let folder = libraries.open()?;
    let size_bytes = file
        .metadata()
        .context(Code::CallUnreadable, || "get its size".into())?
        .len();
    let system = System::open(folder.path())?;
    let dlc = system.open_dlc(path)?;
    let binaries = dlc.binaries()?;
    let description = Description {
        format: "dlc",
        size_bytes,
        graphs: dlc.graphs()?,
        memory: memory(&binaries),
        binaries,
    };
    description.render(json)
}

/// The memory of the graphs in `binaries`, by name.
fn memory(binaries: &[BinaryInfo]) -> BTreeMap<String, GraphMemory> {
    let mut memory = BTreeMap::new();
    for binary in binaries {
        for graph in &binary.graphs {
            if let Some(found) = graph.memory {
                memory.insert(graph.name.clone(), found);
            }
        }
    }
    memory
}

impl Description {
    /// Lines of text, or one line of JSON.
    fn render(&self, json: bool) -> Result<String> {
        if json {
            let line = serde_json::to_string(self)
                .context(Code::InspectJson, || "write it as JSON".into())?;
            return Ok(line + "\n");
        }
        let format = match self.format {
            "dlc" => "DLC",
            _ => "context binary",
        };
        let mut text = format!("{format}, {}\n", bytes(self.size_bytes));
        // Invariant: writing to a String cannot fail.
        for binary in &self.binaries {
            let mut soc = Soc::of_model(binary.soc_model).to_string();
            if let Some(arch) = binary.arch {
                soc += &format!(" (v{arch})");
            }
            let _ = writeln!(
                text,
                "compiled for {soc} by QNN {}, format {}",
                binary.build_id, binary.blob_version
            );
            for graph in &binary.graphs {
                write_graph(&mut text, graph);
            }
        }
        for graph in &self.graphs {
            write_graph(&mut text, graph);
        }
        Ok(text)
    }
}

/// Adds the name of a graph, and a line for each input and output.
fn write_graph(text: &mut String, graph: &GraphInfo) {
    let _ = writeln!(text, "\ngraph {}", graph.name);
    if let Some(GraphMemory {
        vtcm_bytes,
        spill_fill_bytes,
    }) = graph.memory
    {
        let _ = writeln!(
            text,
            "  VTCM {} MiB, buffer for spill and fill {}",
            vtcm_bytes >> 20,
            bytes(spill_fill_bytes)
        );
    }
    let roles = [("in", &graph.inputs), ("out", &graph.outputs)];
    let mut width = 0;
    for (_, tensors) in roles {
        for tensor in tensors {
            width = width.max(tensor.name.len());
        }
    }
    for (role, tensors) in roles {
        for tensor in tensors {
            let _ = writeln!(
                text,
                "  {role:<3} {:<width$}  {} {:?}",
                tensor.name, tensor.type_name, tensor.shape
            );
        }
    }
}

/// A folder of the libraries. Links into the cache are valid while the cache is open.
enum Folder {
    Named(PathBuf),
    Cached {
        folder: tempfile::TempDir,
        _cache: Disk,
    },
}

impl Folder {
    fn path(&self) -> &Path {
        match self {
            Folder::Named(path) => path,
            Folder::Cached { folder, .. } => folder.path(),
        }
    }
}

impl Libraries<'_> {
    /// The folder of `--qnn`, or else the libraries in the cache.
    fn open(&self) -> Result<Folder> {
        if let Some(folder) = self.folder {
            return Ok(Folder::Named(absolute_path(folder)?));
        }
        if let Some(folder) = self.open_cached()? {
            return Ok(folder);
        }
        let message = "libQnnSystem.so, which reads this format, is not in the cache";
        let help = format!(
            "python3 -m pip install --no-deps --target qnn {WHEEL} && export \
             KILN_QNN=qnn/onnxruntime_qnn\n(or build a plan that pins this wheel: the cache then \
             has it)"
        );
        Err(Problem::new(Code::ToolMissing, message).help(help))
    }

    /// A folder with links to the libraries that a build fetched; `None` if the cache lacks them.
    fn open_cached(&self) -> Result<Option<Folder>> {
        if !self.cache.is_dir() {
            return Ok(None);
        }
        let stages = stages::all();
        let Some(fetch) = stages.get("fetch") else {
            return Ok(None);
        };
        let params =
            json!({"url": format!("pypi:{WHEEL}"), "sha256": WHEEL_SHA256, "unpack": true});
        let Some(order) = fetch.expand(&params, &Inputs::default())?.pop() else {
            return Ok(None);
        };
        let store = Disk::open(self.cache)?;
        let action = order.into_action(fetch.spec());
        let Some(result) = store.get(&action.key())? else {
            return Ok(None);
        };
        // The libraries will be executed: they must be those of the pinned wheel.
        if !is_proved(&fetch.proof(&action.params)?, &result, &store, &store)? {
            return Ok(None);
        }
        let folder = store.scratch()?;
        for (name, part) in &result.outputs {
            let Some(path) = store.path(&part.content.digest)? else {
                return Ok(None);
            };
            let path = absolute_path(&path)?;
            let link = folder.path().join(name.as_str());
            std::os::unix::fs::symlink(&path, &link).context(Code::Io, || {
                format!("link {} to {}", link.display(), path.display())
            })?;
        }
        Ok(Some(Folder::Cached {
            folder,
            _cache: store,
        }))
    }
}

fn absolute_path(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).context(Code::Io, || format!("find {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plans_pin_the_same_wheel() {
        for plan in [
            include_str!("../../../plans/smollm2-135m.toml"),
            include_str!("../../../plans/lib/bundle.toml"),
        ] {
            assert!(plan.contains(WHEEL) && plan.contains(WHEEL_SHA256));
        }
    }
}
