//! Packed records of a table of contents: consecutive entries, every number a varint.
//!
//! A record is only read from its start, so no index is needed. Values that repeat from entry to entry are small: a
//! header's offset is its distance from the one before, and a content's offset its distance from its header.
//! Reading returns `None` for invalid bytes and never panics, because the bytes may come from a file.
//!
//! A record is: path length, path, kind and mode in one number, uid, gid, seconds (zigzag), nanoseconds, header
//! distance, length of the attributes, attributes (each: name length, name, value length, value), then the data of
//! the kind. A file has its size and distance. A sparse file also has the length of the runs, and the runs (each:
//! distance from the end of the run before, length). A link has its length and target, a device its two numbers.

use std::fmt;

use serde::de::{Error, Visitor};
use serde::ser::SerializeSeq as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::cache::SpooledBytes;

use super::entry::{DeviceNumber, FileContent, SharedContent, SparseRun, TocEntry, TocEntryKind, UnixTime};

/// Bytes of records in one piece of the serialized form, so that no process has to hold all of it twice.
const TOC_PIECE_BYTES: usize = 32 * 1024;

/// Bits of the kind, below the mode.
const KIND_BITS: u32 = 3;
const FILE: u64 = 0;
const DIRECTORY: u64 = 1;
const SYMLINK: u64 = 2;
const HARD_LINK: u64 = 3;
const CHAR_DEVICE: u64 = 4;
const BLOCK_DEVICE: u64 = 5;
const FIFO: u64 = 6;
const SPARSE: u64 = 7;

/// Appends the record of `entry`; the entry before has its header at `before`.
pub(super) fn write(out: &mut Vec<u8>, entry: &TocEntry, before: u64) {
    let kind = match &entry.kind {
        TocEntryKind::File(FileContent { runs: None, .. }) => FILE,
        TocEntryKind::File(FileContent { runs: Some(_), .. }) => SPARSE,
        TocEntryKind::Directory => DIRECTORY,
        TocEntryKind::Symlink(_) => SYMLINK,
        TocEntryKind::HardLink(_) => HARD_LINK,
        TocEntryKind::CharDevice(_) => CHAR_DEVICE,
        TocEntryKind::BlockDevice(_) => BLOCK_DEVICE,
        TocEntryKind::Fifo => FIFO,
    };
    put_bytes(out, &entry.path);
    put(out, u64::from(entry.mode) << KIND_BITS | kind);
    put(out, u64::from(entry.uid));
    put(out, u64::from(entry.gid));
    // Zigzag: times around 1970 are short on both sides.
    put(out, (entry.mtime.secs << 1 ^ entry.mtime.secs >> 63).cast_unsigned());
    put(out, u64::from(entry.mtime.nanos));
    put(out, entry.header.wrapping_sub(before));
    let len = |bytes: &[u8]| width(bytes.len() as u64) + bytes.len();
    put(out, entry.xattrs.iter().map(|(name, value)| len(name) + len(value)).sum::<usize>() as u64);
    for (name, value) in &entry.xattrs {
        put_bytes(out, name);
        put_bytes(out, value);
    }
    match &entry.kind {
        TocEntryKind::File(content) => {
            put(out, content.size);
            put(out, content.offset.wrapping_sub(entry.header));
            if let Some(runs) = &content.runs {
                let distances = || {
                    let ends = runs.iter().map(|run| run.offset.wrapping_add(run.len));
                    let before = std::iter::once(0).chain(ends);
                    runs.iter().zip(before).map(|(run, before)| (run.offset.wrapping_sub(before), run.len))
                };
                put(out, distances().map(|(gap, len)| width(gap) + width(len)).sum::<usize>() as u64);
                for (gap, len) in distances() {
                    put(out, gap);
                    put(out, len);
                }
            }
        }
        TocEntryKind::Symlink(target) | TocEntryKind::HardLink(target) => put_bytes(out, target),
        TocEntryKind::CharDevice(device) | TocEntryKind::BlockDevice(device) => {
            put(out, u64::from(device.major));
            put(out, u64::from(device.minor));
        }
        TocEntryKind::Directory | TocEntryKind::Fifo => {}
    }
}

fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// The number of bytes that `put` writes.
fn width(number: u64) -> usize {
    (number | 1).ilog2() as usize / 7 + 1
}

/// The unread bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
struct PackedCursor<'a>(&'a [u8]);

