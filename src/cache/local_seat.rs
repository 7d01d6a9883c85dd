//! Blobs that may lie on this machine: where they lie, or files of the cache.

use std::sync::Arc;

use super::block_file::BlockFile;
use super::files::BlockPaths;
use super::layout::{directory, exists};
use super::seat::BlockSeat;
use super::sidecar::ContentKind;
use super::slot::{PairSlot, or_uncached};
use super::wait::waiting;
use super::{BlockCache, CacheError};
use crate::io::LocalBytes;
use crate::oci::Digest;

impl BlockCache {
    /// Whether the cache has files of a blob that serve every place: it was compared with its digest.
    pub(super) fn has_files(&self, digest: &Digest) -> bool {
        self.path(directory(ContentKind::Blob), digest).is_ok_and(|data| exists(&BlockPaths::of(data).map))
    }

    /// The files of a blob that may lie on this machine: where it lies, or those that `open` makes.
    pub(super) fn open_seat(
        &self,
        digest: &Digest,
        size: u64,
        open: Arc<dyn Fn() -> Result<BlockFile, CacheError> + Send + Sync>,
    ) -> BlockSeat {
        // What belongs to this cache is not held by content of it.
        let (cache, digest) = (self.clone(), digest.clone());
        let choose = move |local: Option<LocalBytes>| {
            // A local file stays open: where descriptors are short, a copy is made, which can be closed. Closing copies
            // for it would in the end leave local files alone.
            let local = local.filter(|local| local.size() == size && cache.room().has_descriptors());
            let seated = match local {
                Some(local) => waiting(|| {
                    let pair = BlockFile::local(local, &cache.temporary(), &digest, cache.room());
                    pair.map(|pair| Some(PairSlot::pinned(pair, cache.room())))
                }),
                None => {
                    let open = Arc::clone(&open);
                    cache.slot(&digest, Box::new(move || open()))
                }
            };
            or_uncached(&digest, seated)
        };
        let choose = Arc::new(choose);
        BlockSeat::open(Box::new(move |fetch| {
            let choose = Arc::clone(&choose);
            Box::pin(async move { choose(fetch.local().await) })
        }))
    }
}
