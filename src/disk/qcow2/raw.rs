//! Raw view of the disk in a qcow2 image.
//!
//! Reads only inside the image, fails only for the bytes with invalid entries, and waits only for the tables of the
//! requested range. Lookups in cached pages of tables convert a read to a list of runs (zeros, bytes of the file,
//! compressed clusters). Each run is then one read of the file.

use std::num::NonZeroUsize;

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::OnceCell;

use super::Qcow2Header;
use super::cluster::{ClusterCompression, decode, decode_async};
use super::map::AllocationMap;
use super::table_cache::{CacheCell, TableCache};
use super::tables::{ClusterLocation, CompressedCluster, TableGeometry, number};
use crate::io::concurrency::RUN_READS;
use crate::io::{
    BoxFuture, ByteRange, FaultClass, ReadAt, ReadError, SharedReader, check_bounds, forward_reads,
    plain_reads,
};

/// Bytes of tables per read: an image with large clusters has larger tables than a reader needs.
const TABLE_PAGE_BYTES: u64 = 64 * 1024;
/// Bytes of tables in the cache: with clusters of 64 KiB those of 32 GiB.
const TABLES: usize = 4 << 20;
/// Minimum number of cached pages: a lookup needs one of the L1 table and one of an L2 table, for each of some
/// readers.
const LEAST_PAGES: NonZeroUsize = NonZeroUsize::new(64).unwrap();
/// Bytes of decompressed clusters in the cache.
const PLAIN: usize = 8 << 20;
/// Minimum number of cached decompressed clusters.
const LEAST_PLAIN: NonZeroUsize = NonZeroUsize::new(4).unwrap();
/// Bytes that are planned at once, which bounds the list of runs for a large read of small clusters.
const PLAN_WINDOW_BYTES: usize = 4 << 20;
/// Compressed bytes per read.
const JOINED: u64 = 1 << 20;
/// Bytes that are decompressed on the thread of a reader that does not wait: some 300 microseconds.
const INLINE: u64 = 128 * 1024;

/// Whether a reader may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadMode {
    /// Waits for all data that it needs.
    Waiting,
    /// Stops at data that is not in memory.
    Ready,
}

/// Why a read stopped.
enum WalkStop {
    /// It would have to wait, and must not.
    Waiting,
    /// It failed.
    Failed(ReadError),
}

impl From<ReadError> for WalkStop {
    fn from(error: ReadError) -> Self {
        Self::Failed(error)
    }
}

/// A part of a read that is filled at once.
#[derive(Debug, PartialEq, Eq)]
enum FillRun {
    Zeros,
    /// At this offset of the file.
    Stored(u64),
    /// In these clusters, `skip` bytes behind the start of the first. Their streams are adjacent in the file.
    Packed {
        skip: u64,
        clusters: Vec<CompressedCluster>,
    },
}

/// The raw disk of a qcow2 image.
///
/// Until [`prepare_map`](Qcow2Raw::prepare_map) has returned, every byte counts as data.
pub struct Qcow2Raw {
    file: SharedReader,
    geometry: TableGeometry,
    compression: ClusterCompression,
    /// Pages of the file with tables, by offset.
    pages: TableCache,
    /// Decompressed clusters, by their entries.
    plain: TableCache,
    map: OnceCell<AllocationMap>,
}

impl Qcow2Raw {
    /// The disk of the image `file` with this header. Reads nothing.
    pub fn open(file: SharedReader, header: &Qcow2Header) -> Result<Self, ReadError> {
        let geometry = TableGeometry::new(header, file.size()).map_err(|reason| {
            ReadError::new(FaultClass::Unsupported, format!("qcow2 has no raw view: {reason}"))
        })?;
        let compression = match header.compression_type {
            0 => ClusterCompression::Deflate,
            _ => ClusterCompression::Zstd,
        };
        let cluster = geometry.cluster();
        Ok(Self {
            file,
            geometry,
            compression,
            pages: TableCache::new(TABLES, cluster.min(TABLE_PAGE_BYTES) as usize, LEAST_PAGES),
            plain: TableCache::new(PLAIN, cluster as usize, LEAST_PLAIN),
            map: OnceCell::new(),
        })
    }

    /// Reads all tables, after which holes and [`data_bytes`](Qcow2Raw::data_bytes) are known. Done once for all
    /// callers. An error ends only this call, and the next one tries again.
    pub async fn prepare_map(&self) -> Result<(), ReadError> {
        let map = self.map.get_or_try_init(|| AllocationMap::read(&self.file, self.geometry)).await;
        map.map(|_| ()).map_err(|error| error.within("qcow2 tables"))
    }

    /// The bytes of the disk that are allocated in the image; `None` before [`prepare_map`](Qcow2Raw::prepare_map).
    pub fn data_bytes(&self) -> Option<u64> {
        self.map.get().map(AllocationMap::bytes)
    }

