//! Entry of an archive: name, type, owner, mode, time and attributes, as recorded.

use std::sync::Arc;

/// One entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TocEntry {
    /// The name as recorded (after pax and GNU long names), not cleaned. Never contains NUL.
    pub path: Vec<u8>,
    /// Type of the entry, with its type-specific data.
    pub kind: TocEntryKind,
    /// Permission bits, 0 to 0o7777; the file type is in `kind`.
    pub mode: u16,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Modification time; may be before 1970 and may have a fraction.
    pub mtime: UnixTime,
    /// Extended attributes in recorded order, names and values verbatim.
    pub xattrs: Vec<XattrPair>,
    /// Offset of the entry's own header in the uncompressed stream, for error messages.
    pub header: u64,
}

/// An extended attribute: name, value.
pub type XattrPair = (Vec<u8>, Vec<u8>);

/// Whether the name of an extended attribute is in a namespace of Linux. No program could read others, such as
/// those without a namespace that archives from macOS record.
pub fn has_namespace(name: &[u8]) -> bool {
    const NAMESPACES: [&[u8]; 4] = [b"user.", b"trusted.", b"security.", b"system."];
    NAMESPACES.iter().any(|namespace| name.len() > namespace.len() && name.starts_with(namespace))
}

/// A point in time as `secs + nanos / 1e9` since 1970. Invariant: `nanos < 1_000_000_000`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixTime {
    /// Whole seconds, rounded towards the past.
    pub secs: i64,
    /// Nanoseconds after `secs`.
    pub nanos: u32,
}

/// The type of an entry with its type-specific data. `T` holds a link target, `R` the runs of a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TocEntryKind<T = Vec<u8>, R = Vec<SparseRun>> {
    /// A regular file.
    File(FileContent<R>),
    /// A directory.
    Directory,
    /// A symbolic link and its target, verbatim.
    Symlink(T),
    /// Another name for the entry at this path.
    HardLink(T),
    /// A character device.
    CharDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A named pipe.
    Fifo,
}

/// A device number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceNumber {
    /// Driver number.
    pub major: u32,
    /// Unit number.
    pub minor: u32,
}

/// The location of a regular file's bytes in the uncompressed stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileContent<R = Vec<SparseRun>> {
    /// The size of the file, in bytes.
    pub size: u64,
    /// Stream offset of the first stored byte.
    pub offset: u64,
    /// The runs of data of a sparse file, ascending and disjoint. The stored bytes are these runs without gaps; all
    /// other bytes of the file are zeros. `None` when all of `size` is stored.
    pub runs: Option<R>,
}

/// The location of a file's bytes, with runs that its readers share.
pub type SharedContent = FileContent<Arc<[SparseRun]>>;

/// One run of data in a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SparseRun {
    /// Offset in the file.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

impl FileContent {
    /// Number of bytes stored in the stream.
    pub fn stored(&self) -> u64 {
        self.runs
            .as_ref()
            .map_or(self.size, |runs| runs.iter().fold(0, |sum, run| sum.saturating_add(run.len)))
    }
}
