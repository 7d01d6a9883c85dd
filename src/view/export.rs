//! View `export/`: everything that the reference names as one archive (`image.tar`, identical to the output of `ocifs
//! export`), and the merged tree as a disk (`rootfs.erofs`).
//!
//! Listing fetches no blob; for an index it fetches documents that mounting did not need. A program that imports
//! archives or mounts disks can use both files without knowing ocifs.

use std::sync::Arc;

use crate::image::{Archive, ArchiveForm, Family, Image};
use crate::io::{Fault, ReadError, chain};

use super::View as _;
use super::merged::Merged;
use super::rootfs::Rootfs;
use super::subtree::{Listing, Made, Subtree};

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
pub(super) struct Exports {
    /// Whether it contains the archive of the whole reference.
    pub(super) archive: WholeArchive,
    /// The image whose merged tree it contains as a disk; `None` if it contains no disk.
    pub(super) disk_of: Option<Arc<Image>>,
}

/// Whether a directory contains the archive of the whole reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WholeArchive {
    Shown,
    Absent,
}

impl Exports {
    /// Content of the directory of `image`; `None` if there would be none.
    pub(super) fn of(archive: WholeArchive, image: Option<&Arc<Image>>) -> Option<Self> {
        let disk_of = image.filter(|image| Merged.exists(image)).cloned();
        (archive == WholeArchive::Shown || disk_of.is_some()).then_some(Self { archive, disk_of })
    }
}

/// Builds the directory; all its entries get `created` as their time.
pub(super) async fn listing(family: &Family, exports: &Exports, created: i64) -> Result<Subtree, ReadError> {
    let mut listing = Listing::new(created);
    if exports.archive == WholeArchive::Shown {
        let selection = family.select_shown().await.map_err(|error| {
            // The archive exists in any case, so a failure to build it is neither "not found" nor "denied".
            let fault = match error.fault() {
                Fault::NotFound | Fault::Denied | Fault::Usage => Fault::Unavailable,
                other => other,
            };
            ReadError::new(fault, format!("{NAME}: {}", chain(&error)))
        })?;
        let archive = Archive::of(&[selection], ArchiveForm::Oci)?;
        let (size, bytes) = (archive.size(), archive.bytes());
        listing.file(ARCHIVE, size, Made::Archive(Arc::new(archive), bytes))?;
    }
    if let Some(image) = &exports.disk_of {
        let disk = Rootfs::new(image.clone());
        // The size requires the tables of contents, so it is computed on the first request for it.
        listing.file(DISK, 0, Made::Rootfs(Arc::new(disk)))?;
    }
    Ok(listing.finish())
}
