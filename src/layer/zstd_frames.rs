//! zstd frame sizes from their headers alone (RFC 8878, 3.1).
//!
//! Every frame and every block header gives the offset of the next one. Nothing is decoded, and the sizes are used
//! only until decoding finds different ones.

use crate::io::{ByteRange, ReadAt, ReadError, read_vec};

const MAGIC: u32 = 0xFD2F_B528;
const MAGIC_BYTES: usize = size_of::<u32>();
/// The first bytes of the 16 kinds of frames without data of zstd and lz4, which differ in the low bits.
pub(super) const SKIPPABLE: u32 = 0x184D_2A50;

/// The longest header of a frame, in bytes.
const HEADER: u64 = 18;

/// Stored bytes read at once.
const FRAME_READ_BYTES: u64 = 256 * 1024;

/// Stored bytes read at once where the last header was [`FAR_BYTES`] before: the next one is as far.
const FAR_READ_BYTES: u64 = 512;

/// Distance of two headers in bytes from which the bytes between them are not worth a read.
const FAR_BYTES: u64 = 64 * 1024;

/// Maximum blocks of all frames: those of 512 GiB of content in full blocks. Smaller blocks take longer to count than
/// the size is worth.
const MAX_BLOCKS: u64 = 1 << 22;

/// The total decoded size of all frames of `blob`; `None` when a frame does not record its size, or is broken.
pub(super) async fn stream_size<R: ReadAt + ?Sized>(blob: &R) -> Result<Option<u64>, ReadError> {
    let mut bytes = FrameWindow { blob, start: 0, bytes: Vec::new(), last: 0, blocks: MAX_BLOCKS };
    let (mut at, mut total) = (0u64, 0u64);
    while at < blob.size() {
        let Some((next, content)) = frame(&mut bytes, at).await? else { return Ok(None) };
        let Some(sum) = total.checked_add(content) else { return Ok(None) };
        (at, total) = (next, sum);
    }
    Ok(Some(total))
}

/// The end of the frame at `at`, and its decoded size.
async fn frame<R: ReadAt + ?Sized>(
    bytes: &mut FrameWindow<'_, R>,
    at: u64,
) -> Result<Option<(u64, u64)>, ReadError> {
    let header = bytes.get(at, HEADER).await?;
    let Some(magic) = header.first_chunk::<4>().map(|magic| u32::from_le_bytes(*magic)) else {
        return Ok(None);
    };
    if magic & 0xFFFF_FFF0 == SKIPPABLE {
        let Some(len) = header.get(4..8).map(number) else { return Ok(None) };
        return Ok(at.checked_add(8 + len).filter(|end| *end <= bytes.blob.size()).map(|end| (end, 0)));
    }
    let Some(FrameHeader { len, content: Some(content), has_checksum, .. }) = FrameHeader::read(&header)
    else {
        return Ok(None);
    };
    let mut at = at + len as u64;
    loop {
        let block = bytes.get(at, 3).await?;
        if block.len() < 3 {
            return Ok(None);
        }
        let block = number(&block);
        let stored = match block >> 1 & 3 {
            0 | 2 => block >> 3,
            1 => 1,
            _ => return Ok(None),
        };
        at += 3 + stored;
        bytes.blocks = bytes.blocks.saturating_sub(1);
        if at > bytes.blob.size() || bytes.blocks == 0 {
            return Ok(None);
        }
        if block & 1 != 0 {
            break;
        }
    }
    let end = at + if has_checksum { 4 } else { 0 };
    Ok((end <= bytes.blob.size()).then_some((end, content)))
}

/// Header of a frame (RFC 8878, 3.1.1.1).
pub(super) struct FrameHeader {
    /// Its bytes.
    len: usize,
    /// The window of the decoder in bytes.
    pub(super) window: u64,
    /// Bytes of the content; `None` where they are not recorded.
    content: Option<u64>,
    has_checksum: bool,
}

impl FrameHeader {
    /// The header at the start of `bytes`; `None` for bytes that start with no frame, or with a part of a header.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&MAGIC.to_le_bytes())?;
        let descriptor = *rest.first()?;
        let is_single = descriptor & 0x20 != 0;
        let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
        let start = 1 + usize::from(!is_single) + dictionary;
        let len = match descriptor >> 6 {
            0 => usize::from(is_single),
            code => 1 << code,
        };
        let field = rest.get(start..start + len)?;
        // Sizes of two bytes begin at 256.
        let size = number(field).checked_add(if len == 2 { 256 } else { 0 })?;
        let window = match is_single {
            true => size,
            false => {
                let (exponent, eighths) = (rest[1] >> 3, rest[1] & 7);
                let base = 1u64 << (10 + exponent);
                base + base / 8 * u64::from(eighths)
            }
        };
        let content = (len > 0).then_some(size);
        Some(Self { len: MAGIC_BYTES + start + len, window, content, has_checksum: descriptor & 4 != 0 })
    }
}

