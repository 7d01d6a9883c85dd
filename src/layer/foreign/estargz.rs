//! eStargz: a gzip layer that ends with a table of contents and a footer.
//!
//! The last members are an archive of one file, the table of contents, and the footer with its offset.
//!
//! Facts are from the format's own document, "eStargz: Standard-Compatible Extension to Container Image Layers for
//! Lazy Pulling". The footer is an empty gzip member whose extra field holds the offset in hexadecimal and a magic
//! word. The digest in the manifest is that of the JSON document.

use std::io::{self, Read as _};

use flate2::read::GzDecoder;

use crate::io::ByteRange;
use crate::oci::Digest;

use super::super::sniff::StreamEncoding;
use super::super::tar::{TarLimits, TarWalker, WalkerNeed};
use super::super::toc::TocEntryKind;
use super::assembler::{DocumentTurn, IndexAssembler, TOC_NAME};
use super::foreign_index::{ForeignError, ForeignIndex, ForeignLimits, IndexKind, broken};
use super::toc_json;

/// The name of the format in errors.
pub(super) const FORMAT: &str = "eStargz";

/// The annotation of a layer that names the digest of its table of contents.
pub(super) const DIGEST_ANNOTATION: &str = "containerd.io/snapshot/stargz/toc.digest";

/// Bytes of the footer, and of the stargz footer, whose extra field has no subfield header (RFC 1952, 2.3.1.1).
const FOOTER: usize = 51;
const LEGACY_FOOTER: usize = 47;

/// Bytes of the larger footer.
pub(super) const LARGEST_FOOTER: u64 = FOOTER as u64;

/// A gzip header up to its extra field: magic, deflate, FEXTRA only.
const GZIP_EXTRA: [u8; 4] = [0x1f, 0x8b, 8, 4];

/// The magic word after the offset in the extra field.
const MAGIC: &[u8] = b"STARGZ";

/// Maximum blocks of headers before the content of the table of contents: one, and extended headers.
const HEADERS: u64 = 16;

/// The stored range of the table of contents, from the last bytes of a layer of `size` bytes. `None` without a
/// footer.
pub(super) fn locate(tail: &[u8], size: u64) -> Result<Option<ByteRange>, ForeignError> {
    let subfield = |extra: &[u8]| extra.strip_prefix(b"SG\x16\0").map(<[u8]>::to_vec);
    let found = footer(tail, FOOTER)
        .and_then(|extra| subfield(extra).map(|field| (field, FOOTER)))
        .or_else(|| footer(tail, LEGACY_FOOTER).map(|extra| (extra.to_vec(), LEGACY_FOOTER)));
    let Some((field, len)) = found else { return Ok(None) };
    let Some(digits) = field.strip_suffix(MAGIC) else { return Ok(None) };
    let text = String::from_utf8_lossy(digits);
    let end = size - len as u64;
    let is_hex = digits.len() == 16 && digits.iter().all(u8::is_ascii_hexdigit);
    let start = u64::from_str_radix(&text, 16).ok().filter(|_| is_hex);
    match start {
        Some(start) if start < end => Ok(Some(ByteRange::new(start, end))),
        _ => Err(broken(FORMAT, format!("its footer has {text:?}, not an offset below {end}"))),
    }
}

/// The extra field of a footer of `len` bytes, if the last bytes look like one.
fn footer(tail: &[u8], len: usize) -> Option<&[u8]> {
    let footer = &tail[tail.len().checked_sub(len)?..];
    // Header 10 bytes, length of the extra field 2; then an empty stored block 5, checksum and length 8.
    let extra = footer.get(12..len - 13)?;
    let says = u16::from_le_bytes([footer[10], footer[11]]);
    (footer.starts_with(&GZIP_EXTRA) && usize::from(says) == extra.len()).then_some(extra)
}

/// Parses the stored bytes `range` of a layer of `size` bytes.
pub(super) fn parse(
    stored: Vec<u8>,
    range: ByteRange,
    size: u64,
    expected: Option<&Digest>,
    limits: &ForeignLimits,
    turn: Option<DocumentTurn>,
) -> Result<ForeignIndex, ForeignError> {
    let mut member = GzDecoder::new(&stored[..]);
    let len = content_len(&mut member)?;
    let mut assembler = IndexAssembler::new(FORMAT, turn);
    let hashes = toc_json::read(&mut member, len, expected, limits, &mut assembler)?;
    // The rest of the archive is short; the checksum of the member comes after it.
    io::copy(&mut member.take(1 << 20), &mut io::sink())
        .map_err(|error| broken(FORMAT, format!("its table of contents cannot be decoded: {error}")))?;
    // Frees the stored bytes before the index is made: both are large for a layer of a million files.
    drop(stored);
    let (index, mut warnings) = assembler.finish(StreamEncoding::Gzip, size, range.start)?;
    if expected.is_none() {
        warnings.push("the manifest does not name its digest".into());
    }
    let (id, is_bound) = (hashes.blake3, expected.is_some());
    Ok(ForeignIndex { kind: IndexKind::Estargz, index, id, is_bound, scope: None, warnings })
}

/// Reads the headers of the archive, and returns the number of content bytes that follow.
fn content_len(member: &mut GzDecoder<&[u8]>) -> Result<u64, ForeignError> {
    let not_readable =
        |error: String| broken(FORMAT, format!("the archive of its table of contents: {error}"));
    let mut walker = TarWalker::new(TarLimits { entries: 1, ..TarLimits::default() });
    let mut block = [0; 512];
    for at in (0..HEADERS).map(|block| block * 512) {
        member.read_exact(&mut block).map_err(|error| not_readable(error.to_string()))?;
        walker.feed(at, &block).map_err(|error| not_readable(error.to_string()))?;
        let WalkerNeed::Bytes(next) = walker.need() else { break };
        if next.start <= at + 512 {
            continue;
        }
        // The walker has skipped the content of its only entry.
        let toc = walker.finish(next.start).map_err(|error| not_readable(error.to_string()))?;
        let entry = toc.last().filter(|entry| entry.path == TOC_NAME);
        let Some(TocEntryKind::File(content)) = entry.map(|entry| entry.kind) else { break };
        return match content.runs {
            None if content.offset == at + 512 => Ok(content.size),
            _ => Err(not_readable("its content is sparse".into())),
        };
    }
    Err(not_readable(format!("it does not start with {}", String::from_utf8_lossy(TOC_NAME))))
}
