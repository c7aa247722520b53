//! Context binaries and DLCs, described by libQnnSystem.
//!
//! The library runs in this process, which is there for that alone: see `in_a_child`.

use std::fmt::Write;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::json;

use crate::action::Inputs;
use crate::base::{Code, Context, Problem, Result, bytes};
use crate::engine::is_proved;
use crate::qnn::{BinaryInfo, GraphInfo, Soc, System};
use crate::stages;
use crate::store::{ActionCache, BlobStore, Disk, LocalStore};

/// The wheel that the shipped plans pin as the tool `qnn`.
const WHEEL: &str = "onnxruntime-qnn==2.7.0";
const WHEEL_SHA256: &str = "c56c01562b8534fe8980cfea4601408d950c065f8251fb862ce82101c52c9849";

/// The first bytes of the context binaries of QAIRT 2.51.
pub(super) fn is_context_binary(start: &[u8]) -> bool {
    start.starts_with(&[0, 0, 0, 2, 0, 0, 0, 3])
}

/// A DLC is a zip file.
pub(super) fn is_dlc(start: &[u8]) -> bool {
    start.starts_with(b"PK\x03\x04")
}

/// Where to look for the libraries.
pub(super) struct Libraries<'a> {
    /// A folder that the call names.
    pub(super) folder: Option<&'a Path>,
    /// The cache, where a build may have left them.
    pub(super) cache: &'a Path,
}

/// Everything that is known about the file.
#[derive(Serialize)]
struct Description {
    format: &'static str,
    size_bytes: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    graphs: Vec<GraphInfo>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    binaries: Vec<BinaryInfo>,
}

pub(super) fn describe_binary(path: &Path, libraries: &Libraries, json: bool) -> Result<String> {
    let folder = libraries.open()?;
    let binary = std::fs::read(path).context(Code::CallUnreadable, || "read it".into())?;
    let info = System::open(folder.path())?.binary_info(&binary)?;
    let size_bytes = binary.len() as u64;
    spell(
        &Description {
            format: "context-binary",
            size_bytes,
            graphs: vec![],
            binaries: vec![info],
        },
        json,
    )
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
        .context(Code::CallUnreadable, || "measure it".into())?
        .len();
    let system = System::open(folder.path())?;
    let dlc = system.open_dlc(path)?;
    spell(
        &Description {
            format: "dlc",
            size_bytes,
            graphs: dlc.graphs()?,
            binaries: dlc.binaries()?,
        },
        json,
    )
}

fn spell(description: &Description, json: bool) -> Result<String> {
    if json {
        let line = serde_json::to_string(description)
            .context(Code::InspectJson, || "write it as JSON".into())?;
        return Ok(line + "\n");
    }
    let mut text = match description.format {
        "dlc" => format!("DLC, {}\n", bytes(description.size_bytes)),
        _ => format!("context binary, {}\n", bytes(description.size_bytes)),
    };
    // Invariant: writing to a String cannot fail.
    for binary in &description.binaries {
        let chip = match Soc::of_model(binary.soc_model) {
            Some(soc) => format!("{} (v{})", soc.name, soc.arch),
            None => format!("SoC model {}", binary.soc_model),
        };
        let _ = writeln!(
            text,
            "compiled for {chip} by QNN {}, format {}",
            binary.build_id, binary.blob_version
        );
        binary
            .graphs
            .iter()
            .for_each(|graph| describe_graph(&mut text, graph));
    }
    description
        .graphs
        .iter()
        .for_each(|graph| describe_graph(&mut text, graph));
    Ok(text)
}

fn describe_graph(text: &mut String, graph: &GraphInfo) {
    let _ = writeln!(text, "\ngraph {}", graph.name);
    let names = graph
        .inputs
        .iter()
        .chain(&graph.outputs)
        .map(|tensor| tensor.name.len());
    let width = names.max().unwrap_or(0);
    for (role, tensors) in [("in", &graph.inputs), ("out", &graph.outputs)] {
        for tensor in tensors {
            let _ = writeln!(
                text,
                "  {role:<3} {:<width$}  {} {:?}",
                tensor.name, tensor.type_name, tensor.shape
            );
        }
    }
}

/// A folder with the libraries; one in the cache goes with it, and is there as long as the cache is
/// open.
enum Folder {
    Given(PathBuf),
    Linked {
        folder: tempfile::TempDir,
        _cache: Disk,
    },
}

impl Folder {
    fn path(&self) -> &Path {
        match self {
            Folder::Given(path) => path,
            Folder::Linked { folder, .. } => folder.path(),
        }
    }
}

impl Libraries<'_> {
    fn open(&self) -> Result<Folder> {
        if let Some(folder) = self.folder {
            let path = std::path::absolute(folder)
                .context(Code::Io, || format!("find {}", folder.display()))?;
            return Ok(Folder::Given(path));
        }
        self.cached()?.ok_or_else(|| {
            Problem::new(
                Code::ToolMissing,
                "libQnnSystem.so, which reads this format, is not in the cache",
            )
            .help(format!(
                "python3 -m pip install --no-deps --target qnn {WHEEL} && export \
                 KILN_QNN=qnn/onnxruntime_qnn\n(a build of a plan that pins this wheel leaves it \
                 in the cache, too)"
            ))
        })
    }

    /// The libraries that a build fetched, under their own names.
    fn cached(&self) -> Result<Option<Folder>> {
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
        let Some(found) = store.get(&action.key())? else {
            return Ok(None);
        };
        // A library is loaded: it must be that of the wheel.
        if !is_proved(&fetch.proof(&action.params)?, &found, &store, &store)? {
            return Ok(None);
        }
        let folder = store.scratch()?;
        for (name, part) in &found.outputs {
            let Some(path) = store.path(&part.content.digest)? else {
                return Ok(None);
            };
            let path = std::path::absolute(&path)
                .context(Code::Io, || format!("find {}", path.display()))?;
            let link = folder.path().join(name.as_str());
            std::os::unix::fs::symlink(&path, &link).context(Code::Io, || {
                format!("link {} to {}", link.display(), path.display())
            })?;
        }
        Ok(Some(Folder::Linked {
            folder,
            _cache: store,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wheel_is_the_one_that_the_plans_pin() {
        for plan in [
            include_str!("../../../plans/smollm2-135m.toml"),
            include_str!("../../../plans/lib/qwen2.toml"),
        ] {
            assert!(plan.contains(WHEEL) && plan.contains(WHEEL_SHA256));
        }
    }
}
