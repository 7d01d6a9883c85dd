//! TLS errors: the certificate at fault, and the reason.
//!
//! The library's error is nested inside of the outermost one, and its kind decides the advice to the user. Nothing is
//! connected here.

use rustls::{AlertDescription, CertificateError, InvalidMessage};

/// The reason of a TLS error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsTrouble {
    /// The server's certificate is not valid now.
    Expired,
    /// The server's certificate is for another name.
    OtherName,
    /// The server requires a client certificate, or another one than it got.
    ClientCertificate,
    /// The server speaks no TLS on this port.
    NoTls,
    /// Any other reason: an untrusted signer.
    Other,
}

impl TlsTrouble {
    /// Classifies an error.
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
            Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => TlsTrouble::NoTls,
            Some(rustls::Error::AlertReceived(alert)) if is_about_us(*alert) => TlsTrouble::ClientCertificate,
            _ => TlsTrouble::Other,
        }
    }
}

/// Whether an alert rejects or misses our client certificate. In TLS 1.3 it comes after the handshake.
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

/// The error of this type below `error`. An `io::Error` hides its inner error from `source()`, and may be nested.
pub(super) fn cause<'a, E: std::error::Error + 'static>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a E> {
    let held = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    error
        .downcast_ref::<E>()
        .or_else(|| held.and_then(|held| cause(held)))
        .or_else(|| error.source().and_then(cause))
}
