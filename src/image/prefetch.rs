//! Prefetch: fetches content before a reader requests it.
//!
//! Prefetch serves no bytes and no reader waits for it: a range that fails is fetched again when it is read. Every
//! kind of prefetch is a list of blob ranges, in the order in which they are likely to be read.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;

use crate::io::concurrency::PREFETCH_FETCHES;
use crate::io::{BoxFuture, ByteRange, FaultClass, ReadError, lock};
use crate::layer::StoredLayer;
use crate::oci::Descriptor;

use super::{OpenImage, ReadTrace};

/// The content to prefetch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PrefetchMode {
    /// No content.
    None,
    /// The content that layer authors marked as needed first, when a layer is first accessed.
    #[default]
    Landmarks,
    /// The reads of a recorded trace.
    Trace(ReadTrace),
    /// All content.
    All,
}

/// The budget of work before the first read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AheadCost {
    /// Some milliseconds, and no remote byte.
    Little,
    /// Unlimited.
    Any,
}

impl OpenImage {
    /// Fetches the content that `prefetch` selects, and returns when it is cached. Landmarks are fetched when layers
    /// are accessed.
    pub async fn prefetch(self: Arc<Self>, prefetch: PrefetchMode) {
        let result = match prefetch {
            PrefetchMode::None | PrefetchMode::Landmarks => Ok(()),
            PrefetchMode::Trace(trace) => self.replay(&trace).await,
            PrefetchMode::All => self.fetch_all().await,
        };
        match result {
            Ok(()) => tracing::debug!(reference = self.pinned(), "prefetch ended"),
            Err(error) => {
                tracing::warn!(reference = self.pinned(), error = error.chain(), "prefetch ended early")
            }
        }
    }

    /// Fetches everything. Retries while the network or the registry fails, until everything is cached and was
    /// compared with its digests.
    pub async fn complete(self: Arc<Self>) {
        let wanted = self.every_blob().map(|blob| blob.size).fold(0, u64::saturating_add);
        if let Some(capacity) = self.cache.capacity().filter(|capacity| wanted > *capacity) {
            self.note_incomplete(too_large(wanted, capacity));
        }
        /// Pause between two attempts: an outage that outlasts the retries of a read takes more than seconds.
        const PREFETCH_RETRY_DELAY: Duration = Duration::from_secs(15);
        loop {
            match self.fetch_all().await {
                Ok(()) => break,
                Err(error) if matches!(error.fault(), FaultClass::Unavailable) => {
                    tracing::warn!(reference = self.pinned(), error = error.chain(), "not complete yet");
                    tokio::time::sleep(PREFETCH_RETRY_DELAY).await;
                }
                Err(error) => {
                    self.note_incomplete(error.chain());
                    return;
                }
            }
        }
        let missing: u64 = self
            .every_blob()
            .map(|blob| {
                self.cached(blob).map_or(blob.size, |cached| blob.size.saturating_sub(cached.bytes_present()))
            })
            .sum();
        if missing > 0 {
            self.note_incomplete(format!("the cache has no room for {missing} bytes"));
        } else {
            tracing::info!(reference = self.pinned(), "everything is cached");
        }
    }

    /// Records why the content cannot become complete, for `status` and the log. The first reason stays.
    fn note_incomplete(&self, why: String) {
        let why = self.incomplete.get_or_init(|| format!("never complete: {why}"));
        tracing::warn!(reference = self.pinned(), "{why}");
    }

    /// Merges the layers before the first read. With [`AheadCost::Little`] only if that needs no remote byte and
    /// takes only milliseconds.
    pub async fn merge_ahead(self: Arc<Self>, cost: AheadCost) {
        /// Limit of index bytes: some hundred thousand entries, a tenth of a second.
        const MOST: u64 = 8 * 1024 * 1024;
        let sizes: Option<Vec<u64>> = self.archives().map(|(_, layer)| layer.kept_index_len()).collect();
        let is_cheap = sizes.is_some_and(|sizes| !sizes.is_empty() && sizes.iter().sum::<u64>() <= MOST);
        if (is_cheap || cost == AheadCost::Any)
            && let Err(error) = self.merged().await
        {
            // The process that accesses the tree gets the error.
            tracing::debug!(reference = self.pinned(), error = error.chain(), "not merged ahead");
        }
    }

