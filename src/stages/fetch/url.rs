//! The few things that `fetch` does to web addresses.

use std::net::IpAddr;

use ureq::http::Uri;

use crate::base::{Context, Problem, Result};

/// Reads an address that may be asked: `https`, or `http` on this very machine.
pub(super) fn checked(text: &str) -> Result<Uri> {
    let url: Uri = text.parse().context("kiln::plan::url", || format!("read the address `{text}`"))?;
    match (url.scheme_str(), url.host()) {
        (Some("https"), Some(host)) if !host.is_empty() => Ok(url),
        (Some("http"), Some(_)) if is_loopback(&url) => Ok(url),
        (Some("http"), Some(host)) => Err(Problem::new("kiln::plan::url", format!("`{text}` is not encrypted"))
            .help(format!("use https://; plain http is for this machine only, not for `{host}`"))),
        _ => Err(Problem::new("kiln::plan::url", format!("`{text}` is not an https address"))),
    }
}

/// Whether the host is this machine.
pub(super) fn is_loopback(url: &Uri) -> bool {
    let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether a secret for `a` may be told to `b`.
pub(super) fn same_host(a: &Uri, b: &Uri) -> bool {
    a.scheme() == b.scheme() && a.authority() == b.authority()
}

/// Where a `Location` header seen at `base` leads (RFC 3986, section 5.2, without its rare `..`: servers resolve it).
pub(super) fn join(base: &Uri, location: &str) -> Result<Uri> {
    let location = location.split('#').next().unwrap_or_default();
    let scheme = base.scheme_str().unwrap_or("https");
    let authority = base.authority().map_or("", |authority| authority.as_str());
    let text = if location.contains("://") {
        location.into()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    checked(&text)
}

/// Percent-encodes all but unreserved characters and those in `keep`.
pub(super) fn escaped(text: &str, keep: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep.as_bytes().contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved() {
        let base: Uri = "https://a.example/x/y?q".parse().unwrap();
        let cases = [
            ("https://b.example/z", "https://b.example/z"),
            ("//b.example/z", "https://b.example/z"),
            ("/z?a=b#c", "https://a.example/z?a=b"),
            ("z", "https://a.example/x/z"),
        ];
        for (location, expected) in cases {
            assert_eq!(join(&base, location).unwrap().to_string(), expected);
        }
        assert!(join(&base, "http://a.example/z").is_err(), "a redirect may not drop the encryption");
        assert!(join(&base, "file:///etc/passwd").is_err());
    }
}
