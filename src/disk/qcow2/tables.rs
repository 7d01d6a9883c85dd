//! The two table levels of a qcow2, and the meaning of their entries.
//!
//! Does no I/O: it computes the position of an entry and decodes an entry that the caller has read. Entries are
//! untrusted. One that points outside the file, is not aligned or sets reserved bits is an error for the bytes that
//! it maps. The rules are those of QEMU `docs/interop/qcow2.txt`.

use super::Qcow2Header;
use crate::io::{ByteRange, FaultClass, ReadError};

/// Bits 9 to 55 of an entry: an offset in the file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 63: the refcount is one. Only a writer needs it.
const COPIED: u64 = 1 << 63;
/// Bit 62 of an L2 entry.
const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of an L2 entry since version 3, without subclusters: reads as zeros, whatever the offset is.
const ZERO: u64 = 1;
/// Subclusters of a cluster.
const SUBCLUSTER_BITS: u32 = 5;
/// The unit of the length of compressed clusters.
const SECTOR: u64 = 512;

/// The location of a range of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClusterLocation {
    /// Not stored: zeros.
    Zeros,
    /// In the file, from this offset on. Bytes past the end of the file are zeros.
    Stored(u64),
    /// In a compressed cluster.
    Packed(CompressedCluster),
}

/// A compressed cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CompressedCluster {
    /// The bits of its entry that identify it.
    pub(super) key: u64,
    /// An upper bound of its stream in the file. Invariant: inside the file, and not empty.
    pub(super) stored: ByteRange,
}

/// An L2 entry. The second number holds the subcluster bits; 0 without subclusters.
#[derive(Clone, Copy, Debug)]
pub(super) struct L2Entry(u64, u64);

/// The parameters that map an offset of the disk to the position of an entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct TableGeometry {
    /// Bytes of the disk. Invariant: `1..=i64::MAX`, so that no offset of the disk plus a cluster overflows.
    pub(super) size: u64,
    /// Bytes of the file.
    file: u64,
    /// Invariant: in the file.
    l1: ByteRange,
    /// Invariant: `9..=21`.
    pub(super) bits: u32,
    extended: bool,
    version: u32,
}

impl TableGeometry {
    /// The geometry of an image of `file` bytes, or why the image is invalid.
    pub(super) fn new(header: &Qcow2Header, file: u64) -> Result<Self, String> {
        header.raw_reason()?;
        let Qcow2Header {
            virtual_size: size, cluster_bits: bits, l1, extended_l2: extended, version, ..
        } = *header;
        // The header was parsed with these checks. Its fields are public, and the file may be another one.
        if !(9..=21).contains(&bits) || (extended && bits < 14) || size > i64::MAX as u64 {
            return Err(format!("clusters of 2^{bits} bytes, or a disk of {size} bytes, are not possible"));
        }
        let geometry = Self { size, file, l1, bits, extended, version };
        if l1.end > file || !l1.start.is_multiple_of(geometry.cluster()) {
            return Err(format!("its L1 table at {l1} is not in the {file} bytes of the file"));
        }
        if l1.len() / 8 < geometry.tables() {
            return Err(format!("its L1 table of {} entries is too small", l1.len() / 8));
        }
        Ok(geometry)
    }

    /// Bytes of a cluster, and of an L2 table.
    pub(super) fn cluster(&self) -> u64 {
        1 << self.bits
    }

    /// The range of the L1 table.
    pub(super) fn l1(&self) -> ByteRange {
        self.l1
    }

