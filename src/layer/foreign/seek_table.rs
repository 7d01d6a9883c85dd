//! zstd seekable format: a skippable frame at the end of a layer with the stored and decoded length of each frame.
//!
//! The format gives spans and no names. Facts are from zstd's own document, "Zstandard Seekable Format" 0.1.0. Its
//! checksums (32 bits of XXH64) are ignored: the frames themselves carry the same information.

use crate::io::ByteRange;

use super::super::sniff::StreamEncoding;
use super::super::span::SpanMap;
use super::super::span_recorder::SpanRecorder;
use super::super::stream_limit::most_stream;
use super::foreign_index::{ForeignError, ForeignLimits, broken};

/// The name of the format in errors.
pub(super) const FORMAT: &str = "zstd seekable";

/// Bytes of the footer: number of frames 4, descriptor 1, magic number 4.
const FOOTER: usize = 9;

/// The last four bytes of a layer with a seek table.
const MAGIC: [u8; 4] = 0x8F92_EAB1u32.to_le_bytes();

/// The skippable frame of a seek table.
const SKIPPABLE: [u8; 4] = 0x184D_2A5Eu32.to_le_bytes();
const SKIPPABLE_HEADER: usize = 8;

/// In the descriptor: the flag for checksums in entries; bits that must be zero.
const HAS_CHECKSUMS: u8 = 0x80;
const RESERVED: u8 = 0x7c;

/// The stored bytes of the seek table with frame header and footer, from the last bytes of a layer of `size` bytes.
/// `None` without a seek table.
pub(super) fn locate(
    tail: &[u8],
    size: u64,
    limits: &ForeignLimits,
) -> Result<Option<ByteRange>, ForeignError> {
    let Some(footer) = tail.last_chunk::<FOOTER>().filter(|footer| footer.ends_with(&MAGIC)) else {
        return Ok(None);
    };
    let (frames, entry) = shape(footer)?;
    ForeignLimits::check(FORMAT, frames, limits.entries, "a number of frames")?;
    let len = ForeignLimits::check(
        FORMAT,
        frames * entry as u64 + (SKIPPABLE_HEADER + FOOTER) as u64,
        limits.stored,
        "a seek table",
    )?;
    let start = size.checked_sub(len).ok_or_else(|| {
        broken(FORMAT, format!("its seek table of {len} bytes is longer than the layer of {size}"))
    })?;
    Ok(Some(ByteRange::new(start, size)))
}

/// The number of frames, and the bytes of an entry.
fn shape(footer: &[u8; FOOTER]) -> Result<(u64, usize), ForeignError> {
    let [a, b, c, d, descriptor, ..] = *footer;
    if descriptor & RESERVED != 0 {
        return Err(broken(FORMAT, format!("its descriptor is {descriptor:#x}")));
    }
    let entry = if descriptor & HAS_CHECKSUMS != 0 { 12 } else { 8 };
    Ok((u64::from(u32::from_le_bytes([a, b, c, d])), entry))
}

/// The spans of a layer of `size` bytes that ends with `table`.
pub(super) fn parse(table: &[u8], size: u64) -> Result<SpanMap, ForeignError> {
    let cut = || broken(FORMAT, format!("its seek table is cut to {} bytes", table.len()));
    let footer = table.last_chunk::<FOOTER>().ok_or_else(cut)?;
    let (frames, entry) = shape(footer)?;
    let (header, rest) = table.split_at_checked(SKIPPABLE_HEADER).ok_or_else(cut)?;
    let body = rest.len() as u64;
    if header[..4] != SKIPPABLE || u64::from(le32(&header[4..])) != body {
        return Err(broken(FORMAT, format!("no skippable frame of {body} bytes holds its seek table")));
    }
    let entries = rest.get(..rest.len() - FOOTER).ok_or_else(cut)?;
    if entries.len() as u64 != frames * entry as u64 {
        return Err(cut());
    }
    let limit = most_stream(size);
    let mut recorder = SpanRecorder::new(StreamEncoding::Zstd);
    let (mut stored, mut stream) = (0u64, 0u64);
    for entry in entries.chunks_exact(entry) {
        // Neither sum can overflow: there are fewer than 2^32 numbers below 2^32.
        stored += u64::from(le32(&entry[..4]));
        stream += u64::from(le32(&entry[4..8]));
        recorder.unit(stored, stream);
    }
    let data = size.saturating_sub(table.len() as u64);
    if stored != data {
        return Err(broken(FORMAT, format!("its frames have {stored} bytes where {data} are stored")));
    }
    if stream > limit {
        return Err(broken(FORMAT, format!("its frames decode to {stream} bytes, more than {limit}")));
    }
    let spans = recorder.finish(size, stream);
    if !spans.is_sound() {
        return Err(broken(FORMAT, "it has frames without stored bytes"));
    }
    Ok(spans)
}

/// The number at the start of `bytes`, which are at least four.
fn le32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}
