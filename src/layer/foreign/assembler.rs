//! Assembler of foreign indexes: document entries become a made-up stream, and files that point into it.
//!
//! The stream holds the units that the entries name, in stored order.
//!
//! Every statement of a document is checked: overlaps, gaps and offsets outside of the layer are errors. Such
//! documents give the start of a unit and the wanted bytes of its decoded content, not their offset in the archive.
//! So a unit's part of the stream ends with the last wanted byte. The decoded bytes beyond it (padding and headers
//! of the archive) are not in the stream.

use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::io::{MEMORY, MemoryShare};
use crate::oci::{Digest, HashAlgorithm, InvalidDigest};

use super::super::digest_check::MAX_SUM;
use super::super::index::LayerIndex;
use super::super::sniff::StreamEncoding;
use super::super::span::{ChunkDigest, LayerDigests, SpanMap, StoredChunk};
use super::super::stream_limit::most_stream;
use super::super::tar::{has_value, owner, xattr_limits};
use super::super::toc::{DeviceNumber, FileContent, SparseRun, TocEntry, TocEntryKind, UnixTime, XattrPair};
use super::foreign_index::{ForeignError, ForeignLimits, broken};
use super::raw_entry::RawEntry;

/// The name of the table of contents in an eStargz archive.
pub(super) const TOC_NAME: &[u8] = b"stargz.index.json";

/// Marker files of eStargz: content before the first is to be prefetched, and the second marks its absence.
const PREFETCH: &[u8] = b".prefetch.landmark";
const NO_PREFETCH: &[u8] = b".no.prefetch.landmark";

/// Bytes of memory for one entry, its payload and their parts of the index, without their texts.
const ENTRY_BYTES: u64 = 360;

/// Memory, in bytes, that a document may use without reserving it.
const SMALL_BYTES: u64 = 2 * 1024 * 1024;

/// Guards: only one large document of the process becomes an index at a time. Two could each wait for the other's
/// memory.
static LARGE: LazyLock<Arc<Mutex<()>>> = LazyLock::new(Arc::default);

/// The lock for a large document.
pub(super) type DocumentTurn = OwnedMutexGuard<()>;

/// Waits for the lock for a large document.
pub(super) async fn turn() -> DocumentTurn {
    LARGE.clone().lock_owned().await
}

/// As [`turn`], on a thread that may block.
pub(super) fn blocking_turn() -> DocumentTurn {
    LARGE.clone().blocking_lock_owned()
}

/// Granularity of memory reservations, in bytes.
const MEMORY_STEP: u64 = 1024 * 1024;

/// Whether an archive entry only serves the eStargz format. The tree of such a layer omits it.
pub fn is_marker(path: &[u8]) -> bool {
    [TOC_NAME, PREFETCH, NO_PREFETCH].contains(&plain(path))
}

/// Whether an archive entry is the table of contents of an eStargz layer, which is its last entry.
pub fn is_table(path: &[u8]) -> bool {
    plain(path) == TOC_NAME
}

/// A chunk of stored content that an entry names.
#[derive(Clone, Copy, Debug)]
struct EntryPayload {
    /// Stored offset of its unit.
    stored: u64,
    /// Stored end of its unit; 0 if the document gives none.
    stored_end: u64,
    /// Offset in the decoded content of the unit.
    inner: u64,
    len: u64,
    /// Its number in document order: the payloads of one file follow each other.
    number: u32,
    /// Its number in its file.
    part: u32,
    /// Index of its file in the table of contents; `None` for markers.
    entry: Option<u32>,
}

/// The file whose chunks are being read.
#[derive(Debug)]
struct ChunkedFile {
    name: String,
    size: u64,
    /// Bytes that the chunks cover so far.
    covered: u64,
    /// Runs of data so far; used only for a file with holes.
    runs: Vec<SparseRun>,
    has_holes: bool,
    /// Its index in the table of contents; `None` for markers.
    entry: Option<u32>,
    /// Number of payloads so far.
    parts: u32,
    /// End of its stored bytes; 0 if the document gives none.
    stored_end: u64,
    /// The digest of the whole content.
    digest: Option<[u8; 32]>,
    is_landmark: bool,
}

