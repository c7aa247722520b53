//! Passwords and signed queries stand in web addresses. They are for the server alone: whatever is said or written names the rest.

use std::borrow::Cow;
use std::ops::Range;

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
    for (at, separator) in text.match_indices("://") {
        let start = at + separator.len();
        let end = start + length(&text[start..]);
        let address = &text[start..end];
        let user = user(address).map(|length| start..start + length);
        let query = address.find('?').map(|length| {
            let begin = start + length + 1;
            begin..text[begin..end].find('#').map_or(end, |length| begin + length)
        });
        for secret in user.into_iter().chain(query).filter(|secret| !secret.is_empty()) {
            match found.last_mut() {
                Some(last) if secret.start < last.end => last.end = last.end.max(secret.end),
                _ => found.push(secret),
            }
        }
    }
    found
}

/// Where an address ends that a text goes on after; quotes may be a part of it, or around it.
fn length(text: &str) -> usize {
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let is_last = chars.peek().is_none_or(|(_, next)| next.is_whitespace() || ",.;:)]".contains(*next));
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
        ] {
            assert_eq!(without_secrets(text), expected);
            assert_eq!(mask_secrets(text).len(), text.len());
            assert_eq!(mask_secrets(text) == text, expected == text);
        }
    }
}
