//! Recognizes files that are not what their name says: a web page, a Git LFS pointer, another
//! format.

use std::path::Path;

use crate::base::{Code, Problem, head};
use crate::model::gguf::{Gguf, MAGIC};

/// How much of a file is needed to recognize it.
pub(super) const HEAD_BYTES: usize = 512;

/// How many characters of a text are shown.
const SHOWN_CHARS: usize = 60;

/// How many bytes of an unknown format are shown.
const SHOWN_BYTES: usize = 8;

const PAGE: &str = "the address is of a page about the file: write hf:OWNER/REPO/FILE, or take the \
                    address of its download";
const ANSWER: &str = "it may be an error message of the server; write hf:OWNER/REPO/FILE, or \
                      the address of its download";
const MODEL: &str =
    "name a .gguf file; llama.cpp's convert_hf_to_gguf.py makes one of other formats";
const PACKED: &str = "kiln does not unpack it: name the .gguf file that is inside, where it can be \
                      downloaded unpacked";
const WHEEL: &str = "a wheel is a ZIP archive: take the address of its download";

/// Formats by their first bytes: prefix, description and help.
const FORMATS: [(&[u8], &str, &str); 12] = [
    (b"PK\x03\x04", "a ZIP archive", PACKED),
    (b"PK\x05\x06", "an empty ZIP archive", PACKED),
    (b"\x1f\x8b", "compressed by gzip", PACKED),
    (b"\x28\xb5\x2f\xfd", "compressed by Zstandard", PACKED),
    (b"\xfd7zXZ\0", "compressed by xz", PACKED),
    (b"BZh", "compressed by bzip2", PACKED),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", PACKED),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", MODEL),
    (b"lmgg", OLD_GGML, MODEL),
    (b"fmgg", OLD_GGML, MODEL),
    (b"tjgg", OLD_GGML, MODEL),
    (b"algg", OLD_GGML, MODEL),
];
const OLD_GGML: &str = "a model in a format that ggml no longer reads";

/// What a file is, if it cannot be what its name says, and the help.
pub(super) type Other = (String, String);

/// Adds to `problem` of the file `name` what the file is, if `head`, its first bytes, cannot be
/// those of `name`.
pub(super) fn explain(problem: Problem, name: &str, head: &[u8]) -> Problem {
    match recognize(name, head) {
        Some(other) => with_cause(problem, &format!("`{name}`"), other),
        None => problem,
    }
}

/// The same for part `number` of the file `name`; `None` if the part may be right. Since a part may
/// begin with anything, only pages, pointers and empty files are recognized.
pub(super) fn explain_part(
    problem: &Problem,
    name: &str,
    number: usize,
    head: &[u8],
) -> Option<Problem> {
    let other = recognize_placeholder(name, head)?;
    let name = format!("part {number} of `{name}`");
    Some(with_cause(problem.clone(), &name, other))
}

fn with_cause(problem: Problem, name: &str, (what, help): Other) -> Problem {
    let message = format!("what came as {name} cannot be used: it is {what}");
    let problem = match problem.code {
        // Nobody should pin the digest of a wrong file.
        Code::FetchUnpinned => Problem::new(Code::FetchOtherFile, message),
        _ => problem.within(message),
    };
    problem.help(help)
}

/// What the file `path` is, if it cannot be what `name` says, and the help.
pub fn what_else(name: &str, path: &Path) -> Option<Other> {
    recognize(name, &head(path, HEAD_BYTES as u64).ok()?)
}

fn recognize(name: &str, head: &[u8]) -> Option<Other> {
    let lower = name.to_ascii_lowercase();
    if let Some(other) = recognize_placeholder(name, head) {
        return Some(other);
    }
    if lower.ends_with(".gguf") {
        return recognize_instead_of_gguf(head);
    }
    if lower.ends_with(".whl") && !head.starts_with(b"PK") {
        return Some((describe_start(head), WHEEL.into()));
    }
    None
}

