//! Errors of the registry client, with the party at fault.
//!
//! Messages hold hosts, ranges, digests and statuses, but no secrets and no queries of URLs. Errors are cheap to
//! clone, because one failed token request fails all reads that waited for it.

use std::sync::Arc;
use std::time::Duration;

use super::tls_trouble::TlsTrouble;
use crate::io::{FaultClass, ReadError};
use crate::oci::{Digest, OciError};

/// The words before the name of a proxy in an error.
pub(super) const THROUGH_PROXY: &str = "through proxy";

/// A failed request to a registry, or a failure before it.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The manifest, blob, tag or repository does not exist.
    #[error("registry {host} has no {what}{message}")]
    NotFound {
        /// The host that answered.
        host: String,
        /// The subject of the request.
        what: String,
        /// The registry's own words, with their separator.
        message: String,
    },
    /// Access was refused after authentication, or there was no credential.
    #[error("registry {host} refused {what} with status {status}{message}")]
    Denied {
        /// The host that answered.
        host: String,
        /// The subject of the request.
        what: String,
        /// 401 or 403, or 405 for a push to a registry that accepts none.
        status: u16,
        /// The registry's own words, and ours about the credential, with their separators.
        message: String,
    },
    /// The token server refused.
    #[error("token server {host} refused a token for {scope} with status {status}{message}")]
    TokenDenied {
        /// The host of the token server.
        host: String,
        /// The scope of the token.
        scope: String,
        /// 400, 401 or 403.
        status: u16,
        /// The server's own words, with their separator.
        message: String,
    },
    /// A status that is neither success nor one of the above.
    #[error("registry {host} answered {what} with status {status}{message}")]
    Status {
        /// The host that answered.
        host: String,
        /// The subject of the request.
        what: String,
        /// The status as received.
        status: u16,
        /// The registry's own words, with their separator.
        message: String,
        /// The wait that the registry asks for (`Retry-After`); `None` without one.
        retry_after: Option<Duration>,
    },
    /// No connection, or a broken one.
    #[error("connection to {host} failed for {what}")]
    Unreachable {
        /// The host that did not answer.
        host: String,
        /// The subject of the request.
        what: String,
        /// Whether the connection could not be established.
        connecting: bool,
        /// The error of the connection.
        source: Arc<reqwest::Error>,
    },
    /// The host speaks no TLS, or its certificate is not trusted.
    #[error("no secure connection to {host}")]
    Insecure {
        /// The host.
        host: String,
        /// The error of TLS.
        source: Arc<reqwest::Error>,
    },
    /// No byte arrived within the time limit.
    #[error("nothing arrived from {host} for {what} in {} ms", waited.as_millis())]
    Stalled {
        /// The silent host.
        host: String,
        /// The subject of the request.
        what: String,
        /// The time limit.
        waited: Duration,
    },
    /// All permits of the host were in use for too long.
    #[error("no free connection to {host} for {what} in {} ms", waited.as_millis())]
    Busy {
        /// The busy host.
        host: String,
        /// The subject of the request.
        what: String,
        /// The time limit.
        waited: Duration,
    },
    /// The host asked for a pause (`Retry-After`) that ends after the time limit; nothing was sent.
    #[error("{host} asked for a pause that is longer than the {} ms left for {what}", waited.as_millis())]
    Paused {
        /// The host.
        host: String,
        /// The subject of the request.
        what: String,
        /// The time that was left.
        waited: Duration,
    },
    /// All tries failed.
    #[error("gave up after {tries} tries in {} ms", elapsed.as_millis())]
    Exhausted {
        /// The number of tries.
        tries: u32,
        /// The time since the first try.
        elapsed: Duration,
        /// The last failure.
        source: Box<RegistryError>,
    },
    /// The host speaks HTTP, but not as a registry.
    #[error("{host} does not seem to be an OCI registry: it answered {what} with {reason}")]
    NotRegistry {
        /// The host that answered.
        host: String,
        /// The subject of the request.
        what: String,
        /// The unexpected answer.
        reason: String,
    },
    /// A token server answers, and gives no token.
    #[error("token server {host} answered {what} without a token")]
    NoToken {
        /// Host of the token realm.
        host: String,
        /// Token that was asked for.
        what: String,
    },
    /// A response that violates the protocol.
    #[error("registry {host} answered {what} with {reason}")]
    Protocol {
        /// The host that answered.
        host: String,
        /// The subject of the request.
        what: String,
        /// The violation.
        reason: String,
    },
    /// The host expects HTTPS, and the request was HTTP.
    #[error("{host} expects https and got an http request")]
    SpeaksTls {
        /// The host.
        host: String,
    },
    /// A proxy refused the connection.
    #[error("proxy {proxy} refused a connection to {host}: {reason}")]
    Proxy {
        /// The destination host.
        host: String,
        /// The proxy, and the variable that names it.
        proxy: String,
        /// The status of the proxy's answer; `None` without an answer.
        status: Option<u16>,
        /// The proxy's answer.
        reason: String,
    },
    /// A response that leads to a forbidden address: a retry would lead there again.
    #[error("registry {host} answered {what} with {reason}")]
    Misled {
        /// The host that answered.
        host: String,
        /// The subject of the request.
        what: String,
        /// The address, and why it is forbidden.
        reason: String,
    },
    /// Too many redirects. A retry would follow them again.
    #[error("registry {host} answered {what} with more than {most} redirects")]
    Redirects {
        /// The host of the last redirect.
        host: String,
        /// The subject of the request.
        what: String,
        /// The limit.
        most: u32,
    },
    /// The registry reports a blob shorter than its descriptor (416, RFC 9110 section 15.5.17).
    #[error(
        "registry {host} answered {what} with status 416: it has {actual} bytes, the descriptor states {expected}"
    )]
    SizeConflict {
        /// The host that answered.
        host: String,
        /// The subject of the request.
        what: String,
        /// The size in the descriptor.
        expected: u64,
        /// The size in `Content-Range`, or "an unknown number of".
        actual: String,
    },
    /// A web file has changed since the first request.
    #[error("{host} has another version of {what} than at its first read")]
    Changed {
        /// The host.
        host: String,
        /// The address of the file.
        what: String,
    },
    /// A document larger than the limit.
    #[error("{what} of registry {host} has {size} bytes, the limit is {limit}")]
    TooLarge {
        /// The host.
        host: String,
        /// The document.
        what: String,
        /// Its size, or "more".
        size: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// Bytes that do not hash to their digest.
    #[error("{what} of registry {host}: expected {expected}, got {actual}")]
    Mismatch {
        /// The host.
        host: String,
        /// The hashed content.
        what: String,
        /// The expected digest.
        expected: Digest,
        /// The actual digest.
        actual: Digest,
    },
    /// A document that its `Docker-Content-Digest` header contradicts.
    #[error(
        "registry {host} sent {what} with digest {actual}, and {stated} in its Docker-Content-Digest header"
    )]
    HeaderConflict {
        /// The host that answered.
        host: String,
        /// The subject of the request.
        what: String,
        /// The digest in the header.
        stated: Digest,
        /// The digest of the bytes.
        actual: Digest,
    },
    /// A descriptor or digest that is malformed or unsupported.
    #[error("{what} of registry {host}")]
    Document {
        /// The host.
        host: String,
        /// The document.
        what: String,
        /// The reason.
        source: OciError,
    },
    /// A file or variable with credentials is unreadable or malformed.
    #[error("credentials in {place}: {reason}")]
    Credentials {
        /// The file or variable.
        place: String,
        /// The reason, without any content.
        reason: String,
    },
    /// A credential helper failed.
    #[error("credential helper {program}, named in {place}: {reason}")]
    Helper {
        /// The program.
        program: String,
        /// The file that names it.
        place: String,
        /// The reason.
        reason: String,
    },
    /// A file or directory of the configuration is missing or invalid.
    #[error("configuration {place}: {reason}")]
    Config {
        /// The file, with the line if known.
        place: String,
        /// The reason.
        reason: String,
    },
    /// The configuration blocks a registry or repository.
    #[error("{name} is blocked by {place}")]
    Blocked {
        /// The blocked name.
        name: String,
        /// The file and line.
        place: String,
    },
    /// A name that forms no URL.
    #[error("{what} of {host} has no valid address: {reason}")]
    Address {
        /// The host as written.
        host: String,
        /// The subject of the request.
        what: String,
        /// The reason.
        reason: String,
    },
    /// A range outside of the blob.
    #[error("range {range} of {what} is empty or passes the end at {size}")]
    Range {
        /// The requested range.
        range: String,
        /// The blob.
        what: String,
        /// Its size in bytes.
        size: u64,
    },
    /// HTTP could not be set up on this machine.
    #[error("http client cannot be set up")]
    Setup {
        /// The error of the HTTP client.
        source: Arc<reqwest::Error>,
    },
}

