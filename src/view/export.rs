//! View `export/`: everything that the reference names as one archive (`image.tar`, identical to the output of `ocifs
//! export`), and the merged tree as a disk (`rootfs.erofs`).
//!
//! Listing fetches no blob; for an index it fetches documents that mounting did not need. A program that imports
//! archives or mounts disks can use both files without knowing ocifs.

use std::sync::Arc;

use crate::image::{ArchiveForm, ArchiveView, ImageSet, OpenImage};
use crate::io::{FaultClass, ReadError, chain};

use super::TopView as _;
use super::merged::MergedView;
use super::rootfs::RootfsDisk;
use super::subtree::{SubtreeBuilder, SyntheticFile, ViewSubtree};

/// The name of the directory.
pub(super) const NAME: &str = "export";
/// The name of the archive.
const ARCHIVE: &[u8] = b"image.tar";
/// The name of the disk.
const DISK: &[u8] = b"rootfs.erofs";

/// The path of the disk from the top of a tree.
pub(super) const DISK_PATH: &str = "export/rootfs.erofs";

/// Content of the directory.
#[derive(Clone)]
pub(super) struct ExportDirectory {
    /// Whether it contains the archive of the whole reference.
    pub(super) archive: WholeArchive,
    /// The image whose merged tree it contains as a disk; `None` if it contains no disk.
    pub(super) disk_of: Option<Arc<OpenImage>>,
}

/// Whether a directory contains the archive of the whole reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WholeArchive {
    Shown,
    Absent,
}

impl ExportDirectory {
    /// Content of the directory of `image`; `None` if there would be none.
    pub(super) fn of(archive: WholeArchive, image: Option<&Arc<OpenImage>>) -> Option<Self> {
        let disk_of = image.filter(|image| MergedView.exists(image)).cloned();
        (archive == WholeArchive::Shown || disk_of.is_some()).then_some(Self { archive, disk_of })
    }
}

/// Whether a later request for a missing document would fail in the same way.
fn is_lasting(fault: FaultClass) -> bool {
    matches!(fault, FaultClass::NotFound | FaultClass::Malformed | FaultClass::Unsupported)
}

/// Builds the directory; all its entries get `created` as their time.
pub(super) async fn listing(
    family: &ImageSet,
    exports: &ExportDirectory,
    created: i64,
) -> Result<ViewSubtree, ReadError> {
    let mut listing = SubtreeBuilder::new(created);
    if exports.archive == WholeArchive::Shown {
        match family.select_shown().await {
            Ok(selection) => {
                let archive = ArchiveView::of(&[selection], ArchiveForm::Oci)?;
                let (size, bytes) = (archive.size(), archive.bytes());
                listing.file(ARCHIVE, size, SyntheticFile::Archive(Arc::new(archive), bytes))?;
            }
            // A mirror of a part of an index has no archive of the whole, and everything else.
            Err(error) if is_lasting(error.fault()) => {
                tracing::warn!(error = chain(&error), "export/image.tar is left out");
            }
            Err(error) => {
                // The archive exists, so a failure to build it is not "denied".
                let fault = match error.fault() {
                    FaultClass::Denied | FaultClass::Usage => FaultClass::Unavailable,
                    other => other,
                };
                return Err(ReadError::new(fault, format!("{NAME}: {}", chain(&error))));
            }
        }
    }
    if let Some(image) = &exports.disk_of {
        let disk = RootfsDisk::new(image.clone());
        // The size requires the tables of contents, so it is computed on the first request for it.
        listing.file(DISK, 0, SyntheticFile::Rootfs(Arc::new(disk)))?;
    }
    Ok(listing.finish())
}
