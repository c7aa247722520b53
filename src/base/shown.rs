//! Text from outside as a terminal may have it. Names, logs, plans and what programs say may hold
//! anything: characters that move the cursor or turn the direction of text, and lines that a CI
//! runner would take for its commands. Whatever is printed goes through here.

use std::borrow::Cow;
use std::fmt::Write;

use super::{mask_secrets, without_secrets};

/// Whether a terminal would do something else with it than to show it. Ends of lines and tabs are
/// for the caller to allow.
fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// `text` with its lines, each active character spelled out, `\u{1b}`, and without the secrets of
/// addresses.
pub fn shown(text: &str) -> String {
    let text = without_secrets(text);
    let is_plain = |c: char| !is_active(c) || matches!(c, '\n' | '\t');
    let mut out = String::with_capacity(text.len());
    text.chars().for_each(|c| {
        if is_plain(c) {
            out.push(c)
        } else {
            out.extend(c.escape_debug())
        }
    });
    match without_commands(&out) {
        Cow::Borrowed(_) => out,
        Cow::Owned(out) => out,
    }
}

/// `text` without what GitHub's runner would take for commands: `::set-output ...`, `##[error]...`.
/// <https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands>
pub fn without_commands(text: &str) -> Cow<'_, str> {
    let is_command = |line: &str| line.trim_start().starts_with("::");
    if !text.contains("##[") && !text.lines().any(is_command) {
        return Cow::Borrowed(text);
    }
    let spelled = |line: &str| {
        if is_command(line) {
            line.replacen(':', "\\u{3a}", 1)
        } else {
            line.into()
        }
    };
    // The older form counts anywhere in a line.
    Cow::Owned(
        text.split_inclusive('\n')
            .map(spelled)
            .collect::<String>()
            .replace("##[", "\\u{23}#["),
    )
}

/// `text` as one line.
pub fn shown_line(text: &str) -> String {
    shown(text).replace('\n', "\\n").replace('\t', "\\t")
}

/// The same for text of which places are known by their bytes: each active character is as many `?`
/// as it has bytes.
pub fn masked(text: &str) -> String {
    let text = mask_secrets(text);
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let is_end = c == '\n' || (c == '\r' && chars.peek() == Some(&'\n'));
        match is_active(c) && !is_end && c != '\t' {
            true => out.extend(std::iter::repeat_n('?', c.len_utf8())),
            false => out.push(c),
        }
    }
    out
}

/// The same for JSON, in whose strings each active character is spelled `\u001b`.
pub fn shown_json(json: &str) -> Cow<'_, str> {
    let json = json_without_secrets(json);
    // Only strings can hold it.
    let json = if json.contains("##[") {
        json.replace("##[", "\\u0023#[").into()
    } else {
        json
    };
    let is_plain = |c: char| !is_active(c) || matches!(c, '\n' | '\t' | '\r');
    if json.chars().all(is_plain) {
        return json;
    }
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if is_plain(c) {
            out.push(c);
        } else {
            // Writing to a string does not fail.
            c.encode_utf16(&mut [0; 2])
                .iter()
                .for_each(|unit| _ = write!(out, "\\u{unit:04x}"));
        }
    }
    Cow::Owned(out)
}

/// JSON whose strings are without the secrets of addresses. Text that is no JSON stays as it is.
fn json_without_secrets(json: &str) -> Cow<'_, str> {
    if !json.contains(['/', '?']) {
        return Cow::Borrowed(json);
    }
    let mut out = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(begin) = rest.find('"') {
        out += &rest[..begin];
        let string = &rest[begin..];
        let end = end_of_string(string);
        let concealed = serde_json::from_str::<String>(&string[..end])
            .ok()
            .and_then(|text| {
                let Cow::Owned(text) = without_secrets(&text) else {
                    return None;
                };
                serde_json::to_string(&text).ok()
            });
        out += concealed.as_deref().unwrap_or(&string[..end]);
        rest = &string[end..];
    }
    Cow::Owned(out + rest)
}

/// Where the string ends that `text` begins with, quotes and all.
fn end_of_string(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_spelled_out() {
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
    fn masked_text_keeps_its_places() {
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
        let said = r#"{"m":"curl: \"https://h/f?sig=1\" failed\nhttps://u@h?a\nnext","n":"\\"}"#;
        let expected =
            r#"{"m":"curl: \"https://h/f?***\" failed\nhttps://***@h?***\nnext","n":"\\"}"#;
        assert_eq!(shown_json(said), expected);
        assert_eq!(
            shown_json(r#"{"m":"a.example/x?sig=s","n":"//me:pw@a"}"#),
            r#"{"m":"a.example/x?***","n":"//***@a"}"#
        );
        assert_eq!(shown_json(r#""https:\/\/me:pw@h""#), r#""https://***@h""#);
        assert_eq!(shown_json("\"cut https://a?b"), "\"cut https://a?b");
        assert_eq!(shown_json("\"##[error]\""), "\"\\u0023#[error]\"");
    }
}
