//! Passwords and signed queries stand in web addresses. They are for the server alone: whatever is
//! said or written names the rest.

use std::borrow::Cow;
use std::ops::Range;

const QUOTES: [char; 3] = ['"', '\'', '`'];

/// How far before an address its quote is looked for: a scheme, or what was mistyped for one and a
/// host.
const MAX_LOOK_BACK: usize = 256;

/// As long may a scheme be.
const MAX_SCHEME: usize = 16;

/// As long may an address in quotes be that has blanks.
const MAX_QUOTED: usize = 1024;

/// `text`, in which the user and password and the parameters of each address are `***`.
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

/// What is known of the word that was looked at last, so that each is read once, however many
/// addresses are in it.
#[derive(Default)]
struct Word {
    end: usize,
    last_at: Option<usize>,
    /// Where its parameters begin, or its end.
    params: usize,
}

impl Word {
    /// Reads the word at `at`, unless that is the same.
    fn read(&mut self, text: &str, at: usize) {
        if at >= self.end {
            self.end = at + length(&text[..at], &text[at..]);
            self.last_at = text[at..self.end].rfind('@').map(|length| at + length);
        }
    }

    /// Where the user and password end that begin at `start`, if there are any.
    fn end_of_user(&self, text: &str, start: usize) -> Option<usize> {
        let last_at = self.last_at.filter(|at| *at >= start).map(|at| at - start);
        Some(start + end_of_user(text.get(start..self.end)?, last_at)?)
    }
}

