//! `export/image.tar`: all that the reference names as one archive, as `ocifs export` writes it; `export/rootfs.erofs`: the merged
//! tree as a disk.
//!
//! Fetches no blob to be listed; of an index, documents that mounting did not need. The idea: whoever copies the file or gives its
//! name to a program that imports archives or mounts disks needs to know nothing of ocifs.

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

/// What the directory holds.
#[derive(Clone)]
pub(super) struct Exports {
    /// Whether the archive of the whole is in it.
    pub(super) archive: WholeArchive,
    /// The image whose merged tree is in it as a disk.
    pub(super) disk_of: Option<Arc<Image>>,
}

/// Whether a directory has the archive of the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WholeArchive {
    Shown,
    Absent,
}

impl Exports {
    /// What the directory of `image` holds, if there is one.
    pub(super) fn of(archive: WholeArchive, image: Option<&Arc<Image>>) -> Option<Self> {
        let disk_of = image.filter(|image| Merged.exists(image)).cloned();
        (archive == WholeArchive::Shown || disk_of.is_some()).then_some(Self { archive, disk_of })
    }
}

/// The directory; everything in it gets `created` as its time.
pub(super) async fn listing(family: &Family, exports: &Exports, created: i64) -> Result<Subtree, ReadError> {
    let mut listing = Listing::new(created);
    if exports.archive == WholeArchive::Shown {
        let selection = family.select_shown().await.map_err(|error| {
            // Whatever keeps it from being made, it is neither absent nor refused.
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
        // Its size takes the tables of contents, and is asked for when somebody wants it.
        listing.file(DISK, 0, Made::Rootfs(Arc::new(disk)))?;
    }
    Ok(listing.finish())
}