    async fn replay(&self, trace: &ReadTrace) -> Result<(), ReadError> {
        let mut reads: Vec<(&Descriptor, ByteRange)> = Vec::new();
        for read in &trace.reads {
            // Ranges of another version of the image, or past the end of a blob, are skipped.
            let found = self.manifest().blobs().find(|blob| blob.digest.as_str() == read.blob);
            let Some(descriptor) = found.filter(|blob| blob.data.is_none()) else { continue };
            let range = ByteRange::new(read.start, read.end).intersect(ByteRange::new(0, descriptor.size));
            if !range.is_empty() {
                reads.push((descriptor, range));
            }
        }
        self.fetch(joined(reads, |blob| blob.digest.as_str())).await
    }

    async fn fetch_all(&self) -> Result<(), ReadError> {
        self.fetch(self.every_blob().map(|blob| (blob, ByteRange::new(0, blob.size))).collect()).await
    }

    /// The blobs that have a remote source and can be shown.
    fn every_blob(&self) -> impl Iterator<Item = &Descriptor> {
        let layers = self.manifest().layers.iter().zip(&self.selected);
        let layers = layers.filter(|(_, selected)| **selected).map(|(layer, _)| layer);
        let wanted = self.manifest().config.iter().chain(layers);
        wanted.filter(|blob| blob.data.is_none() && blob.size > 0 && blob.digest.algorithm().is_some())
    }

    async fn fetch(&self, wanted: Vec<(&Descriptor, ByteRange)>) -> Result<(), ReadError> {
        let fetches: Vec<BoxFuture<'_, Result<(), ReadError>>> = wanted
            .into_iter()
            .map(|(descriptor, range)| -> BoxFuture<'_, _> {
                Box::pin(async move { self.cached(descriptor)?.ensure(range).await })
            })
            .collect();
        let mut fetches = futures_util::stream::iter(fetches).buffered(PREFETCH_FETCHES);
        let mut result = Ok(());
        // A failed blob does not stop the others.
        while let Some(fetched) = fetches.next().await {
            result = result.and(fetched);
        }
        result
    }

    /// Starts fetching the content that the author of a layer marked, up to `end` of its stream. The task ends with
    /// the image.
    pub(super) fn fetch_landmark(&self, at: usize, layer: &StoredLayer, end: u64) {
        if end == 0 || self.prefetch != PrefetchMode::Landmarks {
            return;
        }
        let fetching = layer.fetching(ByteRange::new(0, end));
        lock(&self.tasks).spawn(async move {
            if let Err(error) = fetching.await {
                tracing::debug!(layer = at, error = error.chain(), "prefetch ended early");
            }
        });
    }
}

/// Bytes of a trace whose neighbouring ranges are joined. A program reads parts of a file in any order, and a request
/// costs a registry milliseconds; the last of so many bytes comes some milliseconds later on a gigabit link.
const JOINED_BYTES: u64 = 16 * 1024 * 1024;

/// `reads` in fewer ranges: neighbours among each [`JOINED_BYTES`] of them are joined. `name` identifies a blob.
fn joined<'a, B: Copy>(reads: Vec<(B, ByteRange)>, name: impl Fn(B) -> &'a str) -> Vec<(B, ByteRange)> {
    let mut joined: Vec<(B, ByteRange)> = Vec::new();
    let mut rest = reads.as_slice();
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |(_, range): &&(B, ByteRange)| {
            let is_within = bytes < JOINED_BYTES;
            bytes += range.len();
            is_within
        };
        let (group, later) = rest.split_at(rest.iter().take_while(fits).count());
        rest = later;
        let mut group = group.to_vec();
        group.sort_by_key(|(blob, range)| (name(*blob), range.start));
        let first = joined.len();
        for (blob, range) in group {
            match joined[first..].last_mut() {
                Some((last, run)) if name(*last) == name(blob) && range.start <= run.end => {
                    run.end = run.end.max(range.end);
                }
                _ => joined.push((blob, range)),
            }
        }
    }
    joined
}

/// The error for content that does not fit into the cache.
pub(super) fn too_large(wanted: u64, capacity: u64) -> String {
    format!(
        "{wanted} bytes are wanted, and the cache holds at most {capacity}: its limit or its disk is too small"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn neighbours_of_a_trace_are_joined_near_their_place_in_it() {
        let read = |blob, start, end| (blob, ByteRange::new(start * MIB, end * MIB));
        let reads = vec![
            read("b", 4, 5),
            read("a", 9, 10),
            read("b", 3, 4),
            read("b", 0, 1),
            read("b", 4, 6),
            // 16 MiB are reached within this one.
            read("b", 20, 40),
            read("b", 1, 2),
        ];
        let expected =
            [read("a", 9, 10), read("b", 0, 1), read("b", 3, 6), read("b", 20, 40), read("b", 1, 2)];
        assert_eq!(joined(reads, |name| name), expected);
        assert!(joined(Vec::<(&str, ByteRange)>::new(), |name| name).is_empty());
    }
}
