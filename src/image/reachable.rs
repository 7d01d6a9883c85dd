//! Digests below a reference, as far as the cache has its documents: for eviction on request.
//!
//! Only documents are read, and only a tag costs a request. Only cached documents are followed: content reachable
//! only from an uncached manifest is not cached either.

use std::collections::HashSet;

use crate::archive_source;
use crate::cache::BlockCache;
use crate::oci::{Digest, ManifestDocument};
use crate::registry::RegistryClient;
use crate::source::ImageLocation;

use super::ImageError;
use super::open::MAX_DOCUMENTS;

/// The digests of all documents and blobs that `location` names: the document itself, the cached manifests below it,
/// and their configs and layers. Only a location without a digest costs a request.
pub async fn named(
    location: &ImageLocation,
    registry: &RegistryClient,
    cache: &BlockCache,
) -> Result<HashSet<Digest>, ImageError> {
    let cache = &cache.for_origin(&location.place());
    let (root, bytes) = match location.digest() {
        Some(digest) => (digest.clone(), cache.document(digest)?),
        None => {
            let root = archive_source::open(location, registry, cache).root().await?;
            (root.digest, Some(root.bytes))
        }
    };
    let mut names = HashSet::from([root.clone()]);
    let mut waiting = vec![root];
    let mut first = bytes;
    let mut read = 0;
    while let Some(digest) = waiting.pop() {
        let bytes = match first.take() {
            Some(bytes) => Some(bytes),
            None => cache.document(&digest)?,
        };
        // A blob that was requested by its digest is not a document, and names nothing else.
        let Some(document) = bytes.and_then(|bytes| ManifestDocument::parse(&bytes, None).ok()) else {
            continue;
        };
        read += 1;
        if read > MAX_DOCUMENTS {
            return Err(ImageError::TooMany { place: location.to_string(), limit: MAX_DOCUMENTS });
        }
        match document {
            ManifestDocument::Manifest(manifest) => {
                names.extend(manifest.blobs().map(|blob| blob.digest.clone()));
            }
            ManifestDocument::Index(index) => {
                for entry in index.manifests {
                    if names.insert(entry.digest.clone()) {
                        waiting.push(entry.digest);
                    }
                }
            }
        }
    }
    Ok(names)
}
