//! The settings of this machine that `fetch` uses, read from the environment.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Proxies;

/// Settings of the machine. They are not part of any key, since they do not choose the file.
#[derive(Clone)]
pub struct Machine {
    /// URL of the Hugging Face Hub: `HF_ENDPOINT`.
    pub hf_endpoint: String,
    /// Token that is sent to the hub only: `HF_TOKEN`.
    pub hf_token: Option<String>,
    /// The certificates to trust, as PEM: a file, or a folder of them. `CURL_CA_BUNDLE`,
    /// `SSL_CERT_FILE`, `SSL_CERT_DIR`, `REQUESTS_CA_BUNDLE`, or the system's bundle.
    pub certificates: Option<PathBuf>,
    /// The proxies of the environment.
    pub proxies: Proxies,
    /// The Python that has pip: `python3`.
    pub python: PathBuf,
    /// The pause before the second attempt; it doubles with each further one.
    pub first_pause: Duration,
}

/// Variables that name certificates, by precedence.
const CERTIFICATES: [&str; 4] = [
    "CURL_CA_BUNDLE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
];

/// Where systems keep their certificates: Debian, Fedora, SUSE, Alpine.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

impl Machine {
    /// Reads the settings from this process's environment.
    pub fn this() -> Self {
        Machine {
            hf_endpoint: variable("HF_ENDPOINT").unwrap_or("https://huggingface.co".into()),
            hf_token: variable("HF_TOKEN"),
            certificates: certificates(),
            proxies: Proxies::from_variables(variable),
            python: "python3".into(),
            first_pause: Duration::from_millis(500),
        }
    }
}

/// The value of the environment variable `name`, without white space around it; `None` if it is
/// empty.
fn variable(name: &str) -> Option<String> {
    let value = env::var(name).ok()?;
    let value = value.trim();
    if value.is_empty() {
        return None;
    }
    Some(value.to_string())
}

fn certificates() -> Option<PathBuf> {
    for name in CERTIFICATES {
        if let Some(path) = variable(name) {
            return Some(path.into());
        }
    }
    let bundle = BUNDLES.iter().find(|path| Path::new(path).is_file())?;
    Some(bundle.into())
}