    /// Bytes of an L2 entry.
    pub(super) fn entry_size(&self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// The disk bytes that one L2 table maps, as a power of two: at most 39.
    fn covered_bits(&self) -> u32 {
        self.bits + self.bits - self.entry_size().trailing_zeros()
    }

    /// The disk bytes of the L2 table for `offset`.
    pub(super) fn covered(&self, offset: u64) -> ByteRange {
        self.table_covers(offset >> self.covered_bits())
    }

    /// The disk bytes of the L2 table `index`. Invariant of the callers: `index` is less than
    /// [`tables`](Self::tables).
    pub(super) fn table_covers(&self, index: u64) -> ByteRange {
        let bits = self.covered_bits();
        ByteRange::at(index << bits, 1 << bits).intersect(ByteRange::new(0, self.size))
    }

    /// The number of L2 tables of the disk.
    pub(super) fn tables(&self) -> u64 {
        self.size.div_ceil(1 << self.covered_bits())
    }

    /// The position in the file of the L1 entry for `offset` of the disk.
    pub(super) fn l1_entry(&self, offset: u64) -> u64 {
        self.l1.start + (offset >> self.covered_bits()) * 8
    }

    /// The L2 table that an L1 entry names; `None` when nothing is allocated in its range.
    pub(super) fn table(&self, entry: u64) -> Result<Option<u64>, ReadError> {
        let table = entry & OFFSET;
        if entry & !(OFFSET | COPIED) != 0 {
            return Err(malformed(format!("L1 entry {entry:#x} sets reserved bits")));
        }
        if table == 0 {
            return Ok(None);
        }
        if !table.is_multiple_of(self.cluster()) {
            return Err(malformed(format!("L2 table at {table} is not at the start of a cluster")));
        }
        if table + self.cluster() > self.file {
            return Err(malformed(format!("L2 table at {table} passes the end at {}", self.file)));
        }
        Ok(Some(table))
    }

    /// The position in the file of the L2 entry for `offset` of the disk, in the table at `table`.
    pub(super) fn l2_entry(&self, table: u64, offset: u64) -> u64 {
        let index = (offset - self.covered(offset).start) >> self.bits;
        table + index * self.entry_size()
    }

    /// The L2 entry at `position` of these bytes. Invariant of the callers: the entry is completely inside.
    pub(super) fn read_entry(&self, bytes: &[u8], position: u64) -> L2Entry {
        let at = position as usize;
        L2Entry(number(&bytes[at..]), if self.extended { number(&bytes[at + 8..]) } else { 0 })
    }

    /// The location of the byte at `offset` of the disk, and the offset up to which that mapping holds.
    pub(super) fn place(&self, entry: L2Entry, offset: u64) -> Result<(ClusterLocation, u64), ReadError> {
        let L2Entry(entry, subclusters) = entry;
        let inside = offset & (self.cluster() - 1);
        let end = (offset - inside + self.cluster()).min(self.size);
        if entry & COMPRESSED != 0 {
            return Ok((ClusterLocation::Packed(self.packed(entry)?), end));
        }
        let version_3 = if self.version >= 3 && !self.extended { ZERO } else { 0 };
        if entry & !(OFFSET | COPIED | version_3) != 0 {
            return Err(malformed(format!("L2 entry {entry:#x} sets reserved bits")));
        }
        let at = entry & OFFSET;
        let (allocated, end) = if self.extended {
            // The lower half marks allocated subclusters, the upper half zeros; both at once are invalid.
            let shift = self.bits - SUBCLUSTER_BITS;
            let bit = 1 << (inside >> shift);
            let (data, zeros) = (subclusters as u32, (subclusters >> 32) as u32);
            if data & zeros != 0 || (at == 0 && data != 0) {
                return Err(malformed(format!(
                    "subclusters {subclusters:#x} of {entry:#x} are contradictory"
                )));
            }
            (data & bit != 0, (((offset >> shift) + 1) << shift).min(self.size))
        } else {
            (at != 0 && entry & ZERO == 0, end)
        };
        if !allocated {
            return Ok((ClusterLocation::Zeros, end));
        }
        if !at.is_multiple_of(self.cluster()) {
            return Err(malformed(format!("cluster at {at} is not at the start of a cluster")));
        }
        if at >= self.file {
            return Err(malformed(format!("cluster at {at} is past the end at {}", self.file)));
        }
        Ok((ClusterLocation::Stored(at + inside), end))
    }

    /// Decodes the entry of a compressed cluster: an offset, and how many sectors after the first it touches.
    fn packed(&self, entry: u64) -> Result<CompressedCluster, ReadError> {
        let key = entry & !(COPIED | COMPRESSED);
        let offset_bits = 62 - (self.bits - 8);
        let (start, more) = (key & ((1 << offset_bits) - 1), key >> offset_bits);
        if start >= self.file {
            return Err(malformed(format!("compressed cluster at {start} is past the end at {}", self.file)));
        }
        // The last sector of the file may be short. No overflow: an offset of 61 bits, and fewer sectors than 2^13.
        let end = (start & !(SECTOR - 1)) + (more + 1) * SECTOR;
        Ok(CompressedCluster { key, stored: ByteRange::new(start, end.min(self.file)) })
    }
}

fn malformed(message: String) -> ReadError {
    ReadError::new(FaultClass::Malformed, message)
}

/// The first 8 bytes as a big-endian number. Invariant of the callers: there are at least 8.
pub(super) fn number(bytes: &[u8]) -> u64 {
    bytes[..8].iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}
