//! Address map of an image: from image addresses to bytes of files.
//!
//! Extents are in order of address, each beginning at a block. Addresses that no extent covers read as zeros.

use crate::io::ByteRange;
use crate::tree::InodeNumber;

use super::format::BLOCK_BYTES;

/// A part of a file and its address in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileExtent {
    /// First byte in the image, at a block border.
    pub address: u64,
    /// The inode number in the tree.
    pub ino: InodeNumber,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// The source of the bytes in a range of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageSpan {
    /// The bytes of the metadata at the same range.
    Metadata,
    /// Bytes of a file, from `offset` on.
    File {
        /// The inode number in the tree.
        ino: InodeNumber,
        /// First byte in the file.
        offset: u64,
    },
    /// Zeros that belong to no file.
    Zeros,
}

/// The address map of a whole image.
#[derive(Clone, Debug, Default)]
pub struct ImageMap {
    /// Bytes of the metadata, a multiple of a block.
    metadata: u64,
    /// Bytes of the image, a multiple of a block.
    size: u64,
    /// Invariant: in the order of addresses, without overlap.
    extents: Vec<FileExtent>,
    /// Block-aligned holes of sparse files that have addresses. Invariant: in order, without overlap.
    holes: Vec<ByteRange>,
}

impl ImageMap {
    pub(super) fn new(metadata: u64) -> Self {
        Self { metadata, size: metadata, ..Self::default() }
    }

    /// Adds an extent after all others.
    pub(super) fn push(&mut self, extent: FileExtent) {
        self.size = (extent.address + extent.len).next_multiple_of(BLOCK_BYTES);
        self.extents.push(extent);
    }

    /// Records that a range of the last extent is a hole of its file.
    pub(super) fn push_hole(&mut self, hole: ByteRange) {
        let start = hole.start.next_multiple_of(BLOCK_BYTES);
        let end = hole.end - hole.end % BLOCK_BYTES;
        if start < end {
            self.holes.push(ByteRange::new(start, end));
        }
    }

    /// Bytes of the image.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The extents, in order of address.
    pub fn extents(&self) -> &[FileExtent] {
        &self.extents
    }

    /// Splits `range` by the source of its bytes, in order and without gaps. `range` must not pass the end of the
    /// image.
    pub fn spans(&self, range: ByteRange) -> impl Iterator<Item = (ByteRange, ImageSpan)> {
        let mut at = self.extents.partition_point(|extent| extent.address + extent.len <= range.start);
        let mut from = range.start;
        std::iter::from_fn(move || {
            if from >= range.end {
                return None;
            }
            let start = from;
            let (end, span) = if start < self.metadata {
                (self.metadata, ImageSpan::Metadata)
            } else {
                match self.extents.get(at) {
                    Some(extent) if extent.address <= start => {
                        at += 1;
                        let offset = extent.offset + (start - extent.address);
                        (extent.address + extent.len, ImageSpan::File { ino: extent.ino, offset })
                    }
                    Some(extent) => (extent.address, ImageSpan::Zeros),
                    None => (range.end, ImageSpan::Zeros),
                }
            };
            from = end.min(range.end);
            Some((ByteRange::new(start, from), span))
        })
    }

    /// The first byte at or after `offset` that is in no hole; `None` when only a hole follows.
    pub fn next_data(&self, offset: u64) -> Option<u64> {
        let at = self.holes.partition_point(|hole| hole.end <= offset);
        let mut data = offset;
        for hole in &self.holes[at..] {
            if hole.start > data {
                break;
            }
            data = hole.end;
        }
        (data < self.size).then_some(data)
    }

    /// The first byte at or after `offset` that is in a hole; the end of the image counts as a hole.
    pub fn next_hole(&self, offset: u64) -> u64 {
        let at = self.holes.partition_point(|hole| hole.end <= offset);
        self.holes.get(at).map_or(self.size, |hole| hole.start.max(offset)).max(offset.min(self.size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> ImageMap {
        let mut map = ImageMap::new(8192);
        map.push(FileExtent { address: 8192, ino: 3, offset: 0, len: 100 });
        map.push(FileExtent { address: 12_288, ino: 4, offset: 8192, len: 4096 * 3 });
        map.push_hole(ByteRange::new(12_300, 12_288 + 4096 * 2 + 5));
        map
    }

    #[test]
    fn extent_spans_cover_a_range_without_gaps() {
        let map = map();
        assert_eq!(map.size(), 24_576);
        let spans: Vec<_> = map.spans(ByteRange::new(8000, 16_000)).collect();
        assert_eq!(
            spans,
            [
                (ByteRange::new(8000, 8192), ImageSpan::Metadata),
                (ByteRange::new(8192, 8292), ImageSpan::File { ino: 3, offset: 0 }),
                (ByteRange::new(8292, 12_288), ImageSpan::Zeros),
                (ByteRange::new(12_288, 16_000), ImageSpan::File { ino: 4, offset: 8192 }),
            ]
        );
        let inside: Vec<_> = map.spans(ByteRange::new(12_290, 12_291)).collect();
        assert_eq!(inside, [(ByteRange::new(12_290, 12_291), ImageSpan::File { ino: 4, offset: 8194 })]);
    }

    #[test]
    fn holes_are_whole_blocks_inside_of_sparse_files() {
        let map = map();
        assert_eq!((map.next_hole(0), map.next_data(0)), (16_384, Some(0)));
        assert_eq!((map.next_hole(16_390), map.next_data(16_390)), (16_390, Some(20_480)));
        assert_eq!((map.next_hole(20_480), map.next_data(24_576)), (24_576, None));
    }
}
