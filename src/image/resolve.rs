//! Resolve: the digest that a reference names at present, without reading a blob.
//!
//! Documents that were read are cached. A digest resolves without a request. A tag costs one HEAD, which registries
//! do not count as a pull, or one GET if more than the digest is needed.

use crate::cache::BlockCache;
use crate::oci::{Digest, ManifestDocument, MediaType};
use crate::registry::RegistryClient;
use crate::source::SourceError;

use super::open::{ImageOpener, parse};
use super::{ImageError, NetworkAccess, OpenOptions, PlatformScope};

/// A resolved reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedReference {
    /// The reference with its digest.
    pub pinned: String,
    /// The digest.
    pub digest: Digest,
    /// Type of the document; `None` if no request was made.
    pub media_type: Option<MediaType>,
    /// Size of the document in bytes; `None` if unknown.
    pub size: Option<u64>,
}

/// Resolves `options.location`. With a platform or conditions, the result is the manifest that a mount would show.
/// Otherwise it is the document itself, which may be an index.
pub async fn resolve(
    options: &OpenOptions,
    registry: &RegistryClient,
    cache: BlockCache,
) -> Result<ResolvedReference, ImageError> {
    let location = &options.location;
    let wanted = match &options.platforms {
        PlatformScope::One(platform) => Some(platform),
        PlatformScope::Host | PlatformScope::All => None,
    };
    let is_choice = wanted.is_some() || !options.select.is_empty();
    if let Some(digest) = location.digest()
        && !is_choice
        && options.signed_by.is_empty()
    {
        let pinned = location.pinned(digest);
        return Ok(ResolvedReference { pinned, digest: digest.clone(), media_type: None, size: None });
    }
    if let (Some(reference), NetworkAccess::Online) = (location.reference(), options.network)
        && !is_choice
        && options.signed_by.is_empty()
    {
        // Only the digest is needed, not the bytes.
        let found = registry.head(reference, &reference.selector()).await.map_err(SourceError::from)?;
        return Ok(ResolvedReference {
            pinned: location.pinned(&found.digest),
            media_type: found.media_type.map(|kind| MediaType::from(kind.as_str())),
            size: found.size,
            digest: found.digest,
        });
    }
    let opener = ImageOpener::new(options, registry, cache);
    let root = opener.root(location.digest()).await?;
    let document = parse(&root)?;
    opener.demand(&root, &document).await?;
    let pinned = location.pinned(&root.digest);
    if let (ManifestDocument::Index(index), true) = (&document, is_choice) {
        let entry = opener.chosen(index, None, wanted, &pinned).await?.entry;
        if !options.signed_by.is_empty() {
            opener.demand_image(&opener.document(&entry).await?).await?;
        }
        return Ok(ResolvedReference {
            pinned: location.pinned(&entry.digest),
            media_type: Some(entry.media_type),
            size: Some(entry.size),
            digest: entry.digest,
        });
    }
    if let (ManifestDocument::Index(_), false) = (&document, options.signed_by.is_empty()) {
        opener.demand_whole(&root, false).await?;
    }
    let (media_type, size) = (Some(document.media_type().clone()), Some(root.bytes.len() as u64));
    Ok(ResolvedReference { pinned, digest: root.digest, media_type, size })
}
