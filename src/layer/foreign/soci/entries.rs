//! Table of contents of a zTOC: one flatbuffer table for each header that Go's `archive/tar` returned to the tool.
//!
//! The tool omits the map of a sparse file, and a time that is no date. Such a zTOC is refused, because a pass over
//! the layer would give a different tree. Entries have archive order, and their offsets must ascend.

use super::super::super::toc::{
    DeviceNumber, FileContent, TableOfContents, TocEntry, TocEntryKind, UnixTime, XattrPair,
};
use super::super::super::{TarLimits, tar};
use super::super::foreign_index::ForeignError;
use super::flatbuffer::{FlatTable, FlatVector};
use super::{broken, too_large};

/// The unit of a tar archive, in bytes.
const BLOCK: u64 = 512;

/// The pax key prefix of sparse files, in all three forms.
const SPARSE: &[u8] = b"GNU.sparse.";

/// Cost of a record or an entry besides its text, in bytes. Elements may be shared, so the size of the zTOC is no
/// bound.
const FIXED_COST: u64 = 64;

/// Fields of an entry.
mod slot {
    pub(super) const NAME: usize = 0;
    pub(super) const TYPE: usize = 1;
    pub(super) const OFFSET: usize = 2;
    pub(super) const SIZE: usize = 3;
    pub(super) const LINKNAME: usize = 4;
    pub(super) const MODE: usize = 5;
    pub(super) const UID: usize = 6;
    pub(super) const GID: usize = 7;
    pub(super) const MOD_TIME: usize = 10;
    pub(super) const DEVMAJOR: usize = 11;
    pub(super) const DEVMINOR: usize = 12;
    pub(super) const RECORDS: usize = 13;
    /// Fields of a record.
    pub(super) const KEY: usize = 0;
    pub(super) const VALUE: usize = 1;
}

/// The entries of `metadata`, in a stream of `stream_size` bytes.
pub(super) fn toc(metadata: FlatVector<'_>, stream_size: u64) -> Result<TableOfContents, ForeignError> {
    let limits = TarLimits::default();
    if metadata.len() as u64 > limits.entries {
        return Err(too_large(format!("{} entries", metadata.len()), limits.entries));
    }
    let mut budget = EntryBudget { spent: 0, limit: limits.metadata };
    let mut toc = TableOfContents::default();
    // The lowest possible offset of the next header.
    let mut free = 0;
    for (at, table) in metadata.tables().enumerate() {
        let reading = |reason: String| broken(format!("entry {at}: {reason}"));
        let table = table.map_err(reading)?;
        let raw = RawTocFields::read(&table).map_err(reading)?;
        budget.spend(raw.path.len() + raw.link.len())?;
        let (records, name) = (raw.records, raw.path[..raw.path.len().min(100)].escape_ascii());
        let named = |reason: String| broken(format!("entry {at}, {name}: {reason}"));
        let xattrs = xattrs(records, &mut budget, &named)?;
        let entry = raw.entry(xattrs, &limits).map_err(named)?;
        if entry.header < free {
            return Err(named(format!(
                "its header at {} lies before {free}, the end of the one before",
                entry.header
            )));
        }
        // The header is below 2^63, so this does not overflow.
        let body = entry.header + BLOCK;
        let len = if let TocEntryKind::File(content) = &entry.kind { content.size } else { 0 };
        let end = body.checked_add(len).filter(|&end| end <= stream_size);
        let end = end.ok_or_else(|| {
            named(format!("{len} bytes at {body} end past the {stream_size} of the stream"))
        })?;
        free = end.next_multiple_of(BLOCK);
        toc.push(entry);
    }
    Ok(toc)
}

/// Memory budget of all entries together, in bytes.
struct EntryBudget {
    spent: u64,
    limit: u64,
}

impl EntryBudget {
    fn spend(&mut self, text: usize) -> Result<(), ForeignError> {
        // No overflow: at most 2^40 elements of 2^30 bytes, and the first over the limit ends the loop.
        self.spent += FIXED_COST + text as u64;
        if self.spent > self.limit {
            return Err(too_large(format!("metadata of more than {} bytes", self.limit), self.limit));
        }
        Ok(())
    }
}

/// The raw fields of an entry.
struct RawTocFields<'a> {
    path: &'a [u8],
    kind: &'a [u8],
    offset: i64,
    size: i64,
    link: &'a [u8],
    mode: i64,
    uid: u32,
    gid: u32,
    mod_time: &'a [u8],
    major: i64,
    minor: i64,
    records: FlatVector<'a>,
}

