//! Parser of the qcow2 header, from the first bytes of an image.
//!
//! Follows no name, and no offset outside the given bytes. The rules are those of QEMU `docs/interop/qcow2.txt`. A
//! header that cannot be checked completely is malformed: the next program that opens the image may read more of it.

use crate::disk::DiskError;
use crate::io::ByteRange;

/// `incompatible_features`: refcounts may be stale.
pub(in crate::disk) const DIRTY: u64 = 1 << 0;
/// `incompatible_features`: metadata is known to be damaged.
pub(in crate::disk) const CORRUPT: u64 = 1 << 1;
/// `incompatible_features`: guest data is in another file.
pub(in crate::disk) const DATA_FILE: u64 = 1 << 2;
/// `incompatible_features`: the compression type is not zlib.
const COMPRESSION: u64 = 1 << 3;
/// `incompatible_features`: L2 entries have subclusters.
const EXTENDED_L2: u64 = 1 << 4;
/// All known bits.
pub(in crate::disk) const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;

/// Header extension with the name of the external data file ("DATA").
const DATA_FILE_NAME: u32 = 0x4441_5441;
/// The longest backing file name ("Must not be longer than 1023 bytes").
const MAX_BACKING: u32 = 1023;
/// The largest L1 table that QEMU reads, in bytes (`QCOW_MAX_L1_SIZE`).
const MAX_L1_BYTES: u64 = 32 * 1024 * 1024;
/// The maximum number of snapshots that QEMU reads (`QCOW_MAX_SNAPSHOTS`).
const MAX_SNAPSHOTS: u32 = 65536;

/// A parsed qcow2 header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qcow2Header {
    /// Version, 2 or 3.
    pub version: u32,
    /// Size of the virtual disk, in bytes.
    pub virtual_size: u64,
    /// A cluster has `1 << cluster_bits` bytes. Invariant: `9..=21`.
    pub cluster_bits: u32,
    /// The name of the backing file; `None` without one.
    pub backing_file: Option<Vec<u8>>,
    /// The name of the external data file; `None` without one.
    pub data_file: Option<Vec<u8>>,
    /// Incompatible feature bits; 0 in version 2.
    pub incompatible: u64,
    /// 0 none, 1 AES, 2 LUKS.
    pub crypt_method: u32,
    /// The number of internal snapshots.
    pub snapshots: u32,
    /// 0 zlib, 1 zstd.
    pub compression_type: u8,
    /// Whether L2 entries have subclusters.
    pub extended_l2: bool,
    /// The L1 table of the active state in the file: whole entries of 8 bytes, enough for the virtual size.
    pub l1: ByteRange,
}

impl Qcow2Header {
    /// Parses the header of an image of `size` bytes whose first bytes are `head`.
    pub(in crate::disk) fn parse(head: &[u8], size: u64) -> Result<Self, DiskError> {
        let head = CheckedHeader(head);
        if head.bytes(0, 4)? != b"QFI\xfb" {
            return Err(malformed("it does not start with QFI".into()));
        }
        let version = head.u32(4)?;
        if !matches!(version, 2 | 3) {
            return Err(malformed(format!("version {version} is neither 2 nor 3")));
        }
        let cluster_bits = head.u32(20)?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(malformed(format!("cluster_bits {cluster_bits} is not in 9..=21")));
        }
        let cluster = 1u64 << cluster_bits;
        let virtual_size = head.u64(24)?;
        if virtual_size > i64::MAX as u64 {
            return Err(malformed(format!("virtual size {virtual_size} is more than 2^63 - 1")));
        }
        let snapshots = head.u32(60)?;
        if snapshots > MAX_SNAPSHOTS {
            return Err(malformed(format!("{snapshots} snapshots are more than {MAX_SNAPSHOTS}")));
        }
        let (incompatible, header_length) = match version {
            2 => (0, 72),
            _ => (head.u64(72)?, u64::from(head.u32(100)?)),
        };
        if version == 3 && (header_length < 104 || header_length > cluster) {
            return Err(malformed(format!("header length {header_length} is not in 104..={cluster}")));
        }
        let compression_type = if header_length > 104 { head.bytes(104, 1)?[0] } else { 0 };
        let extended_l2 = incompatible & EXTENDED_L2 != 0;
        if extended_l2 && cluster_bits < 14 {
            return Err(malformed(format!(
                "cluster_bits {cluster_bits} is too small for extended L2 entries"
            )));
        }
        let l1 = head.check_l1(size, virtual_size, cluster_bits, extended_l2)?;
        let (backing_file, extensions_end) = head.backing_file(cluster)?;
        Ok(Self {
            version,
            virtual_size,
            cluster_bits,
            backing_file,
            data_file: head.extension(DATA_FILE_NAME, header_length, extensions_end, size)?,
            incompatible,
            crypt_method: head.u32(32)?,
            snapshots,
            compression_type,
            extended_l2,
            l1,
        })
    }

    /// Whether opening the image opens another file.
    pub fn refers_to_files(&self) -> bool {
        self.backing_file.is_some() || self.data_file.is_some() || self.incompatible & DATA_FILE != 0
    }

    /// Checks that the disk in the image can be presented as a raw one; the error is for users.
    ///
    /// Stale refcounts (the dirty bit) and internal snapshots do not matter: a reader of the active state uses
    /// neither.
    pub fn raw_reason(&self) -> Result<(), String> {
        let reason = match self {
            _ if self.backing_file.is_some() => "a part of its data is in a backing file".into(),
            _ if self.refers_to_files() => "its data is in an external file".into(),
            _ if self.crypt_method != 0 => "it is encrypted".into(),
            _ if self.incompatible & CORRUPT != 0 => "it is marked corrupt".into(),
            _ if self.incompatible & !KNOWN != 0 => {
                format!("its incompatible features {:#x} are unknown", self.incompatible & !KNOWN)
            }
            _ if !self.compression_agrees() => {
                format!("its compression type {} contradicts its feature bits", self.compression_type)
            }
            _ if self.compression_type > 1 => {
                format!("its compression type {} is unknown", self.compression_type)
            }
            _ if self.virtual_size == 0 => "its virtual size is 0".into(),
            _ => return Ok(()),
        };
        Err(reason)
    }

    /// Whether the compression bit and the compression type agree.
    pub(in crate::disk) fn compression_agrees(&self) -> bool {
        (self.incompatible & COMPRESSION != 0) == (self.compression_type != 0)
    }
}