impl RegistryError {
    /// The party at fault.
    pub fn fault(&self) -> FaultClass {
        match self {
            RegistryError::NotFound { .. } => FaultClass::NotFound,
            // The administrator of the machine refuses, as a registry might: the command itself is right.
            RegistryError::Denied { .. }
            | RegistryError::TokenDenied { .. }
            | RegistryError::Blocked { .. } => FaultClass::Denied,
            RegistryError::Status { status, .. } if is_passing(*status) || *status >= 500 => {
                FaultClass::Unavailable
            }
            RegistryError::Unreachable { .. }
            | RegistryError::Stalled { .. }
            | RegistryError::Proxy { .. }
            | RegistryError::Paused { .. }
            | RegistryError::Busy { .. } => FaultClass::Unavailable,
            RegistryError::Exhausted { source, .. } => source.fault(),
            RegistryError::Status { .. }
            | RegistryError::Insecure { .. }
            | RegistryError::NotRegistry { .. }
            | RegistryError::NoToken { .. }
            | RegistryError::Protocol { .. }
            | RegistryError::Misled { .. }
            | RegistryError::SpeaksTls { .. }
            | RegistryError::Redirects { .. }
            | RegistryError::SizeConflict { .. } => FaultClass::Misbehaved,
            RegistryError::TooLarge { .. } => FaultClass::Unsupported,
            RegistryError::Mismatch { .. }
            | RegistryError::HeaderConflict { .. }
            | RegistryError::Changed { .. } => FaultClass::Mismatch,
            RegistryError::Document { source, .. } => source.fault(),
            RegistryError::Credentials { .. }
            | RegistryError::Config { .. }
            | RegistryError::Address { .. }
            | RegistryError::Range { .. } => FaultClass::Usage,
            RegistryError::Helper { .. } | RegistryError::Setup { .. } => FaultClass::Io,
        }
    }