    /// Fills `buf` from `offset` on, at `pace`. Invariant of the callers: the range is inside the disk.
    async fn fill(&self, offset: u64, buf: &mut [u8], pace: ReadMode) -> Result<(), WalkStop> {
        let mut offset = offset;
        for window in buf.chunks_mut(PLAN_WINDOW_BYTES) {
            let runs = self.plan(ByteRange::at(offset, window.len() as u64), pace).await?;
            offset += window.len() as u64;
            let mut rest = window;
            let mut fills: Vec<BoxFuture<'_, Result<(), WalkStop>>> = Vec::new();
            for (run, len) in runs {
                let (part, behind) = rest.split_at_mut(len as usize);
                rest = behind;
                match run {
                    FillRun::Zeros => part.fill(0),
                    FillRun::Stored(at) => fills.push(Box::pin(self.fill_stored(at, part, pace))),
                    FillRun::Packed { skip, clusters } => {
                        fills.push(Box::pin(self.fill_packed(skip, clusters, part, pace)));
                    }
                }
            }
            stream::iter(fills).buffer_unordered(RUN_READS).try_collect::<()>().await?;
        }
        Ok(())
    }

    /// The runs of `range`, in order, with their lengths, which add up to that of `range`.
    async fn plan(&self, range: ByteRange, pace: ReadMode) -> Result<Vec<(FillRun, u64)>, WalkStop> {
        let mut runs: Vec<(FillRun, u64)> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let (place, end) = self.place(at, pace).await.map_err(|stop| match stop {
                WalkStop::Failed(error) => WalkStop::Failed(error.within(format!("qcow2 byte {at}"))),
                WalkStop::Waiting => WalkStop::Waiting,
            })?;
            let len = end.min(range.end) - at;
            if let Some((run, before)) = runs.last_mut()
                && joins(run, *before, place)
            {
                *before += len;
            } else {
                runs.push((self.run(place, at), len));
            }
            at += len;
        }
        Ok(runs)
    }

    fn run(&self, place: ClusterLocation, offset: u64) -> FillRun {
        match place {
            ClusterLocation::Zeros => FillRun::Zeros,
            ClusterLocation::Stored(at) => FillRun::Stored(at),
            ClusterLocation::Packed(packed) => {
                FillRun::Packed { skip: offset & (self.geometry.cluster() - 1), clusters: vec![packed] }
            }
        }
    }

    /// The location of the byte at `offset`, and the offset up to which that mapping holds.
    async fn place(&self, offset: u64, pace: ReadMode) -> Result<(ClusterLocation, u64), WalkStop> {
        let geometry = &self.geometry;
        let (page, at) = self.page(geometry.l1_entry(offset), pace).await?;
        let Some(table) = geometry.table(number(&page[at as usize..]))? else {
            return Ok((ClusterLocation::Zeros, geometry.covered(offset).end));
        };
        let (page, at) = self.page(geometry.l2_entry(table, offset), pace).await?;
        Ok(geometry.place(geometry.read_entry(&page, at), offset)?)
    }

    /// The page of the file with the entry at `position`, and the entry's offset in the page. Tables start at
    /// clusters and pages are no larger, so no entry spans two pages.
    async fn page(&self, position: u64, pace: ReadMode) -> Result<(Bytes, u64), WalkStop> {
        let size = self.geometry.cluster().min(TABLE_PAGE_BYTES);
        let at = position & (size - 1);
        let range = ByteRange::at(position - at, size).intersect(ByteRange::new(0, self.file.size()));
        let cell = self.pages.cell(range.start);
        let page = match (cell.get(), pace) {
            (Some(page), _) => page.clone(),
            (None, ReadMode::Ready) => keep(&cell, self.read(range, pace).await?),
            (None, ReadMode::Waiting) => {
                cell.get_or_try_init(|| async { self.read(range, pace).await }).await?.clone()
            }
        };
        Ok((page, at))
    }

    /// Bytes of the file. Invariant of the callers: `range` is inside the file, and not longer than a few clusters.
    async fn read(&self, range: ByteRange, pace: ReadMode) -> Result<Bytes, WalkStop> {
        let mut bytes = vec![0; range.len() as usize];
        self.read_into(range.start, &mut bytes, pace).await?;
        Ok(bytes.into())
    }

    async fn read_into(&self, at: u64, buf: &mut [u8], pace: ReadMode) -> Result<(), WalkStop> {
        match pace {
            ReadMode::Waiting => Ok(self.file.read_at(at, buf).await?),
            ReadMode::Ready if self.file.read_ready(at, buf)? => Ok(()),
            ReadMode::Ready => Err(WalkStop::Waiting),
        }
    }

    /// Fills `buf` from the file. A file may end inside its last cluster, whose rest is zeros because it was not
    /// written.
    async fn fill_stored(&self, at: u64, buf: &mut [u8], pace: ReadMode) -> Result<(), WalkStop> {
        let inside = self.file.size().saturating_sub(at).min(buf.len() as u64);
        let (stored, behind) = buf.split_at_mut(inside as usize);
        behind.fill(0);
        if stored.is_empty() { Ok(()) } else { self.read_into(at, stored, pace).await }
    }

    /// Fills `buf` from `skip` bytes behind the start of the first of these clusters.
    async fn fill_packed(
        &self,
        skip: u64,
        clusters: Vec<CompressedCluster>,
        buf: &mut [u8],
        pace: ReadMode,
    ) -> Result<(), WalkStop> {
        let cells: Vec<CacheCell> = clusters.iter().map(|packed| self.plain.cell(packed.key)).collect();
        let missing: Vec<ByteRange> = clusters
            .iter()
            .zip(&cells)
            .filter(|(_, cell)| cell.get().is_none())
            .map(|(packed, _)| packed.stored)
            .collect();
        let cluster = self.geometry.cluster();
        if pace == ReadMode::Ready && missing.len() as u64 * cluster > INLINE {
            return Err(WalkStop::Waiting);
        }
        // One read for all clusters that must be decompressed: their streams are adjacent.
        let start = missing.first().map_or(0, |stored| stored.start);
        let end = missing.iter().map(|stored| stored.end).max().unwrap_or(start);
        let stored = match ByteRange::new(start, end) {
            none if none.is_empty() => Bytes::new(),
            range => self.read(range, pace).await?,
        };
        let (mut skip, mut rest) = (skip as usize, buf);
        for (packed, cell) in clusters.iter().zip(&cells) {
            let own = || {
                let own = packed.stored;
                stored.slice((own.start - start) as usize..(own.end - start) as usize)
            };
            let plain = match (cell.get(), pace) {
                (Some(plain), _) => plain.clone(),
                (None, ReadMode::Ready) => keep(cell, decode(self.compression, &own(), cluster as usize)?),
                (None, ReadMode::Waiting) => {
                    let decode = || decode_async(self.compression, own(), cluster as usize);
                    cell.get_or_try_init(decode).await?.clone()
                }
            };
            let len = (plain.len() - skip).min(rest.len());
            let (part, behind) = rest.split_at_mut(len);
            part.copy_from_slice(&plain[skip..skip + len]);
            (skip, rest) = (0, behind);
        }
        Ok(())
    }
}

