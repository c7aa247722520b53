//! An installed SDK of Qualcomm as a source. Its folder is not part of the cache key, the digests of
//! its libraries are.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{JoinedFile, check_unchanged, open};
use crate::action::{Inputs, Job, Outputs, PartName};
use crate::base::{Code, Context, Digest, Problem, Result};

/// The folder of the libraries for this machine.
const HOST: &str = "lib/x86_64-linux-clang";
/// Those of them that kiln cannot do without.
const REQUIRED: [&str; 2] = ["libQnnHtp.so", "libQnnSystem.so"];
/// Those that some stages load.
const OPTIONAL: [&str; 3] = ["libQnnIr.so", "libGenie.so", "libQnnHtpNetRunExtensions.so"];
/// The beginnings of the names of a C++ runtime beside them.
const RUNTIMES: [&str; 2] = ["libc++", "libunwind"];

/// The paths of the libraries in `sdk`, sorted.
pub(super) fn files(sdk: &str) -> Result<Vec<PathBuf>> {
    let folder = Path::new(sdk).join(HOST);
    for name in REQUIRED {
        if !folder.join(name).is_file() {
            let message = format!("{} is no SDK of QNN: there is no {HOST}/{name}", sdk);
            return Err(Problem::new(Code::ToolMissing, message).help(
                "set `sdk` to the folder of an unpacked QAIRT SDK, the one that `QNN_SDK_ROOT` \
                 names",
            ));
        }
    }
    let reading = || format!("read the folder {}", folder.display());
    let mut files = vec![];
    for entry in fs::read_dir(&folder).context(Code::FetchFile, reading)? {
        let name = entry.context(Code::FetchFile, reading)?.file_name();
        if name.to_str().is_some_and(is_loaded) {
            files.push(folder.join(name));
        }
    }
    files.sort();
    Ok(files)
}

fn is_loaded(name: &str) -> bool {
    REQUIRED.contains(&name)
        || OPTIONAL.contains(&name)
        || RUNTIMES.iter().any(|runtime| name.starts_with(runtime))
}

/// The digests of the libraries in `sdk`, by file name, as the engine found them.
pub(super) fn digests(sdk: &str, inputs: &Inputs) -> Result<BTreeMap<String, Digest>> {
    let folder = Path::new(sdk).join(HOST);
    for name in REQUIRED {
        inputs.file(&folder.join(name))?;
    }
    let mut digests = BTreeMap::new();
    for (path, digest) in &inputs.files {
        if let Ok(name) = path.strip_prefix(&folder) {
            digests.insert(name.to_string_lossy().into_owned(), *digest);
        }
    }
    Ok(digests)
}

/// Outputs the libraries of the SDK in the folder `sdk`, which have the digests in `expected`.
pub(super) fn copy(sdk: &str, expected: &BTreeMap<String, Digest>, job: &Job) -> Result<Outputs> {
    let mut outputs = Outputs::new();
    for (name, digest) in expected {
        let path = Path::new(sdk).join(HOST).join(name);
        let mut library = JoinedFile::new(job)?;
        library.copy(open(&path)?)?;
        let part = library.finish().part()?;
        check_unchanged(&path, *digest, part.content.digest)?;
        outputs.insert(PartName::new(name.as_str())?, part);
    }
    Ok(outputs)
}
