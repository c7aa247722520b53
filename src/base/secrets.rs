//! Passwords and signed queries stand in web addresses. They are for the server alone: whatever is
//! said or written names the rest.

use std::borrow::Cow;
use std::ops::Range;

const QUOTES: [char; 3] = ['"', '\'', '`'];

/// How far before an address its quote is looked for: a scheme, or what was mistyped for one and a
/// host.
const MAX_LOOK_BACK: usize = 256;

/// As long may an address in quotes be that has blanks.
const MAX_QUOTED: usize = 1024;

/// `text`, in which the user and password and the query of each address are `***`.
pub fn without_secrets(text: &str) -> Cow<'_, str> {
    let secrets = secrets(text);
    if secrets.is_empty() {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    for Range { start, end } in secrets {
        out += &text[done..start];
        out += "***";
        done = end;
    }
    Cow::Owned(out + &text[done..])
}

/// The same, byte for byte at the same place.
pub fn mask_secrets(text: &str) -> String {
    let mut out = text.to_string();
    for secret in secrets(text) {
        let stars = "*".repeat(secret.len());
        out.replace_range(secret, &stars);
    }
    out
}

/// Where they are: in their order, none inside of another.
fn secrets(text: &str) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = vec![];
    // What is known of the word that was looked at last, so that each is read once, however many
    // addresses are in it.
    let (mut end, mut last_at, mut query) = (0, None, 0);
    for (at, mark) in text.match_indices(['/', '\\', '?']) {
        if found.last().is_some_and(|last| at < last.end) {
            continue;
        }
        let Some(start) = (if mark == "?" {
            begin_of_query(text, at)
        } else {
            begin_of_address(text, at)
        }) else {
            continue;
        };
        if at >= end {
            end = at + length(&text[..at], &text[at..]);
            last_at = text[at..end].rfind('@').map(|length| at + length);
        }
        let end = end.max(start);
        let to_fragment = |begin: usize| {
            begin
                ..text[begin..end]
                    .find('#')
                    .map_or(end, |length| begin + length)
        };
        if mark == "?" {
            push(&mut found, to_fragment(start));
            continue;
        }
        let mut host = start;
        if !text[..at].ends_with("file:")
            && let Some(user) = end_of_user(
                &text[start..end],
                last_at.filter(|at| *at >= start).map(|at| at - start),
            )
        {
            host = start + user;
            push(&mut found, start..host);
        }
        if query < host {
            query = text[host..end]
                .find('?')
                .map_or(end, |length| host + length);
        }
        if query < end {
            push(&mut found, to_fragment(query + 1));
        }
    }
    found.retain(|secret| !secret.is_empty());
    found
}

/// Adds `secret`; one that begins inside of the last makes that longer.
fn push(found: &mut Vec<Range<usize>>, secret: Range<usize>) {
    match found.last_mut() {
        Some(last) if secret.start < last.end => last.end = last.end.max(secret.end),
        _ => found.push(secret),
    }
}

/// Where the host or the user begins, if the slashes at `at` are those of an address: `https://`, a mistyped `https:/` or `https:\\`, or `//`
/// by itself.
fn begin_of_address(text: &str, at: usize) -> Option<usize> {
    let is_slash = |c: char| c == '/' || c == '\\';
    let before = text[..at].chars().next_back();
    if before.is_some_and(|before| is_slash(before) || is_of_path(before)) {
        return None;
    }
    let slashes = text[at..].find(|c| !is_slash(c)).unwrap_or(text.len() - at);
    (slashes > 1 || before == Some(':')).then_some(at + slashes)
}

/// Where a query begins, if the question mark at `at` is that of an address, which may be mistyped:
/// `?name=`.
fn begin_of_query(text: &str, at: usize) -> Option<usize> {
    let query = &text[at + 1..];
    let name = query.find(|c| !is_of_path(c)).unwrap_or(query.len());
    (name > 0 && query[name..].starts_with('=')).then_some(at + 1)
}

fn is_of_path(c: char) -> bool {
    c.is_alphanumeric() || "-._~%/$&+@[]{}".contains(c)
}

/// Where an address ends. One that the text `before` opens a quote for goes on to the other quote,
/// over blanks too.
fn length(before: &str, text: &str) -> usize {
    let mut back = before.chars().rev().take(MAX_LOOK_BACK);
    let opened = back
        .find(|c| c.is_whitespace() || QUOTES.contains(c))
        .filter(|c| QUOTES.contains(c));
    let closed = opened.and_then(|quote| {
        let line = text[..text.floor_char_boundary(MAX_QUOTED)]
            .lines()
            .next()
            .unwrap_or_default();
        let is_last = |at: &usize| match quote {
            '"' => !line[..*at].ends_with('\\'),
            _ => line[at + 1..]
                .chars()
                .next()
                .is_none_or(|c| c.is_whitespace() || is_of_text(c)),
        };
        line.match_indices(quote).map(|(at, _)| at).find(is_last)
    });
    closed.unwrap_or_else(|| bare_length(text))
}