/// Builds an index from entries.
#[derive(Debug)]
pub(super) struct IndexAssembler {
    format: &'static str,
    /// Becomes a table of contents once the contents have their offsets.
    entries: Vec<TocEntry>,
    payloads: Vec<EntryPayload>,
    /// Expected sha256 of each payload, by its number.
    digests: Vec<Option<[u8; 32]>>,
    open: Option<ChunkedFile>,
    /// Number of the prefetch landmark's payload.
    landmark: Option<u32>,
    /// Entries so far.
    count: u64,
    /// Share of the memory budget of all layers, held until the index is made.
    memory: MemoryShare,
    /// Estimated bytes of memory used.
    used: u64,
    /// The lock for a large document; `None` for a small one.
    turn: Option<DocumentTurn>,
    failure: Option<ForeignError>,
}

impl IndexAssembler {
    /// An empty assembler. A large document may already hold its lock.
    pub(super) fn new(format: &'static str, turn: Option<DocumentTurn>) -> Self {
        Self {
            format,
            entries: Vec::new(),
            payloads: Vec::new(),
            digests: Vec::new(),
            open: None,
            landmark: None,
            count: 0,
            memory: MEMORY.passing(),
            used: 0,
            turn,
            failure: None,
        }
    }

    /// The name of the format, for errors.
    pub(super) fn format(&self) -> &'static str {
        self.format
    }

    /// The error of the refused entry, if any.
    pub(super) fn failure(&self) -> Result<(), ForeignError> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    /// Adds the next entry, and returns whether it is acceptable.
    pub(super) fn push(&mut self, raw: RawEntry, limits: &ForeignLimits) -> bool {
        self.failure = self.try_push(raw, limits).err();
        self.failure.is_none()
    }

    fn try_push(&mut self, raw: RawEntry, limits: &ForeignLimits) -> Result<(), ForeignError> {
        let at = self.count;
        if at >= limits.entries {
            let (what, limit) = (format!("more than {at} entries"), limits.entries);
            return Err(ForeignError::TooLarge { format: self.format, what, limit });
        }
        self.count += 1;
        self.charge(&raw)?;
        let name: String = raw.name.chars().take(200).collect();
        let taken = if raw.kind == "chunk" {
            self.continue_file(&raw)
        } else {
            self.close_file()?;
            check_lengths(self.format, &raw, limits)?;
            self.start(&raw)
        };
        taken.map_err(|reason| broken(self.format, format!("entry {at} ({name:?}): {reason}")))
    }

    /// Reserves memory for an entry, in the assembler and in the resulting index.
    fn charge(&mut self, raw: &RawEntry) -> Result<(), ForeignError> {
        let xattrs = raw.xattrs.iter().flat_map(|pairs| &pairs.0);
        let xattrs = xattrs.map(|(name, value)| name.len() + value.as_ref().map_or(0, String::len) + 64);
        self.used += ENTRY_BYTES + 2 * (raw.name.len() + raw.link_name.len() + xattrs.sum::<usize>()) as u64;
        let missing = self.used.saturating_sub(self.memory.bytes());
        if missing == 0 || self.used <= SMALL_BYTES {
            return Ok(());
        }
        if self.turn.is_none() {
            self.turn = Some(blocking_turn());
        }
        self.memory.grow(missing.next_multiple_of(MEMORY_STEP)).map_err(|error| {
            let what = format!("entries from {} on that memory cannot hold ({error})", self.count);
            ForeignError::TooLarge { format: self.format, what, limit: self.used }
        })
    }

    /// Adds an entry that is not the continuation of a file.
    fn start(&mut self, raw: &RawEntry) -> Result<(), String> {
        check_text(&raw.name)?;
        let target = || match raw.link_name.as_str() {
            "" => Err("it is a link without a target".to_owned()),
            link => check_text(link).map(|()| link.as_bytes().to_vec()),
        };
        let kind = match raw.kind.as_str() {
            "reg" => TocEntryKind::File(FileContent::default()),
            "dir" => TocEntryKind::Directory,
            "symlink" => TocEntryKind::Symlink(target()?),
            "hardlink" => TocEntryKind::HardLink(target()?),
            "char" => TocEntryKind::CharDevice(device(raw)?),
            "block" => TocEntryKind::BlockDevice(device(raw)?),
            "fifo" => TocEntryKind::Fifo,
            other => return Err(format!("its type is {other:?}")),
        };
        let is_file = matches!(kind, TocEntryKind::File(_));
        let is_marker = is_marker(raw.name.as_bytes());
        let entry = if is_marker { None } else { Some(index_of(self.entries.len())?) };
        if !is_marker {
            self.entries.push(TocEntry {
                path: raw.name.as_bytes().to_vec(),
                kind,
                // Some writers include the type bits in the mode.
                mode: (raw.mode & 0o7777) as u16,
                uid: owner("uid", raw.uid)?,
                gid: owner("gid", raw.gid)?,
                mtime: time(raw.modtime.as_deref())?,
                xattrs: xattrs(raw)?,
                // The made-up stream has no archive headers.
                header: 0,
            });
        }
        if !is_file {
            return Ok(());
        }
        let size = offset("size", raw.size)?;
        self.open = Some(ChunkedFile {
            name: raw.name.clone(),
            size,
            covered: 0,
            runs: Vec::new(),
            has_holes: false,
            entry,
            parts: 0,
            stored_end: offset("endOffset", raw.end_offset)?,
            digest: digest(raw.digest.as_deref())?,
            is_landmark: plain(raw.name.as_bytes()) == PREFETCH,
        });
        if size > 0 { self.chunk(raw) } else { Ok(()) }
    }

    /// A further chunk of the file before.
    fn continue_file(&mut self, raw: &RawEntry) -> Result<(), String> {
        let Some(file) = &self.open else { return Err("it is a chunk of no file".into()) };
        if !raw.name.is_empty() && raw.name != file.name {
            return Err("it is a chunk of another file than the one before it".into());
        }
        if file.covered == file.size {
            return Err(format!("the file has its {} bytes already", file.size));
        }
        self.chunk(raw)
    }

    /// The chunk that an entry of type `reg` or `chunk` describes.
    fn chunk(&mut self, raw: &RawEntry) -> Result<(), String> {
        let Some(file) = &mut self.open else { return Err("it is a chunk of no file".into()) };
        let at = offset("chunkOffset", raw.chunk_offset)?;
        if at != file.covered {
            return Err(format!("its chunk is at {at}, where {} is next", file.covered));
        }
        let left = file.size - file.covered;
        let len = match offset("chunkSize", raw.chunk_size)? {
            // 0 means the rest of the file, as the formats define it.
            0 => left,
            len if len <= left => len,
            len => return Err(format!("its chunk has {len} bytes, where {left} are left of the file")),
        };
        file.covered += len;
        match raw.chunk_type.as_str() {
            "" => {}
            "zeros" => {
                file.has_holes = true;
                return Ok(());
            }
            other => return Err(format!("its chunk is of type {other:?}")),
        }
        let (stored, inner) = (offset("offset", raw.offset)?, offset("innerOffset", raw.inner_offset)?);
        if stored == 0 && inner == 0 {
            // A layer starts with the header of its first entry.
            return Err("the offset of its content is missing".into());
        }
        let is_whole = len == file.size;
        let sum = match digest(raw.chunk_digest.as_deref())? {
            None if is_whole => file.digest,
            sum => sum,
        };
        if sum.is_some() && len > MAX_SUM {
            return Err(format!("its chunk has {len} bytes under one digest, over the limit of {MAX_SUM}"));
        }
        match file.runs.last_mut() {
            Some(run) if run.offset + run.len == at => run.len += len,
            _ => file.runs.push(SparseRun { offset: at, len }),
        }
        let number = index_of(self.payloads.len())?;
        if file.is_landmark {
            self.landmark = Some(number);
        }
        let stored_end = if file.covered == file.size { file.stored_end } else { 0 };
        let (part, entry) = (file.parts, file.entry);
        self.payloads.push(EntryPayload { stored, stored_end, inner, len, number, part, entry });
        self.digests.push(sum);
        file.parts += 1;
        Ok(())
    }

    /// Closes the current file, whose chunks must cover its size.
    fn close_file(&mut self) -> Result<(), ForeignError> {
        let Some(file) = self.open.take() else { return Ok(()) };
        if file.covered != file.size {
            let (name, covered, size) = (file.name, file.covered, file.size);
            return Err(broken(self.format, format!("{name:?}: its chunks cover {covered} of {size} bytes")));
        }
        if let Some(entry) = file.entry.and_then(|at| self.entries.get_mut(at as usize)) {
            let runs = file.has_holes.then_some(file.runs);
            entry.kind = TocEntryKind::File(FileContent { size: file.size, offset: 0, runs });
        }
        Ok(())
    }

    /// The index of a layer of `stored_size` bytes whose content ends at `data_end`, and warnings about it.
    pub(super) fn finish(
        mut self,
        encoding: StreamEncoding,
        stored_size: u64,
        data_end: u64,
    ) -> Result<(LayerIndex, Vec<String>), ForeignError> {
        self.close_file()?;
        let mut payloads = std::mem::take(&mut self.payloads);
        payloads.sort_unstable_by_key(|payload| (payload.stored, payload.inner, payload.number));
        let (format, limit) = (self.format, most_stream(stored_size));
        let mut layout = StreamLayout { data_end, limit, ..StreamLayout::default() };
        let mut units = payloads.chunk_by(|a, b| a.stored == b.stored).peekable();
        while let Some(unit) = units.next() {
            let next = units.peek().map(|unit| unit[0].stored);
            let refused = |reason| broken(format, format!("content stored at {}: {reason}", unit[0].stored));
            let base = layout.unit(unit, next).map_err(refused)?;
            for payload in unit {
                let start = base + payload.inner;
                let is_next = layout.last == Some((payload.number.wrapping_sub(1), start));
                if payload.part > 0 && !is_next {
                    return Err(refused("it does not follow the chunk before it of its file".into()));
                }
                layout.last = Some((payload.number, start + payload.len));
                if payload.part == 0 {
                    self.place(payload.entry, start);
                }
                if self.landmark == Some(payload.number) {
                    layout.prefetch = start;
                }
                if let Some(sha256) = self.digests.get(payload.number as usize).copied().flatten() {
                    layout.sums.push(ChunkDigest { start, end: start + payload.len, sha256 });
                }
            }
        }
        let mut warnings = Vec::new();
        if layout.sums.len() < payloads.len() {
            let without = payloads.len() - layout.sums.len();
            warnings.push(format!("{without} of {} chunks have no sha256 digest", payloads.len()));
        }
        let spans = SpanMap::chunks(encoding, stored_size, layout.stream, layout.chunks)
            .with_sums(LayerDigests::Stream(layout.sums));
        let index = LayerIndex {
            spans,
            toc: self.entries.into_iter().collect(),
            blocks: Vec::new(),
            prefetch: layout.prefetch,
        };
        if !index.spans.is_sound() || !index.is_inside() {
            // The checks above prove both; a reader of a cached index checks the same.
            return Err(broken(self.format, "it contradicts itself"));
        }
        Ok((index, warnings))
    }

    /// Sets the stream offset of the content of the file at `entry`.
    fn place(&mut self, entry: Option<u32>, start: u64) {
        if let Some(entry) = entry.and_then(|at| self.entries.get_mut(at as usize))
            && let TocEntryKind::File(content) = &mut entry.kind
        {
            content.offset = start;
        }
    }
}