/// Stores the result of a reader that does not wait in its cell, unless another reader was faster.
fn keep(cell: &CacheCell, bytes: Bytes) -> Bytes {
    cell.set(bytes.clone()).ok();
    bytes
}

/// Whether `place` continues the `len` bytes of `run`; if so, `place` becomes a part of the run.
fn joins(run: &mut FillRun, len: u64, place: ClusterLocation) -> bool {
    match (run, place) {
        (FillRun::Zeros, ClusterLocation::Zeros) => true,
        (FillRun::Stored(at), ClusterLocation::Stored(next)) => *at + len == next,
        (FillRun::Packed { clusters, .. }, ClusterLocation::Packed(next)) => {
            let (Some(first), Some(last)) = (clusters.first(), clusters.last()) else { return false };
            let follows = (last.stored.start..=last.stored.end).contains(&next.stored.start);
            let fits = next.stored.end.saturating_sub(first.stored.start) <= JOINED;
            if follows && fits {
                clusters.push(next);
            }
            follows && fits
        }
        _ => false,
    }
}

impl ReadAt for Qcow2Raw {
    fn size(&self) -> u64 {
        self.geometry.size
    }

    fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move {
            check_bounds(ByteRange::at(offset, buf.len() as u64), self.size())?;
            match self.fill(offset, buf, ReadMode::Waiting).await {
                Ok(()) => Ok(()),
                Err(WalkStop::Failed(error)) => Err(error),
                Err(WalkStop::Waiting) => {
                    Err(ReadError::new(FaultClass::Io, "a reader that waits did not wait"))
                }
            }
        })
    }

    fn read_ready(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ReadError> {
        check_bounds(ByteRange::at(offset, buf.len() as u64), self.size())?;
        // At this pace the future does not wait, so one poll completes it.
        match self.fill(offset, buf, ReadMode::Ready).now_or_never() {
            Some(Ok(())) => Ok(true),
            Some(Err(WalkStop::Failed(error))) => Err(error),
            Some(Err(WalkStop::Waiting)) | None => Ok(false),
        }
    }

    fn next_data(&self, offset: u64) -> Option<u64> {
        match self.map.get() {
            Some(map) => map.next_data(offset),
            None => (offset < self.size()).then_some(offset),
        }
    }

    fn next_hole(&self, offset: u64) -> u64 {
        self.map.get().map_or(self.size(), |map| map.next_hole(offset)).min(self.size())
    }

    fn learn_holes(&self) -> Option<BoxFuture<'_, Result<(), ReadError>>> {
        let is_known = self.data_bytes().is_some();
        (!is_known).then(|| -> BoxFuture<'_, _> { Box::pin(self.prepare_map()) })
    }

    forward_reads!(file: verified);

    plain_reads!(read_exactly, backing);
}
