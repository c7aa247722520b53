//! What the machine tells `fetch`, read in one place.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Settings of the machine. Not part of any key: they say how to reach a file, never which.
#[derive(Clone)]
pub struct Machine {
    /// Where the Hugging Face Hub is: `HF_ENDPOINT`.
    pub hf_endpoint: String,
    /// What is shown to it, and to nobody else: `HF_TOKEN`.
    pub hf_token: Option<String>,
    /// The certificates to trust, as PEM: `SSL_CERT_FILE`, `REQUESTS_CA_BUNDLE`, or where this system keeps them.
    pub certificates: Option<PathBuf>,
    /// The Python that has pip: `python3`.
    pub python: PathBuf,
    /// The pause before the second attempt; it doubles with each further one.
    pub first_pause: Duration,
}

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
        let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let bundle = || BUNDLES.iter().copied().find(|path| Path::new(path).is_file()).map(String::from);
        Machine {
            hf_endpoint: set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            hf_token: set("HF_TOKEN"),
            certificates: set("SSL_CERT_FILE").or_else(|| set("REQUESTS_CA_BUNDLE")).or_else(bundle).map(PathBuf::from),
            python: "python3".into(),
            first_pause: Duration::from_millis(500),
        }
    }
}
