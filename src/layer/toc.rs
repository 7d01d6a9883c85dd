//! The table of contents of a layer: what its archive says, in archive order, before any union rule is applied.
//!
//! Paths are bytes exactly as the archive gives them; cleaning, whiteouts and links are the business of `tree/`.

use serde::{Deserialize, Serialize};

/// All entries of one archive, in archive order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Toc {
    /// The entries; later ones win over earlier ones of the same name.
    pub entries: Vec<Entry>,
}

/// One entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// An extended attribute: name, value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// A point in time as `secs + nanos / 1e9` since 1970. Invariant: `nanos < 1_000_000_000`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Time {
    /// Whole seconds, rounded towards the past.
    pub secs: i64,
    /// Nanoseconds after `secs`.
    pub nanos: u32,
}

/// The type of an entry with what only that type has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// A regular file.
    File(Content),
    /// A directory.
    Directory,
    /// A symbolic link and its target, verbatim.
    Symlink(Vec<u8>),
    /// Another name for the entry at this path.
    HardLink(Vec<u8>),
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A named pipe.
    Fifo,
}

/// A device number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Driver.
    pub major: u32,
    /// Unit.
    pub minor: u32,
}

/// Where a regular file's bytes lie in the uncompressed stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// The size that readers see, in bytes.
    pub size: u64,
    /// Stream offset of the first stored byte.
    pub offset: u64,
    /// For a sparse file the runs of data, in order and without overlap; the stored bytes are these runs one after the
    /// other, everything else reads as zeros. `None` when all of `size` is stored.
    pub runs: Option<Vec<Run>>,
}

/// One run of data in a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Offset in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

impl Content {
    /// How many bytes are stored in the stream.
    pub fn stored(&self) -> u64 {
        self.runs.as_ref().map_or(self.size, |runs| runs.iter().map(|run| run.len).sum())
    }
}