impl<'a> RawTocFields<'a> {
    fn read(table: &FlatTable<'a>) -> Result<Self, String> {
        Ok(Self {
            path: table.bytes(slot::NAME)?,
            kind: table.bytes(slot::TYPE)?,
            offset: table.i64(slot::OFFSET)?,
            size: table.i64(slot::SIZE)?,
            link: table.bytes(slot::LINKNAME)?,
            mode: table.i64(slot::MODE)?,
            uid: table.u32(slot::UID)?,
            gid: table.u32(slot::GID)?,
            mod_time: table.bytes(slot::MOD_TIME)?,
            major: table.i64(slot::DEVMAJOR)?,
            minor: table.i64(slot::DEVMINOR)?,
            records: table.vector(slot::RECORDS)?,
        })
    }

    fn entry(self, xattrs: Vec<XattrPair>, limits: &TarLimits) -> Result<TocEntry, String> {
        // The offset is the tool's position after the header, so the header is the block before.
        let offset = u64::try_from(self.offset).ok().filter(|offset| offset.is_multiple_of(BLOCK));
        let header = offset.and_then(|offset| offset.checked_sub(BLOCK));
        let header = header.ok_or_else(|| format!("content cannot start at {}", self.offset))?;
        let entry = TocEntry {
            path: self.path.to_vec(),
            kind: self.kind(header + BLOCK)?,
            mode: (self.mode & 0o7777) as u16,
            uid: tar::owner("uid", self.uid.into())?,
            gid: tar::owner("gid", self.gid.into())?,
            mtime: time(self.mod_time)?,
            xattrs,
            header,
        };
        tar::check_names(&entry, limits).map_err(|error| error.to_string())?;
        Ok(entry)
    }

    fn kind(&self, offset: u64) -> Result<TocEntryKind, String> {
        let device = || -> Result<DeviceNumber, String> {
            let part = |name: &str, value: i64| {
                u32::try_from(value).map_err(|_| format!("device {name} number is {value}"))
            };
            Ok(DeviceNumber { major: part("major", self.major)?, minor: part("minor", self.minor)? })
        };
        Ok(match self.kind {
            b"reg" => {
                let size = u64::try_from(self.size).map_err(|_| format!("size is {}", self.size))?;
                TocEntryKind::File(FileContent { size, offset, runs: None })
            }
            b"dir" => TocEntryKind::Directory,
            b"symlink" => TocEntryKind::Symlink(self.link.to_vec()),
            b"hardlink" => TocEntryKind::HardLink(self.link.to_vec()),
            b"char" => TocEntryKind::CharDevice(device()?),
            b"block" => TocEntryKind::BlockDevice(device()?),
            b"fifo" => TocEntryKind::Fifo,
            other => {
                let shown = other[..other.len().min(20)].escape_ascii();
                return Err(format!("type is \"{shown}\""));
            }
        })
    }
}

/// The extended attributes among the pax records. The tool sorts records by key.
fn xattrs(
    records: FlatVector<'_>,
    budget: &mut EntryBudget,
    named: &impl Fn(String) -> ForeignError,
) -> Result<Vec<XattrPair>, ForeignError> {
    let mut xattrs = Vec::new();
    for record in records.tables() {
        let record = record.map_err(named)?;
        let (key, value) =
            (record.bytes(slot::KEY).map_err(named)?, record.bytes(slot::VALUE).map_err(named)?);
        budget.spend(key.len() + value.len())?;
        if key.starts_with(SPARSE) {
            return Err(named("it is a sparse file, whose map a zTOC does not hold".into()));
        }
        if let Some(name) = key.strip_prefix(tar::XATTR) {
            xattrs.push((name.to_vec(), value.to_vec()));
        }
    }
    let mut names: Vec<&[u8]> = xattrs.iter().map(|(name, _)| &**name).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        let shown = pair[0][..pair[0].len().min(40)].escape_ascii();
        return Err(named(format!("extended attribute \"{shown}\" occurs twice")));
    }
    xattrs.retain(tar::has_value);
    Ok(xattrs)
}

/// Parses a time as Go writes it: RFC 3339 in the time zone of the tool. The tool leaves an unrepresentable time
/// empty.
fn time(text: &[u8]) -> Result<UnixTime, String> {
    let bad = || format!("time \"{}\" is not of RFC 3339", text[..text.len().min(40)].escape_ascii());
    let parsed =
        std::str::from_utf8(text).ok().and_then(|text| chrono::DateTime::parse_from_rfc3339(text).ok());
    let parsed = parsed.ok_or_else(bad)?;
    let nanos = parsed.timestamp_subsec_nanos();
    // A leap second has 10^9 nanoseconds or more; Go writes none.
    if nanos >= 1_000_000_000 {
        return Err(bad());
    }
    Ok(UnixTime { secs: parsed.timestamp(), nanos })
}
