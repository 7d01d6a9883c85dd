//! zstd:chunked: a zstd layer with a frame for each chunk, a table of contents and a footer.
//!
//! The last frames are skippable: the compressed table of contents, and the footer with its offset.
//!
//! Facts are from containers/storage and from stargz-snapshotter, which write two variants. They have footers of 64
//! and of 40 bytes, two magic words that differ in the case of one letter, and two prefixes of annotations. Every
//! mixture is accepted. The annotations are preferred, because the manifest binds them; the checksum covers the
//! compressed document. The tar-split frame serves to rebuild the archive, and is ignored.

use std::collections::BTreeMap;
use std::io::{self, Read as _};

use crate::io::{ByteRange, MEMORY, MemoryShare};
use crate::oci::{Digest, InvalidDigest};

use super::super::decode_step::WindowLimits;
use super::super::sniff::StreamEncoding;
use super::super::zstd_frames::{self, FrameHeader};
use super::assembler::{DocumentTurn, IndexAssembler, blocking_turn};
use super::foreign_index::{ForeignError, ForeignIndex, ForeignLimits, IndexKind, broken};
use super::toc_json::{self, check_digest};

/// The name of the format in errors.
pub(super) const FORMAT: &str = "zstd:chunked";

/// Prefixes of the annotations: the one of containers/storage first.
pub(super) const PREFIXES: [&str; 2] = ["io.github.containers.zstd-chunked.", "io.containers.zstd-chunked."];

/// The last bytes of a footer.
const MAGICS: [&[u8; 8]; 2] = [b"GNUlInUx", b"GnUlInUx"];

/// Sizes of footers: with and without the offset of the tar-split data.
const FOOTERS: [usize; 2] = [64, 40];

/// Magic number of the skippable frames with footer and document (RFC 8878, 3.1.2), and the length of their header.
const SKIPPABLE: [u8; 4] = zstd_frames::SKIPPABLE.to_le_bytes();
const SKIPPABLE_HEADER: u64 = 8;

/// Bytes of the larger footer with its header.
pub(super) const LARGEST_FOOTER: u64 = FOOTERS[0] as u64 + SKIPPABLE_HEADER;

/// The only document type: the table of contents of eStargz, with more properties.
const MANIFEST_TYPE: u64 = 1;

/// The zstd window that needs no share of the memory, as a power of two: the most that RFC 8878 recommends to accept.
const WINDOW_LOG: u32 = WindowLimits::Common.log();

/// The maximum zstd window as a power of two, as for layers.
const LARGE_WINDOW_LOG: u32 = WindowLimits::Large.log();

/// Location of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TocLocation {
    /// Its range of stored bytes.
    pub(super) stored: ByteRange,
    /// Bytes of the document after decompression.
    pub(super) decoded: u64,
}

impl TocLocation {
    fn new(numbers: [u64; 4], size: u64) -> Result<Self, ForeignError> {
        let [start, len, decoded, kind] = numbers;
        if kind != MANIFEST_TYPE {
            return Err(broken(FORMAT, format!("its manifest is of type {kind}, not {MANIFEST_TYPE}")));
        }
        match start.checked_add(len) {
            Some(end) if len > 0 && end <= size && start >= SKIPPABLE_HEADER => {
                Ok(Self { stored: ByteRange::new(start, end), decoded })
            }
            _ => Err(broken(FORMAT, format!("its manifest is at {start}, {len} bytes of a layer of {size}"))),
        }
    }
}

/// The document's location and checksum from the annotations of the layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TocAnnotations {
    pub(super) place: Option<TocLocation>,
    /// The digest of its stored bytes; `None` without the annotation.
    pub(super) checksum: Option<Digest>,
}

