//! Discovery of the index that a layer carries.
//!
//! One small read of the end shows every kind of footer, and often contains the whole index. Only those bytes and
//! the index itself are read. Decoding runs on a blocking thread.

use std::collections::BTreeMap;

use crate::io::{ByteRange, FaultClass, MEMORY, MemoryShare, ReadAt, ReadError, read_vec};
use crate::oci::{Digest, InvalidDigest};

use super::super::sniff::StreamEncoding;
use super::super::span::SpanMap;
use super::super::toc::TableOfContents;
use super::assembler::{DocumentTurn, is_marker, is_table, turn};
use super::foreign_index::{FindError, ForeignError, ForeignIndex, ForeignLimits, IndexKind, broken};
use super::{estargz, seek_table, zstd_chunked};

/// Maximum stored bytes of a table of contents that is read without reserving memory.
const FREE_TOC_BYTES: u64 = 2 * 1024 * 1024;

/// Bytes of the end that are searched for footers. They also contain a small table of contents.
const FOOTER_READ_BYTES: u64 = 64 * 1024;

/// The kind of index that the annotations of a layer's descriptor announce; `None` for none.
pub fn announced(annotations: &BTreeMap<String, String>) -> Option<IndexKind> {
    let has = |prefix: &str| annotations.keys().any(|key| key.starts_with(prefix));
    if zstd_chunked::PREFIXES.iter().any(|prefix| has(prefix)) {
        return Some(IndexKind::ZstdChunked);
    }
    annotations.contains_key(estargz::DIGEST_ANNOTATION).then_some(IndexKind::Estargz)
}

/// Whether the annotations name the digest of the index that they announce.
pub fn names_digest(annotations: &BTreeMap<String, String>) -> bool {
    let checksum = |prefix: &&str| annotations.contains_key(&format!("{prefix}manifest-checksum"));
    annotations.contains_key(estargz::DIGEST_ANNOTATION) || zstd_chunked::PREFIXES.iter().any(checksum)
}

/// The index that the layer `blob` carries, a table of contents with spans; `annotations` are those of its
/// descriptor. `None` without an index; [`FindError::Index`] for an unusable one.
pub async fn find_foreign(
    blob: &dyn ReadAt,
    encoding: StreamEncoding,
    annotations: &BTreeMap<String, String>,
    limits: ForeignLimits,
) -> Result<Option<ForeignIndex>, FindError> {
    match encoding {
        StreamEncoding::Gzip => find_estargz(blob, annotations, limits).await,
        StreamEncoding::Zstd => find_zstd_chunked(blob, annotations, limits).await,
        _ => Ok(None),
    }
}

/// The spans from the seek table at the end of a zstd layer; `None` without such a table.
pub async fn find_seek_table(
    blob: &dyn ReadAt,
    encoding: StreamEncoding,
    limits: ForeignLimits,
) -> Result<Option<SpanMap>, FindError> {
    let size = blob.size();
    if encoding != StreamEncoding::Zstd || size < limits.smallest {
        return Ok(None);
    }
    let tail = BlobTail::read(blob).await?;
    let Some(range) = seek_table::locate(&tail.bytes, size, &limits)? else { return Ok(None) };
    let memory = memory_for(blob, range, seek_table::FORMAT).await?;
    let table = tail.range(blob, range).await?;
    let parse = move || {
        let _memory = memory;
        seek_table::parse(&table, size)
    };
    blocking(parse).await.map(Some)
}

/// Whether the tree of `blob`, an archive with the entries `toc`, shows entries that only serve an index. They are
/// shown unless the layer carries that index. Every index of one layer gives the same result, so its tree never
/// depends on the index.
pub(in super::super) async fn shows_markers(
    blob: &dyn ReadAt,
    encoding: StreamEncoding,
    toc: &TableOfContents,
) -> Result<bool, ReadError> {
    let size = blob.size();
    let end = async |len: u64| read_vec(blob, ByteRange::new(size.saturating_sub(len), size)).await;
    Ok(match encoding {
        // Some writers leave the end mark in the archive, and then the table of contents lies behind it and is no
        // entry.
        StreamEncoding::Gzip => {
            !toc.last().is_some_and(|last| is_table(last.path))
                && matches!(estargz::locate(&end(estargz::LARGEST_FOOTER).await?, size), Ok(None))
        }
        StreamEncoding::Zstd => {
            matches!(zstd_chunked::locate(&end(zstd_chunked::LARGEST_FOOTER).await?, size), Ok(None))
        }
        _ => true,
    })
}

/// `toc` without the entries that only serve an index.
pub(in super::super) fn without_markers(toc: &TableOfContents) -> TableOfContents {
    toc.iter().filter(|entry| !is_marker(entry.path)).map(|entry| entry.to_entry()).collect()
}

