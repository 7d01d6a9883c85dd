//! `disk/<name>`: the reassembled disks, and `disk/info.json` about them.
//!
//! Names and sizes come from the manifest. Whether a disk may be opened is decided by its first bytes, when it is opened:
//! a disk that makes its reader open other files is refused.

use std::sync::Arc;

use crate::disk;
use crate::image::Image;
use crate::io::{BoxFuture, ReadError};

use super::View;
use super::subtree::{Listing, Made, Subtree};

pub(super) struct Disk;

impl View for Disk {
    fn name(&self) -> &'static str {
        "disk"
    }

    fn exists(&self, image: &Image) -> bool {
        !image.detection().disks.is_empty() || !image.detection().problems.is_empty()
    }

    fn build<'a>(&'a self, image: &'a Arc<Image>, _first: u32) -> BoxFuture<'a, Result<Subtree, ReadError>> {
        Box::pin(async move {
            let mut listing = Listing::new(image.created());
            for (at, plan) in image.detection().disks.iter().enumerate() {
                listing.file(plan.name.as_bytes(), plan.size, Made::Disk(at))?;
            }
            let size = disk::info_size(image.manifest(), image.detection());
            listing.file(b"info.json", size, Made::DiskInfo)?;
            Ok(listing.finish())
        })
    }

    fn is_free(&self) -> bool {
        true
    }
}
