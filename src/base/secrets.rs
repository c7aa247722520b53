//! Hides the secrets of web addresses: user, password and parameters, which may be a signature.

use std::borrow::Cow;
use std::ops::Range;

const QUOTES: [char; 3] = ['"', '\'', '`'];

/// How many characters before an address are searched for its opening quote: a scheme, or a
/// mistyped scheme and a host.
const MAX_LOOK_BACK: usize = 256;

/// The maximum length of a scheme.
const MAX_SCHEME: usize = 16;

/// The maximum length of an address in quotes that contains blanks.
const MAX_QUOTED: usize = 1024;

/// `text` with the user, password and parameters of each address replaced by `***`.
pub fn without_secrets(text: &str) -> Cow<'_, str> {
    let secrets = find_secrets(text);
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

/// `text` with each byte of a secret replaced by `*`.
pub fn mask_secrets(text: &str) -> String {
    let mut out = text.to_string();
    for secret in find_secrets(text) {
        let stars = "*".repeat(secret.len());
        out.replace_range(secret, &stars);
    }
    out
}

/// A word of the text, cached so that it is scanned once, even if it contains many addresses.
#[derive(Default)]
struct Word {
    end: usize,
    last_at: Option<usize>,
    /// Where its parameters begin; the end of the word if it has none.
    params: usize,
}

impl Word {
    /// Scans the word at `at`, unless `at` is inside the cached word.
    fn scan(&mut self, text: &str, at: usize) {
        if at < self.end {
            return;
        }
        self.end = at + address_length(&text[..at], &text[at..]);
        self.last_at = text[at..self.end].rfind('@').map(|offset| at + offset);
    }

    /// The end of the user and password that begin at `start`, if there are any.
    fn end_of_user(&self, text: &str, start: usize) -> Option<usize> {
        let last_at = match self.last_at {
            Some(at) if at >= start => Some(at - start),
            _ => None,
        };
        Some(start + user_length(text.get(start..self.end)?, last_at)?)
    }
}

/// The ranges of all secrets, in order and disjoint.
fn find_secrets(text: &str) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = vec![];
    let (mut with_slashes, mut without_slashes) = (Word::default(), Word::default());
    // Up to here, addresses without slashes have no user.
    let mut no_user_before = 0;
    for (at, mark) in text.match_indices(['/', '\\', '?', ':']) {
        if let Some(last) = found.last()
            && at < last.end
        {
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
            &mut without_slashes
        } else {
            &mut with_slashes
        };
        word.scan(text, at);
        let end = word.end.max(start);
        if mark == "?" {
            push(&mut found, until_fragment(text, start..end));
            continue;
        }
        let mut host = start;
        if !text[..at].ends_with("file:")
            && at >= no_user_before
            && let Some(user_end) = word.end_of_user(text, start)
            && (mark != ":" || has_web_scheme(text, at) || text[start..user_end].contains(':'))
        {
            host = user_end;
            push(&mut found, start..host);
        } else if mark == ":" {
            no_user_before = no_user_before.max(start + authority(&text[start..end]).len());
            // Without slashes, addresses of other schemes are recognized only by a password.
            if !has_web_scheme(text, at) {
                continue;
            }
        }
        if word.params < host {
            word.params = match begin_of_params(&text[host..end]) {
                Some(offset) => host + offset,
                None => end,
            };
        }
        if word.params < end {
            push(&mut found, until_fragment(text, word.params..end));
        }
    }
    found.retain(|secret| !secret.is_empty());
    found
}

/// The part of `range` before the fragment of an address, `#...`.
fn until_fragment(text: &str, range: Range<usize>) -> Range<usize> {
    match text[range.clone()].find('#') {
        Some(offset) => range.start..range.start + offset,
        None => range,
    }
}

/// Adds `secret`, or extends the last one if `secret` begins inside of it.
fn push(found: &mut Vec<Range<usize>>, secret: Range<usize>) {
    match found.last_mut() {
        Some(last) if secret.start < last.end => last.end = last.end.max(secret.end),
        _ => found.push(secret),
    }
}

/// Where the user or host begins, if the slashes at `at` belong to an address: `https://`, a
/// mistyped `https:/`, `https:\\` or `https//`, or `//` without a scheme.
fn begin_of_address(text: &str, at: usize) -> Option<usize> {
    let is_slash = |c: char| c == '/' || c == '\\';
    let before = text[..at].chars().next_back();
    if let Some(before) = before
        && (is_slash(before) || (is_path_char(before) && !has_web_scheme(text, at)))
    {
        return None;
    }
    let slashes = text[at..].find(|c| !is_slash(c)).unwrap_or(text.len() - at);
    if slashes > 1 || before == Some(':') {
        Some(at + slashes)
    } else {
        None
    }
}

/// Where the user or host begins, if the colon at `at` may belong to an address without slashes,
/// `SCHEME:...`.
fn begin_without_slashes(text: &str, at: usize) -> Option<usize> {
    let next = text[at + 1..].chars().next()?;
    if next.is_whitespace() || "/\\:".contains(next) {
        return None;
    }
    let scheme = scheme_before(text, at);
    if scheme.is_empty() || text[..at - scheme.len()].ends_with(':') {
        return None;
    }
    Some(at + 1)
}

