//! Errors of names and documents.

use super::{Digest, InvalidDigest};
use crate::io::FaultClass;

/// A name or document that violates the specifications, or a selection that does not match.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum OciError {
    /// An invalid reference from the user.
    #[error("reference {reference:?} is not valid: {reason}")]
    Reference {
        /// The reference, as typed.
        reference: String,
        /// The problem.
        reason: String,
    },
    /// An invalid platform from the user.
    #[error("platform {platform:?} is not of the form os[(version)]/arch[/variant], or one of the two")]
    Platform {
        /// The platform, as typed.
        platform: String,
    },
    /// An invalid digest, from the user or a document.
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
    /// An invalid manifest, index or config.
    #[error("{what} is malformed: {reason}")]
    Malformed {
        /// Kind of document, such as `manifest` or `config`.
        what: &'static str,
        /// The problem.
        reason: String,
    },
    /// A valid document of a type that ocifs does not read.
    #[error("{what} is not supported: {reason}")]
    Unsupported {
        /// Kind of object.
        what: &'static str,
        /// Its name and the reason.
        reason: String,
    },
    /// Bytes that do not hash to the requested digest.
    #[error("{what}: expected {expected}, got {actual}")]
    Mismatch {
        /// The hashed object.
        what: String,
        /// The requested digest.
        expected: Digest,
        /// The digest of the bytes.
        actual: Digest,
    },
    /// An invalid pattern from the user.
    #[error("pattern {pattern:?} is not valid: {reason}")]
    Pattern {
        /// The pattern, as typed.
        pattern: String,
        /// The problem.
        reason: String,
    },
    /// An unusable public key from the user.
    #[error("public key {key} cannot be used: {reason}")]
    Key {
        /// File of the key.
        key: String,
        /// The problem.
        reason: String,
    },
    /// No layer matches the selection.
    #[error("no layer is selected; available: {available}")]
    NoLayer {
        /// Number, media type and title of each layer.
        available: String,
    },
    /// No entry of an index meets the conditions.
    #[error("no manifest meets {wanted}; available: {available}")]
    NoEntry {
        /// The conditions.
        wanted: String,
        /// The available entries, comma separated.
        available: String,
    },
    /// Several entries of an index fit equally well.
    #[error("several manifests fit {wanted}: {candidates}")]
    Ambiguous {
        /// The requested platform.
        wanted: String,
        /// The distinguishing properties and the digest of each.
        candidates: String,
    },
    /// No manifest of an index fits the platform.
    #[error("no manifest for platform {wanted}; available: {available}")]
    NoPlatform {
        /// The requested platform.
        wanted: String,
        /// The available platforms, comma separated.
        available: String,
    },
}

impl OciError {
    /// The party at fault.
    pub fn fault(&self) -> FaultClass {
        match self {
            OciError::Reference { .. }
            | OciError::Platform { .. }
            | OciError::Pattern { .. }
            | OciError::Key { .. } => FaultClass::Usage,
            OciError::Digest(_) | OciError::Malformed { .. } => FaultClass::Malformed,
            OciError::Unsupported { .. } => FaultClass::Unsupported,
            OciError::Mismatch { .. } => FaultClass::Mismatch,
            OciError::NoPlatform { .. } | OciError::NoLayer { .. } | OciError::NoEntry { .. } => {
                FaultClass::NotFound
            }
            OciError::Ambiguous { .. } => FaultClass::Usage,
        }
    }
}