fn malformed(reason: String) -> DiskError {
    DiskError::Malformed { format: "qcow2", reason }
}

/// The first bytes; every access is bounds-checked.
struct CheckedHeader<'a>(&'a [u8]);

impl<'a> CheckedHeader<'a> {
    fn bytes(&self, at: u64, len: u64) -> Result<&'a [u8], DiskError> {
        let bytes = at.checked_add(len).and_then(|end| {
            let range = usize::try_from(at).ok()?..usize::try_from(end).ok()?;
            self.0.get(range)
        });
        bytes.ok_or_else(|| {
            malformed(format!("{len} bytes at {at} are not in the first {} bytes", self.0.len()))
        })
    }

    fn u32(&self, at: u64) -> Result<u32, DiskError> {
        Ok(self.bytes(at, 4)?.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
    }

    fn u64(&self, at: u64) -> Result<u64, DiskError> {
        Ok(u64::from(self.u32(at)?) << 32 | u64::from(self.u32(at + 4)?))
    }

    /// Checks that the L1 table lies in the file and is large enough for the disk.
    fn check_l1(
        &self,
        size: u64,
        virtual_size: u64,
        bits: u32,
        extended: bool,
    ) -> Result<ByteRange, DiskError> {
        let entries = self.u32(36)?;
        let offset = self.u64(40)?;
        let bytes = u64::from(entries) * 8;
        if bytes > MAX_L1_BYTES {
            return Err(malformed(format!("L1 table of {bytes} bytes is more than {MAX_L1_BYTES}")));
        }
        if !offset.is_multiple_of(1 << bits) {
            return Err(malformed(format!("L1 table at {offset} is not at the start of a cluster")));
        }
        if offset.checked_add(bytes).is_none_or(|end| end > size) {
            return Err(malformed(format!("L1 table of {bytes} bytes at {offset} passes the end at {size}")));
        }
        // One L1 entry covers a cluster full of L2 entries, of 8 bytes or extended of 16. At most 21 + 18 bits.
        let covered = bits + bits - if extended { 4 } else { 3 };
        let needed = virtual_size.div_ceil(1 << covered);
        if u64::from(entries) < needed {
            return Err(malformed(format!(
                "L1 table of {entries} entries is too small, {needed} are needed"
            )));
        }
        Ok(ByteRange::at(offset, bytes))
    }

    /// The backing file's name, and an upper bound for the end of the header extensions.
    fn backing_file(&self, cluster: u64) -> Result<(Option<Vec<u8>>, u64), DiskError> {
        let (offset, len) = (self.u64(8)?, self.u32(16)?);
        if offset == 0 {
            return Ok((None, cluster));
        }
        if len > MAX_BACKING {
            return Err(malformed(format!("backing file name of {len} bytes is longer than {MAX_BACKING}")));
        }
        if offset.checked_add(u64::from(len)).is_none_or(|end| end > cluster) {
            return Err(malformed(format!("backing file name at {offset} is not in the first cluster")));
        }
        Ok((Some(self.bytes(offset, u64::from(len))?.to_vec()), offset))
    }

    /// The content of the header extension `wanted` in `at..end`: a chain of type, length and padded content.
    fn extension(&self, wanted: u32, at: u64, end: u64, size: u64) -> Result<Option<Vec<u8>>, DiskError> {
        let mut at = at;
        // A file that ends inside its first cluster ends the chain, too: QEMU reads zeros there, the end type.
        while at < end.min(size) {
            let kind = self.u32(at)?;
            if kind == 0 {
                break;
            }
            let len = u64::from(self.u32(at + 4)?);
            // Neither sum overflows: at is under 2 MiB, len under 4 GiB.
            if at + 8 + len > end {
                return Err(malformed(format!(
                    "header extension {kind:#x} of {len} bytes at {at} passes {end}"
                )));
            }
            if kind == wanted {
                return Ok(Some(self.bytes(at + 8, len)?.to_vec()));
            }
            at += 8 + len.next_multiple_of(8);
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::fixtures::{Qcow2, SIZE};

    fn reason(image: &Qcow2) -> String {
        Qcow2Header::parse(&image.0, SIZE).unwrap_err().to_string()
    }

    #[test]
    fn a_plain_header_is_read_in_both_versions() {
        for version in [2, 3] {
            let header = Qcow2Header::parse(&Qcow2::new(version).0, SIZE).unwrap();
            assert_eq!((header.version, header.virtual_size, header.cluster_bits), (version, 64 << 20, 16));
            assert!(!header.refers_to_files());
        }
    }

    #[test]
    fn names_of_other_files_are_read() {
        let image = Qcow2::new(3).backing(b"/etc/passwd").extension(DATA_FILE_NAME, b"d.raw");
        let header = Qcow2Header::parse(&image.0, SIZE).unwrap();
        assert_eq!(header.backing_file.as_deref(), Some(&b"/etc/passwd"[..]));
        assert_eq!(header.data_file.as_deref(), Some(&b"d.raw"[..]));
        assert!(header.refers_to_files());
    }

    #[test]
    fn the_data_file_extension_is_found_behind_others() {
        let image = Qcow2::new(2).extension(0x6803_f857, b"feature table").extension(DATA_FILE_NAME, b"d");
        let header = Qcow2Header::parse(&image.0, SIZE).unwrap();
        assert_eq!(header.data_file.as_deref(), Some(&b"d"[..]));
    }

    #[test]
    fn a_data_file_bit_without_a_name_still_refers_to_a_file() {
        let header = Qcow2Header::parse(&Qcow2::new(3).u64(72, DATA_FILE).0, SIZE).unwrap();
        assert!(header.data_file.is_none() && header.refers_to_files());
    }

    #[test]
    fn limits_hold_at_the_limit_and_one_past_it() {
        let named = |len: usize| Qcow2::new(3).backing(&vec![b'x'; len]);
        assert!(Qcow2Header::parse(&named(1023).0, SIZE).is_ok());
        assert!(reason(&named(1024)).contains("1024 bytes is longer than 1023"));
        for bits in [9, 21] {
            let image = Qcow2::new(2).u32(20, bits).u64(24, 0).u64(40, 0);
            assert!(Qcow2Header::parse(&image.0, SIZE).is_ok(), "{bits}");
        }
        for bits in [0, 8, 22, 31, 64, u32::MAX] {
            assert!(reason(&Qcow2::new(3).u32(20, bits)).contains("is not in 9..=21"), "{bits}");
        }
        assert!(reason(&Qcow2::new(3).u64(24, 1 << 63)).contains("more than 2^63 - 1"));
        assert!(reason(&Qcow2::new(3).u64(24, i64::MAX as u64)).contains("too small"));
        assert!(reason(&Qcow2::new(3).u32(60, 65537)).contains("snapshots"));
    }

    #[test]
    fn header_offsets_outside_of_the_bytes_read_are_malformed() {
        assert!(reason(&Qcow2::new(3).u64(8, 1 << 40).u32(16, 5)).contains("not in the first cluster"));
        assert!(reason(&Qcow2::new(3).u64(8, u64::MAX).u32(16, 5)).contains("not in the first cluster"));
        let large_clusters = Qcow2::new(3).u32(20, 21).u64(40, 0).u64(8, 1 << 20).u32(16, 5);
        assert!(reason(&large_clusters).contains("not in the first 65536 bytes"));
        assert!(reason(&Qcow2::new(3).u64(40, SIZE & !0xffff)).contains("passes the end"));
        assert!(reason(&Qcow2::new(3).u64(40, !0xffff)).contains("passes the end"));
        assert!(reason(&Qcow2::new(3).u32(36, u32::MAX)).contains("is more than"));
        assert!(reason(&Qcow2::new(3).u32(100, 1 << 20)).contains("header length"));
        let lying = Qcow2::new(3).u32(104, 7).u32(108, u32::MAX);
        assert!(reason(&lying).contains("extension 0x7 of 4294967295 bytes"));
    }

    #[test]
    fn every_truncation_is_an_error_and_no_panic() {
        let image = Qcow2::new(3).backing(b"base").extension(DATA_FILE_NAME, b"d.raw");
        let end = image.used();
        for len in 0..end {
            assert!(Qcow2Header::parse(&image.0[..len], SIZE).is_err(), "{len} of {end}");
        }
        assert!(Qcow2Header::parse(&image.0[..end], SIZE).is_ok());
    }

    #[test]
    fn other_versions_are_not_taken_for_qcow2() {
        assert!(reason(&Qcow2::new(3).u32(4, 1)).contains("version 1 is neither 2 nor 3"));
    }
}