/// Whether the text directly before `at` is a scheme of the web.
fn has_web_scheme(text: &str, at: usize) -> bool {
    let scheme = scheme_before(text, at).to_ascii_lowercase();
    matches!(
        scheme.as_str(),
        "http" | "https" | "ftp" | "ftps" | "ws" | "wss"
    ) || scheme.starts_with("socks")
}

/// The characters directly before `at` that may form a scheme.
fn scheme_before(text: &str, at: usize) -> &str {
    let mut start = at;
    for byte in text.as_bytes()[..at].iter().rev().take(MAX_SCHEME) {
        if !byte.is_ascii_alphanumeric() && !b"+-.".contains(byte) {
            break;
        }
        start -= 1;
    }
    &text[start..at]
}

/// Where the parameters of an address begin: its query, or parameters in its path, `;name=` or
/// `&name=`.
fn begin_of_params(address: &str) -> Option<usize> {
    let is_name_char = |c: char| c.is_alphanumeric() || "-._%".contains(c);
    for (at, mark) in address.match_indices(['?', ';', '&']) {
        let params = &address[at + 1..];
        let value = params.trim_start_matches(is_name_char);
        if mark == "?" || (value.starts_with('=') && !params.starts_with('=')) {
            return Some(at + 1);
        }
    }
    None
}

/// Where a query begins, if the question mark at `at` belongs to an address, possibly a mistyped
/// one: `?name=`.
fn begin_of_query(text: &str, at: usize) -> Option<usize> {
    let query = &text[at + 1..];
    let value = query.trim_start_matches(is_path_char);
    if value.len() < query.len() && value.starts_with('=') {
        Some(at + 1)
    } else {
        None
    }
}

fn is_path_char(c: char) -> bool {
    c.is_alphanumeric() || "-._~%/$&+@[]{}".contains(c)
}

/// The length of the address at the start of `text`. If the text `before` has an opening quote, the
/// address ends at the closing quote and may contain blanks.
fn address_length(before: &str, text: &str) -> usize {
    if let Some(quote) = opening_quote(before)
        && let Some(length) = quoted_length(text, quote)
    {
        return length;
    }
    bare_length(text)
}

/// The quote in the last word of `before`.
fn opening_quote(before: &str) -> Option<char> {
    for c in before.chars().rev().take(MAX_LOOK_BACK) {
        if QUOTES.contains(&c) {
            return Some(c);
        }
        if c.is_whitespace() {
            return None;
        }
    }
    None
}

/// The length of `text` up to the closing `quote` in the same line.
fn quoted_length(text: &str, quote: char) -> Option<usize> {
    let text = &text[..text.floor_char_boundary(MAX_QUOTED)];
    let line = text.lines().next()?;
    for (at, _) in line.match_indices(quote) {
        let is_closing = match quote {
            '"' => !line[..at].ends_with('\\'),
            _ => ends_word(line[at + 1..].chars().next()),
        };
        if is_closing {
            return Some(at);
        }
    }
    None
}

/// The length of an address without quotes. It may contain quotes that are followed by more of the
/// address.
fn bare_length(text: &str) -> usize {
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let next = chars.peek().map(|(_, next)| *next);
        if c.is_whitespace()
            || c.is_control()
            || "<>".contains(c)
            || (QUOTES.contains(&c) && ends_word(next))
        {
            return at;
        }
    }
    text.len()
}

/// Whether a word ends before `next`, the character after a quote.
fn ends_word(next: Option<char>) -> bool {
    match next {
        Some(c) => c.is_whitespace() || ",.;:)]}".contains(c),
        None => true,
    }
}

/// The length of the user and password of an address. A password should be percent-encoded. One
/// that is not may contain `/`, `?` or `#`, so that there is no valid port; then everything before
/// `last_at` counts as the password.
fn user_length(address: &str, last_at: Option<usize>) -> Option<usize> {
    let authority = authority(address);
    if let Some(at) = authority.rfind('@') {
        return Some(at);
    }
    let (_, port) = authority.rsplit_once(':')?;
    let is_port = port.ends_with(']') || port.bytes().all(|byte| byte.is_ascii_digit());
    if is_port { None } else { last_at }
}

/// User, password, host and port of an address.
fn authority(address: &str) -> &str {
    match address.find(['/', '?', '#', '\\']) {
        Some(end) => &address[..end],
        None => address,
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
    fn the_time_is_linear_in_the_text() {
        for pattern in [
            "://a", "//", "?", "?a", "?a=", "://?", "<//", "'//", "\"?a=", "://a:b@", "(//", ",//",
            "://a:b", ":/", "\\", "https:", "https:a:", "a:b:", "(a:b/", ",a:b@", "//a;", "//;a=",
            "//a;b&", "http//",
        ] {
            // 256 kB: with quadratic time, this would not end.
            let many = pattern.repeat((1 << 18) / pattern.len());
            without_secrets(&many);
            without_secrets(&(many + "/@"));
        }
    }
}
