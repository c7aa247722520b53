//! Blobs and results in a cache, and forged results.

use std::path::{Path, PathBuf};

use kiln::action::Content;
use kiln::base::hash_bytes;
use kiln::store::BlobStore;
use serde_json::Value;

use super::tree::files;

/// Writes a blob.
pub fn put(store: &dyn BlobStore, bytes: &[u8]) -> Content {
    let mut sink = store.create().unwrap();
    sink.write_all(bytes).unwrap();
    sink.finish().unwrap()
}

/// The path in a cache of a blob or result: `kind` is `blobs` or `actions`.
pub fn entry_path(cache: &Path, kind: &str, content: &[u8], ending: &str) -> PathBuf {
    let hex = hash_bytes(content).hex();
    cache.join(kind).join(&hex[..2]).join(hex + ending)
}

/// The path and text of a result of a stage kind.
pub fn find_result(cache: &Path, kind: &str) -> (PathBuf, String) {
    let actions = cache.join("actions");
    for (path, bytes) in files(&actions) {
        let text = String::from_utf8(bytes).unwrap();
        if text.contains(&format!("\"stage\":\"{kind}\"")) {
            return (actions.join(path), text);
        }
    }
    panic!("no result of {kind}");
}

/// A result with a changed body and a valid digest.
pub fn changed_result(text: &str, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let lines: Vec<&str> = text.lines().collect();
    let mut body = serde_json::from_str(lines[1]).unwrap();
    change(&mut body);
    let body = body.to_string();
    let digest = hash_bytes(body.as_bytes());
    format!("{digest}\n{body}\n{}\n", lines[2]).into_bytes()
}
