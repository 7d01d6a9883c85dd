//! TLS errors: which of the two certificates is meant.
//!
//! Connects to nothing. The idea: an error of a library lies somewhere below the one that comes out, and its kind decides what a
//! person can do about it.

use rustls::{AlertDescription, CertificateError};

/// The certificate that a TLS error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsTrouble {
    /// The server's certificate is not valid now.
    Expired,
    /// It is for another name.
    OtherName,
    /// It wants a certificate of ours, or another than the one it was shown.
    ClientCertificate,
    /// Anything else: a signer that is not trusted, or no TLS at all.
    Other,
}

impl TlsTrouble {
    /// What an error is about.
    pub(super) fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        match cause::<rustls::Error>(error) {
            Some(rustls::Error::InvalidCertificate(invalid)) => match invalid {
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => TlsTrouble::Expired,
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    TlsTrouble::OtherName
                }
                _ => TlsTrouble::Other,
            },
            Some(rustls::Error::AlertReceived(alert)) if is_about_us(*alert) => TlsTrouble::ClientCertificate,
            _ => TlsTrouble::Other,
        }
    }
}

/// Whether an alert says that our certificate is missing or will not do. It comes after the handshake in TLS 1.3.
fn is_about_us(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
    )
}

/// The error of this type below `error`. An `io::Error` hides the error it holds from `source()`, and one may hold another.
pub(super) fn cause<'a, E: std::error::Error + 'static>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a E> {
    let held = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    error
        .downcast_ref::<E>()
        .or_else(|| held.and_then(|held| cause(held)))
        .or_else(|| error.source().and_then(cause))
}
