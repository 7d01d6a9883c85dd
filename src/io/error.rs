//! The error of a read, and the question every error of this crate can answer: who is wrong.
//!
//! Module errors (registry, cache, layer, ...) become a [`ReadError`] when they travel up a read, keeping themselves as
//! `source()`; the edges (`mount/`, `cli/`) decide by [`Fault`] alone.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// Who is wrong, and so which errno and which exit code an error deserves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// What was asked for does not exist there.
    NotFound,
    /// Somebody who may decide it refused access.
    Denied,
    /// The network, or the other end of it, is not there now.
    Unavailable,
    /// The registry answered something that the protocol does not allow.
    Misbehaved,
    /// The author of the bytes wrote something that is not valid.
    Malformed,
    /// Valid, but this version of ocifs cannot present it (or refuses to).
    Unsupported,
    /// Bytes do not match the digest that names them.
    Mismatch,
    /// The caller asked for something impossible.
    Usage,
    /// This machine: files, memory, the kernel.
    Io,
}

/// Why bytes could not be read. Cheap to clone, because one failed fetch answers all the readers that waited for it.
#[derive(Clone, Debug)]
pub struct ReadError {
    fault: Fault,
    message: Arc<str>,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl ReadError {
    /// An error whose whole story is `message`: subject first, lower case, no full stop.
    pub fn new(fault: Fault, message: impl Into<String>) -> Self {
        Self { fault, message: message.into().into(), source: None }
    }

    /// An error that `source` explains; `message` adds the subject of this level.
    pub fn caused(
        fault: Fault,
        message: impl Into<String>,
        source: impl Error + Send + Sync + 'static,
    ) -> Self {
        Self { fault, message: message.into().into(), source: Some(Arc::new(source)) }
    }

    /// The same fault seen one level higher, with that level's subject in front.
    #[must_use]
    pub fn within(self, subject: impl Into<String>) -> Self {
        Self { fault: self.fault, message: subject.into().into(), source: Some(Arc::new(self)) }
    }

    /// Who is wrong.
    pub fn fault(&self) -> Fault {
        self.fault
    }

    /// The whole chain in one line, `outer: inner: innermost`.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// The error and its sources in one line, joined with `: `. A level that the one above it ends with is left out.
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
        let error = ReadError::new(Fault::Unavailable, "connection refused")
            .within("range 0-9 of sha256:ab")
            .within("layer 3");
        assert_eq!(error.to_string(), "layer 3");
        assert_eq!(error.chain(), "layer 3: range 0-9 of sha256:ab: connection refused");
        assert_eq!(error.fault(), Fault::Unavailable);
    }
}