impl<'a> PackedCursor<'a> {
    /// Reads a number, which must have its shortest form, so that equal tables have equal bytes.
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits || byte == 0 && shift > 0 {
                return None;
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn small<T: TryFrom<u64>>(&mut self) -> Option<T> {
        T::try_from(self.number()?).ok()
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = self.small()?;
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    fn entry(&mut self, before: u64) -> Option<EntryRef<'a>> {
        let path = self.bytes()?;
        let kind_and_mode = self.number()?;
        let (uid, gid) = (self.small()?, self.small()?);
        let secs = self.number()?;
        let mtime =
            UnixTime { secs: (secs >> 1).cast_signed() ^ -(secs & 1).cast_signed(), nanos: self.small()? };
        let header = before.wrapping_add(self.number()?);
        let xattrs = XattrIter { rest: self.bytes()? };
        let kind = match kind_and_mode & ((1 << KIND_BITS) - 1) {
            FILE => TocEntryKind::File(FileContent { runs: None, ..self.content(header)? }),
            SPARSE => {
                let content = self.content(header)?;
                let runs = RunIter { rest: self.bytes()?, end: 0 };
                TocEntryKind::File(FileContent { runs: Some(runs), ..content })
            }
            DIRECTORY => TocEntryKind::Directory,
            SYMLINK => TocEntryKind::Symlink(self.bytes()?),
            HARD_LINK => TocEntryKind::HardLink(self.bytes()?),
            CHAR_DEVICE => TocEntryKind::CharDevice(self.device()?),
            BLOCK_DEVICE => TocEntryKind::BlockDevice(self.device()?),
            FIFO => TocEntryKind::Fifo,
            _ => return None,
        };
        let mode = u16::try_from(kind_and_mode >> KIND_BITS).ok()?;
        Some(EntryRef { path, kind, mode, uid, gid, mtime, xattrs, header })
    }

    fn content(&mut self, header: u64) -> Option<FileContent<RunIter<'a>>> {
        Some(FileContent { size: self.number()?, offset: header.wrapping_add(self.number()?), runs: None })
    }

    fn device(&mut self) -> Option<DeviceNumber> {
        Some(DeviceNumber { major: self.small()?, minor: self.small()? })
    }
}

/// A [`TocEntry`] in place in its table of contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRef<'a> {
    /// The name as recorded (after pax and GNU long names), not cleaned. Never contains NUL.
    pub path: &'a [u8],
    /// Type of the entry, with its type-specific data.
    pub kind: TocEntryKind<&'a [u8], RunIter<'a>>,
    /// Permission bits, 0 to 0o7777; the file type is in `kind`.
    pub mode: u16,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Modification time; may be before 1970 and may have a fraction.
    pub mtime: UnixTime,
    /// Extended attributes in recorded order, names and values verbatim.
    pub xattrs: XattrIter<'a>,
    /// Offset of the entry's own header in the uncompressed stream, for error messages.
    pub header: u64,
}

impl EntryRef<'_> {
    /// An owned copy.
    pub fn to_entry(&self) -> TocEntry {
        let kind = match self.kind {
            TocEntryKind::File(FileContent { size, offset, runs }) => {
                TocEntryKind::File(FileContent { size, offset, runs: runs.map(Iterator::collect) })
            }
            TocEntryKind::Directory => TocEntryKind::Directory,
            TocEntryKind::Symlink(target) => TocEntryKind::Symlink(target.to_vec()),
            TocEntryKind::HardLink(target) => TocEntryKind::HardLink(target.to_vec()),
            TocEntryKind::CharDevice(device) => TocEntryKind::CharDevice(device),
            TocEntryKind::BlockDevice(device) => TocEntryKind::BlockDevice(device),
            TocEntryKind::Fifo => TocEntryKind::Fifo,
        };
        let Self { path, mode, uid, gid, mtime, xattrs, header, .. } = *self;
        let xattrs = xattrs.map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        TocEntry { path: path.to_vec(), kind, mode, uid, gid, mtime, xattrs, header }
    }
}

impl FileContent<RunIter<'_>> {
    /// Number of bytes stored in the stream.
    pub fn stored(&self) -> u64 {
        self.runs.map_or(self.size, |runs| runs.fold(0, |sum, run| sum.saturating_add(run.len)))
    }
}

/// The entries of a table of contents, in archive order.
#[derive(Clone)]
pub struct TocIter<'a> {
    rest: PackedCursor<'a>,
    /// Offset of the header of the entry before.
    before: u64,
}

impl<'a> TocIter<'a> {
    pub(super) fn new(records: &'a [u8], before: u64) -> Self {
        Self { rest: PackedCursor(records), before }
    }

    /// Bytes of the remaining records.
    pub(super) fn rest(&self) -> usize {
        self.rest.0.len()
    }
}

impl<'a> Iterator for TocIter<'a> {
    type Item = EntryRef<'a>;

    fn next(&mut self) -> Option<EntryRef<'a>> {
        let mut rest = self.rest;
        let entry = rest.entry(self.before)?;
        (self.rest, self.before) = (rest, entry.header);
        Some(entry)
    }
}

/// The extended attributes of an entry, name and value, in recorded order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct XattrIter<'a> {
    rest: &'a [u8],
}

