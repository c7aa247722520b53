//! Results in a cache, and forged ones.

use std::path::{Path, PathBuf};

use kiln::base::hash_bytes;
use serde_json::Value;

use super::tree::files;

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
