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

/// Where they are, in their order.
fn secrets(text: &str) -> Vec<Range<usize>> {
    let mut found = vec![];
    let mut from = 0;
    while let Some(at) = text[from..].find("://") {
        let start = from + at + 3;
        let is_end = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '\'' | '`' | '<' | '>');
        let end = text[start..].find(is_end).map_or(text.len(), |length| start + length);
        let authority = text[start..end].find(['/', '?', '#', '\\']).map_or(end, |length| start + length);
        let user = text[start..authority].rfind('@').map(|length| start..start + length);
        let query = text[start..end].find('?').map(|length| {
            let begin = start + length + 1;
            begin..text[begin..end].find('#').map_or(end, |length| begin + length)
        });
        found.extend(user.into_iter().chain(query).filter(|range| !range.is_empty()));
        from = end;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_and_queries_are_hidden() {
        for (text, expected) in [
            ("https://a.example/b/c", "https://a.example/b/c"),
            ("`https://me:pass@a.example/b?sig=x&y=z#f` failed", "`https://***@a.example/b?***#f` failed"),
            ("p@q://u@v@w:8/x", "p@q://***@w:8/x"),
            ("two http://a?b http://c@d", "two http://a?*** http://***@d"),
            ("what is ? and @ elsewhere", "what is ? and @ elsewhere"),
            ("https://a?", "https://a?"),
            ("https://ü:ß@a/?${sig}&more=1", "https://***@a/?***"),
        ] {
            assert_eq!(without_secrets(text), expected);
            assert_eq!(mask_secrets(text).len(), text.len());
            assert_eq!(mask_secrets(text) == text, expected == text);
        }
    }
}
