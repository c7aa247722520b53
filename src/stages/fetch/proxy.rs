//! The proxy of an address, read from the environment as curl does.
//!
//! See <https://curl.se/docs/manpage.html>, "ENVIRONMENT". Loopback addresses have no proxy.

use std::net::IpAddr;

use ureq::Proxy;

use super::url::Address;
use crate::base::{Code, Problem, Result, without_secrets};

/// The proxy settings of the environment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Proxies {
    /// The variable that names the proxy, and its value.
    proxy: Option<(&'static str, String)>,
    /// The list of hosts that are reached without it.
    no_proxy: String,
}

/// The variables, by precedence.
const PROXY: [&str; 4] = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
const NO_PROXY: [&str; 2] = ["no_proxy", "NO_PROXY"];
/// The default port of a proxy.
const PORT: u16 = 1080;

impl Proxies {
    /// Reads the settings by `value`, which returns the values of variables that are not empty.
    pub(super) fn from_variables(value: impl Fn(&str) -> Option<String>) -> Self {
        Proxies {
            proxy: PROXY.iter().find_map(|name| Some((*name, value(name)?))),
            no_proxy: NO_PROXY
                .iter()
                .find_map(|name| value(name))
                .unwrap_or_default(),
        }
    }

    /// The proxy for requests to `address`, if they need one.
    pub(super) fn of_address(&self, address: &Address) -> Result<Option<Proxy>> {
        let Some((name, proxy)) = &self.proxy else {
            return Ok(None);
        };
        if address.is_loopback() || is_listed(&self.no_proxy, address.host()) {
            return Ok(None);
        }
        Ok(Some(parse(name, proxy)?))
    }
}

/// Reads `text`, the value of the variable `name`.
fn parse(name: &str, text: &str) -> Result<Proxy> {
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
    if host.is_empty() || host.starts_with(':') {
        return Err(bad("names no host"));
    }
    let port = match host.rsplit_once(':') {
        // A colon of an IPv6 address in brackets.
        Some((_, port)) if port.contains(']') => None,
        Some((_, port)) => Some(port),
        None => None,
    };
    if let Some(port) = port
        && port.parse::<u16>().is_err()
    {
        return Err(bad("has no number as its port"));
    }
    let port = if port.is_some() || scheme == "https" {
        String::new()
    } else {
        format!(":{PORT}")
    };
    Proxy::new(&format!("{scheme}://{rest}{port}"))
        .map_err(|error| bad("cannot be understood").because(&error))
}

/// Whether `host` is on the `list` of NO_PROXY: `*`, domains, addresses, and networks as
/// `ADDRESS/BITS`.
fn is_listed(list: &str, host: &str) -> bool {
    if list.trim() == "*" {
        return true;
    }
    let host = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .trim_end_matches('.')
        .to_ascii_lowercase();
    let address: Option<IpAddr> = host.parse().ok();
    for entry in list.split(|c: char| c == ',' || c.is_whitespace()) {
        let entry = entry
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_ascii_lowercase();
        let matches = match address {
            Some(address) => is_in_network(address, &entry),
            None => is_in_domain(&host, &entry),
        };
        if matches {
            return true;
        }
    }
    false
}

/// Whether `host` is `domain`, or a name in it.
fn is_in_domain(host: &str, domain: &str) -> bool {
    let domain = domain.trim_start_matches('.').trim_end_matches('.');
    if domain.is_empty() {
        return false;
    }
    host == domain || host.ends_with(&format!(".{domain}"))
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
    let (difference, width): (u128, u32) = match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => ((a.to_bits() ^ b.to_bits()).into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits(), 128),
        _ => return false,
    };
    let bits = width.min(bits);
    bits == 0 || difference >> (width - bits) == 0
}

#[cfg(test)]
mod tests {
    use ureq::ProxyProtocol;

    use super::*;

    fn proxy(set: &[(&str, &str)], url: &str) -> Result<Option<(ProxyProtocol, String)>> {
        let value = |name: &str| {
            let (_, value) = set.iter().find(|(set, _)| *set == name)?;
            Some(value.to_string())
        };
        let address = Address::parse(url).unwrap();
        let Some(proxy) = Proxies::from_variables(value).of_address(&address)? else {
            return Ok(None);
        };
        let host = format!("{}:{}", proxy.host(), proxy.port());
        Ok(Some((proxy.protocol(), host)))
    }

    #[test]
    fn proxy_variables_are_read_as_in_curl() {
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
            let found = proxy(set, hub).unwrap();
            let found = found
                .as_ref()
                .map(|(protocol, host)| (*protocol, host.as_str()));
            assert_eq!(found, expected, "{set:?}");
        }
        assert_eq!(
            proxy(&[("HTTPS_PROXY", http)], "http://127.0.0.1:1/clay").unwrap(),
            None
        );
    }

    #[test]
    fn no_proxy_matches_domains_addresses_and_networks() {
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
    fn errors_name_the_variable_and_hide_the_password() {
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
