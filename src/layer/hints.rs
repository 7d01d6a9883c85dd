//! What a layer may be read by, besides an index that was made here.
//!
//! Nothing here fetches. The idea: whoever opens a layer knows what lies beside it; the layer knows what to do with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::cache::Verify;
use crate::io::BoxFuture;
use crate::oci::Digest;

use super::foreign::IndexKind;

/// Whose indexes are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IndexPolicy {
    /// Those made here, else those that the image carries or that were pushed beside it.
    #[default]
    Auto,
    /// As `Auto`, and also what anybody may push beside an image without its author: SOCI indexes of version 1.
    All,
    /// Those made here, else those that the layer itself carries or that a chain of digests leads to from the manifest. For an
    /// image that somebody signed: what others may push beside it is not what was signed.
    Bound,
    /// Only those made here.
    Local,
    /// None: every layer is passed over anew.
    Off,
}

impl IndexPolicy {
    /// Whether what others made may be used.
    pub fn takes_foreign(self) -> bool {
        matches!(self, IndexPolicy::Auto | IndexPolicy::All | IndexPolicy::Bound)
    }
}

/// An index of a layer that lies beside the image.
#[derive(Clone, Debug)]
pub struct Offer {
    /// How to read it: [`IndexKind::Soci`] or [`IndexKind::Pushed`].
    pub kind: IndexKind,
    /// Its bytes, which hash to the digest that names them.
    pub bytes: Bytes,
    /// Whether a chain of digests leads from the image's manifest to it.
    pub is_bound: bool,
}

/// Where indexes beside the image are found.
pub trait Offers: Send + Sync + 'static {
    /// The index of the layer `digest` with this number, best first; `None` when there are no more, and why one cannot be had.
    /// They are asked for one by one, because the first is mostly taken and each may be megabytes.
    fn offer<'a>(&'a self, digest: &'a Digest, number: usize)
    -> BoxFuture<'a, Option<Result<Offer, String>>>;
}

/// What is known about a layer beside its bytes.
#[derive(Clone, Default)]
pub struct Hints {
    /// Whose indexes are used.
    pub policy: IndexPolicy,
    /// The annotations of the layer's descriptor.
    pub annotations: BTreeMap<String, String>,
    /// Indexes that lie beside the image.
    pub offers: Option<Arc<dyn Offers>>,
    /// When bytes are compared with their digests.
    pub verify: Verify,
    /// What the whole uncompressed stream has to hash to, where the artifact says so.
    pub content: Option<Digest>,
}