    /// The failure that ended the tries: the error itself if there was only one.
    pub fn last(&self) -> &Self {
        match self {
            RegistryError::Exhausted { source, .. } => source.last(),
            other => other,
        }
    }

    /// Whether the registry answered, and has no document to deliver. Some registries, asked for a manifest by the
    /// digest of a blob, find the blob and fail on it instead of answering 404.
    pub fn is_no_document(&self) -> bool {
        matches!(
            self.last(),
            RegistryError::NotFound { .. } | RegistryError::Status { .. } | RegistryError::NotRegistry { .. }
        )
    }

    /// Whether no registry answered: no host was reached, or only a proxy in front of it, which answered a temporary
    /// 5xx.
    pub fn is_unanswered(&self) -> bool {
        match self.last() {
            RegistryError::Unreachable { .. }
            | RegistryError::Stalled { .. }
            | RegistryError::Paused { .. }
            | RegistryError::Busy { .. } => true,
            RegistryError::Status { status, .. } => *status >= 500 && is_passing(*status),
            _ => false,
        }
    }

    /// Whether a connection ended without announcement: TLS without close_notify, for example.
    pub(super) fn is_unannounced_end(&self) -> bool {
        let RegistryError::Unreachable { connecting: false, source, .. } = self else { return false };
        let mut error: Option<&(dyn std::error::Error + 'static)> = Some(source.as_ref());
        while let Some(here) = error {
            let kind = here.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            if kind == Some(std::io::ErrorKind::UnexpectedEof) {
                return true;
            }
            error = here.source();
        }
        false
    }

    /// Whether a retry may help.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            RegistryError::Unreachable { .. }
            | RegistryError::Stalled { .. }
            | RegistryError::Protocol { .. } => true,
            RegistryError::Status { status, .. } => is_passing(*status),
            RegistryError::Proxy { status, .. } => status.is_none_or(is_passing),
            _ => false,
        }
    }

    /// The kind of TLS failure; `None` for another error.
    pub fn tls_trouble(&self) -> Option<TlsTrouble> {
        match self.last() {
            RegistryError::Insecure { source, .. } => Some(TlsTrouble::of(source)),
            _ => None,
        }
    }

    /// Whether the host answers, and its service fails.
    pub fn is_failing(&self) -> bool {
        matches!(self.last(), RegistryError::Status { .. }) && self.fault() == FaultClass::Unavailable
    }

    /// Whether the error names a proxy on the way of the request.
    pub fn is_through_proxy(&self) -> bool {
        match self.last() {
            RegistryError::Unreachable { host: text, .. }
            | RegistryError::Stalled { host: text, .. }
            | RegistryError::NoToken { host: text, .. }
            | RegistryError::NotRegistry { reason: text, .. }
            | RegistryError::Protocol { reason: text, .. }
            | RegistryError::NotFound { message: text, .. }
            | RegistryError::TokenDenied { message: text, .. }
            | RegistryError::Denied { message: text, .. }
            | RegistryError::Status { message: text, .. } => text.contains(THROUGH_PROXY),
            _ => false,
        }
    }

    /// Whether the registry limits the rate of requests (429).
    pub fn is_too_often(&self) -> bool {
        matches!(self.last(), RegistryError::Status { status: 429, .. })
    }

    /// Whether the failure concerns the host rather than the subject of the request, so that other requests would
    /// fail too.
    pub(super) fn is_about_the_host(&self) -> bool {
        match self {
            RegistryError::Insecure { .. }
            | RegistryError::SpeaksTls { .. }
            | RegistryError::Proxy { .. }
            | RegistryError::NotRegistry { .. }
            | RegistryError::NoToken { .. } => true,
            RegistryError::Status { status, .. } if *status >= 500 => true,
            RegistryError::Exhausted { source, .. } => source.is_about_the_host(),
            other => other.is_passing(),
        }
    }

    /// Whether the connection could not be established.
    pub(super) fn is_connecting(&self) -> bool {
        matches!(self, RegistryError::Unreachable { connecting: true, .. })
    }

    /// The wait that the registry asks for.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            RegistryError::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The error of a read of `subject`.
    pub fn of_read(self, subject: impl Into<String>) -> ReadError {
        ReadError::caused(self.fault(), subject, self)
    }
}