/// Recognizes what may be served instead of a file `name` of any format.
fn recognize_placeholder(name: &str, head: &[u8]) -> Option<Other> {
    if head.is_empty() {
        let help = "check that its upload was completed";
        return Some(("an empty file".into(), help.into()));
    }
    let text = decode_text(head).to_ascii_lowercase();
    if text.starts_with("version https://git-lfs.github.com/spec/") {
        let help = "it is a placeholder for the file in Git: write hf:OWNER/REPO/FILE, or run `git \
                    lfs pull` in its repository";
        return Some(("a Git LFS pointer".into(), help.into()));
    }
    let is_page = text.starts_with("<!doctype html") || text.starts_with("<html");
    let name = name.to_ascii_lowercase();
    let may_be_page = match name.rsplit_once('.') {
        Some((_, extension)) => matches!(extension, "html" | "htm" | "xhtml"),
        None => true,
    };
    if is_page && !may_be_page {
        return Some(("a web page".into(), PAGE.into()));
    }
    None
}

/// What the file that begins with `head` is; `None` for a GGUF that can be read.
fn recognize_instead_of_gguf(head: &[u8]) -> Option<Other> {
    if head.starts_with(&MAGIC) {
        let problem = match Gguf::version(head) {
            Ok(_) => return None,
            Err(_) if head.len() < 2 * MAGIC.len() => {
                let what = format!("a GGUF that ends after {} bytes", head.len());
                return Some((what, "fetch it again".into()));
            }
            Err(problem) => problem,
        };
        return Some((problem.message, problem.help.unwrap_or(MODEL.into())));
    }
    let format = FORMATS.iter().find(|(start, ..)| head.starts_with(start));
    if let Some((_, what, help)) = format {
        return Some((what.to_string(), help.to_string()));
    }
    let is_pickle = matches!(head, [0x80, 2..=5, ..]);
    let is_tar = head.get(257..262) == Some(b"ustar");
    let text = decode_text(head);
    let (what, help) = match text.chars().next() {
        _ if is_safetensors(head) => ("a safetensors file".into(), MODEL),
        _ if is_tar => ("a tar archive".into(), PACKED),
        _ if is_pickle => ("a pickle of Python, as PyTorch writes it".into(), MODEL),
        Some('<') if text.starts_with("<?xml") => ("XML".into(), PAGE),
        Some('<') => (describe_start(head), PAGE),
        Some('{' | '[') => ("JSON".into(), PAGE),
        _ if is_text(head) => (describe_start(head), ANSWER),
        _ => (describe_start(head), MODEL),
    };
    Some((what, help.into()))
}

/// Whether `head` has the length of a header in 8 bytes, and then JSON.
fn is_safetensors(head: &[u8]) -> bool {
    let Some(length) = head.first_chunk() else {
        return false;
    };
    u64::from_le_bytes(*length) < 1 << 30 && head.get(8) == Some(&b'{')
}

/// Quotes the first characters or bytes of an unknown file.
fn describe_start(head: &[u8]) -> String {
    if !is_text(head) {
        let start = &head[..head.len().min(SHOWN_BYTES)];
        return format!(
            "of an unknown format: it begins with \"{}\"",
            start.escape_ascii()
        );
    }
    let text = decode_text(head);
    let line = text.lines().next().unwrap_or_default();
    let line: String = line.chars().take(SHOWN_CHARS).collect();
    format!(
        "text that begins with \"{}\"",
        line.trim_end().escape_debug()
    )
}

/// Decodes `head` as UTF-16 if it has a byte-order mark of it, else as UTF-8. Leading white space is
/// removed.
fn decode_text(head: &[u8]) -> String {
    let unit: fn([u8; 2]) -> u16 = match head {
        [0xff, 0xfe, ..] => u16::from_le_bytes,
        [0xfe, 0xff, ..] => u16::from_be_bytes,
        _ => {
            let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
            return String::from_utf8_lossy(text).trim_start().into();
        }
    };
    let (units, _) = head[2..].as_chunks::<2>();
    let units: Vec<u16> = units.iter().map(|pair| unit(*pair)).collect();
    String::from_utf16_lossy(&units).trim_start().into()
}