async fn find_estargz(
    blob: &dyn ReadAt,
    annotations: &BTreeMap<String, String>,
    limits: ForeignLimits,
) -> Result<Option<ForeignIndex>, FindError> {
    let (format, size) = (estargz::FORMAT, blob.size());
    let expected = toc_digest(annotations, format)?;
    if expected.is_none() && size < limits.smallest {
        return Ok(None);
    }
    let tail = BlobTail::read(blob).await?;
    let Some(range) = estargz::locate(&tail.bytes, size)? else {
        return match expected {
            Some(digest) => {
                let reason =
                    format!("the manifest names the table of contents {digest}, and the footer is missing");
                Err(broken(format, reason).into())
            }
            None => Ok(None),
        };
    };
    ForeignLimits::check(format, range.len(), limits.stored, "a stored table of contents")?;
    let memory = memory_for(blob, range, format).await?;
    let stored = tail.range(blob, range).await?;
    let parse = move || {
        let (_memory, turn) = memory.unzip();
        estargz::parse(stored, range, size, expected.as_ref(), &limits, turn)
    };
    blocking(parse).await.map(Some)
}

async fn find_zstd_chunked(
    blob: &dyn ReadAt,
    annotations: &BTreeMap<String, String>,
    limits: ForeignLimits,
) -> Result<Option<ForeignIndex>, FindError> {
    let (format, size) = (zstd_chunked::FORMAT, blob.size());
    let annotated = zstd_chunked::TocAnnotations::read(annotations, size)?;
    let decoded = toc_digest(annotations, format)?;
    let is_promised = annotated.checksum.is_some() || decoded.is_some();
    if annotated.place.is_none() && !is_promised && size < limits.smallest {
        return Ok(None);
    }
    let (place, tail) = match annotated.place {
        // The range is known: the footer is not worth a request.
        Some(place) => (place, None),
        None => {
            let tail = BlobTail::read(blob).await?;
            match zstd_chunked::locate(&tail.bytes, size)? {
                Some(place) => (place, Some(tail)),
                None if is_promised => {
                    return Err(
                        broken(format, "the manifest names its digest, and the footer is missing").into()
                    );
                }
                None => return Ok(None),
            }
        }
    };
    ForeignLimits::check(format, place.stored.len(), limits.stored, "a stored manifest")?;
    let memory = memory_for(blob, place.stored, format).await?;
    let stored = match tail {
        Some(tail) => tail.range(blob, place.stored).await?,
        None => read_vec(blob, place.stored).await?,
    };
    let parse = move || {
        let (_memory, turn) = memory.unzip();
        let expected =
            zstd_chunked::ExpectedDigests { stored: annotated.checksum.as_ref(), decoded: decoded.as_ref() };
        zstd_chunked::parse(stored, place, size, expected, &limits, turn)
    };
    blocking(parse).await.map(Some)
}

/// Waits for memory for the stored bytes of a large table of contents, and for its lock. The bytes are fetched
/// before, so that neither is held while a network is waited for.
async fn memory_for(
    blob: &dyn ReadAt,
    range: ByteRange,
    format: &'static str,
) -> Result<Option<(MemoryShare, DocumentTurn)>, FindError> {
    if range.len() <= FREE_TOC_BYTES {
        return Ok(None);
    }
    for start in (range.start..range.end).step_by(FREE_TOC_BYTES as usize) {
        read_vec(blob, ByteRange::new(start, range.end.min(start + FREE_TOC_BYTES))).await?;
    }
    let turn = turn().await;
    let share = MEMORY.take(range.len()).await.map_err(|error| ForeignError::TooLarge {
        format,
        what: format!("a stored table of contents of {} bytes ({error})", range.len()),
        limit: range.len(),
    })?;
    // The entries take memory beside it, and must not wait for it.
    share.pin();
    Ok(Some((share, turn)))
}

/// The digest of the decoded table of contents in the manifest, if any.
fn toc_digest(
    annotations: &BTreeMap<String, String>,
    format: &'static str,
) -> Result<Option<Digest>, ForeignError> {
    let Some(text) = annotations.get(estargz::DIGEST_ANNOTATION) else { return Ok(None) };
    let digest: Result<Digest, InvalidDigest> = text.parse();
    digest.map(Some).map_err(|error| broken(format, format!("annotation toc.digest: {error}")))
}

/// Runs decoding and hashing on a blocking thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ForeignError> + Send + 'static,
) -> Result<T, FindError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(error) => Err(ReadError::caused(FaultClass::Io, "reading the index of a layer", error).into()),
    }
}

/// The last bytes of a blob.
struct BlobTail {
    /// Offset of the first byte.
    start: u64,
    bytes: Vec<u8>,
}

impl BlobTail {
    async fn read(blob: &dyn ReadAt) -> Result<Self, ReadError> {
        let range = ByteRange::new(blob.size().saturating_sub(FOOTER_READ_BYTES), blob.size());
        Ok(Self { start: range.start, bytes: read_vec(blob, range).await? })
    }

    /// The bytes of `range`; only those before the tail are fetched.
    async fn range(&self, blob: &dyn ReadAt, range: ByteRange) -> Result<Vec<u8>, ReadError> {
        let here = range.intersect(ByteRange::at(self.start, self.bytes.len() as u64));
        let (from, to) = (here.start.saturating_sub(self.start), here.end.saturating_sub(self.start));
        // Both are inside the tail, which is in memory.
        let here = self.bytes.get(from as usize..to as usize).unwrap_or_default();
        let before = ByteRange::new(range.start, range.end.min(self.start));
        if before.is_empty() {
            return Ok(here.to_vec());
        }
        let mut bytes = read_vec(blob, before).await?;
        // Exact, so that a large table of contents is in memory once, not twice.
        bytes.reserve_exact(here.len());
        bytes.extend_from_slice(here);
        Ok(bytes)
    }
}
