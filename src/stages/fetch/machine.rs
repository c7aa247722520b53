//! What the machine tells `fetch`, read in one place.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Proxies;

/// Settings of the machine. Not part of any key: they say how to reach a file, never which.
#[derive(Clone)]
pub struct Machine {
    /// Where the Hugging Face Hub is: `HF_ENDPOINT`.
    pub hf_endpoint: String,
    /// What is shown to it, and to nobody else: `HF_TOKEN`.
    pub hf_token: Option<String>,
    /// The certificates to trust, as PEM: a file, or a folder of them. `CURL_CA_BUNDLE`,
    /// `SSL_CERT_FILE`, `SSL_CERT_DIR`, `REQUESTS_CA_BUNDLE`, or where this system keeps them.
    pub certificates: Option<PathBuf>,
    /// The way to the world outside.
    pub proxies: Proxies,
    /// The Python that has pip: `python3`.
    pub python: PathBuf,
    /// The pause before the second attempt; it doubles with each further one.
    pub first_pause: Duration,
}

/// What names certificates, by precedence.
const CERTIFICATES: [&str; 4] = [
    "CURL_CA_BUNDLE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
];

/// Debian, Fedora, SUSE, Alpine.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

impl Machine {
    /// This machine.
    pub fn this() -> Self {
        let set = |name: &str| {
            let value = env::var(name).ok()?.trim().to_string();
            (!value.is_empty()).then_some(value)
        };
        let bundle = || {
            BUNDLES
                .iter()
                .copied()
                .find(|path| Path::new(path).is_file())
                .map(String::from)
        };
        Machine {
            hf_endpoint: set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            hf_token: set("HF_TOKEN"),
            certificates: CERTIFICATES
                .iter()
                .find_map(|name| set(name))
                .or_else(bundle)
                .map(PathBuf::from),
            proxies: Proxies::of(set),
            python: "python3".into(),
            first_pause: Duration::from_millis(500),
        }
    }
}
