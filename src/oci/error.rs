//! Why a name or a document is not valid.

use super::Digest;
use crate::io::Fault;

/// The author of a name or a document wrote something the specifications do not allow.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum OciError {
    /// A reference the user typed.
    #[error("reference {reference:?} is not valid: {reason}")]
    Reference {
        /// As typed.
        reference: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A platform the user typed.
    #[error("platform {platform:?} is not of the form os/arch[/variant]")]
    Platform {
        /// As typed.
        platform: String,
    },
    /// A digest anywhere.
    #[error("digest {digest:?} is not of the form algorithm:hex")]
    Digest {
        /// As found.
        digest: String,
    },
    /// A manifest, index or config.
    #[error("{what} is malformed: {reason}")]
    Malformed {
        /// `manifest`, `index` or `config`.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A valid document of a kind that ocifs does not read.
    #[error("{what} is not supported: {reason}")]
    Unsupported {
        /// What kind of thing.
        what: &'static str,
        /// Its name and why.
        reason: String,
    },
    /// Bytes that do not hash to the digest they were asked by.
    #[error("{what}: expected {expected}, got {actual}")]
    Mismatch {
        /// What was hashed.
        what: String,
        /// The digest that names it.
        expected: Digest,
        /// The digest it has.
        actual: Digest,
    },
    /// A pattern the user typed.
    #[error("pattern {pattern:?} is not valid: {reason}")]
    Pattern {
        /// As typed.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A public key the user gave.
    #[error("public key {key} cannot be used: {reason}")]
    Key {
        /// Its file.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No layer is one of those that were asked for.
    #[error("no layer is selected; there is {available}")]
    NoLayer {
        /// Number, media type and title of each layer.
        available: String,
    },
    /// No entry of an index meets the conditions.
    #[error("no manifest meets {wanted}; there is {available}")]
    NoEntry {
        /// The conditions.
        wanted: String,
        /// The entries there are, comma separated.
        available: String,
    },
    /// Several entries of an index fit equally well.
    #[error("several manifests fit {wanted}: {candidates}")]
    Ambiguous {
        /// The platform that was asked for.
        wanted: String,
        /// Each with what tells it from the others, and its digest.
        candidates: String,
    },
    /// No manifest of an index fits the platform.
    #[error("no manifest for platform {wanted}; there is {available}")]
    NoPlatform {
        /// The platform that was asked for.
        wanted: String,
        /// The platforms there are, comma separated.
        available: String,
    },
}

impl OciError {
    /// Who is wrong.
    pub fn fault(&self) -> Fault {
        match self {
            OciError::Reference { .. }
            | OciError::Platform { .. }
            | OciError::Pattern { .. }
            | OciError::Key { .. } => Fault::Usage,
            OciError::Digest { .. } | OciError::Malformed { .. } => Fault::Malformed,
            OciError::Unsupported { .. } => Fault::Unsupported,
            OciError::Mismatch { .. } => Fault::Mismatch,
            OciError::NoPlatform { .. } | OciError::NoLayer { .. } | OciError::NoEntry { .. } => {
                Fault::NotFound
            }
            OciError::Ambiguous { .. } => Fault::Usage,
        }
    }
}
