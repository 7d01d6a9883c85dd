//! `.ocifs/status.json`: what the mount knows about itself, as of the moment it is opened.

use std::sync::Arc;

use crate::image::{Image, Status};
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
        Box::pin(async move { listing(image.created()) })
    }

    fn is_free(&self, _image: &Image) -> bool {
        true
    }
}

/// The directory; everything in it gets `created` as its time.
pub(super) fn listing(created: i64) -> Result<Subtree, ReadError> {
    let mut listing = Listing::new(created);
    listing.file(b"status.json", 0, Made::Status)?;
    Ok(listing.finish())
}

/// The text of the file.
pub(super) fn text(status: &Status) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(status).unwrap_or_default();
    text.push(b'\n');
    text
}
