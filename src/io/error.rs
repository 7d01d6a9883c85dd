//! Error of a read, and the fault class that every error of this crate has.
//!
//! Errors of modules (registry, cache, layer, ...) are converted to a [`ReadError`] on their way up and stay its
//! `source()`. The edges (`mount/`, `cli/`) decide by [`FaultClass`] alone.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// The fault class of an error: the party at fault, which decides errno and exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultClass {
    /// The requested object does not exist at the source.
    NotFound,
    /// The responsible party refused access.
    Denied,
    /// The network or the remote host is temporarily unreachable.
    Unavailable,
    /// The registry violated the protocol.
    Misbehaved,
    /// The author of the bytes wrote invalid data.
    Malformed,
    /// Valid, but unsupported or refused by this version of ocifs.
    Unsupported,
    /// Bytes do not match the digest that names them.
    Mismatch,
    /// An impossible request of the caller.
    Usage,
    /// A failure of this machine: files, memory, the kernel.
    Io,
}

/// Why a read failed. Cheap to clone, because one failed fetch answers all its waiting readers.
#[derive(Clone, Debug)]
pub struct ReadError {
    fault: FaultClass,
    message: Arc<str>,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl ReadError {
    /// An error without a source. The style of `message`: subject first, lower case, no full stop.
    pub fn new(fault: FaultClass, message: impl Into<String>) -> Self {
        Self { fault, message: message.into().into(), source: None }
    }

    /// An error caused by `source`; `message` adds the subject of this level.
    pub fn caused(
        fault: FaultClass,
        message: impl Into<String>,
        source: impl Error + Send + Sync + 'static,
    ) -> Self {
        Self { fault, message: message.into().into(), source: Some(Arc::new(source)) }
    }

    /// The same fault one level higher, prefixed with that level's subject.
    #[must_use]
    pub fn within(self, subject: impl Into<String>) -> Self {
        Self { fault: self.fault, message: subject.into().into(), source: Some(Arc::new(self)) }
    }

    /// The fault class.
    pub fn fault(&self) -> FaultClass {
        self.fault
    }

    /// The whole chain in one line, `outer: inner: innermost`.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// The error and its sources in one line, joined with `: `. A source is omitted if the message above ends with it.
pub fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(inner) = next {
        let text = inner.to_string();
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        next = inner.source();
    }
    line
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for ReadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_names_every_level_once() {
        let error = ReadError::new(FaultClass::Unavailable, "connection refused")
            .within("range 0-9 of sha256:ab")
            .within("layer 3");
        assert_eq!(error.to_string(), "layer 3");
        assert_eq!(error.chain(), "layer 3: range 0-9 of sha256:ab: connection refused");
        assert_eq!(error.fault(), FaultClass::Unavailable);
    }
}
