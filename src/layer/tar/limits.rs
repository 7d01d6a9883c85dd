//! Limits of one archive: entries, lengths, and memory.

/// What a foreign archive may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TarLimits {
    /// Entries. A tree of that many is over the memory that trees have.
    pub entries: u64,
    /// Bytes of a name or a link target.
    pub path: usize,
    /// Bytes of a name between two slashes.
    pub component: usize,
    /// Bytes of one extended header, GNU long name or sparse map. Go's limit, which is libarchive's.
    pub pax: u64,
    /// Bytes of all names, link targets, extended attributes and sparse maps together, as kept in memory: what stops an
    /// archive that compresses well and holds nothing but metadata.
    pub metadata: u64,
}

impl Default for TarLimits {
    fn default() -> Self {
        Self { entries: 2_000_000, path: 4096, component: 255, pax: 1 << 20, metadata: 96 << 20 }
    }
}
