//! Tar errors, with the position in the stream.

use std::borrow::Cow;
use std::fmt;

use crate::io::FaultClass;

/// A rejected archive. The position is that of the header in the uncompressed stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// The archive is not valid.
    #[error("{at}: {problem}")]
    Malformed {
        /// The position of the header.
        at: HeaderPlace,
        /// The defect.
        problem: Cow<'static, str>,
    },
    /// The archive is valid, but its content is not allowed in an image or is over a limit.
    #[error("{at}: {problem}")]
    Unsupported {
        /// The position of the header.
        at: HeaderPlace,
        /// The refused content.
        problem: Cow<'static, str>,
    },
    /// The walker got bytes after a gap.
    #[error("tar walker needs stream offset {need} and was given {given}")]
    Gap {
        /// The first byte needed.
        need: u64,
        /// Start of the given bytes, or end of the stream.
        given: u64,
    },
}

impl TarError {
    /// The class of the error.
    pub fn fault(&self) -> FaultClass {
        match self {
            Self::Malformed { .. } => FaultClass::Malformed,
            Self::Unsupported { .. } => FaultClass::Unsupported,
            Self::Gap { .. } => FaultClass::Usage,
        }
    }
}

/// A header in the stream, and the name of its entry where that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderPlace {
    /// Stream offset of the header.
    pub header: u64,
    /// The entry's name, fit for a message; empty when unknown.
    pub entry: String,
}

/// Maximum characters of a name in a message.
const MAX_SHOWN_CHARS: usize = 100;

impl HeaderPlace {
    /// The header at `header`, of the entry `name` (empty when unknown).
    pub(super) fn new(header: u64, name: &[u8]) -> Self {
        // Names are untrusted bytes: terminal control characters must not get into a log line. UTF-8 takes at most
        // four bytes a character.
        let head = &name[..name.len().min(4 * MAX_SHOWN_CHARS)];
        let lossy = String::from_utf8_lossy(head);
        let mut entry: String = lossy.chars().take(MAX_SHOWN_CHARS).flat_map(char::escape_debug).collect();
        if head.len() < name.len() || lossy.chars().nth(MAX_SHOWN_CHARS).is_some() {
            entry.push_str("...");
        }
        Self { header, entry }
    }
}

impl fmt::Display for HeaderPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tar header at stream offset {}", self.header)?;
        if self.entry.is_empty() { Ok(()) } else { write!(f, " (entry \"{}\")", self.entry) }
    }
}

/// A defect without its position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TarProblem {
    Malformed(Cow<'static, str>),
    Unsupported(Cow<'static, str>),
}

impl TarProblem {
    pub(super) fn malformed(text: impl Into<Cow<'static, str>>) -> Self {
        Self::Malformed(text.into())
    }

    pub(super) fn unsupported(text: impl Into<Cow<'static, str>>) -> Self {
        Self::Unsupported(text.into())
    }

    /// The error for the header at `header` of the entry `name`.
    pub(super) fn at(self, header: u64, name: &[u8]) -> TarError {
        let at = HeaderPlace::new(header, name);
        match self {
            Self::Malformed(problem) => TarError::Malformed { at, problem },
            Self::Unsupported(problem) => TarError::Unsupported { at, problem },
        }
    }
}
