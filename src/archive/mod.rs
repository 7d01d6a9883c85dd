//! Archives of images as a source: the tar of an OCI layout, or what `docker save` writes, read where it lies.
//!
//! Keeps nothing but a table of names, and unpacks nothing but what is compressed as a whole. The idea: the headers of an archive
//! are walked once, and say at which offset each file lies; a blob is a run of bytes of the archive, and what is inside of it is
//! the business of the same code as for a blob of a registry.

mod docker;
mod opened;
mod spool;
mod table;
mod whole;

use std::sync::Arc;

use crate::cache::Cache;
use crate::registry::Registry;
use crate::source::{self, Layout, Location, Source};

use opened::Archive;

/// The largest JSON file of an archive that is read.
const MAX_JSON: u64 = 20 * 1024 * 1024;

/// Opens the source that `location` names, an archive or not. Nothing is read here; an archive that cannot be read in place is
/// put on the disk of `cache` for as long as the source lives.
pub fn open(location: &Location, registry: &Registry, cache: &Cache) -> Arc<dyn Source> {
    match (source::open(location, registry), location) {
        (Some(source), _) => source,
        (None, Location::Archive { at, form, choice }) => {
            let place = location.place();
            let archive = Archive::new(at.clone(), *form, place, registry.clone(), cache.clone());
            Arc::new(Layout::new(archive, choice.clone()))
        }
        // Everything else is opened there.
        (None, _) => source::offline(location),
    }
}
