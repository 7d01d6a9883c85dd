//! Index policy and hints: the indexes that a layer may use besides a local one.
//!
//! The opener of a layer provides the indexes beside the image, and the layer selects one. Nothing is fetched in
//! this module.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::cache::{LayerMetadata, VerifyMode};
use crate::io::BoxFuture;
use crate::oci::Digest;

use super::foreign::{self, IndexKind};

/// The allowed sources of indexes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IndexPolicy {
    /// Local indexes, else those that the image carries or that were pushed beside it.
    #[default]
    Auto,
    /// As `Auto`, and also SOCI indexes of version 1, which any process with push access may put beside an image.
    All,
    /// Local indexes, else those that the layer itself carries or that a chain of digests binds to the manifest.
    /// For a signed image: the signature does not cover indexes pushed beside it.
    Bound,
    /// Only local indexes.
    Local,
    /// None: every mount decodes every layer again.
    Off,
}

impl IndexPolicy {
    /// Whether foreign indexes may be used.
    pub fn takes_foreign(self) -> bool {
        matches!(self, IndexPolicy::Auto | IndexPolicy::All | IndexPolicy::Bound)
    }
}

/// An index of a layer that is stored beside the image, or in an index repository.
#[derive(Clone, Debug)]
pub struct IndexOffer {
    /// The format: [`IndexKind::Soci`] or [`IndexKind::Pushed`].
    pub kind: IndexKind,
    /// Its bytes, verified against their digest.
    pub bytes: Bytes,
    /// Whether a chain of digests leads from the image's manifest to it.
    pub is_bound: bool,
    /// The form of the layer that it describes.
    pub form: LayerMetadata,
    /// Scope of the cache that keeps it and its refutation; `None` for that of the image's origin.
    pub scope: Option<Arc<str>>,
}

/// Source of indexes beside the image, or in index repositories.
pub trait IndexProvider: Send + Sync + 'static {
    /// The index of the layer `digest` with this number, best first; `None` after the last, an error for an
    /// unavailable one. They are requested one by one, because the first is mostly accepted and each may be
    /// megabytes.
    fn offer<'a>(
        &'a self,
        digest: &'a Digest,
        number: usize,
    ) -> BoxFuture<'a, Option<Result<IndexOffer, String>>>;

    /// The scopes of its offers in the cache, besides that of the image's origin.
    fn scopes(&self) -> &[Arc<str>];
}

/// Whether the annotations of a layer announce an index that the layer carries.
pub fn announces_index(annotations: &BTreeMap<String, String>) -> bool {
    foreign::announced(annotations).is_some()
}

/// Knowledge about a layer besides its bytes.
#[derive(Clone, Default)]
pub struct LayerOptions {
    /// The allowed sources of indexes.
    pub policy: IndexPolicy,
    /// The annotations of the layer's descriptor.
    pub annotations: BTreeMap<String, String>,
    /// Source of indexes beside the image; `None` without one.
    pub offers: Option<Arc<dyn IndexProvider>>,
    /// Index repositories, asked before the layer is read; `None` without one.
    pub repositories: Option<Arc<dyn IndexProvider>>,
    /// When bytes are verified.
    pub verify: VerifyMode,
    /// Expected digest of the whole uncompressed stream; `None` where the artifact gives none.
    pub content: Option<Digest>,
    /// Bytes of the whole uncompressed stream, as the manifest claims; `None` where it makes no claim.
    pub size: Option<u64>,
}
