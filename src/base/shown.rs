//! Text from outside as a terminal may have it. Names, logs, plans and what programs say may hold anything: characters that move the
//! cursor or turn the direction of text, and lines that a CI runner would take for its commands. Whatever is printed goes through here.

use std::borrow::Cow;
use std::fmt::Write;

use super::{mask_secrets, without_secrets};

/// Whether a terminal would do something else with it than to show it. Ends of lines and tabs are for the caller to allow.
fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// `text` with its lines, each active character spelled out, `\u{1b}`, and without the secrets of addresses.
pub fn shown(text: &str) -> String {
    let text = without_secrets(text);
    let is_plain = |c: char| !is_active(c) || matches!(c, '\n' | '\t');
    let mut out = String::with_capacity(text.len());
    text.chars().for_each(|c| if is_plain(c) { out.push(c) } else { out.extend(c.escape_debug()) });
    match without_commands(&out) {
        Cow::Borrowed(_) => out,
        Cow::Owned(out) => out,
    }
}

/// `text` without lines that GitHub's runner would take for commands: `::set-output ...`.
/// <https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands>
pub fn without_commands(text: &str) -> Cow<'_, str> {
    let is_command = |line: &str| line.trim_start().starts_with("::");
    if !text.lines().any(is_command) {
        return Cow::Borrowed(text);
    }
    let spelled = |line: &str| if is_command(line) { line.replacen(':', "\\u{3a}", 1) } else { line.into() };
    Cow::Owned(text.split_inclusive('\n').map(spelled).collect())
}

/// `text` as one line.
pub fn shown_line(text: &str) -> String {
    shown(text).replace('\n', "\\n").replace('\t', "\\t")
}

/// The same for text of which places are known by their bytes: each active character is as many `?` as it has bytes.
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
    let json = without_secrets(json);
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
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| _ = write!(out, "\\u{unit:04x}"));
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_spelled_out() {
        for (text, expected) in [
            ("plain text, ünï, 中\n\ttwo lines", "plain text, ünï, 中\n\ttwo lines"),
            ("a\u{1b}[31mb\u{7}\r\u{9b}2J", "a\\u{1b}[31mb\\u{7}\\r\\u{9b}2J"),
            ("user\u{202e}txt.exe", "user\\u{202e}txt.exe"),
            ("::error::x\n  ::set-output\nkiln::code", "\\u{3a}:error::x\n  \\u{3a}:set-output\nkiln::code"),
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
        assert_eq!(serde_json::from_str::<String>(&shown_json(&text)).unwrap(), "a\u{1b}\u{7f}\u{9b}\u{202e}ü");
    }
}
