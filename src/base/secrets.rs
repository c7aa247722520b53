//! Passwords and signed queries stand in web addresses. They are for the server alone: whatever is said or written names the rest.

use std::borrow::Cow;
use std::ops::Range;

const QUOTES: [char; 3] = ['"', '\'', '`'];

/// How far before an address its quote is looked for: a scheme, or what was mistyped for one and a host.
const MAX_LOOK_BACK: usize = 256;

/// So far into an address a user and a query are looked for.
const MAX_ADDRESS: usize = 4096;

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
    // Of the word that was looked at last: each is measured once.
    let mut end = 0;
    for (at, mark) in text.match_indices(['/', '?']) {
        if found.last().is_some_and(|last| at < last.end) || !begins(text, at) {
            continue;
        }
        if at >= end {
            end = at + length(&text[..at], &text[at..]);
        }
        let to_fragment = |begin: usize| begin..text[begin..end].find('#').map_or(end, |length| begin + length);
        if mark == "?" {
            found.push(to_fragment(at + 1));
            continue;
        }
        let start = at + "//".len();
        // What follows another `://` is another address.
        let address = &text[start..text.floor_char_boundary(end.min(start + MAX_ADDRESS)).max(start)];
        let address = &address[..address.find("://").unwrap_or(address.len())];
        found.extend(user(address).map(|length| start..start + length));
        found.extend(address.find('?').map(|length| to_fragment(start + length + 1)));
    }
    found.retain(|secret| !secret.is_empty());
    found
}

/// Whether at a `/` an address begins, as after `https:` or by itself; or at a `?` a query, of an address that may be mistyped.
fn begins(text: &str, at: usize) -> bool {
    let rest = &text[at..];
    if let Some(query) = rest.strip_prefix('?') {
        let name = query.find(|c| !is_of_path(c)).unwrap_or(query.len());
        return name > 0 && query[name..].starts_with('=');
    }
    let before = text[..at].chars().next_back();
    rest.starts_with("//") && before.is_none_or(|c| c == ':' || !is_of_path(c))
}

fn is_of_path(c: char) -> bool {
    c.is_alphanumeric() || "-._~%/$&+@[]{}".contains(c)
}

/// Where an address ends. One that the text `before` opens a quote for goes on to the other quote, over blanks too.
fn length(before: &str, text: &str) -> usize {
    let mut back = before.chars().rev().take(MAX_LOOK_BACK);
    let opened = back.find(|c| c.is_whitespace() || QUOTES.contains(c)).filter(|c| QUOTES.contains(c));
    let closed = opened.and_then(|quote| {
        let line = text[..text.floor_char_boundary(MAX_QUOTED)].lines().next().unwrap_or_default();
        let is_last =
            |rest: &str| quote == '"' || rest.chars().next().is_none_or(|c| c.is_whitespace() || is_of_text(c));
        line.match_indices(quote).map(|(at, _)| at).find(|at| is_last(&line[at + 1..]))
    });
    closed.unwrap_or_else(|| bare_length(text))
}

/// Where an address ends that stands in no quotes, or in such that do not end; others may be a part of it.
fn bare_length(text: &str) -> usize {
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let is_last = chars.peek().is_none_or(|(_, next)| next.is_whitespace() || is_of_text(*next));
        if c.is_whitespace() || c.is_control() || "\"<>".contains(c) || ("'`".contains(c) && is_last) {
            return at;
        }
    }
    text.len()
}

/// How long the user and password of an address are. A password should be percent-encoded; one that is not has a `/`, `?` or `#` where
/// the number of a port would end.
fn user(address: &str) -> Option<usize> {
    let authority = address.find(['/', '?', '#', '\\']).map_or(address, |length| &address[..length]);
    let port = authority.rsplit_once(':').map(|(_, port)| port);
    let is_password = |port: &str| !port.ends_with(']') && !port.bytes().all(|byte| byte.is_ascii_digit());
    match authority.rfind('@') {
        None if port.is_some_and(is_password) => address.rfind('@'),
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
            ("`https://me:pass@a.example/b?sig=x&y=z#f` failed", "`https://***@a.example/b?***#f` failed"),
            ("'https://a?sig=s', 'https://b?c'", "'https://a?***', 'https://b?***'"),
            ("p@q://u@v@w:8/x", "p@q://***@w:8/x"),
            ("two http://a?b http://c@d", "two http://a?*** http://***@d"),
            ("what is ? and @ elsewhere", "what is ? and @ elsewhere"),
            ("https://a?", "https://a?"),
            ("https://ü:ß@a/?${sig}&more=1", "https://***@a/?***"),
            ("https://me:pa'ss@h/f?a=b`c", "https://***@h/f?***"),
            ("https://me:p/s#s@h/x", "https://***@h/x"),
            ("https://a/x,https://me:pw@b/y", "https://a/x,https://***@b/y"),
            ("https://a?to=https://me:pw@b?c", "https://a?***"),
            ("url = \"https://a/x y?sig=s t#f\" # and", "url = \"https://a/x y?***#f\" # and"),
            ("`https://me:p w@a/x y?s t` failed", "`https://***@a/x y?***` failed"),
            ("an 'https://a/b c?d e', so 'f?'", "an 'https://a/b c?***', so 'f?'"),
            ("\"//me:pw@a/x\" and \"a.example/x?sig=s\"", "\"//***@a/x\" and \"a.example/x?***\""),
            ("pypi:a==1?token=t#m file:/x?sig=s", "pypi:a==1?***#m file:/x?***"),
            ("https:/a/x?X-Amz-Signature=abc&y, so", "https:/a/x?*** so"),
            ("is it? a = b; a//b@c", "is it? a = b; a//b@c"),
        ] {
            assert_eq!(without_secrets(text), expected);
            assert_eq!(mask_secrets(text).len(), text.len());
            assert_eq!(mask_secrets(text) == text, expected == text);
        }
    }

    #[test]
    fn long_text_takes_no_longer_for_it() {
        for piece in ["://a", "//", "?", "?a", "?a=", "://?", "<//", "'//", "\"?a=", "://a:b@"] {
            // 1 MB: if every piece looked at all others, this would not end.
            without_secrets(&piece.repeat((1 << 20) / piece.len()));
        }
    }
}
