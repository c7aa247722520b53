//! The proxy of an address, read from the environment as curl does (<https://curl.se/docs/manpage.html>, "ENVIRONMENT"; there is
//! none for this machine itself).

use std::net::IpAddr;

use ureq::Proxy;

use super::url::Address;
use crate::base::{Code, Problem, Result, without_secrets};

/// What the environment says of proxies.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Proxies {
    /// The variable that names the proxy, and its value.
    proxy: Option<(&'static str, String)>,
    /// Hosts that are asked without it.
    direct: String,
}

/// By their precedence.
const NAMES: [&str; 4] = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
const DIRECT: [&str; 2] = ["no_proxy", "NO_PROXY"];
/// The port of a proxy that names none.
const PORT: u16 = 1080;

impl Proxies {
    /// Reads `set`, the variables that are set and not empty.
    pub(super) fn of(set: impl Fn(&str) -> Option<String>) -> Self {
        let proxy = NAMES.iter().find_map(|name| Some((*name, set(name)?)));
        Proxies {
            proxy,
            direct: DIRECT.iter().find_map(|name| set(name)).unwrap_or_default(),
        }
    }

    /// The proxy by which `address` is asked, if by any.
    pub(super) fn of_address(&self, address: &Address) -> Result<Option<Proxy>> {
        match &self.proxy {
            Some((name, proxy))
                if !address.is_loopback() && !is_listed(&self.direct, address.host()) =>
            {
                read(name, proxy).map(Some)
            }
            _ => Ok(None),
        }
    }
}

fn read(name: &str, text: &str) -> Result<Proxy> {
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    let address = format!("{scheme}://{rest}");
    let shown = without_secrets(&address);
    let bad = |why: &str| {
        Problem::new(Code::FetchProxy, format!("{name}=`{shown}` {why}")).help(
            "a proxy is [SCHEME://][USER:PASSWORD@]HOST[:PORT], with http, https, socks4, \
             socks4a, socks5 or socks5h",
        )
    };
    let scheme = match scheme.to_ascii_lowercase().as_str() {
        "socks" => "socks4".into(),
        scheme => scheme.to_string(),
    };
    if !["http", "https", "socks4", "socks4a", "socks5", "socks5h"].contains(&scheme.as_str()) {
        return Err(bad("is no kind of proxy that kiln can use"));
    }
    let rest = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = rest.rsplit('@').next().unwrap_or_default();
    if host.split(':').next().is_none_or(str::is_empty) {
        return Err(bad("names no host"));
    }
    let named = host
        .rsplit_once(':')
        .map(|(_, port)| port)
        .filter(|port| !port.contains(']'));
    if named.is_some_and(|port| port.parse::<u16>().is_err()) {
        return Err(bad("has no number as its port"));
    }
    let has_port = named.is_some();
    let port = if has_port || scheme == "https" {
        String::new()
    } else {
        format!(":{PORT}")
    };
    Proxy::new(&format!("{scheme}://{rest}{port}"))
        .map_err(|error| bad("cannot be understood").because(&error))
}

/// Whether `host` is on the `list` of NO_PROXY: `*`, names with all that end in them, addresses and
/// their networks.
fn is_listed(list: &str, host: &str) -> bool {
    let host = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .trim_end_matches('.')
        .to_ascii_lowercase();
    let address: Option<IpAddr> = host.parse().ok();
    let is_it = |entry: &str| {
        let entry = entry
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_ascii_lowercase();
        match address {
            Some(address) => is_in_network(address, &entry),
            None => {
                let domain = entry.trim_start_matches('.').trim_end_matches('.');
                host == domain || (!domain.is_empty() && host.ends_with(&format!(".{domain}")))
            }
        }
    };
    list.trim() == "*"
        || list
            .split(|c: char| c == ',' || c.is_whitespace())
            .filter(|entry| !entry.is_empty())
            .any(is_it)
}

