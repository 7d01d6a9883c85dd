//! xz indexes: size and blocks of the decoded stream, from the ends of its streams (The .xz File Format, 1.2).
//!
//! Nothing is decoded. All streams have to be adjacent, from the last byte back to the first, so that no stored
//! byte is skipped. Inconsistent numbers give no result.

use crate::io::{ByteRange, MEMORY, MemoryShare, ReadAt, ReadError, compute, read_vec};

use super::sniff::StreamEncoding;
use super::span::{ResumePoint, SpanMap, SpanStart};
use super::span_recorder::SpanRecorder;
use super::stream_limit::most_stream;
use super::xz::{END_MAGIC, HEADER, check_of, crc32, varint};

/// Maximum index in bytes: a million blocks.
const MAX_XZ_INDEX_BYTES: u64 = 16 * 1024 * 1024;

/// Maximum streams; each costs a read.
const MAX_STREAMS: usize = 1024;

/// Maximum blocks of all streams together.
const MAX_BLOCKS: usize = 4_000_000;

/// Memory of a block while the index is read: its two numbers.
const BLOCK_BYTES: u64 = size_of::<(u64, u64)>() as u64;

/// The fewest stored bytes of a block: a header of 8, one of data, padded to a multiple of 4. A longer list of blocks
/// cannot end with the stream.
const MIN_BLOCK_BYTES: u64 = 12;

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
    let size = blob.size();
    compute(move || Ok(spans_of(streams, size))).await
}

/// The spans of the streams of a blob of `stored_size` bytes.
fn spans_of(streams: Vec<ListedStream>, stored_size: u64) -> Option<SpanMap> {
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
            stream = stream.checked_add(size)?;
        }
    }
    let spans = recorder.finish(stored_size, stream);
    let usable = stream <= most_stream(stored_size) && spans.is_sound();
    usable.then_some(spans)
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
    /// The reservation of the blocks.
    _memory: MemoryShare,
}

/// All streams of `blob` in order; `None` when they are not adjacent.
async fn streams<R: ReadAt + ?Sized>(blob: &R) -> Result<Option<Vec<ListedStream>>, ReadError> {
    let (mut end, mut found, mut blocks) = (blob.size(), Vec::new(), 0);
    while end > 0 {
        let Some(stream) = last_stream(blob, end, MAX_BLOCKS - blocks).await? else { return Ok(None) };
        end = stream.start;
        blocks += stream.blocks.len();
        found.push(stream);
        if found.len() > MAX_STREAMS {
            return Ok(None);
        }
    }
    found.reverse();
    Ok(Some(found).filter(|found| !found.is_empty()))
}

/// The stream of at most `most` blocks that ends at `end`, including its padding.
async fn last_stream<R: ReadAt + ?Sized>(
    blob: &R,
    end: u64,
    most: usize,
) -> Result<Option<ListedStream>, ReadError> {
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
    let Some(count) = block_count(&index, at, most) else { return Ok(None) };
    // A blob whose index has no memory is read without it.
    let Ok(memory) = MEMORY.take(len + count * BLOCK_BYTES).await else { return Ok(None) };
    // The next stream is read while this one is held.
    memory.pin();
    let listed = compute(move || Ok(blocks(&index, at))).await?;
    let Some(ListedBlocks { blocks, stored, size }) = listed else { return Ok(None) };
    let Some(start) = at.checked_sub(stored).and_then(|blocks| blocks.checked_sub(HEADER as u64)) else {
        return Ok(None);
    };
    let header = read_vec(blob, ByteRange::at(start, HEADER as u64)).await?;
    let check = check_of(&header).filter(|check| footer[8..10] == [0, *check]);
    Ok(check.map(|check| ListedStream { start, size, check, blocks, _memory: memory }))
}

/// The number of blocks that an index claims; `None` for more than `most`, or more than fit into the index or into
/// the `room` bytes in front of it.
fn block_count(index: &[u8], room: u64, most: usize) -> Option<u64> {
    let (count, rest) = varint(index.get(1..)?)?;
    let fits = count <= most as u64 && count <= rest.len() as u64 / 2 && count <= room / MIN_BLOCK_BYTES;
    fits.then_some(count)
}

/// The blocks of an index.
struct ListedBlocks {
    /// Stored bytes without padding and decoded bytes of each block.
    blocks: Vec<(u64, u64)>,
    /// Stored bytes of all blocks, with padding.
    stored: u64,
    /// Decoded bytes of all blocks.
    size: u64,
}

/// Parses an index that has `room` bytes in front of it; ends at the first block that does not fit.
fn blocks(index: &[u8], room: u64) -> Option<ListedBlocks> {
    let (body, crc) = index.split_last_chunk::<4>()?;
    if *crc != crc32(body).to_le_bytes() || body.first() != Some(&0) {
        return None;
    }
    let (_, mut rest) = varint(&body[1..])?;
    let count = block_count(body, room, MAX_BLOCKS)?;
    let mut listed = ListedBlocks { blocks: Vec::with_capacity(count as usize), stored: 0, size: 0 };
    for _ in 0..count {
        let (unpadded, after) = varint(rest)?;
        let (size, after) = varint(after)?;
        rest = after;
        let padded = unpadded.checked_next_multiple_of(4)?;
        listed.stored = listed.stored.checked_add(padded).filter(|stored| *stored <= room)?;
        listed.size = listed.size.checked_add(size)?;
        listed.blocks.push((unpadded, size));
    }
    rest.iter().all(|byte| *byte == 0).then_some(listed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An index of `count` claimed blocks, with the numbers in `records`.
    fn index(count: u64, records: &[u8]) -> Vec<u8> {
        let mut body = vec![0];
        let mut left = count;
        while left >= 0x80 {
            body.push(left as u8 | 0x80);
            left >>= 7;
        }
        body.push(left as u8);
        body.extend(records);
        body.resize(body.len().next_multiple_of(4), 0);
        let crc = crc32(&body);
        body.extend(crc.to_le_bytes());
        body
    }

    #[test]
    fn an_index_of_more_blocks_than_are_stored_is_not_read() {
        let records = [12, 1].repeat(1000);
        let of =
            |count, room| blocks(&index(count, &records), room).map(|listed| (listed.stored, listed.size));
        assert_eq!(of(1000, 12_000), Some((12_000, 1000)));
        assert_eq!(of(1000, 11_999), None, "more blocks than bytes in front of the index");
        assert_eq!(of(1003, u64::MAX), None, "more blocks than bytes of the index");
        assert_eq!(block_count(&index(1000, &records), 12_000, 999), None);
        let long = [40, 1].repeat(1000);
        assert!(blocks(&index(1000, &long), 12_000).is_none(), "blocks past the end of the stream");
    }
}