/// A little-endian number of at most eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The stored bytes around the last header.
struct FrameWindow<'a, R: ?Sized> {
    blob: &'a R,
    start: u64,
    bytes: Vec<u8>,
    /// Offset of the last header.
    last: u64,
    /// Blocks that may still be counted.
    blocks: u64,
}

impl<R: ReadAt + ?Sized> FrameWindow<'_, R> {
    /// `len` bytes at `at`, fewer at the end of the blob.
    async fn get(&mut self, at: u64, len: u64) -> Result<Vec<u8>, ReadError> {
        let want = ByteRange::at(at, len).intersect(ByteRange::new(0, self.blob.size()));
        if want.is_empty() {
            return Ok(Vec::new());
        }
        if !ByteRange::at(self.start, self.bytes.len() as u64).contains(want) {
            let most = if at - self.last < FAR_BYTES { FRAME_READ_BYTES } else { FAR_READ_BYTES };
            let end = (at / FRAME_READ_BYTES + 1)
                .saturating_mul(FRAME_READ_BYTES)
                .min(at.saturating_add(most))
                .max(want.end)
                .min(self.blob.size());
            self.bytes = read_vec(self.blob, ByteRange::new(at, end)).await?;
            self.start = at;
        }
        self.last = at;
        // Both are inside the window, which is in memory.
        Ok(self.bytes[(want.start - self.start) as usize..(want.end - self.start) as usize].to_vec())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::io::{BoxFuture, MemoryReader, forward_reads, plain_reads};

    /// A blob that counts the bytes read of it.
    struct CountedBlob {
        bytes: Arc<MemoryReader>,
        read: AtomicU64,
    }

    impl ReadAt for CountedBlob {
        fn read_at<'a>(&'a self, offset: u64, buf: &'a mut [u8]) -> BoxFuture<'a, Result<(), ReadError>> {
            self.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
            self.bytes.read_at(offset, buf)
        }

        plain_reads!(read_exactly);
        forward_reads!(bytes: size, read_ready, next_data, next_hole, learn_holes, verified, backing);
    }

    /// A frame that claims `content` bytes, of raw blocks of `len` bytes.
    fn raw_frame(content: u64, blocks: usize, len: usize) -> Vec<u8> {
        let mut frame = MAGIC.to_le_bytes().to_vec();
        frame.push(0xe0);
        frame.extend(content.to_le_bytes());
        for block in 0..blocks {
            let header = (len as u32) << 3 | u32::from(block + 1 == blocks);
            frame.extend(&header.to_le_bytes()[..3]);
            frame.resize(frame.len() + len, 7);
        }
        frame
    }

    #[tokio::test]
    async fn large_blocks_are_counted_by_their_headers_alone() {
        let (len, blocks) = (128 * 1024, 100);
        let bytes = Arc::new(MemoryReader::new(raw_frame((len * blocks) as u64, blocks, len)));
        let blob = CountedBlob { bytes, read: AtomicU64::new(0) };
        assert_eq!(stream_size(&blob).await.unwrap(), Some((len * blocks) as u64));
        let read = blob.read.into_inner();
        assert!(read < FRAME_READ_BYTES + 100 * FAR_READ_BYTES, "{read} bytes");
    }

    #[tokio::test]
    async fn more_blocks_than_the_limit_are_not_counted() {
        let frame = |blocks: u64| raw_frame(9, blocks as usize, 0);
        assert_eq!(size(frame(MAX_BLOCKS - 1)).await, Some(9));
        assert_eq!(size(frame(MAX_BLOCKS)).await, None);
    }

    async fn size(stored: Vec<u8>) -> Option<u64> {
        stream_size(&MemoryReader::new(stored)).await.unwrap()
    }

    #[tokio::test]
    async fn the_sizes_of_all_frames_are_summed_and_nothing_is_guessed() {
        let frame = |len: usize| zstd::bulk::compress(&vec![7; len], 1).unwrap();
        for len in [0, 1, 255, 256, 300, 65_791, 65_792, 3_000_000] {
            assert_eq!(size(frame(len)).await, Some(len as u64), "{len}");
        }
        let skippable = [&[0x5e, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let both = [frame(700_000), skippable.clone(), frame(9)].concat();
        assert_eq!(size(both.clone()).await, Some(700_009));
        assert_eq!(size(both[..both.len() - 1].to_vec()).await, None, "cut");
        assert_eq!(size([&both[..], b"more"].concat()).await, None, "garbage behind");
        assert_eq!(size(skippable[..10].to_vec()).await, None);
        let unsized_frame = zstd::stream::encode_all(&vec![7; 500_000][..], 1).unwrap();
        assert_eq!(size([frame(10), unsized_frame].concat()).await, None, "one that does not say");
    }
}
