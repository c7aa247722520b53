//! Web addresses, parsed like in browsers and curl (<https://url.spec.whatwg.org>).

use std::fmt;

use url::{Host, Url};

use crate::base::{Code, Problem, Result, without_secrets};

/// An address that may be requested: `https`, or `http` on this machine. It is displayed without
/// password and query.
#[derive(Clone, PartialEq)]
pub(super) struct Address(Url);

impl Address {
    /// Parses `text`.
    pub(super) fn parse(text: &str) -> Result<Self> {
        // Quoted, so that a query after a blank is hidden too.
        let shown = format!("`{text}`");
        let bad =
            |why: &str| Problem::new(Code::PlanUrl, format!("{} {why}", without_secrets(&shown)));
        // Browsers accept other forms, in which secrets would not be found and hidden.
        let mut rest = without_prefix(text, "https://");
        if rest.is_none() {
            rest = without_prefix(text, "http://");
        }
        match rest {
            Some(rest) if rest.starts_with(['/', '\\']) || rest.is_empty() => {
                return Err(bad("has no host"));
            }
            Some(_) if !text.contains(|c: char| c.is_whitespace() || c.is_control()) => {}
            _ => return Err(bad("is not an https address")),
        }
        let url = Url::parse(text).map_err(|error| bad("is no address").because(&error))?;
        let address = Address(url);
        match address.0.scheme() {
            "https" => Ok(address),
            "http" if address.is_loopback() => Ok(address),
            "http" => {
                let help = format!(
                    "use https://; plain http is for this machine only, not for `{}`",
                    address.host()
                );
                Err(bad("is not encrypted").help(help))
            }
            _ => Err(bad("is not an https address")),
        }
    }

    /// The address with its secrets, for requests only.
    pub(super) fn with_secrets(&self) -> &str {
        self.0.as_str()
    }

    /// The name or IP address of the host.
    pub(super) fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }

    /// The path, percent-encoded.
    pub(super) fn path(&self) -> &str {
        self.0.path()
    }

    /// Whether it has neither query nor fragment.
    pub(super) fn ends_with_path(&self) -> bool {
        self.0.query().is_none() && self.0.fragment().is_none()
    }

    /// Whether the host is this machine.
    pub(super) fn is_loopback(&self) -> bool {
        match self.0.host() {
            Some(Host::Ipv4(address)) => address.is_loopback() || address.is_unspecified(),
            Some(Host::Ipv6(address)) => {
                let address = address.to_canonical();
                address.is_loopback() || address.is_unspecified()
            }
            Some(Host::Domain(name)) => {
                let name = name.trim_end_matches('.');
                name == "localhost" || name.ends_with(".localhost")
            }
            None => false,
        }
    }

    /// Whether both have the same scheme, host and port, so that they may share a secret.
    pub(super) fn has_same_origin(&self, other: &Address) -> bool {
        self.0.origin() == other.0.origin()
    }

    /// The target of a redirect: `location` is the `Location` header of the response. A redirect
    /// must not drop the encryption, nor lead from another machine to this one.
    pub(super) fn follow(&self, location: &[u8]) -> Result<Self> {
        // Bytes beyond ASCII are encoded one by one, whatever their character set (like in curl).
        let mut text = String::new();
        for byte in location {
            if byte.is_ascii() {
                text.push(char::from(*byte));
            } else {
                text += &format!("%{byte:02X}");
            }
        }
        let bad = |why: &str| {
            Problem::new(
                Code::FetchRedirect,
                format!("`{}` {why}", without_secrets(&text)),
            )
        };
        let next = match self.0.join(&text) {
            Ok(next) => next,
            Err(error) => return Err(bad("is no address").because(&error)),
        };
        if self.0.scheme() == "https" && next.scheme() != "https" {
            return Err(bad(
                "is not encrypted, as the address was that redirects there",
            ));
        }
        let next = Address::parse(next.as_str())?;
        if next.is_loopback() && !self.is_loopback() {
            return Err(bad("is an address of this machine"));
        }
        Ok(next)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.clone();
        // Both succeed for an address with a host.
        let _ = (shown.set_username(""), shown.set_password(None));
        if self.0.query().is_some() {
            shown.set_query(Some("***"));
        }
        // Hides secrets in the path.
        let path = without_secrets(shown.as_str());
        if self.0.username().is_empty() && self.0.password().is_none() {
            f.write_str(&path)
        } else {
            f.write_str(&path.replacen("://", "://***@", 1))
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

/// Percent-encodes all but unreserved characters and those in `keep`.
pub(super) fn percent_encode(text: &str, keep: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        let is_plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if is_plain || keep.as_bytes().contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded += &format!("%{byte:02X}");
        }
    }
    encoded
}

