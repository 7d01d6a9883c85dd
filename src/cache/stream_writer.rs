//! Stream writer: stores a decoded stream front to back, before its length or any checksum is known.
//!
//! A forward pass over a layer writes to files without a final name, which start empty. At the end they are named
//! after the checksums of all blocks. So a block that another pass stored, over other bytes, cannot become a part of
//! the stream. Content is not fetched or read.

use std::io;

use super::block_file::{BlockFile, StoreError};
use super::files::BlockPaths;
use super::promotion::publish;
use super::sidecar::{BLOCK_BYTES, ContentKind, MAX_SIZE};
use super::{BlockCache, CacheError};
use crate::oci::Digest;

/// Takes blocks of a decoded stream in order. Every call blocks its thread for the time of writing to a file. Without
/// [`publish`](Self::publish) the blocks are removed on drop.
pub struct StreamWriter {
    cache: BlockCache,
    digest: Digest,
    /// The number of the next block.
    block: u64,
    /// The files; `None` before the first stored block.
    draft: Option<StreamDraft>,
}

/// Files that no reader opens.
struct StreamDraft {
    files: BlockPaths,
    pair: BlockFile,
}

impl BlockCache {
    /// A writer for the decoded stream of the layer whose stored blob is `digest`, from its first byte. It starts
    /// empty.
    pub fn stream_writer(&self, digest: &Digest) -> StreamWriter {
        StreamWriter::new(self.clone(), digest.clone())
    }
}

impl StreamWriter {
    pub(super) fn new(cache: BlockCache, digest: Digest) -> Self {
        Self { cache, digest, block: 0, draft: None }
    }

    /// Stores the next block: 256 KiB, or a shorter last one; `sum` is its blake3. After an error the caller should
    /// drop the writer.
    pub fn keep(&mut self, bytes: &[u8], sum: &[u8; 32]) -> Result<(), CacheError> {
        debug_assert!(bytes.len() as u64 <= BLOCK_BYTES, "a block is at most that long");
        let block = self.block;
        self.block += 1;
        let size = (block * BLOCK_BYTES).saturating_add(bytes.len() as u64);
        if size > MAX_SIZE {
            return Err(CacheError::Oversized { digest: self.digest.clone(), size, limit: MAX_SIZE });
        }
        let draft = match &self.draft {
            Some(draft) => draft,
            None => self.draft.insert(StreamDraft::open(&self.cache, &self.digest)?),
        };
        draft.pair.store(block, bytes, sum).map_err(|refused| {
            let path = &draft.files.data;
            let error = match refused {
                StoreError::NoRoom => return CacheError::NoRoom { path: path.clone() },
                StoreError::Disk(error) => error,
                StoreError::Poisoned | StoreError::Contradicts | StoreError::Unproven => {
                    io::Error::other("content was rejected")
                }
            };
            CacheError::io("write", path, error)
        })
    }

    /// Leaves out the next block: readers get it from the stream's source.
    pub fn skip(&mut self) {
        self.block += 1;
    }

    /// Names the stored blocks as the stream of `size` bytes whose blocks have these checksums. Where that name is
    /// taken, the existing files stay.
    pub fn publish(mut self, sums: &[[u8; 32]], size: u64) -> Result<(), CacheError> {
        let Some(draft) = &self.draft else { return Ok(()) };
        draft.pair.sidecar.settle_size(&self.digest, size)?;
        let to = self.cache.stream_files(&self.digest, sums, size)?;
        match publish(&draft.files, &to) {
            Ok(()) => {
                self.draft = None;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(CacheError::io("link", &to.data, error)),
        }
    }
}

impl Drop for StreamWriter {
    fn drop(&mut self) {
        let Some(StreamDraft { files, pair }) = self.draft.take() else { return };
        drop(pair);
        for path in [&files.data, &files.map] {
            match self.cache.unlink_counted(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Ok(()) => {}
                Err(error) => tracing::debug!(%error, path = %path.display(), "cannot remove a draft"),
            }
        }
    }
}

impl StreamDraft {
    fn open(cache: &BlockCache, digest: &Digest) -> Result<Self, CacheError> {
        let files = BlockPaths::of(cache.temporary());
        let pair =
            BlockFile::open(&files.data, &files.map, ContentKind::Stream, digest)?.in_room(cache.room());
        Ok(Self { files, pair })
    }
}