/// Where an address ends that stands in no quotes, or in such that do not end; others may be a part
/// of it.
fn bare_length(text: &str) -> usize {
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let is_last = chars
            .peek()
            .is_none_or(|(_, next)| next.is_whitespace() || is_of_text(*next));
        if c.is_whitespace()
            || c.is_control()
            || "<>".contains(c)
            || (QUOTES.contains(&c) && is_last)
        {
            return at;
        }
    }
    text.len()
}

/// How long the user and password of an address are. A password should be percent-encoded; one that
/// is not has a `/`, `?` or `#` where the number of a port would end, and then all up to the
/// `last_at` is taken for it.
fn end_of_user(address: &str, last_at: Option<usize>) -> Option<usize> {
    let authority = address
        .find(['/', '?', '#', '\\'])
        .map_or(address, |length| &address[..length]);
    let port = authority.rsplit_once(':').map(|(_, port)| port);
    let is_password =
        |port: &str| !port.ends_with(']') && !port.bytes().all(|byte| byte.is_ascii_digit());
    match authority.rfind('@') {
        None if port.is_some_and(is_password) => last_at,
        user => user,
    }
}

/// What a text goes on with after a quote.
fn is_of_text(c: char) -> bool {
    ",.;:)]}".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_and_queries_are_hidden() {
        for (text, expected) in [
            ("https://a.example/b/c", "https://a.example/b/c"),
            ("https://a.example:8080/b@c", "https://a.example:8080/b@c"),
            (
                "`https://me:pass@a.example/b?sig=x&y=z#f` failed",
                "`https://***@a.example/b?***#f` failed",
            ),
            (
                "'https://a?sig=s', 'https://b?c'",
                "'https://a?***', 'https://b?***'",
            ),
            ("p@q://u@v@w:8/x", "p@q://***@w:8/x"),
            ("two http://a?b http://c@d", "two http://a?*** http://***@d"),
            ("what is ? and @ elsewhere", "what is ? and @ elsewhere"),
            ("https://a?", "https://a?"),
            ("https://ü:ß@a/?${sig}&more=1", "https://***@a/?***"),
            ("https://me:pa'ss@h/f?a=b`c", "https://***@h/f?***"),
            ("https://me:p/s#s@h/x", "https://***@h/x"),
            (
                "https://a/x,https://me:pw@b/y",
                "https://a/x,https://***@b/y",
            ),
            ("https://a?to=https://me:pw@b?c", "https://a?***"),
            (
                "url = \"https://a/x y?sig=s t#f\" # and",
                "url = \"https://a/x y?***#f\" # and",
            ),
            (
                "`https://me:p w@a/x y?s t` failed",
                "`https://***@a/x y?***` failed",
            ),
            (
                "an 'https://a/b c?d e', so 'f?'",
                "an 'https://a/b c?***', so 'f?'",
            ),
            (
                "\"//me:pw@a/x\" and \"a.example/x?sig=s\"",
                "\"//***@a/x\" and \"a.example/x?***\"",
            ),
            (
                "pypi:a==1?token=t#m file:/x?sig=s",
                "pypi:a==1?***#m file:/x?***",
            ),
            ("https:/a/x?X-Amz-Signature=abc&y, so", "https:/a/x?*** so"),
            ("is it? a = b; a//b@c", "is it? a = b; a//b@c"),
            // Passwords that are not encoded, and addresses that are mistyped.
            ("https://me:p?ss@h/x", "https://***@h/x"),
            ("`https://me:p?ss@h/x` failed", "`https://***@h/x` failed"),
            ("https://me:p?a#b@h/x?sig=s", "https://***@h/x?***"),
            ("proxy http://me:a?b@p:8080", "proxy http://***@p:8080"),
            ("https://me:p\"w@h/x", "https://***@h/x"),
            ("\"https://me:p\\\"w@h/x\"", "\"https://***@h/x\""),
            (
                "https:/me:pw@h/x https:///me:pw@h/x",
                "https:/***@h/x https:///***@h/x",
            ),
            ("https:\\\\me:pw@h/x?t", "https:\\\\***@h/x?***"),
            ("https:\\/\\/me:pw@h", "https:\\/\\/***@h"),
            ("https:/a/x?TOKENabc", "https:/a/x?***"),
            ("file:/me@home/x hf:a/b/c@v1", "file:/me@home/x hf:a/b/c@v1"),
        ] {
            assert_eq!(without_secrets(text), expected);
            assert_eq!(mask_secrets(text).len(), text.len());
            assert_eq!(mask_secrets(text) == text, expected == text);
        }
    }

    #[test]
    fn long_text_takes_no_longer_for_it() {
        for piece in [
            "://a", "//", "?", "?a", "?a=", "://?", "<//", "'//", "\"?a=", "://a:b@", "(//", ",//",
            "://a:b", ":/", "\\",
        ] {
            // 1 MB: if every piece looked at all others, this would not end.
            without_secrets(&piece.repeat((1 << 20) / piece.len()));
        }
    }
}
