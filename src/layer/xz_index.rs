//! xz indexes: size and blocks of the decoded stream, from the ends of its streams (The .xz File Format, 1.2).
//!
//! Nothing is decoded. All streams have to be adjacent, from the last byte back to the first, so that no stored
//! byte is skipped. Inconsistent numbers give no result.

use crate::io::{ByteRange, ReadAt, ReadError, read_vec};

use super::indexer::most_stream;
use super::sniff::StreamEncoding;
use super::span::{ResumePoint, SpanMap, SpanRecorder, SpanStart};
use super::xz::{END_MAGIC, HEADER, check_of, crc32, varint};

/// Maximum index in bytes: a million blocks.
const MAX_XZ_INDEX_BYTES: u64 = 16 * 1024 * 1024;

/// Maximum streams; each costs a read.
const MAX_STREAMS: usize = 1024;

/// Maximum blocks of all streams together: each takes 16 bytes of memory.
const MAX_BLOCKS: usize = 4_000_000;

/// Bytes read at the end, which mostly contain the whole index of the last stream.
const INDEX_READ_BYTES: u64 = 64 * 1024;

/// The decoded size of all streams of `blob`; `None` if their indexes do not give it.
pub(super) async fn stream_size<R: ReadAt + ?Sized>(blob: &R) -> Result<Option<u64>, ReadError> {
    let Some(streams) = streams(blob).await? else { return Ok(None) };
    Ok(streams.iter().try_fold(0u64, |all, stream| all.checked_add(stream.size)))
}

/// The spans of the blocks of `blob`; `None` for an unusable index or a size over the limit of a pass.
pub(super) async fn spans<R: ReadAt + ?Sized>(blob: &R) -> Result<Option<SpanMap>, ReadError> {
    let Some(streams) = streams(blob).await? else { return Ok(None) };
    let mut recorder = SpanRecorder::new(StreamEncoding::Xz);
    let mut stream = 0u64;
    for ListedStream { start, check, blocks, .. } in streams {
        // The first block is decoded from the header of its stream.
        recorder.unit(start, stream);
        let mut stored = start + HEADER as u64;
        for (number, (unpadded, size)) in blocks.into_iter().enumerate() {
            if number > 0 {
                recorder.start(SpanStart { stored, stream, resume: ResumePoint::Inner { shape: check } });
            }
            // The sums of the stored sizes were checked against the size of the blob.
            stored += unpadded.next_multiple_of(4);
            let Some(end) = stream.checked_add(size) else { return Ok(None) };
            stream = end;
        }
    }
    let spans = recorder.finish(blob.size(), stream);
    let usable = stream <= most_stream(blob.size()) && spans.is_sound();
    Ok(usable.then_some(spans))
}

/// A stream of the blob, from its index.
struct ListedStream {
    /// Offset of its header.
    start: u64,
    /// Decoded bytes of all its blocks.
    size: u64,
    /// The type of check of its blocks.
    check: u8,
    /// Stored bytes without padding and decoded bytes of each block.
    blocks: Vec<(u64, u64)>,
}

/// All streams of `blob` in order; `None` when they are not adjacent.
async fn streams<R: ReadAt + ?Sized>(blob: &R) -> Result<Option<Vec<ListedStream>>, ReadError> {
    let (mut end, mut found, mut blocks) = (blob.size(), Vec::new(), 0);
    while end > 0 {
        let Some(stream) = last_stream(blob, end).await? else { return Ok(None) };
        end = stream.start;
        blocks += stream.blocks.len();
        found.push(stream);
        if found.len() > MAX_STREAMS || blocks > MAX_BLOCKS {
            return Ok(None);
        }
    }
    found.reverse();
    Ok(Some(found).filter(|found| !found.is_empty()))
}

/// The stream that ends at `end`, including its padding.
async fn last_stream<R: ReadAt + ?Sized>(blob: &R, end: u64) -> Result<Option<ListedStream>, ReadError> {
    let tail = read_vec(blob, ByteRange::new(end.saturating_sub(INDEX_READ_BYTES), end)).await?;
    let padding = tail.iter().rev().take_while(|byte| **byte == 0).count();
    let (end, tail) = (end - padding as u64, &tail[..tail.len() - padding]);
    let Some(footer) = tail.last_chunk::<HEADER>() else { return Ok(None) };
    if padding % 4 != 0 || !footer.ends_with(END_MAGIC) || footer[..4] != crc32(&footer[4..10]).to_le_bytes()
    {
        return Ok(None);
    }
    let len = (u64::from(u32::from_le_bytes([footer[4], footer[5], footer[6], footer[7]])) + 1) * 4;
    let Some(at) = end.checked_sub(HEADER as u64 + len).filter(|_| len <= MAX_XZ_INDEX_BYTES) else {
        return Ok(None);
    };
    let index = read_vec(blob, ByteRange::at(at, len)).await?;
    let Some(blocks) = blocks(&index) else { return Ok(None) };
    let Some((stored, size)) = sums(&blocks) else { return Ok(None) };
    let Some(start) = at.checked_sub(stored).and_then(|blocks| blocks.checked_sub(HEADER as u64)) else {
        return Ok(None);
    };
    let header = read_vec(blob, ByteRange::at(start, HEADER as u64)).await?;
    let check = check_of(&header).filter(|check| footer[8..10] == [0, *check]);
    Ok(check.map(|check| ListedStream { start, size, check, blocks }))
}

/// Stored bytes without padding and decoded bytes of each block in an index.
fn blocks(index: &[u8]) -> Option<Vec<(u64, u64)>> {
    let (body, crc) = index.split_last_chunk::<4>()?;
    if *crc != crc32(body).to_le_bytes() || body.first() != Some(&0) {
        return None;
    }
    let (count, mut rest) = varint(&body[1..])?;
    let mut blocks = Vec::new();
    for _ in 0..count {
        let (unpadded, after) = varint(rest)?;
        let (size, after) = varint(after)?;
        rest = after;
        blocks.push((unpadded, size));
    }
    rest.iter().all(|byte| *byte == 0).then_some(blocks)
}

/// Total stored and decoded bytes of blocks.
fn sums(blocks: &[(u64, u64)]) -> Option<(u64, u64)> {
    blocks.iter().try_fold((0u64, 0u64), |(stored, stream), (unpadded, size)| {
        let padded = unpadded.checked_next_multiple_of(4)?;
        Some((stored.checked_add(padded)?, stream.checked_add(*size)?))
    })
}
