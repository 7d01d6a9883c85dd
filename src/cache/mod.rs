//! Block and document cache on disk, shared by all threads and processes that use the directory.
//!
//! Each block is fetched once and checked when it is read back; a lost or damaged one is fetched again. The data is
//! written first, then a record with its checksum, and only a block whose data hashes to its record counts. Bytes
//! come from a [`Fetch`](crate::io::RangeFetch), and their meaning is unknown at this level. docs/cache-format.md defines
//! the byte layout, the locks, and when bytes are trusted.

mod blob_hasher;
mod blob_sharing;
mod block_arrival;
mod block_cutter;
mod block_data;
mod block_file;
mod cached;
mod content_state;
mod copy_number;
mod default_dir;
mod derived;
mod descriptors;
mod directory_walk;
mod documents;
mod ephemeral;
mod error;
mod evict;
mod evictable;
mod eviction_scan;
mod extents;
mod fetch;
mod fetch_permits;
mod files;
mod gc;
mod here;
mod inflight;
mod inventory;
mod layout;
mod limit;
mod local_seat;
mod lock;
mod lost_block;
mod memory_cache;
mod passthrough_file;
mod possession;
mod presence;
mod present_read;
mod promotion;
mod quota;
mod read_bitmap;
mod readahead;
mod readahead_window;
mod recount;
mod reject;
mod reject_history;
mod remove;
mod scrub;
mod seat;
mod share;
mod sidecar;
mod slot;
mod spool;
mod store;
mod stream_writer;
mod trust;
mod usage;
mod verification;
mod verify_first;
mod verify_policy;
mod wait;

use crate::io::lock;

pub use blob_sharing::BlobSharing;
pub use cached::CachedFile;
pub use default_dir::{CACHE_DIR_VARIABLE, default_directory, directory};
pub use documents::LayerMetadata;
pub use ephemeral::PrivateDir;
pub use error::CacheError;
pub use extents::ByteExtents;
pub use gc::{GarbageReason, GcReport, PrunePolicy};
pub use inventory::{AuxiliaryFile, CacheInventory, ContentItem, ContentName, OpenContents, ScannedFile};
pub use layout::ItemKind;
pub use limit::{LimitError, SizeLimit};
pub use lock::BuildLock;
pub use scrub::{ContentDamage, ScrubReport};
pub use sidecar::VerificationState;
pub use spool::SpooledBytes;
pub use store::BlockCache;
pub use stream_writer::StreamWriter;
pub use verify_first::VERIFY_FIRST_BYTES;
pub use verify_policy::VerifyMode;

/// The blake3 of each block of 256 KiB of a decoded stream, in order; the last block may be shorter.
pub type BlockSums = std::sync::Arc<[[u8; 32]]>;

#[cfg(test)]
mod tests;
