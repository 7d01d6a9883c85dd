//! Table of contents of a layer: its archive entries, in archive order, before any union rule is applied.
//!
//! Paths are bytes exactly as in the archive; `tree/` handles cleaning, whiteouts and links. A layer can have
//! millions of entries. So they are packed into one byte string, some twenty bytes and the path for each, and read
//! in place.

mod entry;
mod packed;

use std::sync::Arc;

use serde::de::{DeserializeSeed, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::cache::{BlockCache, SpooledBytes};
use crate::io::{FaultClass, MEMORY, MemoryShare, ReadError, compute};

pub use entry::{
    DeviceNumber, FileContent, SharedContent, SparseRun, TocEntry, TocEntryKind, UnixTime, XattrPair,
    has_namespace,
};
use packed::PackedPiece;
pub use packed::{EntryRef, RunIter, TocIter, XattrIter};

/// Bytes of records in memory above which all but the last are spooled to disk: some 16,000 entries.
pub(super) const SPOOLED_FROM: usize = 1024 * 1024;

/// Maximum length of a record: its name and target, and one extended header of 1 MiB of attributes or runs. Each of
/// these takes at most as many bytes as its text.
const LONGEST_RECORD: usize = 4 * 1024 * 1024;

/// All entries of one archive, in archive order. Of entries with the same name, the last one counts.
#[derive(Clone, Default)]
pub struct TableOfContents {
    /// Records before `records`, on the disk of the cache; `None` when all are in memory.
    head: Option<Arc<SpooledBytes>>,
    /// The records of [`packed`]. Invariant: `len` valid records together with the head.
    records: Vec<u8>,
    /// Number of entries.
    len: usize,
    /// Offset of the record of the last entry in `records`.
    last: usize,
    /// `header` of the last entry and of the one before it, or 0: records hold the distance.
    headers: [u64; 2],
    /// Share of a large table in the memory budget of all layers.
    share: Option<Arc<MemoryShare>>,
}

impl PartialEq for TableOfContents {
    fn eq(&self, other: &Self) -> bool {
        let heads = match (&self.head, &other.head) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        };
        heads && self.records == other.records
    }
}

impl Eq for TableOfContents {}

impl TableOfContents {
    /// Adds an entry after all others. Of entries with the same name, the last one counts.
    pub fn push(&mut self, entry: TocEntry) {
        self.last = self.records.len();
        self.headers = [entry.header, self.headers[0]];
        packed::write(&mut self.records, &entry, self.headers[1]);
        self.len += 1;
    }

    /// The entries in archive order. All of them have to be in memory, see [`whole`](Self::whole).
    pub fn iter(&self) -> TocIter<'_> {
        assert!(self.head.is_none(), "the head of a table of contents is on disk");
        TocIter::new(&self.records, 0)
    }

    /// Whether a part of the table is on disk.
    pub fn is_spooled(&self) -> bool {
        self.head.is_some()
    }

    /// The table with all entries in memory. Waits for its share of the memory budget.
    pub async fn whole(mut self) -> Result<Self, ReadError> {
        let Some(head) = self.head.take() else { return Ok(self) };
        let bytes = head.len() + self.records.len() as u64;
        let share = MEMORY.take(bytes).await.map_err(|error| error.into_read("a table of contents"))?;
        // The caller may build a tree from the table, which must not wait for this share.
        share.pin();
        compute(move || {
            // At most the walker's limit for metadata.
            let len = head.len() as usize;
            let mut records = Vec::with_capacity(len + self.records.len());
            records.resize(len, 0);
            let read = head.read_at(0, &mut records);
            read.map_err(|error| ReadError::caused(FaultClass::Io, "reading a table of contents", error))?;
            records.extend_from_slice(&self.records);
            self.last += len;
            (self.records, self.share) = (records, Some(Arc::new(share)));
            Ok(self)
        })
        .await
    }

    /// Removes and returns all records but the last, to be spooled before later ones.
    pub(super) fn take_head(&mut self) -> Vec<u8> {
        let rest = self.records.split_off(self.last);
        self.last = 0;
        std::mem::replace(&mut self.records, rest)
    }

    /// The table with all but its last entry on the disk of `cache`, if it is large.
    pub(super) fn spooled(mut self, cache: &BlockCache) -> Result<Self, ReadError> {
        if self.head.is_some() || self.records.len() <= SPOOLED_FROM {
            return Ok(self);
        }
        let head = cache.spooled()?;
        let failed = |error| ReadError::caused(FaultClass::Io, "writing a table of contents", error);
        head.append(&self.take_head()).map_err(failed)?;
        self.records.shrink_to_fit();
        self.share = None;
        Ok(self.behind(head))
    }

    /// Adds the spooled records that [`take_head`](Self::take_head) returned.
    pub(super) fn behind(mut self, head: SpooledBytes) -> Self {
        self.head = (!head.is_empty()).then(|| Arc::new(head));
        self
    }

    /// The last entry.
    pub fn last(&self) -> Option<EntryRef<'_>> {
        TocIter::new(&self.records[self.last..], self.headers[1]).next()
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the table has no entries.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory used by the entries, without the allocator's overhead and the part on disk.
    pub fn heap_bytes(&self) -> usize {
        self.records.len()
    }
}

