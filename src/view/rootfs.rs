//! `export/rootfs.erofs`: the merged tree of an image as a computed EROFS disk, which is never stored.
//!
//! The disk is computed on the first request for its size, from the tables of contents of all layers. The metadata is
//! in memory. A read after the metadata is a read of the files, through the same cache and the same verification as
//! in `merged/`.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use futures_util::future::try_join_all;
use lru::LruCache;
use tokio::sync::OnceCell;

use crate::erofs::{ErofsImage, ImageSpan};
use crate::image::OpenImage;
use crate::io::{
    BoxFuture, ByteRange, FaultClass, ReadAt, ReadError, SharedReader, VerifiedLevel, check_bounds, compute,
    lock, plain_reads,
};
use crate::layer::FileContent;
use crate::oci::Digest;
use crate::tree::{FrozenTree, InodeNumber};

/// Files that stay open for an image: a multiple of those that one large read can touch.
const OPEN_FILES: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// A disk that is computed on first use.
pub(super) struct RootfsDisk {
    image: Arc<OpenImage>,
    made: OnceCell<Arc<RootfsBytes>>,
}

impl RootfsDisk {
    /// The disk of `image`, not computed yet.
    pub(super) fn new(image: Arc<OpenImage>) -> Self {
        Self { image, made: OnceCell::new() }
    }

    /// The disk; `None` before it is computed.
    pub(super) fn ready(&self) -> Option<SharedReader> {
        self.made.get().map(|made| made.clone() as SharedReader)
    }

    /// Size and bytes of data, without holes; `None` before the disk is computed.
    pub(super) fn size(&self) -> Option<(u64, u64)> {
        self.made.get().map(|made| (made.size(), made.data))
    }

    /// The disk, computed on the first call.
    pub(super) async fn open(&self) -> Result<SharedReader, ReadError> {
        let made = self.made.get_or_try_init(|| self.compute()).await?;
        Ok(made.clone() as SharedReader)
    }

    /// Whether the disk contains bytes of `blob`; false before it is computed.
    pub(super) fn shows(&self, blob: &Digest) -> bool {
        let layers = &self.image.manifest().layers;
        let made = self.made.get();
        made.is_some_and(|made| {
            made.origins.iter().any(|at| layers.get(*at).is_some_and(|l| l.digest == *blob))
        })
    }

    async fn compute(&self) -> Result<Arc<RootfsBytes>, ReadError> {
        let (tree, name) = (self.image.merged().await?, self.image.manifest_digest().to_string());
        Ok(Arc::new(RootfsBytes::compute(&self.image, tree, name).await?))
    }
}

/// The bytes of a computed disk.
pub(super) struct RootfsBytes {
    image: Arc<OpenImage>,
    tree: Arc<FrozenTree>,
    disk: ErofsImage,
    /// Bytes outside of holes.
    data: u64,
    /// The layers that the files come from.
    origins: BTreeSet<usize>,
    /// Recently read files. The lock guards nothing else.
    files: Mutex<LruCache<InodeNumber, SharedReader>>,
}

impl RootfsBytes {
    /// The disk of `tree`, which `name` identifies among trees of other digests.
    pub(super) async fn compute(
        image: &Arc<OpenImage>,
        tree: Arc<FrozenTree>,
        name: String,
    ) -> Result<Self, ReadError> {
        let (tree, disk) = compute(move || {
            let disk = ErofsImage::of(&tree, &name)
                .map_err(|error| ReadError::caused(error.fault(), "the tree has no EROFS image", error))?;
            Ok((tree, disk))
        })
        .await?;
        for omitted in disk.omitted() {
            image.warn(format!("EROFS image: extended attribute {omitted}"));
        }
        Ok(Self::new(image.clone(), tree, disk))
    }

    /// The metadata: the first bytes of the disk.
    pub(super) fn head(&self) -> &[u8] {
        self.disk.metadata()
    }

    /// The layers that the files come from.
    pub(super) fn origins(&self) -> &BTreeSet<usize> {
        &self.origins
    }

