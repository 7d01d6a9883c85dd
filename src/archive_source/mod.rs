//! Image archives as a source: the tar of an OCI layout or of `docker save`, read in place.
//!
//! Stores only a table of names, and unpacks only an archive that is compressed as a whole. One walk over the headers
//! gives the offset of each file. A blob is a range of the archive, and its content is handled by the same code as a
//! registry's blob.

mod archive_bytes;
mod docker;
mod encoding;
mod member_index;
mod reader;
mod spool;

use std::sync::Arc;

use crate::cache::BlockCache;
use crate::registry::RegistryClient;
use crate::source::{self, ImageLocation, ImageSource, LayoutSource};

use reader::ImageArchive;

/// Maximum size of a JSON file of an archive.
const MAX_JSON: u64 = 20 * 1024 * 1024;

/// Opens the source at `location`, an archive or not. Reads nothing yet. An archive that cannot be read in place is
/// spooled to the disk of `cache` while the source lives.
pub fn open(location: &ImageLocation, registry: &RegistryClient, cache: &BlockCache) -> Arc<dyn ImageSource> {
    match (source::open(location, registry), location) {
        (Some(source), _) => source,
        (None, ImageLocation::Archive { at, form, choice }) => {
            let place = location.place();
            let archive = ImageArchive::new(at.clone(), *form, place, registry.clone(), cache.clone());
            Arc::new(LayoutSource::new(archive, choice.clone()))
        }
        // Every other location is opened by `source::open`.
        (None, _) => source::offline(location),
    }
}
