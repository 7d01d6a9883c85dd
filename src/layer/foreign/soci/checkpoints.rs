//! Spans of a zTOC: the checkpoints of inflate, and the digest of the stored bytes of each span.
//!
//! For gzip, the tool stores zlib's `zran` points, packed and little endian: an i32 count, an i64 span size, then
//! for each point i64 `in`, i64 `out`, u8 `bits` and a window of 32768 bytes, oldest byte first. A shorter window
//! has zeros in front (`zinfo_to_blob` and `add_checkpoint` in `ztoc/compression/gzip_zinfo.c`). Blobs of the first
//! version omit the first point, and are read as if it were at 10; their length distinguishes them
//! (`blob_to_zinfo`). For tar, the tool stores i32 version, i64 span size, i64 size
//! (`ztoc/compression/tar_zinfo.go`).
//!
//! The digest of a span covers the bytes from `in`, or from the byte before when `bits` is not 0. It ends at the
//! `in` of the next point or at the end of the layer (`StartCompressedOffset` and `EndCompressedOffset` in
//! `gzip_zinfo.go`). A byte that two spans share is in both. The gzip header is in none, because the first point
//! lies after it.

use super::super::super::packed_window::{PackedWindow, WINDOW};
use super::super::super::sniff::StreamEncoding;
use super::super::super::span::{ChunkDigest, LayerDigests, ResumePoint, SpanMap, SpanStart};
use super::super::foreign_index::ForeignError;
use super::flatbuffer::FlatTable;
use super::{broken, too_large};
use crate::oci::{Digest, HashAlgorithm};

/// Bytes of a packed point.
const POINT: usize = 8 + 8 + 1 + WINDOW;

/// Bytes before the first packed point: count and span size.
const HEAD: usize = 4 + 8;

/// Bytes of the compression information of a tar.
const TAR_HEAD: usize = 4 + 8 + 8;

/// The only version of the compression information of a tar.
const TAR_VERSION: i32 = 2;

/// The shortest header of a gzip member, in bytes (RFC 1952 section 2.3): the first point in blobs of the first
/// version.
const GZIP_HEADER: u64 = 10;

/// Maximum spans: 4 TiB in spans of the default size, 4 MiB. Digests may be shared, so the size of the zTOC is no
/// bound.
const MAX_SPANS: usize = 1 << 20;

/// Maximum stream bytes per stored byte: deflate's shortest code for 258 bytes takes two bits.
const DEFLATE_RATIO: u64 = 1032;

/// Values of the schema's enumeration.
const GZIP: i8 = 1;
const UNCOMPRESSED: i8 = 2;

/// Fields of the compression information.
mod slot {
    pub(super) const ALGORITHM: usize = 0;
    pub(super) const MAX_SPAN_ID: usize = 1;
    pub(super) const SPAN_DIGESTS: usize = 2;
    pub(super) const CHECKPOINTS: usize = 3;
}

/// The spans of a layer of `stored_size` bytes that hold a stream of `stream_size`.
pub(super) fn spans(
    info: &FlatTable<'_>,
    stored_size: u64,
    stream_size: u64,
) -> Result<SpanMap, ForeignError> {
    let blob = info.bytes(slot::CHECKPOINTS).map_err(broken)?;
    let last = info.i32(slot::MAX_SPAN_ID).map_err(broken)?;
    let algorithm = info.i8(slot::ALGORITHM, GZIP).map_err(broken)?;
    let digests = info.vector(slot::SPAN_DIGESTS).map_err(broken)?;
    if digests.len() > MAX_SPANS {
        return Err(too_large(format!("{} spans", digests.len()), MAX_SPANS as u64));
    }
    if i64::from(last) + 1 != digests.len() as i64 {
        return Err(broken(format!(
            "the last span is {last}, and there are {} digests of spans",
            digests.len()
        )));
    }
    let (map, bounds) = match algorithm {
        GZIP => gzip(blob, stored_size, stream_size)?,
        UNCOMPRESSED => uncompressed(blob, digests.len(), stored_size, stream_size)?,
        other => {
            return Err(broken(format!("compression algorithm {other} is neither gzip nor uncompressed")));
        }
    };
    if digests.len() != bounds.len() {
        return Err(broken(format!("{} digests for {} spans", digests.len(), bounds.len())));
    }
    let sums = digests.strings().zip(bounds).enumerate().map(|(at, (text, (start, end)))| {
        let text = text.map_err(broken)?;
        let sha256 = sha256(text).ok_or_else(|| {
            let shown = text[..text.len().min(80)].escape_ascii();
            broken(format!("span {at} has \"{shown}\" for a sha256 digest"))
        })?;
        Ok(ChunkDigest { start, end, sha256 })
    });
    Ok(map.with_sums(LayerDigests::Stored(sums.collect::<Result<_, ForeignError>>()?)))
}

/// The spans, and the stored bytes that the digest of each covers.
type SociSpans = (SpanMap, Vec<(u64, u64)>);