    fn new(image: Arc<OpenImage>, tree: Arc<FrozenTree>, disk: ErofsImage) -> Self {
        let map = disk.map();
        let starts = std::iter::successors(map.next_data(0), |from| map.next_data(map.next_hole(*from)));
        let data = starts.map(|from| map.next_hole(from) - from).sum();
        let files = map.extents().iter().filter_map(|extent| tree.file(extent.ino));
        let origins = files.map(|file| file.origin as usize).collect();
        Self { image, tree, disk, data, origins, files: Mutex::new(LruCache::new(OPEN_FILES)) }
    }

    /// The content of a file. Does not wait.
    fn file(&self, ino: InodeNumber) -> Result<SharedReader, ReadError> {
        let mut files = lock(&self.files);
        if let Some(bytes) = files.get(&ino) {
            return Ok(bytes.clone());
        }
        let missing = || ReadError::new(FaultClass::Io, format!("inode {ino} is no file"));
        let file = self.tree.file(ino).ok_or_else(missing)?;
        let content = FileContent { size: file.size, offset: file.offset, runs: file.runs.cloned() };
        let bytes = self.image.file(file.origin as usize, &content)?;
        files.put(ino, bytes.clone());
        Ok(bytes)
    }

    /// Splits a read by source: the range, its source, and its part of the buffer.
    fn parts<'a>(&self, offset: u64, mut buf: &'a mut [u8]) -> Vec<(ByteRange, ImageSpan, &'a mut [u8])> {
        let range = ByteRange::at(offset, buf.len() as u64);
        let mut parts = Vec::new();
        for (range, span) in self.disk.map().spans(range) {
            // Fits: spans are parts of a buffer in memory.
            let (head, rest) = buf.split_at_mut(range.len() as usize);
            parts.push((range, span, head));
            buf = rest;
        }
        parts
    }

    fn metadata(&self, range: ByteRange, to: &mut [u8]) {
        to.copy_from_slice(&self.disk.metadata()[range.start as usize..range.end as usize]);
    }
}

impl ReadAt for RootfsBytes {
    fn size(&self) -> u64 {
        self.disk.map().size()
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move {
            check_bounds(ByteRange::at(offset, buf.len() as u64), self.size())?;
            let mut reads = Vec::new();
            for (range, span, part) in self.parts(offset, buf) {
                match span {
                    ImageSpan::Metadata => self.metadata(range, part),
                    ImageSpan::Zeros => part.fill(0),
                    ImageSpan::File { ino, offset } => {
                        let file = self.file(ino)?;
                        reads.push(async move { file.read_at(offset, part).await });
                    }
                }
            }
            // Concurrently: neighbours in the image are neighbours in the layer, so they share fetched ranges.
            try_join_all(reads).await.map(|_| ())
        })
    }

    fn read_ready(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        check_bounds(ByteRange::at(offset, buf.len() as u64), self.size())?;
        for (range, span, part) in self.parts(offset, buf) {
            match span {
                ImageSpan::Metadata => self.metadata(range, part),
                ImageSpan::Zeros => part.fill(0),
                ImageSpan::File { ino, offset } => {
                    if !self.file(ino)?.read_ready(offset, part)? {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    fn next_data(&self, offset: u64) -> Option<u64> {
        self.disk.map().next_data(offset)
    }

    fn next_hole(&self, offset: u64) -> u64 {
        self.disk.map().next_hole(offset)
    }

    plain_reads!(read_exactly, learn_holes, backing);

    fn verified(&self) -> VerifiedLevel {
        let layers = self.origins.iter().filter_map(|at| self.image.archive(*at)?.stream());
        let mut layers = layers.map(|stream| stream.verified());
        let Some(first) = layers.next() else { return VerifiedLevel::Full };
        layers.fold(first, |all, layer| match all.min(layer) {
            VerifiedLevel::Poisoned => VerifiedLevel::Poisoned,
            _ if all == layer => all,
            _ => VerifiedLevel::Partial,
        })
    }
}
