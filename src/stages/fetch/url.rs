//! Web addresses, read as browsers and curl read them (<https://url.spec.whatwg.org>).

use std::fmt;

use url::{Host, Url};

use crate::base::{Code, Problem, Result, without_secrets};

/// An address that may be asked: `https`, or `http` on this very machine. Shown without password
/// and query.
#[derive(Clone, PartialEq)]
pub(super) struct Address(Url);

impl Address {
    /// Reads `text`.
    pub(super) fn parse(text: &str) -> Result<Self> {
        // In quotes: what is no address may hide its query behind a blank.
        let shown = format!("`{text}`");
        let bad =
            |why: &str| Problem::new(Code::PlanUrl, format!("{} {why}", without_secrets(&shown)));
        // Other spellings are read by browsers alone, and hide what is secret in them.
        let rest = without_prefix(text, "https://").or_else(|| without_prefix(text, "http://"));
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

    /// All of it, for nobody but the server.
    pub(super) fn whole(&self) -> &str {
        self.0.as_str()
    }

    /// The host's name or number.
    pub(super) fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }

    /// The path, percent-encoded.
    pub(super) fn path(&self) -> &str {
        self.0.path()
    }

    /// Whether its path is the end of it: a query or a fragment follows none.
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

    /// Whether a secret for one may be told to the other.
    pub(super) fn is_at_home_with(&self, other: &Address) -> bool {
        self.0.origin() == other.0.origin()
    }

    /// Where a `Location` header seen here leads. It must not drop the encryption, nor lead from
    /// elsewhere into this machine.
    pub(super) fn follow(&self, location: &[u8]) -> Result<Self> {
        // Bytes beyond ASCII as they are, in whatever encoding (curl does so too).
        let encoded = |byte: &u8| {
            if byte.is_ascii() {
                char::from(*byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        };
        let text: String = location.iter().map(encoded).collect();
        let bad = |why: &str| {
            Problem::new(
                Code::FetchRedirect,
                format!("`{}` {why}", without_secrets(&text)),
            )
        };
        let next = self
            .0
            .join(&text)
            .map_err(|error| bad("is no address").because(&error))?;
        if self.0.scheme() == "https" && next.scheme() != "https" {
            return Err(bad(
                "is not encrypted, as the address was that redirects there",
            ));
        }
        let next = Address::parse(next.as_str())?;
        if next.is_loopback() && !self.is_loopback() {
            return Err(bad("is an address of this very machine"));
        }
        Ok(next)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.clone();
        // An address with a host takes both.
        let _ = (shown.set_username(""), shown.set_password(None));
        shown.set_query(self.0.query().map(|_| "***"));
        // What else is secret in it stands in its path.
        let path = without_secrets(shown.as_str());
        match self.0.username().is_empty() && self.0.password().is_none() {
            true => f.write_str(&path),
            false => f.write_str(&path.replacen("://", "://***@", 1)),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

/// Percent-encodes all but unreserved characters and those in `keep`.
pub(super) fn escaped(text: &str, keep: &str) -> String {
    let plain = |byte: u8| {
        byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep.as_bytes().contains(&byte)
    };
    text.bytes()
        .map(|byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

/// `text` with each `%XX` turned into its byte; `None` if that is no text.
pub(super) fn unescaped(text: &str) -> Option<String> {
    let mut bytes = vec![];
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|_| *first == b'%');
        let byte = digits.and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 16)
                .ok()
                .filter(|_| !digits.starts_with('+'))
        });
        bytes.push(byte.unwrap_or(*first));
        rest = &after[if byte.is_some() { 2 } else { 0 }..];
    }
    String::from_utf8(bytes).ok()
}

/// What follows `prefix`, in whatever case that is written.
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
            assert_eq!(base.follow(location).unwrap().whole(), expected);
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
    fn what_is_escaped_is_read_once() {
        for (text, expected) in [
            ("a%2Fb", Some("a/b")),
            ("%C3%BC%252f", Some("ü%2f")),
            ("100%.gguf %+1 %zz%", Some("100%.gguf %+1 %zz%")),
            ("%ff", None),
        ] {
            assert_eq!(unescaped(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn an_address_shows_no_secrets() {
        let address = Address::parse("https://me:secret@a.example/b?sig=secret").unwrap();
        assert_eq!(address.whole(), "https://me:secret@a.example/b?sig=secret");
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
