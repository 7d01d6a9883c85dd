//! The size of the stream that xz data decodes to, as the indexes at the ends of its streams say (The .xz File Format, 1.2).
//!
//! Nothing is decoded, and no part of the stored bytes is passed over: all streams have to follow each other without a gap, from
//! the last byte back to the first. Numbers that do not fit together are no answer.

use crate::io::{ByteRange, ReadAt, ReadError, read_vec};

use super::xz::{END_MAGIC, HEADER, check_of, crc32, varint};

/// The largest index that is read: of a million blocks.
const MAX_INDEX: u64 = 16 * 1024 * 1024;

/// The most streams that are followed; each costs a read.
const MAX_STREAMS: u32 = 1024;

/// The last bytes, which mostly are the whole index of the last stream.
const TAIL: u64 = 64 * 1024;

/// What all streams of `blob` decode to; `None` when that cannot be told.
pub(super) async fn stream_size<R: ReadAt + ?Sized>(blob: &R) -> Result<Option<u64>, ReadError> {
    let (mut end, mut total) = (blob.size(), 0u64);
    for _ in 0..MAX_STREAMS {
        let Some((start, size)) = last_stream(blob, end).await? else { return Ok(None) };
        let Some(sum) = total.checked_add(size) else { return Ok(None) };
        (end, total) = (start, sum);
        if end == 0 {
            return Ok(Some(total));
        }
    }
    Ok(None)
}

/// Where the stream that ends at `end` (padding included) starts, and what it decodes to.
async fn last_stream<R: ReadAt + ?Sized>(blob: &R, end: u64) -> Result<Option<(u64, u64)>, ReadError> {
    let tail = read_vec(blob, ByteRange::new(end.saturating_sub(TAIL), end)).await?;
    let padding = tail.iter().rev().take_while(|byte| **byte == 0).count();
    let (end, tail) = (end - padding as u64, &tail[..tail.len() - padding]);
    let Some(footer) = tail.last_chunk::<HEADER>() else { return Ok(None) };
    if padding % 4 != 0 || !footer.ends_with(END_MAGIC) || footer[..4] != crc32(&footer[4..10]).to_le_bytes()
    {
        return Ok(None);
    }
    let len = (u64::from(u32::from_le_bytes([footer[4], footer[5], footer[6], footer[7]])) + 1) * 4;
    let Some(at) = end.checked_sub(HEADER as u64 + len).filter(|_| len <= MAX_INDEX) else { return Ok(None) };
    let index = read_vec(blob, ByteRange::at(at, len)).await?;
    let Some((stored, size)) = sums(&index) else { return Ok(None) };
    let Some(start) = at.checked_sub(stored).and_then(|blocks| blocks.checked_sub(HEADER as u64)) else {
        return Ok(None);
    };
    let header = read_vec(blob, ByteRange::at(start, HEADER as u64)).await?;
    Ok(check_of(&header).filter(|check| footer[8..10] == [0, *check]).map(|_| (start, size)))
}

/// What the blocks in an index take, stored and decoded.
fn sums(index: &[u8]) -> Option<(u64, u64)> {
    let (body, crc) = index.split_last_chunk::<4>()?;
    if *crc != crc32(body).to_le_bytes() || body.first() != Some(&0) {
        return None;
    }
    let (blocks, mut rest) = varint(&body[1..])?;
    let (mut stored, mut stream) = (0u64, 0u64);
    for _ in 0..blocks {
        let (unpadded, after) = varint(rest)?;
        let (size, after) = varint(after)?;
        rest = after;
        stored = stored.checked_add(unpadded.checked_next_multiple_of(4)?)?;
        stream = stream.checked_add(size)?;
    }
    rest.iter().all(|byte| *byte == 0).then_some((stored, stream))
}
