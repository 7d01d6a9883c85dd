//! View `blobs/<algorithm>/<hex>`: every blob of the manifest as stored.

use std::collections::HashSet;
use std::sync::Arc;

use crate::image::OpenImage;
use crate::io::{BoxFuture, ReadError};

use super::TopView;
use super::subtree::{SubtreeBuilder, SyntheticFile, ViewSubtree};

pub(super) struct BlobsView;

impl TopView for BlobsView {
    fn name(&self) -> &'static str {
        "blobs"
    }

    fn exists(&self, image: &OpenImage) -> bool {
        image.manifest().blobs().next().is_some()
    }

    fn build<'a>(
        &'a self,
        image: &'a Arc<OpenImage>,
        _first: u32,
    ) -> BoxFuture<'a, Result<ViewSubtree, ReadError>> {
        Box::pin(async move {
            let mut listing = SubtreeBuilder::new(image.created());
            let mut seen = HashSet::new();
            for descriptor in image.manifest().blobs() {
                if seen.insert(&descriptor.digest) {
                    let path =
                        format!("{}/{}", descriptor.digest.algorithm_name(), descriptor.digest.encoded());
                    listing.file(
                        path.as_bytes(),
                        descriptor.size,
                        SyntheticFile::Blob(Box::new(descriptor.clone())),
                    )?;
                }
            }
            Ok(listing.finish())
        })
    }

    fn is_free(&self, _image: &OpenImage) -> bool {
        true
    }
}
