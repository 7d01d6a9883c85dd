//! View `disk/`: disks, unpacked and joined (`<name>`), the raw content of a qcow2 (`<name>.raw`), and `info.json`
//! about them.
//!
//! Names come from the manifest, with one exception: the head of a qcow2 decides whether it has a raw form, and its
//! size. The first bytes of a disk decide whether it may be opened: a disk that makes its reader open other files is
//! refused.

use std::sync::Arc;

use crate::disk::{self, DiskFormat, DiskPlan};
use crate::image::OpenImage;
use crate::io::{BoxFuture, FaultClass, ReadError};

use super::TopView;
use super::subtree::{SubtreeBuilder, SyntheticFile, ViewSubtree};

pub(super) struct DiskView;

impl TopView for DiskView {
    fn name(&self) -> &'static str {
        "disk"
    }

    fn exists(&self, image: &OpenImage) -> bool {
        !image.detection().disks.is_empty() || !image.detection().problems.is_empty()
    }

    fn build<'a>(
        &'a self,
        image: &'a Arc<OpenImage>,
        _first: u32,
    ) -> BoxFuture<'a, Result<ViewSubtree, ReadError>> {
        Box::pin(async move {
            match image.find_members().await {
                Err(error) if !is_of_content(error.fault()) => return Err(error),
                Err(error) => tracing::warn!(error = error.chain(), "disks of the image not counted"),
                Ok(()) => {}
            }
            let mut listing = SubtreeBuilder::new(image.created());
            let raw_names = image.detection().raw_names();
            for (at, (plan, raw)) in image.detection().disks.iter().zip(raw_names).enumerate() {
                // A size that only unpacking reveals is computed on the first request for it.
                listing.file(plan.name.as_bytes(), plan.size.unwrap_or_default(), SyntheticFile::Disk(at))?;
                if !may_be_qcow2(plan) {
                    continue;
                }
                let inspection = match image.inspect_disk(at).await {
                    Ok(inspection) => inspection,
                    // A disk that is permanently unreadable does not block the others; opening it reports the error.
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
                    listing.file(name.as_bytes(), header.virtual_size, SyntheticFile::Raw(at))?;
                }
            }
            let size = disk::info_size(image.manifest(), image.detection());
            listing.file(b"info.json", size, SyntheticFile::DiskInfo)?;
            Ok(listing.finish())
        })
    }

    fn is_free(&self, image: &OpenImage) -> bool {
        !image.is_container_disk() && !image.detection().disks.iter().any(may_be_qcow2)
    }
}

/// Whether the image author caused an error, so that a retry would fail in the same way.
fn is_of_content(fault: FaultClass) -> bool {
    matches!(fault, FaultClass::Malformed | FaultClass::Unsupported | FaultClass::Mismatch)
}

/// Whether to look for a raw form of a disk: its label is qcow2, or it has none.
fn may_be_qcow2(plan: &DiskPlan) -> bool {
    matches!(plan.label, DiskFormat::Qcow2 | DiskFormat::Unlabelled)
}