/// Whether `head` is the beginning of a text in UTF-8 or UTF-16. The last character may be cut.
fn is_text(head: &[u8]) -> bool {
    let is_utf16 = head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff");
    let is_utf8 = match std::str::from_utf8(head) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    };
    let is_control = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\x0c');
    (is_utf8 || is_utf16) && !decode_text(head).contains(is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_recognized_by_their_first_bytes() {
        let utf16: Vec<u8> = "\u{feff}<!DOCTYPE html>"
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        let tar = [&[b'a'; 257][..], b"ustar\0"].concat();
        for (name, head, expected) in [
            ("a.gguf", &b"GGUF\x03\0\0\0"[..], None),
            ("a.GGUF", b"GGUF\x02\0\0\0\x01", None),
            ("a.gguf", b"GGUF\0\0\0\x03", None),
            (
                "a.gguf",
                b"GGUF\x01\0\0\0",
                Some("GGUF version 1, whose lengths have 32 bits"),
            ),
            (
                "a.gguf",
                b"GGUF\x09\0\0\0",
                Some("GGUF version 9; kiln reads versions 2 and 3"),
            ),
            (
                "a.gguf",
                b"GGUF\x03",
                Some("a GGUF that ends after 5 bytes"),
            ),
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
            ("a.gguf", b"\xef\xbb\xbf<!doctype html>", Some("a web page")),
            ("a.gguf", &utf16, Some("a web page")),
            ("eval.txt", &utf16, Some("a web page")),
            ("page.html", b"<html>", None),
            ("simple", b"<html>", None),
            ("eval.txt", b"<html>", Some("a web page")),
            ("eval.txt", b"Entry not found", None),
            ("eval.json", b"{\"a\": 1}", None),
            ("a.gguf", b"{\"error\": \"Entry not found\"}", Some("JSON")),
            ("a.gguf", b"<?xml version='1.0'?><Error>", Some("XML")),
            (
                "a.gguf",
                b"<!-- a page --><p>",
                Some("text that begins with \"<!-- a page --><p>\""),
            ),
            (
                "a.gguf",
                b"Entry not found\n",
                Some("text that begins with \"Entry not found\""),
            ),
            (
                "a.gguf",
                b"Gr\xc3",
                Some("text that begins with \"Gr\u{fffd}\""),
            ),
            ("a.gguf", b"PK\x03\x04\x14\0", Some("a ZIP archive")),
            ("a.gguf", b"\x1f\x8b\x08\0", Some("compressed by gzip")),
            ("a.gguf", &tar, Some("a tar archive")),
            (
                "a.gguf",
                b"\x80\x02}q\0",
                Some("a pickle of Python, as PyTorch writes it"),
            ),
            (
                "a.gguf",
                b"\x80\x01\0\0\0\0\0\0{\"__metadata__\"",
                Some("a safetensors file"),
            ),
            ("a.gguf", b"tjgg\x03\0\0\0", Some(OLD_GGML)),
            ("a.gguf", b"lmgg\x03\0\0\0", Some(OLD_GGML)),
            (
                "a.gguf",
                b"\x01\0\xff",
                Some("of an unknown format: it begins with \"\\x01\\x00\\xff\""),
            ),
            ("a.bin", b"\x01\0\xff", None),
            ("a.whl", b"PK\x03\x04", None),
            (
                "a.whl",
                b"not here",
                Some("text that begins with \"not here\""),
            ),
        ] {
            let found = recognize(name, head);
            let found = found.as_ref().map(|(what, _)| what.as_str());
            assert_eq!(found, expected, "{name} {}", head.escape_ascii());
        }
    }

    #[test]
    fn the_digest_of_another_file_is_not_suggested_as_pin() {
        let unpinned = || Problem::new(Code::FetchUnpinned, "not pinned").help("write: sha256");
        let problem = explain(unpinned(), "a.gguf", b"Entry not found");
        let text = problem.text();
        assert_eq!(
            (problem.code, problem.causes.len()),
            (Code::FetchOtherFile, 0)
        );
        assert!(!text.contains("sha256"), "{text}");
        let problem = explain_part(&unpinned(), "a.gguf", 2, b"<html>").unwrap();
        assert_eq!(
            problem.message,
            "what came as part 2 of `a.gguf` cannot be used: it is a web page"
        );
        assert_eq!(explain_part(&unpinned(), "a.gguf", 2, b"\x07"), None);
        // A digest that differs from the pin keeps its code.
        let differs = Problem::new(Code::FetchDigest, "another digest");
        assert_eq!(
            explain(differs, "a.gguf", b"PK\x03\x04").code,
            Code::FetchDigest
        );
    }
}
