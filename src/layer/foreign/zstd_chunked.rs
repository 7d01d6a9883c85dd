//! zstd:chunked: a zstd layer with a frame for each chunk, whose last, skippable frames are the table of contents, compressed,
//! and a footer that says where it is.
//!
//! Facts are from containers/storage and from stargz-snapshotter, which write two variants: footers of 64 and of 40 bytes, two
//! magic words that differ in one letter, two prefixes of annotations. Every mixture of them is read. The annotations are
//! preferred, because the manifest binds them; the checksum is that of the compressed document. What the tar-split frame says
//! serves to rebuild the archive and is of no use here.

use std::collections::BTreeMap;
use std::io::{self, Read as _};

use crate::io::ByteRange;
use crate::oci::{Digest, OciError};

use super::super::sniff::Encoding;
use super::assembler::{Assembler, Turn};
use super::document::{self, check_digest};
use super::{Foreign, ForeignError, ForeignLimits, IndexKind, broken};

/// The name of the format in errors.
pub(super) const FORMAT: &str = "zstd:chunked";

/// What the annotations begin with: the one of containers/storage first.
pub(super) const PREFIXES: [&str; 2] = ["io.github.containers.zstd-chunked.", "io.containers.zstd-chunked."];

/// The last bytes of a footer.
const MAGICS: [&[u8; 8]; 2] = [b"GNUlInUx", b"GnUlInUx"];

/// Sizes of footers: with the place of the tar-split data and without.
const FOOTERS: [usize; 2] = [64, 40];

/// Magic number of the skippable frames that hold footer and document (RFC 8878, 3.1.2), and the length of their header.
const SKIPPABLE: [u8; 4] = 0x184D_2A50u32.to_le_bytes();
const SKIPPABLE_HEADER: u64 = 8;

/// Bytes of the larger footer with its header.
pub(super) const LARGEST_FOOTER: u64 = FOOTERS[0] as u64 + SKIPPABLE_HEADER;

/// The only type of document: the table of contents of eStargz, with more properties.
const MANIFEST_TYPE: u64 = 1;

/// The largest zstd window, as for layers.
const WINDOW_LOG: u32 = 27;

/// Where the document is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Its stored bytes.
    pub(super) stored: ByteRange,
    /// Bytes of the document after decompression.
    pub(super) decoded: u64,
}

impl Place {
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

/// What the manifest of the image says about the document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Annotated {
    pub(super) place: Option<Place>,
    /// The digest of its stored bytes.
    pub(super) checksum: Option<Digest>,
}

impl Annotated {
    /// Reads the annotations of a layer of `size` bytes.
    pub(super) fn read(annotations: &BTreeMap<String, String>, size: u64) -> Result<Self, ForeignError> {
        let get = |name: &str| PREFIXES.iter().find_map(|prefix| annotations.get(&format!("{prefix}{name}")));
        let place = get("manifest-position").map(|text| {
            let numbers: Option<Vec<u64>> = text.split(':').map(|part| part.parse().ok()).collect();
            let numbers: Option<[u64; 4]> = numbers.and_then(|numbers| numbers.try_into().ok());
            let numbers =
                numbers.ok_or_else(|| broken(FORMAT, format!("annotation manifest-position is {text:?}")))?;
            Place::new(numbers, size)
        });
        let checksum = get("manifest-checksum").map(|text| {
            text.parse()
                .map_err(|error: OciError| broken(FORMAT, format!("annotation manifest-checksum: {error}")))
        });
        Ok(Self { place: place.transpose()?, checksum: checksum.transpose()? })
    }
}

/// The place that the footer gives, by the last bytes of a layer of `size` bytes. `None` for a layer without a footer.
pub(super) fn locate(tail: &[u8], size: u64) -> Result<Option<Place>, ForeignError> {
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
            return Place::new(numbers, size - len as u64 - SKIPPABLE_HEADER).map(Some);
        }
    }
    Err(broken(FORMAT, "its footer is of no known size"))
}

/// The digests that the manifest of the image names.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Expected<'a> {
    /// Of the stored document.
    pub(super) stored: Option<&'a Digest>,
    /// Of the decoded one, as eStargz has it.
    pub(super) decoded: Option<&'a Digest>,
}

/// What the stored bytes at `place` of a layer of `size` bytes say.
pub(super) fn parse(
    stored: Vec<u8>,
    place: Place,
    size: u64,
    expected: Expected<'_>,
    limits: &ForeignLimits,
    turn: Option<Turn>,
) -> Result<Foreign, ForeignError> {
    if let Some(digest) = expected.stored {
        let actual = digest.same_algorithm(&stored);
        let actual =
            actual.ok_or_else(|| broken(FORMAT, format!("manifest checksum {digest} is not served")))?;
        check_digest(FORMAT, digest, &actual)?;
    }
    let undecodable = |error: io::Error| broken(FORMAT, format!("its manifest cannot be decoded: {error}"));
    let mut decoder = zstd::stream::read::Decoder::with_buffer(&stored[..]).map_err(undecodable)?;
    decoder.window_log_max(WINDOW_LOG).map_err(undecodable)?;
    let mut assembler = Assembler::new(FORMAT, turn);
    let hashes = document::read(&mut decoder, place.decoded, expected.decoded, limits, &mut assembler)?;
    if decoder.read(&mut [0]).map_err(undecodable)? > 0 {
        return Err(broken(FORMAT, format!("its manifest has more than {} bytes", place.decoded)));
    }
    drop(decoder);
    drop(stored);
    let data_end = place.stored.start - SKIPPABLE_HEADER;
    let (index, mut warnings) = assembler.finish(Encoding::Zstd, size, data_end)?;
    let is_bound = expected.stored.or(expected.decoded).is_some();
    if !is_bound {
        warnings.push("the manifest of the image does not name its digest".into());
    }
    Ok(Foreign { kind: IndexKind::ZstdChunked, index, id: hashes.blake3, is_bound, warnings })
}