/// Whether `address` is `network`, or in it where that ends in `/BITS`.
fn is_in_network(address: IpAddr, network: &str) -> bool {
    let (network, bits) = match network.split_once('/') {
        Some((network, bits)) => (network, bits.parse().ok()),
        None => (network, Some(128)),
    };
    let (Ok(network), Some(bits)) = (network.parse::<IpAddr>(), bits) else {
        return false;
    };
    let same = |a: u128, b: u128, width: u32| {
        let bits: u32 = std::cmp::min(bits, width);
        bits == 0 || (a ^ b) >> (width - bits) == 0
    };
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(a.to_bits().into(), b.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use ureq::ProxyProtocol;

    use super::*;

    fn proxy(set: &[(&str, &str)], url: &str) -> Result<Option<(ProxyProtocol, String)>> {
        let value = |name: &str| {
            set.iter()
                .find(|(set, _)| *set == name)
                .map(|(_, value)| value.to_string())
        };
        let proxy = Proxies::of(value).of_address(&Address::parse(url).unwrap())?;
        Ok(proxy.map(|proxy| {
            (
                proxy.protocol(),
                format!("{}:{}", proxy.host(), proxy.port()),
            )
        }))
    }

    #[test]
    fn the_environment_is_read_as_curl_reads_it() {
        let hub = "https://hub.corp.test/clay";
        let (http, socks) = ("http://127.0.0.1:8080", "socks5h://127.0.0.1:9050");
        for (set, expected) in [
            (&[][..], None),
            (&[("HTTP_PROXY", http)], None),
            (
                &[("HTTPS_PROXY", http)],
                Some((ProxyProtocol::Http, "127.0.0.1:8080")),
            ),
            (
                &[("ALL_PROXY", socks), ("HTTPS_PROXY", http)],
                Some((ProxyProtocol::Http, "127.0.0.1:8080")),
            ),
            (
                &[("HTTPS_PROXY", socks), ("https_proxy", http)],
                Some((ProxyProtocol::Http, "127.0.0.1:8080")),
            ),
            (
                &[("ALL_PROXY", socks)],
                Some((ProxyProtocol::Socks5h, "127.0.0.1:9050")),
            ),
            (
                &[("all_proxy", "proxy.corp.test")],
                Some((ProxyProtocol::Http, "proxy.corp.test:1080")),
            ),
        ] {
            let expected =
                expected.map(|(protocol, place): (_, &str)| (protocol, place.to_string()));
            assert_eq!(proxy(set, hub).unwrap(), expected, "{set:?}");
        }
        assert_eq!(
            proxy(&[("HTTPS_PROXY", http)], "http://127.0.0.1:1/clay").unwrap(),
            None
        );
    }

    #[test]
    fn some_hosts_are_asked_directly() {
        for (list, host, is_direct) in [
            ("*", "a.test", true),
            ("corp.test", "hub.corp.test", true),
            (".corp.test", "hub.corp.test", true),
            (".corp.test", "corp.test", true),
            ("localhost, HUB.corp.test", "hub.corp.test", true),
            ("orp.test", "hub.corp.test", false),
            ("hub.corp.test:443", "hub.corp.test", false),
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.0.0.0/8", "11.1.2.3", false),
            ("10.1.2.3", "10.1.2.3", true),
            ("[fd00::]/8", "[fd12::1]", false),
            ("fd00::/8", "[fd12::1]", true),
            ("0/8", "10.1.2.3", false),
            (" , ,", "a.test", false),
        ] {
            assert_eq!(is_listed(list, host), is_direct, "{list} {host}");
        }
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_named() {
        for text in [
            "ftp://me:secret@a.test",
            "http://",
            "socks5://me:secret@:1",
            "me:secret@a.test:80a",
        ] {
            let problem = proxy(&[("HTTPS_PROXY", text)], "https://a.test/b").unwrap_err();
            assert!(problem.message.starts_with("HTTPS_PROXY="), "{problem}");
            assert!(!format!("{problem:?}").contains("secret"), "{problem:?}");
        }
    }
}