/// The made-up stream so far.
#[derive(Debug, Default)]
struct StreamLayout {
    /// End of the content of the layer, in stored bytes.
    data_end: u64,
    /// Maximum bytes of the stream.
    limit: u64,
    chunks: Vec<StoredChunk>,
    sums: Vec<ChunkDigest>,
    stream: u64,
    prefetch: u64,
    /// The number of the last payload, and its end in the stream.
    last: Option<(u32, u64)>,
}

impl StreamLayout {
    /// Adds a unit with `payloads` (at least one) in ascending order; the next unit starts at `next`. Returns the
    /// stream offset of the unit.
    fn unit(&mut self, payloads: &[EntryPayload], next: Option<u64>) -> Result<u64, String> {
        let (stored, base, mut len) = (payloads[0].stored, self.stream, 0u64);
        for payload in payloads {
            if payload.inner < len {
                return Err(format!("content at {} overlaps content that ends at {len}", payload.inner));
            }
            len = payload.inner.checked_add(payload.len).ok_or("it ends past 2^64")?;
        }
        let before = next.unwrap_or(self.data_end);
        let said = payloads.iter().map(|payload| payload.stored_end).max().unwrap_or_default();
        let stored_end = if said == 0 { before } else { said };
        if stored_end > before.min(self.data_end) {
            return Err(format!("it ends at {stored_end}, after {}", before.min(self.data_end)));
        }
        if stored_end <= stored {
            return Err(format!("it ends at {stored_end}"));
        }
        self.stream = base
            .checked_add(len)
            .filter(|&end| end <= self.limit)
            .ok_or_else(|| format!("it and all before it decode to more than {} bytes", self.limit))?;
        self.chunks.push(StoredChunk { stored, stored_end, stream: base });
        Ok(base)
    }
}

