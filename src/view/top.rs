//! The root of a mount: the documents, and a directory per view that has content.

use std::sync::Arc;

use crate::image::Image;
use crate::io::{Memory, ReadError};

use super::subtree::{Listing, Made, Subtree};

/// Builds the root; `views` are the names and subtree numbers of the views that exist.
pub(super) fn build(image: &Image, views: &[(&'static str, u32)]) -> Result<Subtree, ReadError> {
    let mut listing = Listing::new(image.created());
    let mut document = |name: &[u8], bytes: &bytes::Bytes| {
        let size = bytes.len() as u64;
        listing.file(name, size, Made::Bytes(Arc::new(Memory::new(bytes.clone()))))
    };
    document(b"manifest.json", image.manifest_bytes())?;
    if let Some(index) = image.index_bytes() {
        document(b"index.json", index)?;
    }
    if let Some(config) = &image.manifest().config {
        listing.file(b"config.json", config.size, Made::Blob(config.clone()))?;
    }
    for (name, subtree) in views {
        listing.graft(name.as_bytes(), *subtree)?;
    }
    Ok(listing.finish())
}
