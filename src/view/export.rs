//! `export/image.tar`: all that the reference names as one archive, as `ocifs export` writes it.
//!
//! Fetches no blob to be listed; of an index, documents that mounting did not need. The idea: whoever copies the file or gives its
//! name to a program that imports archives needs to know nothing of ocifs.

use std::sync::Arc;

use crate::image::{Archive, ArchiveForm, Family};
use crate::io::{Fault, ReadError, chain};

use super::subtree::{Listing, Made, Subtree};

/// The name of the directory.
pub(super) const NAME: &str = "export";
/// The name of the archive.
const FILE: &[u8] = b"image.tar";

/// The directory; everything in it gets `created` as its time.
pub(super) async fn listing(family: &Family, created: i64) -> Result<Subtree, ReadError> {
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
    let mut listing = Listing::new(created);
    listing.file(FILE, size, Made::Archive(Arc::new(archive), bytes))?;
    Ok(listing.finish())
}
