//! What a file really is that came instead of another: a page about it, a pointer to it, another
//! format.

use std::path::Path;

use crate::base::{Problem, head};

/// The code of what is another file than it should be.
pub(super) const OTHER_FILE: &str = "kiln::fetch::other_file";

/// As much of a file tells.
const HEAD_BYTES: u64 = 512;

/// `problem` of the file `path`, which should be `name`; told as what it is, if that is something
/// else.
pub(super) fn told(problem: Problem, name: &str, path: &Path) -> Problem {
    let Some((what, help)) = what_else(name, path) else {
        return problem;
    };
    let problem = match problem.code.as_str() {
        // Its digest is of no use as a pin.
        "kiln::fetch::unpinned" => Problem::new(
            OTHER_FILE,
            format!("what came as `{name}` is {what}, not the file"),
        ),
        _ => problem.within(format!("what came as `{name}` is {what}, not the file")),
    };
    problem.help(help)
}

/// What the file `path` is, if it cannot be `name`, and the way out.
pub fn what_else(name: &str, path: &Path) -> Option<(&'static str, &'static str)> {
    other(name, &head(path, HEAD_BYTES).ok()?)
}

fn other(name: &str, head: &[u8]) -> Option<(&'static str, &'static str)> {
    const PAGE: &str = "the address is of a page about the file: write hf:OWNER/REPO/FILE, or \
                        take the address of its download";
    const MODEL: &str =
        "name a .gguf file; llama.cpp's convert_hf_to_gguf.py makes one of other formats";
    let text = String::from_utf8_lossy(head)
        .trim_start()
        .to_ascii_lowercase();
    let name = name.to_ascii_lowercase();
    let is_model = name.ends_with(".gguf");
    if head.is_empty() {
        return Some(("an empty file", "see whether the upload of it ever ended"));
    }
    if text.starts_with("version https://git-lfs.github.com/spec/") {
        let help = "it stands for the file in Git: write hf:OWNER/REPO/FILE, or run `git lfs \
                    pull` where it lies";
        return Some(("a Git LFS pointer", help));
    }
    let is_page = text.starts_with("<!doctype html") || text.starts_with("<html");
    // What has no extension may well be a page.
    let may_be_page = name
        .rsplit_once('.')
        .is_none_or(|(_, extension)| matches!(extension, "html" | "htm" | "xhtml"));
    if is_page && !may_be_page {
        return Some(("a web page", PAGE));
    }
    let is_safetensors = head
        .first_chunk()
        .is_some_and(|length| u64::from_le_bytes(*length) < 1 << 30);
    match head {
        _ if !is_model || head.starts_with(b"GGUF") => None,
        _ if text.starts_with("<?xml") => Some(("XML", PAGE)),
        _ if text.starts_with('{') || text.starts_with('[') => Some(("JSON", PAGE)),
        [_, _, _, _, _, _, _, _, b'{', ..] if is_safetensors => Some(("a safetensors file", MODEL)),
        [b'l' | b'f', b'm', b'g', b'g', ..]
        | [b't', b'j', b'g', b'g', ..]
        | [b'a', b'l', b'g', b'g', ..] => {
            Some(("a model in a format that ggml no longer reads", MODEL))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::other;

    #[test]
    fn files_are_told_by_how_they_begin() {
        for (name, head, expected) in [
            ("a.gguf", &b"GGUF\x03\0\0\0"[..], None),
            ("a.gguf", b"", Some("an empty file")),
            (
                "a.gguf",
                b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
                Some("a Git LFS pointer"),
            ),
            (
                "eval.txt",
                b"version https://git-lfs.github.com/spec/v1\n",
                Some("a Git LFS pointer"),
            ),
            ("a.gguf", b"\n <!DOCTYPE html><html>", Some("a web page")),
            ("page.html", b"<html>", None),
            ("simple", b"<html>", None),
            ("eval.txt", b"<html>", Some("a web page")),
            ("eval.json", b"{\"a\": 1}", None),
            ("a.gguf", b"{\"error\": \"Entry not found\"}", Some("JSON")),
            ("a.gguf", b"<?xml version='1.0'?><Error>", Some("XML")),
            (
                "a.gguf",
                b"\x80\x01\0\0\0\0\0\0{\"__metadata__\"",
                Some("a safetensors file"),
            ),
            (
                "a.gguf",
                b"tjgg\x03\0\0\0",
                Some("a model in a format that ggml no longer reads"),
            ),
            (
                "a.gguf",
                b"lmgg\x03\0\0\0",
                Some("a model in a format that ggml no longer reads"),
            ),
            ("a.gguf", b"something else", None),
        ] {
            assert_eq!(
                other(name, head).map(|(what, _)| what),
                expected,
                "{name} {}",
                head.escape_ascii()
            );
        }
    }
}