/// Where they are: in their order, none inside of another.
fn secrets(text: &str) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = vec![];
    let (mut with_slashes, mut without) = (Word::default(), Word::default());
    // Up to here, no user was found in an address without slashes.
    let mut tried = 0;
    for (at, mark) in text.match_indices(['/', '\\', '?', ':']) {
        if found.last().is_some_and(|last| at < last.end) {
            continue;
        }
        let begin = match mark {
            "?" => begin_of_query(text, at),
            ":" => begin_without_slashes(text, at),
            _ => begin_of_address(text, at),
        };
        let Some(start) = begin else {
            continue;
        };
        let word = if mark == ":" {
            &mut without
        } else {
            &mut with_slashes
        };
        word.read(text, at);
        let end = word.end.max(start);
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
            && at >= tried
            && let Some(user) = word.end_of_user(text, start)
            && (mark != ":" || is_web(text, at) || text[start..user].contains(':'))
        {
            host = user;
            push(&mut found, start..host);
        } else if mark == ":" {
            tried = tried.max(start + authority(&text[start..end]).len());
            // Of other schemes only a password is known without slashes.
            if !is_web(text, at) {
                continue;
            }
        }
        if word.params < host {
            let params = begin_of_params(&text[host..end]);
            word.params = params.map_or(end, |length| host + length);
        }
        if word.params < end {
            push(&mut found, to_fragment(word.params));
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

/// Where the host or the user begins, if the slashes at `at` are those of an address: `https://`, a
/// mistyped `https:/`, `https:\\` or `https//`, or `//` by itself.
fn begin_of_address(text: &str, at: usize) -> Option<usize> {
    let is_slash = |c: char| c == '/' || c == '\\';
    let before = text[..at].chars().next_back();
    let ends_path = |before| is_of_path(before) && !is_web(text, at);
    if before.is_some_and(|before| is_slash(before) || ends_path(before)) {
        return None;
    }
    let slashes = text[at..].find(|c| !is_slash(c)).unwrap_or(text.len() - at);
    (slashes > 1 || before == Some(':')).then_some(at + slashes)
}

/// Where the host or the user begins, if the colon at `at` is that of an address without slashes:
/// `https:` is one whatever follows, `NAME:` may be one.
fn begin_without_slashes(text: &str, at: usize) -> Option<usize> {
    let next = text[at + 1..].chars().next()?;
    let is_one = !next.is_whitespace() && !"/\\:".contains(next);
    let scheme = scheme_before(text, at);
    let is_first = !text[..at - scheme.len()].ends_with(':');
    (is_one && is_first && !scheme.is_empty()).then_some(at + 1)
}

/// Whether a scheme of the web stands right before `at`.
fn is_web(text: &str, at: usize) -> bool {
    let scheme = scheme_before(text, at).to_ascii_lowercase();
    matches!(
        scheme.as_str(),
        "http" | "https" | "ftp" | "ftps" | "ws" | "wss"
    ) || scheme.starts_with("socks")
}

/// The letters right before `at` that a scheme may have, as far as schemes are long.
fn scheme_before(text: &str, at: usize) -> &str {
    let letters = text.as_bytes()[..at].iter().rev().take(MAX_SCHEME);
    let length = letters
        .take_while(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte))
        .count();
    &text[at - length..at]
}

/// Where the parameters of an address begin: its query, or what stands in its path as `;name=` or
/// `&name=`.
fn begin_of_params(address: &str) -> Option<usize> {
    let is_of_name = |c: char| c.is_alphanumeric() || "-._%".contains(c);
    let begins = |(at, mark): &(usize, &str)| {
        let rest = address[at + 1..].trim_start_matches(is_of_name);
        *mark == "?" || (rest.starts_with('=') && !address[at + 1..].starts_with('='))
    };
    let mut marks = address.match_indices(['?', ';', '&']);
    marks.find(begins).map(|(at, _)| at + 1)
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
    let authority = authority(address);
    let port = authority.rsplit_once(':').map(|(_, port)| port);
    let is_password =
        |port: &str| !port.ends_with(']') && !port.bytes().all(|byte| byte.is_ascii_digit());
    match authority.rfind('@') {
        None if port.is_some_and(is_password) => last_at,
        user => user,
    }
}

/// Host and port of an address, and whatever stands before them.
fn authority(address: &str) -> &str {
    let end = address.find(['/', '?', '#', '\\']);
    &address[..end.unwrap_or(address.len())]
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
            // Without slashes.
            ("https:me:pw@h/x?sig=s#f, so", "https:***@h/x?***#f, so"),
            ("`HTTPS:me@h` failed", "`HTTPS:***@h` failed"),
            ("(http:me:p/w#d@h/x)", "(http:***@h/x)"),
            ("socks5h:me:pw@p:1080", "socks5h:***@p:1080"),
            ("https:a/x;token=t", "https:a/x;***"),
            ("https//me:pw@h/x", "https//***@h/x"),
            ("htps:me:pw@h/x?sig=s", "htps:***@h/x?***"),
            ("a/b,https:me:pw@h", "a/b,https:***@h"),
            (
                "ssh:me@phone hf:a@v1 b3:0a/2 kiln::a:b@c, note: a:b",
                "ssh:me@phone hf:a@v1 b3:0a/2 kiln::a:b@c, note: a:b",
            ),
            (
                "key:\"https://a/x y?sig=s t\" is",
                "key:\"https://a/x y?***\" is",
            ),
            // Parameters in the path.
            (
                "https://a/x;token=ab/cd==/pot.gguf#f b",
                "https://a/x;***#f b",
            ),
            ("https://me:pw@a/x;v=1?sig=s", "https://***@a/x;***"),
            ("https://a/x&token=t, b", "https://a/x&*** b"),
            (
                "https://a/x;y; b=c text/html;charset=b",
                "https://a/x;y; b=c text/html;charset=b",
            ),
            ("file:/x;y=1,https://a/b;c=d", "file:/x;***"),
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
            "://a:b", ":/", "\\", "https:", "https:a:", "a:b:", "(a:b/", ",a:b@", "//a;", "//;a=",
            "//a;b&", "http//",
        ] {
            // 256 kB: if every piece looked at all others, this would not end.
            let many = piece.repeat((1 << 18) / piece.len());
            without_secrets(&many);
            without_secrets(&(many + "/@"));
        }
    }
}
