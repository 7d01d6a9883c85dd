//! `.ocifs/status.json`: what the mount knows about itself, as of the moment it is opened.

use std::sync::Arc;

use crate::image::Image;
use crate::io::{BoxFuture, ReadError};

use super::View;
use super::subtree::{Listing, Made, Subtree};

pub(super) struct StatusView;

impl View for StatusView {
    fn name(&self) -> &'static str {
        ".ocifs"
    }

    fn exists(&self, _image: &Image) -> bool {
        true
    }

    fn build<'a>(&'a self, image: &'a Arc<Image>, _first: u32) -> BoxFuture<'a, Result<Subtree, ReadError>> {
        Box::pin(async move {
            let mut listing = Listing::new(image.created());
            listing.file(b"status.json", 0, Made::Status)?;
            Ok(listing.finish())
        })
    }

    fn is_free(&self) -> bool {
        true
    }
}

/// The text of the file.
pub(super) fn text(image: &Image) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(&image.status()).unwrap_or_default();
    text.push(b'\n');
    text
}