/// An index into a table, as stored.
fn index_of(len: usize) -> Result<u32, String> {
    u32::try_from(len).map_err(|_| format!("it is number {len}"))
}

/// The name without a leading `./` or `/`.
fn plain(path: &[u8]) -> &[u8] {
    path.strip_prefix(b"./").or(path.strip_prefix(b"/")).unwrap_or(path)
}

fn check_lengths(format: &'static str, raw: &RawEntry, limits: &ForeignLimits) -> Result<(), ForeignError> {
    // A symbolic link ends with a NUL in the kernel, so the walk of the archive refuses one of PATH_MAX bytes.
    let target = if raw.kind == "symlink" { limits.path - 1 } else { limits.path };
    let component = raw.name.split('/').map(str::len).max().unwrap_or_default();
    for (len, limit, what) in [
        (raw.name.len(), limits.path, "a name"),
        (raw.link_name.len(), target, "a link target"),
        (component, limits.component, "a name with a component"),
    ] {
        ForeignLimits::check(format, len as u64, limit as u64, what)?;
    }
    Ok(())
}

/// Checks that a name is the archive's. A writer in Go replaces bytes that are not UTF-8 by U+FFFD, and then only
/// the archive itself has the name.
fn check_text(text: &str) -> Result<(), String> {
    match text.chars().find(|&c| c == '\0' || c == char::REPLACEMENT_CHARACTER) {
        Some('\0') => Err("a name holds a NUL".into()),
        Some(_) => Err("a name holds U+FFFD, which stands for bytes that are not known".into()),
        None => Ok(()),
    }
}