impl<'a> XattrIter<'a> {
    /// The attributes in packed form, for storage. Equal attributes have equal bytes.
    pub fn as_packed(&self) -> &'a [u8] {
        self.rest
    }

    /// The attributes from the result of [`as_packed`](Self::as_packed). Invalid bytes end the iteration early.
    pub fn from_packed(packed: &'a [u8]) -> Self {
        Self { rest: packed }
    }

    /// Whether the entry has no attributes.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

impl<'a> Iterator for XattrIter<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let mut rest = PackedCursor(self.rest);
        let xattr = (rest.bytes()?, rest.bytes()?);
        self.rest = rest.0;
        Some(xattr)
    }
}

impl fmt::Debug for XattrIter<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(*self).finish()
    }
}

/// The runs of a sparse file, in recorded order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RunIter<'a> {
    rest: &'a [u8],
    /// End of the run before, as an offset in the file.
    end: u64,
}

impl FileContent<RunIter<'_>> {
    /// The location with the runs in memory, for its readers.
    pub fn shared(self) -> SharedContent {
        let Self { size, offset, runs } = self;
        FileContent { size, offset, runs: runs.map(Iterator::collect) }
    }
}

impl Iterator for RunIter<'_> {
    type Item = SparseRun;

    fn next(&mut self) -> Option<SparseRun> {
        let mut rest = PackedCursor(self.rest);
        let (gap, len) = (rest.number()?, rest.number()?);
        let offset = self.end.wrapping_add(gap);
        (self.rest, self.end) = (rest.0, offset.wrapping_add(len));
        Some(SparseRun { offset, len })
    }
}

impl fmt::Debug for RunIter<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(*self).finish()
    }
}

/// Whether an entry read from foreign bytes satisfies the invariants of [`TocEntry`].
pub(super) fn is_sound(entry: &EntryRef<'_>) -> bool {
    let mut xattrs = entry.xattrs;
    while xattrs.next().is_some() {}
    let content = match entry.kind {
        TocEntryKind::File(FileContent { size, runs: Some(mut runs), .. }) => {
            let mut end = 0;
            // Ascending and inside the file, so that no sum exceeds 2^64.
            let inside = runs.by_ref().all(|run| {
                let fits =
                    run.offset >= end && run.offset.checked_add(run.len).is_some_and(|end| end <= size);
                end = run.offset.wrapping_add(run.len);
                fits
            });
            inside && runs.rest.is_empty()
        }
        TocEntryKind::File(FileContent { runs: None, .. })
        | TocEntryKind::Directory
        | TocEntryKind::Symlink(_)
        | TocEntryKind::HardLink(_)
        | TocEntryKind::CharDevice(_)
        | TocEntryKind::BlockDevice(_)
        | TocEntryKind::Fifo => true,
    };
    content
        && xattrs.is_empty()
        && entry.mode <= 0o7777
        && entry.mtime.nanos < 1_000_000_000
        && !entry.path.contains(&0)
}

/// One piece of the records.
pub(super) struct PackedPiece<B>(pub(super) B);

impl Serialize for PackedPiece<&[u8]> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de> Deserialize<'de> for PackedPiece<Vec<u8>> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_byte_buf(PieceVisitor)
    }
}

struct PieceVisitor;

impl Visitor<'_> for PieceVisitor {
    type Value = PackedPiece<Vec<u8>>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "at most {TOC_PIECE_BYTES} bytes of records")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        if bytes.len() > TOC_PIECE_BYTES {
            return Err(E::invalid_length(bytes.len(), &self));
        }
        Ok(PackedPiece(bytes.to_vec()))
    }
}

/// Records as a sequence of pieces, those of `head` first.
pub(super) fn serialize<S: Serializer>(
    head: Option<&SpooledBytes>,
    records: &[u8],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let before = head.map_or(0, SpooledBytes::len);
    let len = before + records.len() as u64;
    let mut seq = serializer.serialize_seq(Some(len.div_ceil(TOC_PIECE_BYTES as u64) as usize))?;
    let mut piece = vec![0; TOC_PIECE_BYTES];
    for start in (0..len).step_by(TOC_PIECE_BYTES) {
        // Both parts are at most a piece long.
        let from_head = before.saturating_sub(start).min(TOC_PIECE_BYTES as u64) as usize;
        let rest = ((len - start) as usize).min(TOC_PIECE_BYTES) - from_head;
        if from_head == 0 {
            let at = (start - before) as usize;
            seq.serialize_element(&PackedPiece(&records[at..at + rest]))?;
            continue;
        }
        if let Some(head) = head {
            head.read_at(start, &mut piece[..from_head]).map_err(serde::ser::Error::custom)?;
        }
        piece[from_head..from_head + rest].copy_from_slice(&records[..rest]);
        seq.serialize_element(&PackedPiece(&piece[..from_head + rest]))?;
    }
    seq.end()
}

#[cfg(test)]
mod tests;