fn gzip(blob: &[u8], stored_size: u64, stream_size: u64) -> Result<SociSpans, ForeignError> {
    let limit = stored_size.saturating_mul(DEFLATE_RATIO);
    if stream_size > limit {
        return Err(too_large(format!("a stream of {stream_size} bytes from {stored_size}"), limit));
    }
    let points = points(blob)?;
    let mut starts = vec![SpanStart { stored: 0, stream: 0, resume: ResumePoint::Unit }];
    for (at, pair) in points.windows(2).enumerate() {
        let ([before, point], at) = (pair, at + 1) else { continue };
        if point.stored <= before.stored || point.stream <= before.stream {
            return Err(broken(format!(
                "checkpoint {at} is at {} of the layer and {} of the stream, and the one before at {} and {}",
                point.stored, point.stream, before.stored, before.stream
            )));
        }
        if point.bits > 7 {
            return Err(broken(format!("checkpoint {at} shares {} bits with the byte before", point.bits)));
        }
        if point.stream < stream_size {
            starts.push(SpanStart { stored: point.stored, stream: point.stream, resume: point.resume() });
        } else if !point.is_padding(stream_size) {
            return Err(broken(format!(
                "checkpoint {at} is at {} of the stream, which has {stream_size} bytes",
                point.stream
            )));
        }
    }
    if let Some(point) = points.last()
        && point.stored >= stored_size
    {
        return Err(broken(format!(
            "checkpoint {} is at {} of the layer, which has {stored_size} bytes",
            points.len() - 1,
            point.stored
        )));
    }
    let ends = points.iter().skip(1).map(|point| point.stored).chain([stored_size]);
    let bounds = points.iter().map(PackedCheckpoint::first_byte).zip(ends).collect();
    Ok((SpanMap::ordered(StreamEncoding::Gzip, stored_size, stream_size, starts), bounds))
}

/// A packed point.
struct PackedCheckpoint<'a> {
    stored: u64,
    stream: u64,
    bits: u8,
    window: &'a [u8],
}

impl PackedCheckpoint<'_> {
    fn first_byte(&self) -> u64 {
        // The first point has no bits and every other one is past it, so this does not underflow.
        self.stored - u64::from(self.bits > 0)
    }

    fn resume(&self) -> ResumePoint {
        let known = usize::try_from(self.stream).map_or(WINDOW, |stream| stream.min(WINDOW));
        ResumePoint::Block { bits: self.bits, window: PackedWindow::pack(&self.window[WINDOW - known..]) }
    }

    /// Whether the bytes between the end of the archive and this point can be padding, as far as the window reaches
    /// back. The tool takes points up to the end of the last gzip member, but counts the stream to the end of the
    /// archive.
    fn is_padding(&self, archive_end: u64) -> bool {
        let past = usize::try_from(self.stream.saturating_sub(archive_end)).unwrap_or(WINDOW).min(WINDOW);
        self.window[WINDOW - past..].iter().all(|&byte| byte == 0)
    }
}

/// The points of `blob`: at least one, and the first at the start of the first member's data.
fn points(blob: &[u8]) -> Result<Vec<PackedCheckpoint<'_>>, ForeignError> {
    let bad = |count: i32| broken(format!("{} bytes of checkpoints for {count} spans", blob.len()));
    let Some((head, packed)) = blob.split_at_checked(HEAD) else { return Err(bad(0)) };
    let count = i32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    let spans = usize::try_from(count).ok().filter(|&spans| spans > 0).ok_or_else(|| bad(count))?;
    let mut points = Vec::new();
    let stored = packed.len() / POINT;
    if stored + 1 == spans {
        points.push(PackedCheckpoint { stored: GZIP_HEADER, stream: 0, bits: 0, window: &[0; WINDOW] });
    } else if stored != spans {
        return Err(bad(count));
    }
    if !packed.len().is_multiple_of(POINT) {
        return Err(bad(count));
    }
    for (at, point) in packed.chunks_exact(POINT).enumerate() {
        let number = |from: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&point[from..from + 8]);
            let number = i64::from_le_bytes(bytes);
            u64::try_from(number).map_err(|_| broken(format!("checkpoint {at} has the offset {number}")))
        };
        points.push(PackedCheckpoint {
            stored: number(0)?,
            stream: number(8)?,
            bits: point[16],
            window: &point[17..],
        });
    }
    match points.first() {
        Some(PackedCheckpoint { stored: GZIP_HEADER.., stream: 0, bits: 0, .. }) => Ok(points),
        first => {
            let (stored, stream, bits) =
                first.map_or((0, 0, 0), |first| (first.stored, first.stream, first.bits));
            Err(broken(format!(
                "the first checkpoint is at {stored} of the layer, {stream} of the stream and {bits} bits, not after a \
                 gzip header"
            )))
        }
    }
}

fn uncompressed(
    blob: &[u8],
    digests: usize,
    stored_size: u64,
    stream_size: u64,
) -> Result<SociSpans, ForeignError> {
    let Ok(&[v0, v1, v2, v3, ref rest @ ..]) = <&[u8; TAR_HEAD]>::try_from(blob) else {
        return Err(broken(format!("{} bytes describe an uncompressed layer, not {TAR_HEAD}", blob.len())));
    };
    let version = i32::from_le_bytes([v0, v1, v2, v3]);
    let number = |from: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&rest[from..from + 8]);
        i64::from_le_bytes(bytes)
    };
    let (span, size) = (number(0), number(8));
    if version != TAR_VERSION
        || span < 1
        || u64::try_from(size) != Ok(stored_size)
        || stream_size > stored_size
    {
        return Err(broken(format!(
            "it describes an uncompressed layer of {size} bytes in spans of {span}, version {version}, with an archive of \
             {stream_size}, and this one has {stored_size}"
        )));
    }
    let span = span.unsigned_abs();
    let spans = stored_size.div_ceil(span);
    // Checked before that many bounds are made.
    if digests as u64 != spans {
        return Err(broken(format!("{digests} digests for {spans} spans of {span} bytes")));
    }
    let bounds = (0..spans).map(|at| (at * span, (at + 1).saturating_mul(span).min(stored_size))).collect();
    Ok((SpanMap::identity(stored_size), bounds))
}

fn sha256(text: &[u8]) -> Option<[u8; 32]> {
    let digest: Digest = std::str::from_utf8(text).ok()?.parse().ok()?;
    if digest.algorithm() != Some(HashAlgorithm::Sha256) {
        return None;
    }
    let hex = digest.encoded().as_bytes();
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}
