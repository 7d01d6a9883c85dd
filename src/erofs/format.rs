//! EROFS on-disk records: superblock and inodes, little-endian.
//!
//! Every inode has the extended form: modification times differ from file to file, and compact inodes share one time.

use crate::layer::{DeviceNumber, UnixTime};

/// Bytes of a block. Every kernel since 5.4 mounts this size.
pub(super) const BLOCK_BYTES: u64 = 4096;
/// Binary logarithm of [`BLOCK_BYTES`].
pub(super) const BLOCK_BITS: u8 = 12;
/// Address of the superblock; the bytes before it are left to boot loaders.
const SUPERBLOCK_AT: usize = 1024;
/// Address of the first inode: after the 128 bytes of the superblock.
pub(super) const FIRST_INODE: u64 = 1152;
/// Unit of inode numbers, in bytes: an inode's address is its number times this.
pub(super) const INODE_UNIT: u64 = 32;
/// Bytes of an inode of the extended form, without what follows it.
pub(super) const INODE_BYTES: u64 = 64;
/// The address that means a hole, or no block.
pub(super) const NO_BLOCK: u32 = u32::MAX;

/// Magic number of the superblock.
const MAGIC: u32 = 0xe0f5_e1e2;
/// Compatible features: the superblock has a checksum, and `mtime` is the modification time.
const COMPATIBLE: u32 = 1 | 2;
/// Incompatible feature: some files are chunk maps.
const INCOMPATIBLE_CHUNKS: u32 = 4;

/// Storage layout of an inode's content: the number in bits 1 to 3 of `i_format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DataLayout {
    /// Consecutive blocks.
    FlatPlain = 0,
    /// Consecutive blocks, the last one after the inode.
    FlatInline = 2,
    /// A block address for each chunk, after the inode.
    ChunkBased = 4,
}

/// The fields of an inode, without the data that follows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct InodeRecord {
    pub(super) layout: DataLayout,
    /// Bytes of extended attributes after the inode: 0, or 12 and a multiple of 4.
    pub(super) xattr_bytes: u64,
    /// Type and permissions.
    pub(super) mode: u16,
    /// Bytes that readers see.
    pub(super) size: u64,
    /// First block, device number, or format of a chunk map.
    pub(super) place: u32,
    /// Inode number for systems where inode numbers are small.
    pub(super) serial: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: UnixTime,
    pub(super) nlink: u32,
}

impl InodeRecord {
    /// Writes the record to the first 64 bytes of `to`.
    pub(super) fn write(&self, to: &mut [u8]) {
        let format = 1 | (self.layout as u16) << 1;
        // Fits in 16 bits: the attributes were limited when they were chosen.
        let count = if self.xattr_bytes == 0 { 0 } else { (self.xattr_bytes - 12) / 4 + 1 };
        put(to, 0, &format.to_le_bytes());
        put(to, 2, &(count as u16).to_le_bytes());
        put(to, 4, &self.mode.to_le_bytes());
        put(to, 8, &self.size.to_le_bytes());
        put(to, 16, &self.place.to_le_bytes());
        put(to, 20, &self.serial.to_le_bytes());
        put(to, 24, &self.uid.to_le_bytes());
        put(to, 28, &self.gid.to_le_bytes());
        put(to, 32, &self.mtime.secs.to_le_bytes());
        put(to, 40, &self.mtime.nanos.to_le_bytes());
        put(to, 44, &self.nlink.to_le_bytes());
    }
}

/// The fields of the superblock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Superblock {
    pub(super) inodes: u64,
    /// Blocks of the whole image.
    pub(super) blocks: u32,
    /// First block of the shared extended attributes; 0 if there are none.
    pub(super) shared_xattrs: u32,
    /// Hash that identifies the image; see `identity` in `image.rs`.
    pub(super) identity: [u8; 32],
    /// Whether some file is a chunk map.
    pub(super) has_chunks: HasChunks,
}

/// Whether some file is a chunk map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HasChunks {
    Yes,
    No,
}

impl Superblock {
    /// Writes the superblock into the first block of an image. The rest of that block must be complete, since the
    /// checksum covers it.
    pub(super) fn write(&self, image: &mut [u8]) {
        let Some(block) = image.get_mut(SUPERBLOCK_AT..BLOCK_BYTES as usize) else { return };
        put(block, 0, &MAGIC.to_le_bytes());
        put(block, 8, &COMPATIBLE.to_le_bytes());
        put(block, 12, &[BLOCK_BITS]);
        // The root is the first inode, so its number fits in 16 bits.
        put(block, 14, &((FIRST_INODE / INODE_UNIT) as u16).to_le_bytes());
        put(block, 16, &self.inodes.to_le_bytes());
        put(block, 36, &self.blocks.to_le_bytes());
        put(block, 44, &self.shared_xattrs.to_le_bytes());
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&self.identity[..16]);
        // RFC 9562: version 8, custom content.
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        put(block, 48, &uuid);
        put(block, 64, volume_name(&self.identity).as_bytes());
        if self.has_chunks == HasChunks::Yes {
            put(block, 80, &INCOMPATIBLE_CHUNKS.to_le_bytes());
        }
        let checksum = crc32c(block);
        put(block, 4, &checksum.to_le_bytes());
    }
}

/// The volume name that `blkid` shows: 15 characters and the terminating NUL.
fn volume_name(identity: &[u8; 32]) -> String {
    let hex: String = identity[16..21].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("ocifs{hex}")
}

/// Encodes a device number like the kernel's `new_encode_dev`: 12 bits of major, 20 bits of minor.
pub(super) fn device_number(device: DeviceNumber) -> u32 {
    device.minor & 0xff | (device.major & 0xfff) << 8 | (device.minor & 0xfff00) << 12
}

/// CRC-32C like the kernel's `crc32c` with an all-ones seed: the result is not inverted.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| crc >> 1 ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

/// Writes `bytes` at `at`.
fn put(to: &mut [u8], at: usize, bytes: &[u8]) {
    to[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnoli_without_the_last_inversion() {
        // The check value of CRC-32C is 0xe3069283 with the inversion.
        assert_eq!(crc32c(b"123456789"), !0xe306_9283);
    }

    #[test]
    fn inode_records_the_number_of_attribute_words() {
        let mut bytes = [0; 64];
        let record = InodeRecord {
            layout: DataLayout::FlatInline,
            xattr_bytes: 24,
            mode: 0o100_644,
            size: 1 << 33,
            place: 7,
            serial: 1,
            uid: 70_000,
            gid: 2,
            mtime: UnixTime { secs: -1, nanos: 5 },
            nlink: 3,
        };
        record.write(&mut bytes);
        assert_eq!(bytes[..8], [5, 0, 4, 0, 0xa4, 0x81, 0, 0]);
        assert_eq!(bytes[32..40], [0xff; 8]);
    }
}