impl TocAnnotations {
    /// Reads the annotations of a layer of `size` bytes.
    pub(super) fn read(annotations: &BTreeMap<String, String>, size: u64) -> Result<Self, ForeignError> {
        let get = |name: &str| PREFIXES.iter().find_map(|prefix| annotations.get(&format!("{prefix}{name}")));
        let place = get("manifest-position").map(|text| {
            let numbers: Option<Vec<u64>> = text.split(':').map(|part| part.parse().ok()).collect();
            let numbers: Option<[u64; 4]> = numbers.and_then(|numbers| numbers.try_into().ok());
            let numbers =
                numbers.ok_or_else(|| broken(FORMAT, format!("annotation manifest-position is {text:?}")))?;
            TocLocation::new(numbers, size)
        });
        let checksum = get("manifest-checksum").map(|text| {
            text.parse().map_err(|error: InvalidDigest| {
                broken(FORMAT, format!("annotation manifest-checksum: {error}"))
            })
        });
        Ok(Self { place: place.transpose()?, checksum: checksum.transpose()? })
    }
}

/// The document's location from the footer in the last bytes of a layer of `size` bytes. `None` without a footer.
pub(super) fn locate(tail: &[u8], size: u64) -> Result<Option<TocLocation>, ForeignError> {
    if !MAGICS.iter().any(|magic| tail.ends_with(*magic)) {
        return Ok(None);
    }
    for len in FOOTERS {
        let Some(frame) = tail.len().checked_sub(len + SKIPPABLE_HEADER as usize) else { continue };
        let (header, footer) = tail[frame..].split_at(SKIPPABLE_HEADER as usize);
        if header[..4] == SKIPPABLE && header[4..] == (len as u32).to_le_bytes() {
            let mut numbers = [0; 4];
            for (number, bytes) in numbers.iter_mut().zip(footer.chunks_exact(8)) {
                *number = u64::from_le_bytes(bytes.try_into().unwrap_or_default());
            }
            return TocLocation::new(numbers, size - len as u64 - SKIPPABLE_HEADER).map(Some);
        }
    }
    Err(broken(FORMAT, "its footer is of no known size"))
}

/// The digests in the manifest of the image.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ExpectedDigests<'a> {
    /// Digest of the stored document.
    pub(super) stored: Option<&'a Digest>,
    /// Digest of the decoded document, as in eStargz.
    pub(super) decoded: Option<&'a Digest>,
}

/// Parses the stored bytes at `place` of a layer of `size` bytes.
pub(super) fn parse(
    stored: Vec<u8>,
    place: TocLocation,
    size: u64,
    expected: ExpectedDigests<'_>,
    limits: &ForeignLimits,
    turn: Option<DocumentTurn>,
) -> Result<ForeignIndex, ForeignError> {
    if let Some(digest) = expected.stored {
        let actual = digest.same_algorithm(&stored);
        let actual =
            actual.ok_or_else(|| broken(FORMAT, format!("manifest checksum {digest} is not served")))?;
        check_digest(FORMAT, digest, &actual)?;
    }
    let undecodable = |error: io::Error| broken(FORMAT, format!("its manifest cannot be decoded: {error}"));
    let mut decoder = zstd::stream::read::Decoder::with_buffer(&stored[..]).map_err(undecodable)?;
    let window = first_window(&stored).filter(|window| *window > 1 << WINDOW_LOG);
    let log = window.map_or(WINDOW_LOG, |window| window.next_power_of_two().ilog2().min(LARGE_WINDOW_LOG));
    // Two large windows would each be in the way of the other's entries.
    let turn = turn.or_else(|| window.map(|_| blocking_turn()));
    let mut assembler = IndexAssembler::new(FORMAT, turn);
    // Freed before the turn.
    let memory = window.map(|_| large_window(1 << log)).transpose()?;
    decoder.window_log_max(log).map_err(undecodable)?;
    let hashes = toc_json::read(&mut decoder, place.decoded, expected.decoded, limits, &mut assembler)?;
    if decoder.read(&mut [0]).map_err(undecodable)? > 0 {
        return Err(broken(FORMAT, format!("its manifest has more than {} bytes", place.decoded)));
    }
    drop(decoder);
    drop(memory);
    drop(stored);
    let data_end = place.stored.start - SKIPPABLE_HEADER;
    let (index, mut warnings) = assembler.finish(StreamEncoding::Zstd, size, data_end)?;
    let is_bound = expected.stored.or(expected.decoded).is_some();
    if !is_bound {
        warnings.push("the manifest of the image does not name its digest".into());
    }
    Ok(ForeignIndex {
        kind: IndexKind::ZstdChunked,
        index,
        id: hashes.blake3,
        is_bound,
        scope: None,
        warnings,
    })
}