impl std::fmt::Debug for TableOfContents {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.head {
            None => formatter.debug_list().entries(self.iter()).finish(),
            Some(head) => write!(formatter, "{} entries, {} bytes of them on disk", self.len, head.len()),
        }
    }
}

impl FromIterator<TocEntry> for TableOfContents {
    fn from_iter<I: IntoIterator<Item = TocEntry>>(entries: I) -> Self {
        let mut toc = Self::default();
        for entry in entries {
            toc.push(entry);
        }
        toc
    }
}

impl Extend<TocEntry> for TableOfContents {
    fn extend<I: IntoIterator<Item = TocEntry>>(&mut self, entries: I) {
        for entry in entries {
            self.push(entry);
        }
    }
}

impl<'a> IntoIterator for &'a TableOfContents {
    type Item = EntryRef<'a>;
    type IntoIter = TocIter<'a>;

    fn into_iter(self) -> TocIter<'a> {
        self.iter()
    }
}

impl Serialize for TableOfContents {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        packed::serialize(self.head.as_deref(), &self.records, serializer)
    }
}

impl<'de> Deserialize<'de> for TableOfContents {
    /// Reads every record once. An unreadable record is an error, whatever the bytes are.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(TocReader::default())
    }
}

/// Builds a table of contents from pieces of its records, each of which is read once.
#[derive(Default)]
pub(super) struct TocReader<'a> {
    toc: TableOfContents,
    /// Offset of the first unread record.
    unread: usize,
    /// The cache to spool to; `None` where all records stay in memory.
    spool: Option<&'a BlockCache>,
    head: Option<SpooledBytes>,
    /// An additional check of every entry; `None` for none.
    check: Option<&'a dyn Fn(&EntryRef<'_>) -> bool>,
}

impl<'a> TocReader<'a> {
    /// A reader that spools records over the memory limit to the disk of `cache`, and refuses entries that fail
    /// `check`.
    pub(super) fn spooling(cache: Option<&'a BlockCache>, check: &'a dyn Fn(&EntryRef<'_>) -> bool) -> Self {
        Self { spool: cache, check: Some(check), ..Self::default() }
    }

    fn piece(&mut self, piece: &[u8]) -> Result<(), String> {
        self.toc.records.extend_from_slice(piece);
        self.look()?;
        if self.toc.records.len() - self.unread > LONGEST_RECORD {
            return Err(self.malformed());
        }
        if let Some(cache) = self.spool
            && self.unread > SPOOLED_FROM
        {
            let failed = |error: &dyn std::error::Error| {
                format!("a table of contents cannot be written to disk: {error}")
            };
            let (unread, last) = (self.unread, self.toc.last);
            let head = self.toc.take_head();
            self.unread = unread - last;
            let spool = match &mut self.head {
                Some(spool) => spool,
                none => none.insert(cache.spooled().map_err(|error| failed(&error))?),
            };
            spool.append(&head).map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    /// Reads the complete records.
    fn look(&mut self) -> Result<(), String> {
        let toc = &mut self.toc;
        let mut entries = TocIter::new(&toc.records[self.unread..], toc.headers[0]);
        let (mut len, mut last, mut headers) = (toc.len, toc.last, toc.headers);
        loop {
            let at = toc.records.len() - entries.rest();
            let Some(entry) = entries.next() else {
                self.unread = at;
                break;
            };
            if !packed::is_sound(&entry) || self.check.is_some_and(|check| !check(&entry)) {
                return Err(format!("record {len} is malformed"));
            }
            (len, last, headers) = (len + 1, at, [entry.header, headers[0]]);
        }
        (toc.len, toc.last, toc.headers) = (len, last, headers);
        Ok(())
    }

    fn malformed(&self) -> String {
        format!("record {} is malformed", self.toc.len)
    }

    fn finish(self) -> Result<TableOfContents, String> {
        if self.unread < self.toc.records.len() {
            return Err(self.malformed());
        }
        Ok(match self.head {
            Some(head) => self.toc.behind(head),
            None => self.toc,
        })
    }
}

/// Deserializes a table of contents with `reader`.
pub(super) struct TocSeed<'a>(pub(super) TocReader<'a>);

impl<'de> DeserializeSeed<'de> for TocSeed<'_> {
    type Value = TableOfContents;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<TableOfContents, D::Error> {
        deserializer.deserialize_seq(self.0)
    }
}

impl<'de> Visitor<'de> for TocReader<'_> {
    type Value = TableOfContents;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("pieces of records")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut pieces: A) -> Result<TableOfContents, A::Error> {
        while let Some(PackedPiece(piece)) = pieces.next_element::<PackedPiece<Vec<u8>>>()? {
            self.piece(&piece).map_err(A::Error::custom)?;
        }
        self.finish().map_err(A::Error::custom)
    }
}