/// `text` with each `%XX` replaced by its byte; `None` if the result is not UTF-8.
pub(super) fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = vec![];
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%'
            && let Some((digits, after)) = after.split_at_checked(2)
            && let Some(byte) = hex_byte(digits)
        {
            bytes.push(byte);
            rest = after;
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

fn hex_byte(digits: &[u8]) -> Option<u8> {
    // `from_str_radix` accepts a sign.
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// What follows `prefix`, ignoring the case of the prefix.
pub(super) fn without_prefix<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved() {
        let base = Address::parse("https://a.example/x/y?q").unwrap();
        let cases: [(&[u8], &str); 10] = [
            (b"https://b.example/z", "https://b.example/z"),
            (b"//b.example/z", "https://b.example/z"),
            (b"/z?a=b#c", "https://a.example/z?a=b#c"),
            (b"z", "https://a.example/x/z"),
            (b"../z", "https://a.example/z"),
            (b"./z/./w", "https://a.example/x/z/w"),
            (b"?a=b", "https://a.example/x/y?a=b"),
            (b" /a b ", "https://a.example/a%20b"),
            ("/ü".as_bytes(), "https://a.example/%C3%BC"),
            (b"/mod\xe8le", "https://a.example/mod%E8le"),
        ];
        for (location, expected) in cases {
            assert_eq!(base.follow(location).unwrap().with_secrets(), expected);
        }
        for location in [
            "http://a.example/z",
            "file:///etc/passwd",
            "https://127.0.0.1/z",
            "https://[::1]/",
            "https://localhost/",
            "https://localhost./",
            "https://0.0.0.0/",
            "https://[::]/",
        ] {
            assert!(base.follow(location.as_bytes()).is_err(), "{location}");
        }
        let here = Address::parse("http://127.0.0.1:8080/x").unwrap();
        assert!(here.follow(b"http://localhost:9090/y").is_ok());
    }

    #[test]
    fn percent_encoding_is_decoded_once() {
        for (text, expected) in [
            ("a%2Fb", Some("a/b")),
            ("%C3%BC%252f", Some("ü%2f")),
            ("100%.gguf %+1 %zz%", Some("100%.gguf %+1 %zz%")),
            ("%ff", None),
        ] {
            assert_eq!(percent_decode(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn an_address_shows_no_secrets() {
        let address = Address::parse("https://me:secret@a.example/b?sig=secret").unwrap();
        assert_eq!(
            address.with_secrets(),
            "https://me:secret@a.example/b?sig=secret"
        );
        assert_eq!(address.to_string(), "https://***@a.example/b?***");
        let address = Address::parse("https://a.example/b;token=secret").unwrap();
        assert_eq!(address.to_string(), "https://a.example/b;***");
        for text in [
            "https:me:secret@a.example/b?sig=secret",
            "https:/me:secret@a.example",
            "https://me:sec\tret@a.example",
        ] {
            let problem = Address::parse(text).unwrap_err();
            assert!(!format!("{problem:?}").contains("secret"), "{problem:?}");
        }
        let problem = Address::parse("http://me:secret@a.example/b").unwrap_err();
        assert!(!format!("{problem:?}").contains("secret"), "{problem:?}");
    }
}
