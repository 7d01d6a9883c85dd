//! The state of the search for a signature, which all documents of one reference share.

use std::sync::{Mutex, OnceLock};

use crate::oci::Digest;

use super::ImageError;
use crate::io::lock;

/// Result of the signature check.
#[derive(Default)]
pub(super) struct SignatureState {
    /// Fingerprint of the key that signed the document of the reference, or the chosen manifest.
    pub(super) signed_by: OnceLock<Digest>,
    /// The reason why the index that the reference names is not trusted by itself; `None` if it is.
    pub(super) index: Mutex<Option<ImageError>>,
}

impl SignatureState {
    /// Whether the reference names an index that is not trusted by itself.
    pub(super) fn lacks_index(&self) -> bool {
        lock(&self.index).is_some()
    }
}
