//! `files/<title>`: the layers of an artifact as the files they are.

use std::sync::Arc;

use crate::image::Image;
use crate::io::{BoxFuture, ReadError};

use super::View;
use super::subtree::{Listing, Made, Subtree};

pub(super) struct Files;

impl View for Files {
    fn name(&self) -> &'static str {
        "files"
    }

    fn exists(&self, image: &Image) -> bool {
        !image.files().files.is_empty()
    }

    fn build<'a>(&'a self, image: &'a Arc<Image>, _first: u32) -> BoxFuture<'a, Result<Subtree, ReadError>> {
        Box::pin(async move {
            let mut listing = Listing::new(image.created());
            for file in &image.files().files {
                let descriptor = &image.manifest().layers[file.layer];
                listing.file(file.path.as_bytes(), descriptor.size, Made::Blob(descriptor.clone()))?;
            }
            Ok(listing.finish())
        })
    }

    fn is_free(&self) -> bool {
        true
    }
}
