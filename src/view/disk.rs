//! `disk/<name>`: the disks, unpacked and joined; `disk/<name>.raw`: what a qcow2 holds; `disk/info.json` about them.
//!
//! Names come from the manifest, except that whether a qcow2 has a raw form is seen at its head, and how large that is. Whether a
//! disk may be opened is decided by its first bytes: a disk that makes its reader open other files is refused.

use std::sync::Arc;

use crate::disk::{self, DiskPlan, Format};
use crate::image::Image;
use crate::io::{BoxFuture, Fault, ReadError};

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
            match image.find_members().await {
                Err(error) if !is_of_content(error.fault()) => return Err(error),
                Err(error) => tracing::warn!(error = error.chain(), "disks of the image not counted"),
                Ok(()) => {}
            }
            let mut listing = Listing::new(image.created());
            let raw_names = image.detection().raw_names();
            for (at, (plan, raw)) in image.detection().disks.iter().zip(raw_names).enumerate() {
                // A size that only unpacking tells is asked for when somebody wants it.
                listing.file(plan.name.as_bytes(), plan.size.unwrap_or_default(), Made::Disk(at))?;
                if !may_be_qcow2(plan) {
                    continue;
                }
                let inspection = match image.inspect_disk(at).await {
                    Ok(inspection) => inspection,
                    // A disk that can never be read keeps nobody from the others; whoever opens it gets the error.
                    Err(error) if is_of_content(error.fault()) => {
                        tracing::warn!(disk = at, error = error.chain(), "disk not inspected");
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                let header = inspection.qcow2.as_ref();
                let header = header.filter(|_| inspection.refusal.is_none() && inspection.raw.is_none());
                if let Some(header) = header
                    && let Some(name) = raw
                {
                    listing.file(name.as_bytes(), header.virtual_size, Made::Raw(at))?;
                }
            }
            let size = disk::info_size(image.manifest(), image.detection());
            listing.file(b"info.json", size, Made::DiskInfo)?;
            Ok(listing.finish())
        })
    }

    fn is_free(&self, image: &Image) -> bool {
        !image.is_container_disk() && !image.detection().disks.iter().any(may_be_qcow2)
    }
}

/// Whether an error is the author's, so that another try would end the same way.
fn is_of_content(fault: Fault) -> bool {
    matches!(fault, Fault::Malformed | Fault::Unsupported | Fault::Mismatch)
}

/// Whether the raw form of a disk is looked for: its label is qcow2, or none.
fn may_be_qcow2(plan: &DiskPlan) -> bool {
    matches!(plan.label, Format::Qcow2 | Format::Unlabelled)
}
