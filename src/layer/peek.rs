//! Stream head and size without an index: the first bytes of a stream, and its size where the format records it.
//!
//! The head of a stream needs only the head of the stored bytes, and several formats record the decoded size at an
//! end. The size is exact or absent: a size of only a part of the stored bytes is not used. Nothing is cached.

use crate::io::{ByteRange, FaultClass, ReadAt, ReadError, compute, read_vec};

use super::codec::UnitDecoder;
use super::foreign::{FindError, ForeignLimits, find_seek_table};
use super::indexer::PassError;
use super::sniff::StreamEncoding;
use super::{xz_index, zstd_frames};

/// Stored bytes read at once: a block of the cache.
const PEEK_READ_BYTES: u64 = 256 * 1024;

/// Stored bytes up to which all headers of zstd frames are read, even if they have to be fetched: one fetch.
const MAX_FRAME_WALK_BYTES: u64 = 1024 * 1024;

/// The first bytes of the stream whose stored bytes start with `head`, at most `most`. The result is shorter if
/// `head` is too short or broken; a reader of the whole stream gets the error.
pub fn peek(encoding: StreamEncoding, head: &[u8], most: usize) -> Vec<u8> {
    let Ok(Some(mut decoder)) = UnitDecoder::new(encoding, 0) else {
        return head[..head.len().min(most)].to_vec();
    };
    let mut out = Vec::new();
    if let Err(error) = decode(&mut decoder, head, &mut out, most as u64) {
        tracing::debug!(%encoding, %error, "the first bytes of a stream end early");
    }
    out
}

/// The first `len` bytes of the stream that `blob` stores in `encoding`, or all of a shorter one.
pub(super) async fn read<R: ReadAt + ?Sized>(
    blob: &R,
    encoding: StreamEncoding,
    len: u64,
) -> Result<Vec<u8>, ReadError> {
    let size = blob.size();
    let Some(mut decoder) =
        UnitDecoder::new(encoding, 0).map_err(|error| PassError::from(error).into_read())?
    else {
        return read_vec(blob, ByteRange::new(0, size.min(len))).await;
    };
    let (mut head, mut at) = (Vec::new(), 0);
    while (head.len() as u64) < len {
        let stored = ByteRange::new(at, size.min(at + PEEK_READ_BYTES));
        let input = read_vec(blob, stored).await?;
        (head, decoder) = compute(move || {
            decode(&mut decoder, &input, &mut head, len).map_err(PassError::into_read)?;
            Ok((head, decoder))
        })
        .await?;
        at = stored.end;
        if at == size {
            if (head.len() as u64) < len {
                decoder.finish().map_err(|error| PassError::from(error).into_read())?;
            }
            break;
        }
    }
    Ok(head)
}

/// Appends the decoded bytes of `input` until `head` has `len` bytes.
fn decode(decoder: &mut UnitDecoder, input: &[u8], head: &mut Vec<u8>, len: u64) -> Result<(), PassError> {
    let mut rest = input;
    let mut output = vec![0; PEEK_READ_BYTES as usize];
    loop {
        let left = len - head.len() as u64;
        let room = output.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if room == 0 {
            return Ok(());
        }
        let step = decoder.step(rest, &mut output[..room])?;
        head.extend_from_slice(&output[..step.produced]);
        rest = &rest[step.consumed..];
        if rest.is_empty() && step.produced == 0 || step.consumed + step.produced == 0 {
            return Ok(());
        }
    }
}

/// The size of the stream, if the stored bytes record it exactly and cheaply to read. `is_here`: all stored bytes
/// are local.
pub(super) async fn size(
    blob: &dyn ReadAt,
    encoding: StreamEncoding,
    is_here: bool,
) -> Result<Option<u64>, ReadError> {
    match encoding {
        StreamEncoding::Plain => Ok(Some(blob.size())),
        StreamEncoding::Xz => xz_index::stream_size(blob).await,
        StreamEncoding::Zstd => {
            match find_seek_table(blob, encoding, ForeignLimits::default()).await {
                Ok(Some(spans)) => return Ok(Some(spans.stream_size())),
                Ok(None) | Err(FindError::Index(_)) => {}
                Err(FindError::Read(error)) => return Err(error),
            }
            if !is_here && blob.size() > MAX_FRAME_WALK_BYTES {
                return Ok(None);
            }
            zstd_frames::stream_size(blob).await
        }
        // gzip and LZ4 record the size of one member or frame, and gzip only its last 32 bits.
        _ => Ok(None),
    }
}

/// The error for a layer that is not an archive.
pub(super) fn not_an_archive(name: &str) -> ReadError {
    let names: Vec<_> = StreamEncoding::in_titles().map(|encoding| encoding.names().name).collect();
    let (last, others) = names.split_last().unwrap_or((&"", &[]));
    let known = format!("plain, {} or {last}", others.join(", "));
    ReadError::new(FaultClass::Malformed, format!("its content is {name}, not a tar archive ({known})"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn peek_decodes_the_first_bytes_from_the_first_stored_ones() {
        let plain: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = zstd::bulk::compress(&plain, 3).unwrap();
        for (encoding, stored) in
            [(StreamEncoding::Gzip, &gzip), (StreamEncoding::Zstd, &zstd), (StreamEncoding::Plain, &plain)]
        {
            assert_eq!(peek(encoding, stored, 4096), &plain[..4096], "{encoding}");
            let cut = peek(encoding, &stored[..stored.len() / 2], plain.len());
            assert!(plain.starts_with(&cut), "{encoding}");
            assert!(peek(encoding, b"", 10).is_empty(), "{encoding}");
        }
        assert!(peek(StreamEncoding::Gzip, b"\x1f\x8bnonsense", 10).is_empty());
    }
}
