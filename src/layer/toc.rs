//! The table of contents of a layer: what its archive says, in archive order, before any union rule is applied.
//!
//! Paths are bytes exactly as the archive gives them; cleaning, whiteouts and links are the business of `tree/`. The idea: a
//! layer can have millions of entries, so they lie packed in one run of bytes, some twenty and the path for each, and are
//! read where they lie.

mod packed;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use packed::{Iter, Runs, Xattrs};

/// All entries of one archive, in archive order; later ones win over earlier ones of the same name.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Toc {
    /// The records of [`packed`]. Invariant: `len` records, each of which can be read.
    records: Vec<u8>,
    len: usize,
    /// Where the record of the last entry starts.
    last: usize,
    /// `header` of the last entry and of the one before it, or 0: records hold the distance.
    headers: [u64; 2],
}

impl Toc {
    /// Adds an entry after all others; later ones win over earlier ones of the same name.
    pub fn push(&mut self, entry: Entry) {
        self.last = self.records.len();
        self.headers = [entry.header, self.headers[0]];
        packed::write(&mut self.records, &entry, self.headers[1]);
        self.len += 1;
    }

    /// The entries in archive order.
    pub fn iter(&self) -> Iter<'_> {
        Iter::new(&self.records, 0)
    }

    /// The last entry.
    pub fn last(&self) -> Option<EntryRef<'_>> {
        Iter::new(&self.records[self.last..], self.headers[1]).next()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory that the entries take, without the allocator's own.
    pub fn heap_bytes(&self) -> usize {
        self.records.len()
    }
}

impl std::fmt::Debug for Toc {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_list().entries(self.iter()).finish()
    }
}

impl FromIterator<Entry> for Toc {
    fn from_iter<I: IntoIterator<Item = Entry>>(entries: I) -> Self {
        let mut toc = Self::default();
        for entry in entries {
            toc.push(entry);
        }
        toc
    }
}

impl<'a> IntoIterator for &'a Toc {
    type Item = EntryRef<'a>;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl Serialize for Toc {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        packed::serialize(&self.records, serializer)
    }
}

impl<'de> Deserialize<'de> for Toc {
    /// Whatever the bytes are: every record is read once here, and one that cannot be read is an error.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut toc = Self { records: packed::deserialize(deserializer)?, ..Self::default() };
        let mut entries = toc.iter();
        let (mut len, mut last, mut headers) = (0, 0, [0; 2]);
        loop {
            let at = toc.records.len() - entries.rest();
            match entries.next() {
                Some(entry) if packed::is_sound(&entry) => {
                    (len, last, headers) = (len + 1, at, [entry.header, headers[0]]);
                }
                None if entries.rest() == 0 => break,
                Some(_) | None => {
                    return Err(serde::de::Error::custom(format!("record {len} at byte {at} is malformed")));
                }
            }
        }
        (toc.len, toc.last, toc.headers) = (len, last, headers);
        Ok(toc)
    }
}

/// One entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name as recorded (after pax and GNU long names), not cleaned. Never contains NUL.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits, 0 to 0o7777; the file type is in `kind`.
    pub mode: u16,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Modification time; may be before 1970 and may have a fraction.
    pub mtime: Time,
    /// Extended attributes in recorded order, names and values verbatim.
    pub xattrs: Vec<Xattr>,
    /// Where the entry's own header starts in the uncompressed stream: for error messages.
    pub header: u64,
}

/// An [`Entry`] where it lies in its [`Toc`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryRef<'a> {
    /// The name as recorded (after pax and GNU long names), not cleaned. Never contains NUL.
    pub path: &'a [u8],
    /// What it is.
    pub kind: EntryKind<&'a [u8], Runs<'a>>,
    /// Permission bits, 0 to 0o7777; the file type is in `kind`.
    pub mode: u16,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Modification time; may be before 1970 and may have a fraction.
    pub mtime: Time,
    /// Extended attributes in recorded order, names and values verbatim.
    pub xattrs: Xattrs<'a>,
    /// Where the entry's own header starts in the uncompressed stream: for error messages.
    pub header: u64,
}

impl EntryRef<'_> {
    /// A copy that owns what it says.
    pub fn to_entry(&self) -> Entry {
        let kind = match self.kind {
            EntryKind::File(Content { size, offset, runs }) => {
                EntryKind::File(Content { size, offset, runs: runs.map(Iterator::collect) })
            }
            EntryKind::Directory => EntryKind::Directory,
            EntryKind::Symlink(target) => EntryKind::Symlink(target.to_vec()),
            EntryKind::HardLink(target) => EntryKind::HardLink(target.to_vec()),
            EntryKind::CharDevice(device) => EntryKind::CharDevice(device),
            EntryKind::BlockDevice(device) => EntryKind::BlockDevice(device),
            EntryKind::Fifo => EntryKind::Fifo,
        };
        let Self { path, mode, uid, gid, mtime, xattrs, header, .. } = *self;
        let xattrs = xattrs.map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        Entry { path: path.to_vec(), kind, mode, uid, gid, mtime, xattrs, header }
    }
}

/// An extended attribute: name, value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// A point in time as `secs + nanos / 1e9` since 1970. Invariant: `nanos < 1_000_000_000`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds, rounded towards the past.
    pub secs: i64,
    /// Nanoseconds after `secs`.
    pub nanos: u32,
}

/// The type of an entry with what only that type has. `T` holds a link target, `R` the runs of a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind<T = Vec<u8>, R = Vec<Run>> {
    /// A regular file.
    File(Content<R>),
    /// A directory.
    Directory,
    /// A symbolic link and its target, verbatim.
    Symlink(T),
    /// Another name for the entry at this path.
    HardLink(T),
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
}

/// A device number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Driver.
    pub major: u32,
    /// Unit.
    pub minor: u32,
}

/// Where a regular file's bytes lie in the uncompressed stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Content<R = Vec<Run>> {
    /// The size that readers see, in bytes.
    pub size: u64,
    /// Stream offset of the first stored byte.
    pub offset: u64,
    /// For a sparse file the runs of data, in order and without overlap; the stored bytes are these runs one after the
    /// other, everything else reads as zeros. `None` when all of `size` is stored.
    pub runs: Option<R>,
}

/// One run of data in a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Offset in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

impl Content {
    /// How many bytes are stored in the stream.
    pub fn stored(&self) -> u64 {
        self.runs
            .as_ref()
            .map_or(self.size, |runs| runs.iter().fold(0, |sum, run| sum.saturating_add(run.len)))
    }
}

impl Content<Runs<'_>> {
    /// How many bytes are stored in the stream.
    pub fn stored(&self) -> u64 {
        self.runs.map_or(self.size, |runs| runs.fold(0, |sum, run| sum.saturating_add(run.len)))
    }
}
