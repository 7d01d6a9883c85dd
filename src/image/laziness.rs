//! Access report: how lazily each layer can be read, and whether the source of its blobs answers range requests.
//!
//! The report comes from documents and the cache; nothing is decoded. Before mounting a large image, it shows whether
//! reading one file of it means reading all of it.

use std::fmt;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;

use crate::io::{ByteRange, ReadError};
use crate::layer::{IndexKind, LayerState};
use crate::oci::{Descriptor, Digest};

use super::OpenImage;

/// The cost of reading a part of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerLaziness {
    /// It cannot be read: the algorithm of its digest is unknown.
    Unserved(String),
    /// It is a file, and any part of it can be fetched as a range.
    Range,
    /// It is an archive that cannot be read; the reason.
    Failed(String),
    /// It is encrypted, according to its label.
    Encrypted,
    /// It is an archive with an index: any part of a file is a few ranges.
    Indexed(IndexKind),
    /// It is an uncompressed archive: its headers are walked once.
    Headers,
    /// It is a compressed archive without an index: it is read completely once before any of its files.
    Pass,
}

impl LayerLaziness {
    /// Whether a part can be read without reading everything first.
    pub fn is_lazy(&self) -> bool {
        !matches!(
            self,
            LayerLaziness::Unserved(_)
                | LayerLaziness::Failed(_)
                | LayerLaziness::Encrypted
                | LayerLaziness::Pass
        )
    }
}

impl fmt::Display for LayerLaziness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LayerLaziness::Unserved(algorithm) => {
                write!(f, "not served: digest algorithm {algorithm} is unknown")
            }
            LayerLaziness::Range => f.write_str("by range"),
            LayerLaziness::Failed(error) => write!(f, "archive that cannot be read: {error}"),
            LayerLaziness::Encrypted => f.write_str("encrypted: as stored, and its files cannot be read"),
            LayerLaziness::Indexed(IndexKind::Local) => {
                f.write_str("archive, indexed in the cache: by range")
            }
            LayerLaziness::Indexed(kind) => write!(f, "archive with a {kind} index: by range"),
            LayerLaziness::Headers => f.write_str("archive, by range after a walk over its headers"),
            LayerLaziness::Pass => {
                f.write_str("archive, by range as stored; its files after one pass over it")
            }
        }
    }
}

/// Measured behaviour of a blob's source.
#[derive(Clone, Debug)]
pub struct BlobProbe {
    /// The requested blob: the largest one.
    pub blob: Digest,
    /// Its size.
    pub size: u64,
    /// Whether a range request was answered with that range, and not with the whole blob.
    pub ranges: bool,
    /// Duration of the first range request.
    pub first: Duration,
    /// Duration of [`PROBE_CONCURRENCY`](Self::PROBE_CONCURRENCY) concurrent range requests.
    pub parallel: Duration,
}

impl BlobProbe {
    /// Number of concurrent range requests.
    pub const PROBE_CONCURRENCY: usize = crate::io::concurrency::PROBE_REQUESTS;
    /// Length of each range, in bytes.
    pub const PROBE_BYTES: u64 = 64 * 1024;
}

impl OpenImage {
    /// The index of layer `at`, as far as documents and the cache show. `offered` lists the published indexes, see
    /// [`offered_indexes`](Self::offered_indexes).
    pub fn index_of(&self, at: usize, offered: &[(Digest, IndexKind)]) -> Option<IndexKind> {
        let descriptor = &self.manifest().layers[at];
        let layer = self.archive(at)?;
        layer.known_index().or_else(|| {
            offered.iter().find(|(digest, _)| *digest == descriptor.digest).map(|(_, kind)| *kind)
        })
    }

    /// How layer `at` can be read, as far as its label and the cache show.
    pub fn access(&self, at: usize, offered: &[(Digest, IndexKind)]) -> LayerLaziness {
        let descriptor = &self.manifest().layers[at];
        if descriptor.digest.algorithm().is_none() {
            return LayerLaziness::Unserved(descriptor.digest.algorithm_name().to_owned());
        }
        if descriptor.media_type.claims_encryption() {
            return LayerLaziness::Encrypted;
        }
        let Some(layer) = self.archive(at) else { return LayerLaziness::Range };
        match (layer.state(), self.index_of(at, offered)) {
            (LayerState::Failed(error), _) => LayerLaziness::Failed(error.chain()),
            (_, Some(kind)) => LayerLaziness::Indexed(kind),
            (_, None) if descriptor.media_type.claims_uncompressed_tar() => LayerLaziness::Headers,
            (_, None) => LayerLaziness::Pass,
        }
    }

    /// Whether any layer is an archive: indexes are published for archives only.
    pub fn has_archives(&self) -> bool {
        (0..self.manifest().layers.len()).any(|at| self.archive(at).is_some())
    }

    /// Requests a few ranges of the largest blob, bypassing the cache; `None` if no blob has a remote source.
    pub async fn probe(&self) -> Result<Option<BlobProbe>, ReadError> {
        let elsewhere =
            self.manifest().blobs().filter(|blob| blob.data.is_none() && blob.digest.algorithm().is_some());
        let Some(largest) = elsewhere.max_by_key(|blob| blob.size).filter(|blob| blob.size > 0) else {
            return Ok(None);
        };
        let at = |part: usize| {
            let start =
                (largest.size / (BlobProbe::PROBE_CONCURRENCY as u64 + 1)).saturating_mul(part as u64);
            ByteRange::at(start, BlobProbe::PROBE_BYTES).intersect(ByteRange::new(0, largest.size))
        };
        let begun = Instant::now();
        let ranges = self.take(largest, at(1)).await?;
        let first = begun.elapsed();
        let begun = Instant::now();
        if ranges {
            let several = (1..=BlobProbe::PROBE_CONCURRENCY).map(|part| self.take(largest, at(part)));
            futures_util::future::try_join_all(several).await?;
        }
        let (blob, size) = (largest.digest.clone(), largest.size);
        Ok(Some(BlobProbe { blob, size, ranges, first, parallel: begun.elapsed() }))
    }

    /// Fetches a range to its end, and reports whether the delivery was exactly that range.
    async fn take(&self, blob: &Descriptor, range: ByteRange) -> Result<bool, ReadError> {
        let mut delivery = self.source.blob(blob).fetch(range).await?;
        let exact = delivery.range == range;
        let mut left = range.end.saturating_sub(delivery.range.start);
        // Bytes after the range are not awaited.
        while left > 0
            && let Some(chunk) = delivery.body.next().await
        {
            left = left.saturating_sub(chunk?.len() as u64);
        }
        Ok(exact)
    }
}
