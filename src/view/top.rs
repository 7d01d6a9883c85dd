//! The root of a tree: the documents, a directory for each view that has content, and the trees of other images.

use std::sync::Arc;

use crate::image::Image;
use crate::io::{Memory, ReadError};

use super::slots::Top;
use super::subtree::{Listing, Made, Subtree};

/// Builds the top of the tree of `image`, or of a bare index. All its entries get `created` as their time.
pub(super) fn build(image: Option<&Image>, top: &Top, created: i64) -> Result<Subtree, ReadError> {
    let mut listing = Listing::new(created);
    let mut document = |name: &[u8], bytes: &bytes::Bytes| {
        let size = bytes.len() as u64;
        listing.file(name, size, Made::Bytes(Arc::new(Memory::new(bytes.clone()))))
    };
    if let Some(bytes) = image.and_then(Image::manifest_bytes) {
        document(b"manifest.json", bytes)?;
    }
    if let Some(index) = &top.index {
        document(b"index.json", index)?;
    }
    if let Some(config) = image.and_then(|image| image.manifest().config.as_ref()) {
        listing.file(b"config.json", config.size, Made::Blob(Box::new(config.clone())))?;
    }
    for (name, subtree) in &top.views {
        listing.graft(name.as_bytes(), *subtree)?;
    }
    for (path, subtree) in &top.members {
        listing.graft(path.as_bytes(), *subtree)?;
    }
    Ok(listing.finish())
}
