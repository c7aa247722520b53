//! The files of a plan's tools that stages load.

use crate::action::{Inputs, ToolFile};
use crate::base::{Code, Problem, Result};

/// The tool in `[tools]`.
pub const QNN: &str = "qnn";

/// The files `names` of the tool `qnn`, and the C++ runtime of the same wheel, whose name carries a
/// hash.
pub fn libraries(inputs: &Inputs, names: &[&str]) -> Result<Vec<ToolFile>> {
    let parts = inputs
        .tools
        .get(QNN)
        .into_iter()
        .flat_map(|tool| tool.parts.keys());
    let runtime = parts
        .filter_map(|path| path.as_str().rsplit('/').next())
        .filter(|name| name.starts_with("libc++") || name.starts_with("libunwind"));
    let names: Vec<&str> = names.iter().copied().chain(runtime).collect();
    inputs.tool_files(QNN, &names)
}

/// The runtime's file name, up to its version.
pub const RUNTIME: &str = "libonnxruntime.so";

/// ONNX Runtime's library, whatever version its name carries.
pub fn runtime(inputs: &Inputs) -> Result<Vec<ToolFile>> {
    let tool = inputs.tools.get("ort").ok_or_else(|| {
        Problem::new(
            Code::ToolMissing,
            "what a context binary leaves to the CPU runs in ONNX Runtime, and the tool `ort` is \
             not given",
        )
        .help("add it to [tools]: `ort = { pypi = \"onnxruntime==1.32.0\", sha256 = \"\" }`")
    })?;
    let files = tool.parts.keys();
    let base = files.filter_map(|path| path.as_str().rsplit('/').next());
    let name = base
        .into_iter()
        .find(|base| base.starts_with(RUNTIME))
        .unwrap_or(RUNTIME);
    inputs.tool_files("ort", &[name])
}
