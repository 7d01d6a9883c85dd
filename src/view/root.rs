//! The root of a tree: the documents, a directory for each view that has content, and the trees of other images.

use std::sync::Arc;

use crate::image::OpenImage;
use crate::io::{MemoryReader, ReadError};

use super::subtree::{SubtreeBuilder, SyntheticFile, ViewSubtree};
use super::subtree_ids::TopNames;

/// Builds the top of the tree of `image`, or of a bare index. All its entries get `created` as their time.
pub(super) fn build(
    image: Option<&OpenImage>,
    top: &TopNames,
    created: i64,
) -> Result<ViewSubtree, ReadError> {
    let mut listing = SubtreeBuilder::new(created);
    let mut document = |name: &[u8], bytes: &bytes::Bytes| {
        let size = bytes.len() as u64;
        listing.file(name, size, SyntheticFile::Bytes(Arc::new(MemoryReader::new(bytes.clone()))))
    };
    if let Some(bytes) = image.and_then(OpenImage::manifest_bytes) {
        document(b"manifest.json", bytes)?;
    }
    if let Some(index) = &top.index {
        document(b"index.json", index)?;
    }
    if let Some(config) = image.and_then(|image| image.manifest().config.as_ref()) {
        listing.file(b"config.json", config.size, SyntheticFile::Blob(Box::new(config.clone())))?;
    }
    for (name, subtree) in &top.views {
        listing.graft(name.as_bytes(), *subtree)?;
    }
    for (path, subtree) in &top.members {
        listing.graft(path.as_bytes(), *subtree)?;
    }
    Ok(listing.finish())
}