/// Temporary statuses: 408, 425, 429, and 5xx of servers and of proxies in front of them. Exceptions: 501 and 505
/// (unsupported by this server) and 511 (network login required).
fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500..=599) && !matches!(status, 501 | 505 | 511)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fault_of_an_exhausted_try_is_that_of_its_last_failure() {
        let last = RegistryError::Status {
            host: "r.example".into(),
            what: "range 0-9 of sha256:ab".into(),
            status: 503,
            message: String::new(),
            retry_after: None,
        };
        let error = RegistryError::Exhausted {
            tries: 5,
            elapsed: Duration::from_millis(1500),
            source: Box::new(last),
        };
        assert_eq!(error.fault(), FaultClass::Unavailable);
        assert_eq!(
            error.of_read("blob sha256:ab of r.example/a").chain(),
            "blob sha256:ab of r.example/a: gave up after 5 tries in 1500 ms: \
             registry r.example answered range 0-9 of sha256:ab with status 503"
        );
    }

    #[test]
    fn only_passing_statuses_are_tried_again() {
        for status in [408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524, 527, 529, 530] {
            assert!(is_passing(status), "{status}");
        }
        for status in [200, 301, 400, 404, 405, 416, 501, 505, 511, 600] {
            assert!(!is_passing(status), "{status}");
        }
    }
}
