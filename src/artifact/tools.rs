//! The library files of a plan's tools that stages load.

use crate::action::{Inputs, PartName, ToolFile};
use crate::base::{Code, Problem, Result};

/// The tool with Qualcomm's libraries, in `[tools]`.
pub const QNN: &str = "qnn";

/// The files `names` of the tool `qnn`, and the C++ runtime of the same wheel, whose file names
/// contain a hash.
pub fn libraries(inputs: &Inputs, names: &[&str]) -> Result<Vec<ToolFile>> {
    let mut names = names.to_vec();
    if let Some(tool) = inputs.tools.get(QNN) {
        for path in tool.parts.keys() {
            let file = file_name(path);
            if file.starts_with("libc++") || file.starts_with("libunwind") {
                names.push(file);
            }
        }
    }
    inputs.tool_files(QNN, &names)
}

/// Whether the tool `qnn` is given and has the file `name`.
pub fn has_library(inputs: &Inputs, name: &str) -> bool {
    let tool = inputs.tools.get(QNN);
    tool.is_some_and(|tool| tool.parts.keys().any(|path| file_name(path) == name))
}

/// The file name of Qualcomm's runtime for language models, in the tool `qnn`.
pub const GENIE: &str = "libGenie.so";

/// The file name of ONNX Runtime's library, without its version.
pub const RUNTIME: &str = "libonnxruntime.so";

/// ONNX Runtime's library, of any version.
pub fn runtime(inputs: &Inputs) -> Result<Vec<ToolFile>> {
    let Some(tool) = inputs.tools.get("ort") else {
        return Err(Problem::new(
            Code::ToolMissing,
            "what a context binary leaves to the CPU runs in ONNX Runtime, and the tool `ort` is \
             not given",
        )
        .help("add it to [tools]: `ort = { pypi = \"onnxruntime==1.32.0\", sha256 = \"\" }`"));
    };
    let mut files = tool.parts.keys().map(file_name);
    let name = files.find(|file| file.starts_with(RUNTIME));
    inputs.tool_files("ort", &[name.unwrap_or(RUNTIME)])
}

/// The name of the file at `path`, without its folder.
fn file_name(path: &PartName) -> &str {
    let path = path.as_str();
    match path.rsplit_once('/') {
        Some((_, file)) => file,
        None => path,
    }
}