/// Waits for the memory of a window of `bytes`.
fn large_window(bytes: u64) -> Result<MemoryShare, ForeignError> {
    let mut share = MEMORY.passing();
    share.grow(bytes).map_err(|error| ForeignError::TooLarge {
        format: FORMAT,
        what: format!("a manifest with a window of {bytes} bytes ({error})"),
        limit: 1 << LARGE_WINDOW_LOG,
    })?;
    // The entries take memory beside it, and must not wait for it.
    share.pin();
    Ok(share)
}

/// The window of the first frame in bytes; `None` for bytes that start with no frame.
fn first_window(stored: &[u8]) -> Option<u64> {
    FrameHeader::read(stored).map(|header| header.window)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn the_window_of_a_manifest_is_known_before_it_is_decoded() {
        let packed = |log: u32, claims: bool, text: &[u8]| {
            let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
            encoder.window_log(log).unwrap();
            encoder.include_contentsize(claims).unwrap();
            if claims {
                encoder.set_pledged_src_size(Some(text.len() as u64)).unwrap();
            }
            encoder.write_all(text).unwrap();
            encoder.finish().unwrap()
        };
        for log in [WINDOW_LOG, WINDOW_LOG + 1, LARGE_WINDOW_LOG] {
            assert_eq!(first_window(&packed(log, false, b"{}")), Some(1 << log));
        }
        for len in [2, 300, 70_000] {
            assert_eq!(first_window(&packed(17, true, &vec![b' '; len])), Some(len as u64), "{len}");
        }
        assert_eq!(first_window(b"{}"), None);
    }

    #[test]
    fn documents_with_large_windows_wait_for_each_other() {
        let (entry, count) = (r#"{"type":"dir","name":"d"}"#, 20_000);
        let entries = vec![entry; count].join(",");
        let text = format!(r#"{{"version":1,"entries":[{entries}]}}"#);
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(LARGE_WINDOW_LOG).unwrap();
        encoder.write_all(text.as_bytes()).unwrap();
        let stored = encoder.finish().unwrap();
        let at = ByteRange::at(SKIPPABLE_HEADER, stored.len() as u64);
        let place = TocLocation { stored: at, decoded: text.len() as u64 };
        let parsed = || {
            let limits = ForeignLimits::default();
            parse(stored.clone(), place, 1 << 20, ExpectedDigests::default(), &limits, None).map(drop)
        };
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..4).map(|_| scope.spawn(parsed)).collect();
            for one in all {
                one.join().unwrap().unwrap();
            }
        });
    }

    #[test]
    fn a_later_frame_gets_no_window_that_the_first_has_not_announced() {
        let frame = |log: u32, text: &[u8]| {
            let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
            encoder.window_log(log).unwrap();
            encoder.write_all(text).unwrap();
            encoder.finish().unwrap()
        };
        let (start, end) = (&b"{\"version\":1,"[..], &b"\"entries\":[]}"[..]);
        let parse_all = |first: u32, second: u32| {
            let stored = [frame(first, start), frame(second, end)].concat();
            let at = ByteRange::at(SKIPPABLE_HEADER, stored.len() as u64);
            let place = TocLocation { stored: at, decoded: (start.len() + end.len()) as u64 };
            let limits = ForeignLimits::default();
            parse(stored, place, 1000, ExpectedDigests::default(), &limits, None).map(drop)
        };
        let message = |first, second| parse_all(first, second).err().map(|error| error.to_string());
        let is_refused = |message: Option<String>| message.is_some_and(|text| text.contains("memory"));
        assert!(!is_refused(message(WINDOW_LOG, WINDOW_LOG)), "{:?}", message(WINDOW_LOG, WINDOW_LOG));
        assert!(
            is_refused(message(WINDOW_LOG, LARGE_WINDOW_LOG)),
            "{:?}",
            message(WINDOW_LOG, LARGE_WINDOW_LOG)
        );
    }
}
