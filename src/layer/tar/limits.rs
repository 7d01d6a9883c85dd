//! Limits of one archive: entries, lengths, and memory.

/// Resource limits for a foreign archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TarLimits {
    /// Maximum entries. A tree of that many exceeds the memory limit of trees.
    pub entries: u64,
    /// Bytes of a name or a link target.
    pub path: usize,
    /// Bytes of a name between two slashes.
    pub component: usize,
    /// Bytes of one extended header, GNU long name or sparse map. The limit is Go's, which is libarchive's.
    pub pax: u64,
    /// Bytes of all names, link targets, extended attributes and sparse maps together, in their size in memory.
    /// This stops a highly compressed archive of pure metadata.
    pub metadata: u64,
}

impl Default for TarLimits {
    fn default() -> Self {
        Self { entries: 2_000_000, path: 4096, component: 255, pax: 1 << 20, metadata: 96 << 20 }
    }
}