fn offset(what: &str, value: i64) -> Result<u64, String> {
    u64::try_from(value).map_err(|_| format!("{what} is {value}"))
}

fn number(what: &str, value: i64) -> Result<u32, String> {
    u32::try_from(value).map_err(|_| format!("{what} {value} is not in 0 to {}", u32::MAX))
}

fn device(raw: &RawEntry) -> Result<DeviceNumber, String> {
    Ok(DeviceNumber { major: number("devMajor", raw.dev_major)?, minor: number("devMinor", raw.dev_minor)? })
}

/// Parses RFC 3339. No text, and the zero of Go's `time.Time`, which is no date of a file, both mean 1970.
fn time(text: Option<&str>) -> Result<UnixTime, String> {
    let Some(text) = text.filter(|text| !text.is_empty() && *text != "0001-01-01T00:00:00Z") else {
        return Ok(UnixTime::default());
    };
    let time =
        chrono::DateTime::parse_from_rfc3339(text).map_err(|error| format!("modtime {text:?}: {error}"))?;
    // A leap second has more nanoseconds than a second.
    Ok(UnixTime { secs: time.timestamp(), nanos: time.timestamp_subsec_nanos().min(999_999_999) })
}

fn xattrs(raw: &RawEntry) -> Result<Vec<XattrPair>, String> {
    let pairs = raw.xattrs.as_ref().map_or(&[][..], |pairs| &pairs.0);
    let names = pairs.iter().map(|(name, _)| name.len() + 1).sum::<usize>();
    // Four characters encode three bytes.
    let longest = pairs.iter().map(|(_, value)| value.as_ref().map_or(0, |text| text.len() / 4 * 3)).max();
    xattr_limits(names, longest.unwrap_or(0).saturating_sub(2))?;
    let decoded = pairs.iter().map(|(name, value)| {
        check_text(name)?;
        // The kernel's limits for a name, as for those in an archive.
        if name.is_empty() || name.len() > 255 {
            return Err(format!("an extended attribute has a name of {} bytes, not 1 to 255", name.len()));
        }
        let value = base64::engine::general_purpose::STANDARD
            .decode(value.as_deref().unwrap_or_default())
            .map_err(|error| format!("extended attribute {name:?} is not base64: {error}"))?;
        Ok((name.as_bytes().to_vec(), value))
    });
    decoded.filter(|pair| pair.as_ref().map_or(true, has_value)).collect()
}

/// The bytes of a sha256 digest; `None` without a digest, and for another algorithm.
fn digest(text: Option<&str>) -> Result<Option<[u8; 32]>, String> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let digest: Digest = text.parse().map_err(|error: InvalidDigest| error.to_string())?;
    if digest.algorithm() != Some(HashAlgorithm::Sha256) {
        return Ok(None);
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digest.encoded().as_bytes().chunks_exact(2)) {
        let text = str::from_utf8(pair).unwrap_or_default();
        *byte = u8::from_str_radix(text, 16).map_err(|error| error.to_string())?;
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_targets_have_the_limits_of_the_walk_of_an_archive() {
        let fits = |kind: &str, len: usize| {
            let raw = RawEntry { kind: kind.to_owned(), link_name: "t".repeat(len), ..RawEntry::default() };
            check_lengths("test", &raw, &ForeignLimits::default()).is_ok()
        };
        assert!(fits("symlink", 4095) && !fits("symlink", 4096));
        assert!(fits("hardlink", 4096) && !fits("hardlink", 4097));
    }
}
