//! View `blobs/<algorithm>/<hex>`: every blob of the manifest as stored.

use std::collections::HashSet;
use std::sync::Arc;

use crate::image::Image;
use crate::io::{BoxFuture, ReadError};

use super::View;
use super::subtree::{Listing, Made, Subtree};

pub(super) struct Blobs;

impl View for Blobs {
    fn name(&self) -> &'static str {
        "blobs"
    }

    fn exists(&self, image: &Image) -> bool {
        image.manifest().blobs().next().is_some()
    }

    fn build<'a>(&'a self, image: &'a Arc<Image>, _first: u32) -> BoxFuture<'a, Result<Subtree, ReadError>> {
        Box::pin(async move {
            let mut listing = Listing::new(image.created());
            let mut seen = HashSet::new();
            for descriptor in image.manifest().blobs() {
                if seen.insert(&descriptor.digest) {
                    let path =
                        format!("{}/{}", descriptor.digest.algorithm_name(), descriptor.digest.encoded());
                    listing.file(
                        path.as_bytes(),
                        descriptor.size,
                        Made::Blob(Box::new(descriptor.clone())),
                    )?;
                }
            }
            Ok(listing.finish())
        })
    }

    fn is_free(&self, _image: &Image) -> bool {
        true
    }
}
