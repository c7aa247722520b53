//! Text from outside, made safe to print. Names, logs, plans and the output of programs may contain
//! characters that move the cursor or change the direction of text, and lines that a CI runner
//! takes for commands. All text that is printed goes through here.

use std::borrow::Cow;
use std::fmt::Write;

use super::{mask_secrets, without_secrets};

/// Whether a terminal would interpret `c` instead of displaying it. Includes line ends and tabs,
/// which callers may allow.
fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
        )
        || matches!(c, '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// `text` with active characters escaped, like `\u{1b}`, and without the secrets of addresses.
/// Keeps its lines.
pub fn shown(text: &str) -> String {
    let text = without_secrets(text);
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_active(c) && !matches!(c, '\n' | '\t') {
            out.extend(c.escape_debug());
        } else {
            out.push(c);
        }
    }
    match without_commands(&out) {
        Cow::Borrowed(_) => out,
        Cow::Owned(out) => out,
    }
}

/// `text` without commands for GitHub's runner: `::set-output ...`, `##[error]...`.
/// <https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands>
pub fn without_commands(text: &str) -> Cow<'_, str> {
    let is_command = |line: &str| line.trim_start().starts_with("::");
    if !text.contains("##[") && !text.lines().any(is_command) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        if is_command(line) {
            out += &line.replacen(':', "\\u{3a}", 1);
        } else {
            out += line;
        }
    }
    // The older form of commands may be anywhere in a line.
    Cow::Owned(out.replace("##[", "\\u{23}#["))
}

/// [`shown`] on one line.
pub fn shown_line(text: &str) -> String {
    shown(text).replace('\n', "\\n").replace('\t', "\\t")
}

/// `text` with each byte of active characters and secrets replaced by one character, so that byte
/// ranges in it stay valid.
pub fn masked(text: &str) -> String {
    let text = mask_secrets(text);
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let is_line_end = c == '\n' || (c == '\r' && chars.peek() == Some(&'\n'));
        if is_active(c) && !is_line_end && c != '\t' {
            out.extend(std::iter::repeat_n('?', c.len_utf8()));
        } else {
            out.push(c);
        }
    }
    out
}

/// JSON with active characters escaped, like `\u001b`, and without the secrets of addresses.
pub fn shown_json(json: &str) -> Cow<'_, str> {
    let mut json = json_without_secrets(json);
    // Can only be inside a string.
    if json.contains("##[") {
        json = json.replace("##[", "\\u0023#[").into();
    }
    let is_escaped = |c: char| is_active(c) && !matches!(c, '\n' | '\t' | '\r');
    if !json.contains(is_escaped) {
        return json;
    }
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if !is_escaped(c) {
            out.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            // Writing to a string does not fail.
            let _ = write!(out, "\\u{unit:04x}");
        }
    }
    Cow::Owned(out)
}

/// JSON without the secrets of addresses in its strings. Other text stays the same.
fn json_without_secrets(json: &str) -> Cow<'_, str> {
    if !json.contains(['/', '?']) {
        return Cow::Borrowed(json);
    }
    let mut out = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(begin) = rest.find('"') {
        out += &rest[..begin];
        let (string, after) = rest[begin..].split_at(string_length(&rest[begin..]));
        match string_without_secrets(string) {
            Some(replaced) => out += &replaced,
            None => out += string,
        }
        rest = after;
    }
    Cow::Owned(out + rest)
}

/// A JSON string, in quotes, without the secrets of addresses; `None` if it has none or is not
/// valid.
fn string_without_secrets(string: &str) -> Option<String> {
    let text: String = serde_json::from_str(string).ok()?;
    match without_secrets(&text) {
        Cow::Owned(text) => serde_json::to_string(&text).ok(),
        Cow::Borrowed(_) => None,
    }
}

/// The length of the JSON string at the start of `text`, with its quotes.
fn string_length(text: &str) -> usize {
    let mut is_escaped = false;
    for (index, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return index + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn active_characters_are_escaped() {
        for (text, expected) in [
            (
                "plain text, ünï, 中\n\ttwo lines",
                "plain text, ünï, 中\n\ttwo lines",
            ),
            (
                "a\u{1b}[31mb\u{7}\r\u{9b}2J",
                "a\\u{1b}[31mb\\u{7}\\r\\u{9b}2J",
            ),
            ("user\u{202e}txt.exe", "user\\u{202e}txt.exe"),
            (
                "::error::x\n  ::set-output\nkiln::code",
                "\\u{3a}:error::x\n  \\u{3a}:set-output\nkiln::code",
            ),
            ("a ##[error]b", "a \\u{23}#[error]b"),
        ] {
            assert_eq!(shown(text), expected);
        }
        assert_eq!(shown_line("a\nb\tc"), "a\\nb\\tc");
    }

    #[test]
    fn masked_text_keeps_byte_offsets() {
        assert_eq!(masked("a\u{1b}b\r\nc\rd\u{202e}\te"), "a?b\r\nc?d???\te");
    }

    #[test]
    fn json_stays_json() {
        let text = serde_json::to_string("a\u{1b}\u{7f}\u{9b}\u{202e}ü").unwrap();
        assert_eq!(shown_json(&text), r#""a\u001b\u007f\u009b\u202eü""#);
        assert_eq!(
            serde_json::from_str::<String>(&shown_json(&text)).unwrap(),
            "a\u{1b}\u{7f}\u{9b}\u{202e}ü"
        );
        let text = r#"{"m":"curl: \"https://h/f?sig=1\" failed\nhttps://u@h?a\nnext","n":"\\"}"#;
        let expected =
            r#"{"m":"curl: \"https://h/f?***\" failed\nhttps://***@h?***\nnext","n":"\\"}"#;
        assert_eq!(shown_json(text), expected);
        assert_eq!(
            shown_json(r#"{"m":"a.example/x?sig=s","n":"//me:pw@a"}"#),
            r#"{"m":"a.example/x?***","n":"//***@a"}"#
        );
        assert_eq!(shown_json(r#""https:\/\/me:pw@h""#), r#""https://***@h""#);
        assert_eq!(shown_json("\"cut https://a?b"), "\"cut https://a?b");
        assert_eq!(shown_json("\"##[error]\""), "\"\\u0023#[error]\"");
    }
}
