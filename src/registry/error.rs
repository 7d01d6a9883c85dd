//! What can go wrong between ocifs and a registry, and who is wrong then.
//!
//! Messages hold hosts, ranges, digests and statuses, never a secret and never a URL's query. The idea: one enum whose
//! values are cheap to clone, because one failed token request answers all the reads that waited for it.

use std::sync::Arc;
use std::time::Duration;

use super::tls_trouble::TlsTrouble;
use crate::io::{Fault, ReadError};
use crate::oci::{Digest, OciError};

/// Why a registry did not give what was asked for.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// There is no such manifest, blob, tag or repository.
    #[error("registry {host} has no {what}{message}")]
    NotFound {
        /// Who answered.
        host: String,
        /// What was asked for.
        what: String,
        /// The registry's own words, with their separator.
        message: String,
    },
    /// Access was refused after authentication, or there was nothing to authenticate with.
    #[error("registry {host} refused {what} with status {status}{message}")]
    Denied {
        /// Who answered.
        host: String,
        /// What was asked for.
        what: String,
        /// 401 or 403, or 405 for a push to a registry that takes none.
        status: u16,
        /// The registry's own words, or ours when there was no credential, with their separator.
        message: String,
    },
    /// The host of the token realm refused.
    #[error("token server {host} refused a token for {scope} with status {status}{message}")]
    TokenDenied {
        /// Who answered.
        host: String,
        /// What the token was for.
        scope: String,
        /// 400, 401 or 403.
        status: u16,
        /// The server's own words, with their separator.
        message: String,
    },
    /// A status that is neither success nor one of the above.
    #[error("registry {host} answered {what} with status {status}{message}")]
    Status {
        /// Who answered.
        host: String,
        /// What was asked for.
        what: String,
        /// As sent.
        status: u16,
        /// The registry's own words, with their separator.
        message: String,
        /// When the registry wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// No connection, or one that broke.
    #[error("connection to {host} failed for {what}")]
    Unreachable {
        /// Who did not answer.
        host: String,
        /// What was asked for.
        what: String,
        /// Whether not even a connection came about.
        connecting: bool,
        /// What the connection says.
        source: Arc<reqwest::Error>,
    },
    /// The other end speaks no TLS, or its certificate is not trusted.
    #[error("no secure connection to {host}")]
    Insecure {
        /// Who was asked.
        host: String,
        /// What TLS says.
        source: Arc<reqwest::Error>,
    },
    /// Nothing arrived for too long.
    #[error("nothing arrived from {host} for {what} in {} ms", waited.as_millis())]
    Stalled {
        /// Who was silent.
        host: String,
        /// What was asked for.
        what: String,
        /// For how long.
        waited: Duration,
    },
    /// Too many requests of our own were under way for too long.
    #[error("no free connection to {host} for {what} in {} ms", waited.as_millis())]
    Busy {
        /// Who is asked so much.
        host: String,
        /// What was to be asked for.
        what: String,
        /// For how long.
        waited: Duration,
    },
    /// All tries failed.
    #[error("gave up after {tries} tries in {} ms", elapsed.as_millis())]
    Exhausted {
        /// How often it was asked.
        tries: u32,
        /// For how long.
        elapsed: Duration,
        /// The last failure.
        source: Box<RegistryError>,
    },
    /// The host answers HTTP, but not as a registry.
    #[error("{host} does not seem to be an OCI registry: it answered {what} with {reason}")]
    NotRegistry {
        /// Who answered.
        host: String,
        /// What was asked for.
        what: String,
        /// What came instead.
        reason: String,
    },
    /// An answer that the protocol does not allow.
    #[error("registry {host} answered {what} with {reason}")]
    Protocol {
        /// Who answered.
        host: String,
        /// What was asked for.
        what: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The other end speaks https, and was spoken to by http.
    #[error("{host} speaks https, and was spoken to by http")]
    SpeaksTls {
        /// Who was asked.
        host: String,
    },
    /// A proxy lets nothing through.
    #[error("proxy {proxy} gave no tunnel to {host}: {reason}")]
    Proxy {
        /// Who was to be reached.
        host: String,
        /// The proxy, and the variable that names it.
        proxy: String,
        /// The status of its answer, where there was one.
        status: Option<u16>,
        /// Its answer.
        reason: String,
    },
    /// An answer that leads where it may not: it would be the same at the next try.
    #[error("registry {host} answered {what} with {reason}")]
    Misled {
        /// Who answered.
        host: String,
        /// What was asked for.
        what: String,
        /// Where it leads, and why that is refused.
        reason: String,
    },
    /// A chain of redirects that did not end. Asking again would walk it again.
    #[error("registry {host} answered {what} with more than {most} redirects")]
    Redirects {
        /// Who redirected last.
        host: String,
        /// What was asked for.
        what: String,
        /// How many are followed.
        most: u32,
    },
    /// The registry says that the blob is shorter than its descriptor (416, RFC 9110 section 15.5.17).
    #[error(
        "registry {host} answered {what} with status 416: it has {actual} bytes, the descriptor says {expected}"
    )]
    SizeConflict {
        /// Who answered.
        host: String,
        /// What was asked for.
        what: String,
        /// The size in the descriptor.
        expected: u64,
        /// The size in `Content-Range`, or "an unknown number of".
        actual: String,
    },
    /// A file of the web that is another one than before.
    #[error("{host} has another version of {what} now than when it was first read")]
    Changed {
        /// Who has it.
        host: String,
        /// Its address.
        what: String,
    },
    /// A document past the limit.
    #[error("{what} of registry {host} has {size} bytes, the limit is {limit}")]
    TooLarge {
        /// Who has it.
        host: String,
        /// What it is.
        what: String,
        /// Its size, or "more".
        size: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// Bytes that do not hash to their name.
    #[error("{what} of registry {host}: expected {expected}, got {actual}")]
    Mismatch {
        /// Who sent them.
        host: String,
        /// What was hashed.
        what: String,
        /// The digest that names it.
        expected: Digest,
        /// The digest it has.
        actual: Digest,
    },
    /// A descriptor or digest that cannot be served.
    #[error("{what} of registry {host}")]
    Document {
        /// Who has it.
        host: String,
        /// What it is.
        what: String,
        /// What is wrong with it.
        source: OciError,
    },
    /// A file or variable with credentials is not readable as such.
    #[error("credentials in {place}: {reason}")]
    Credentials {
        /// The file or variable.
        place: String,
        /// What is wrong with it; never its content.
        reason: String,
    },
    /// A credential helper failed.
    #[error("credential helper {program}, named in {place}: {reason}")]
    Helper {
        /// The program.
        program: String,
        /// The file that names it.
        place: String,
        /// What happened.
        reason: String,
    },
    /// A file or directory of the configuration is not what it should be.
    #[error("configuration {place}: {reason}")]
    Config {
        /// The file, and the line where it is known.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The configuration forbids a registry or repository.
    #[error("{name} is blocked by {place}")]
    Blocked {
        /// What was asked for.
        name: String,
        /// The file and line.
        place: String,
    },
    /// A name that makes no URL.
    #[error("{what} of {host} makes no address: {reason}")]
    Address {
        /// The host as written.
        host: String,
        /// What was asked for.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// A range outside of the blob.
    #[error("range {range} of {what} is empty or passes the end at {size}")]
    Range {
        /// As asked.
        range: String,
        /// The blob.
        what: String,
        /// Its size.
        size: u64,
    },
    /// HTTP could not be set up on this machine.
    #[error("http client cannot be set up")]
    Setup {
        /// Why.
        source: Arc<reqwest::Error>,
    },
}

impl RegistryError {
    /// Who is wrong.
    pub fn fault(&self) -> Fault {
        match self {
            RegistryError::NotFound { .. } => Fault::NotFound,
            // Whoever administrates the machine refuses, as a registry might: nothing is wrong with the command.
            RegistryError::Denied { .. }
            | RegistryError::TokenDenied { .. }
            | RegistryError::Blocked { .. } => Fault::Denied,
            RegistryError::Status { status, .. } if is_passing(*status) || *status >= 500 => {
                Fault::Unavailable
            }
            RegistryError::Unreachable { .. }
            | RegistryError::Stalled { .. }
            | RegistryError::Proxy { .. }
            | RegistryError::Busy { .. } => Fault::Unavailable,
            RegistryError::Exhausted { source, .. } => source.fault(),
            RegistryError::Status { .. }
            | RegistryError::Insecure { .. }
            | RegistryError::NotRegistry { .. }
            | RegistryError::Protocol { .. }
            | RegistryError::Misled { .. }
            | RegistryError::SpeaksTls { .. }
            | RegistryError::Redirects { .. }
            | RegistryError::SizeConflict { .. } => Fault::Misbehaved,
            RegistryError::TooLarge { .. } => Fault::Unsupported,
            RegistryError::Mismatch { .. } | RegistryError::Changed { .. } => Fault::Mismatch,
            RegistryError::Document { source, .. } => source.fault(),
            RegistryError::Credentials { .. }
            | RegistryError::Config { .. }
            | RegistryError::Address { .. }
            | RegistryError::Range { .. } => Fault::Usage,
            RegistryError::Helper { .. } | RegistryError::Setup { .. } => Fault::Io,
        }
    }

    /// The failure that ended the tries: itself, when there was only one.
    pub fn last(&self) -> &Self {
        match self {
            RegistryError::Exhausted { source, .. } => source.last(),
            other => other,
        }
    }

    /// Whether the registry answered, and has no document to give. Asked for a manifest by the digest of a blob, some registries
    /// find the blob and fail over it, instead of answering 404.
    pub fn is_no_document(&self) -> bool {
        matches!(
            self.last(),
            RegistryError::NotFound { .. } | RegistryError::Status { .. } | RegistryError::NotRegistry { .. }
        )
    }

    /// Whether no registry answered: nothing was reached, or only what stands before it.
    pub fn is_unanswered(&self) -> bool {
        match self.last() {
            RegistryError::Unreachable { .. }
            | RegistryError::Stalled { .. }
            | RegistryError::Busy { .. } => true,
            RegistryError::Status { status, .. } => *status >= 500 && is_passing(*status),
            _ => false,
        }
    }

    /// Whether a connection ended where nothing said that it would: TLS without close_notify, for one.
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

    /// Whether asking again may help.
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

    /// The trouble of a TLS connection, `None` for another error.
    pub fn tls_trouble(&self) -> Option<TlsTrouble> {
        match self.last() {
            RegistryError::Insecure { source, .. } => Some(TlsTrouble::of(source)),
            _ => None,
        }
    }

    /// Whether the registry wants to be asked less often.
    pub fn is_too_often(&self) -> bool {
        matches!(self.last(), RegistryError::Status { status: 429, .. })
    }

    /// Whether it is about the host rather than about what it was asked for, so that other questions would fare no better.
    pub(super) fn is_about_the_host(&self) -> bool {
        match self {
            RegistryError::Insecure { .. }
            | RegistryError::SpeaksTls { .. }
            | RegistryError::Proxy { .. }
            | RegistryError::NotRegistry { .. } => true,
            RegistryError::Status { status, .. } if *status >= 500 => true,
            RegistryError::Exhausted { source, .. } => source.is_about_the_host(),
            other => other.is_passing(),
        }
    }

    /// Whether not even a connection came about.
    pub(super) fn is_connecting(&self) -> bool {
        matches!(self, RegistryError::Unreachable { connecting: true, .. })
    }

    /// When the registry wants to be asked again.
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

/// Statuses that pass: 408, 425, 429, and those of servers and of what stands before them, but for the ones that say "not with
/// this server" (501, 505) or "log in to the network first" (511).
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
        assert_eq!(error.fault(), Fault::Unavailable);
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
