//! Whether a connection failed for want of trust.

/// Whether encryption failed because one side does not trust the other. What fails in a handshake
/// comes inside of an I/O error.
pub(super) fn is_distrust(error: &ureq::Error) -> bool {
    let inner = match error {
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) => return true,
        ureq::Error::Io(error) => error.get_ref(),
        _ => None,
    };
    matches!(
        inner.and_then(|inner| inner.downcast_ref()),
        Some(
            rustls::Error::InvalidCertificate(_)
                | rustls::Error::InvalidCertRevocationList(_)
                | rustls::Error::NoCertificatesPresented
                | rustls::Error::UnsupportedNameType
        )
    )
}

#[cfg(test)]
mod tests {
    use std::io;

    use rustls::CertificateError;

    use super::*;

    #[test]
    fn a_bad_certificate_is_no_broken_line() {
        let io = |error: rustls::Error| {
            is_distrust(&ureq::Error::Io(io::Error::new(
                io::ErrorKind::InvalidData,
                error,
            )))
        };
        assert!(io(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer
        )));
        assert!(io(rustls::Error::NoCertificatesPresented));
        assert!(is_distrust(&ureq::Error::Tls("invalid name")));
        // No encryption at all behind that port.
        assert!(!io(rustls::Error::DecryptError));
        let text = io::Error::new(io::ErrorKind::InvalidData, "certificate");
        assert!(!is_distrust(&ureq::Error::Io(text)));
        assert!(!is_distrust(&ureq::Error::HostNotFound));
    }
}
