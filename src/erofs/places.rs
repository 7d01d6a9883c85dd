//! Metadata layout: addresses of inodes and directory blocks.
//!
//! Inodes are stored in order of their numbers. The numbers are breadth first, so the inodes of one directory are
//! close together. The last block of a directory and the target of a link follow their inode if they fit into its
//! block; otherwise they follow all inodes.

use crate::tree::{FrozenTree, InodeKind, InodeNumber};

use super::attributes::AttributeArea;
use super::directory::DirectorySize;
use super::error::ErofsError;
use super::format::{BLOCK_BYTES, FIRST_INODE, INODE_BYTES, INODE_UNIT, NO_BLOCK};
use super::sparse::ChunkMap;

/// Tails of up to this many bytes stay with their inode even if that leaves a gap before it.
const SHORT_TAIL_BYTES: u64 = BLOCK_BYTES / 2;

/// Address of an inode, and the location of its content.
#[derive(Clone, Copy, Debug)]
pub(super) struct InodePlace {
    /// Address in the image, a multiple of [`INODE_UNIT`].
    pub(super) address: u64,
    /// First block of the content, or [`NO_BLOCK`].
    pub(super) block: u32,
    pub(super) tail: TailPlace,
}

/// Location of the last block of a directory, or of a link's target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TailPlace {
    /// Directly after the inode.
    Inline,
    /// In blocks, like the content of files.
    Blocks,
}

/// Addresses of all metadata.
#[derive(Debug)]
pub(super) struct MetadataPlaces {
    /// One entry for each inode of the tree.
    pub(super) inodes: Vec<InodePlace>,
    /// The sparse files. Invariant: in order of inode number.
    pub(super) sparse: Vec<(InodeNumber, ChunkMap)>,
    /// Number of chunks of all sparse files.
    chunks: u64,
    /// Address of the shared attributes, at a block border.
    pub(super) shared: u64,
    /// End of the metadata, at a block border.
    pub(super) end: u64,
}

impl MetadataPlaces {
    /// Computes the layout for `tree`.
    pub(super) fn of(tree: &FrozenTree, attributes: &AttributeArea) -> Result<Self, ErofsError> {
        let mut places = Self {
            inodes: Vec::with_capacity(tree.len()),
            sparse: Vec::new(),
            chunks: 0,
            shared: 0,
            end: FIRST_INODE,
        };
        // Content that does not fit after its inode: the inode, and the number of blocks.
        let mut apart: Vec<(InodeNumber, u64)> = Vec::new();
        for ino in 0..tree.len() as InodeNumber {
            let xattrs = attributes.behind_inode(tree, ino).len() as u64;
            let (blocks, tail) = places.content(tree, ino)?;
            let place = places.place(INODE_BYTES + xattrs, tail);
            if place.tail == TailPlace::Blocks && tail > 0 {
                apart.push((ino, blocks + tail.div_ceil(BLOCK_BYTES)));
            } else if blocks > 0 {
                apart.push((ino, blocks));
            }
            places.inodes.push(place);
            if let Some((_, map)) = places.sparse.last().filter(|(sparse, _)| *sparse == ino) {
                // The chunk map follows the attributes, which end at a word border.
                places.end += map.bytes();
            }
        }
        places.shared = places.end.next_multiple_of(BLOCK_BYTES);
        places.end = (places.shared + attributes.shared.len() as u64).next_multiple_of(BLOCK_BYTES);
        for (ino, blocks) in apart {
            places.inodes[ino as usize].block = block_number(places.end)?;
            places.end += blocks * BLOCK_BYTES;
        }
        Ok(places)
    }

    /// The number of an inode in the image.
    pub(super) fn number(&self, ino: InodeNumber) -> u64 {
        self.inodes[ino as usize].address / INODE_UNIT
    }

    /// The chunk map of a sparse file; `None` for any other inode.
    pub(super) fn chunks(&self, ino: InodeNumber) -> Option<&ChunkMap> {
        let at = self.sparse.binary_search_by_key(&ino, |(ino, _)| *ino).ok()?;
        Some(&self.sparse[at].1)
    }

    /// The part of an inode's content that is metadata: whole blocks, and the bytes after them.
    fn content(&mut self, tree: &FrozenTree, ino: InodeNumber) -> Result<(u64, u64), ErofsError> {
        let Some(attr) = tree.attr(ino) else { return Ok((0, 0)) };
        match attr.kind {
            InodeKind::Directory => {
                let size = DirectorySize::of(tree, ino);
                Ok((u64::from(size.full), size.tail))
            }
            InodeKind::Symlink => Ok((0, attr.size)),
            InodeKind::File if i64::try_from(attr.size).is_err() => {
                Err(ErofsError::FileTooLarge { ino, size: attr.size })
            }
            InodeKind::File => {
                if let Some(runs) = tree.file(ino).and_then(|file| file.runs) {
                    let map = ChunkMap::of(attr.size, runs, self.chunks);
                    self.chunks += map.chunks;
                    self.sparse.push((ino, map));
                }
                Ok((0, 0))
            }
            InodeKind::Graft(_) => Err(ErofsError::OtherTree { ino }),
            InodeKind::CharDevice | InodeKind::BlockDevice | InodeKind::Fifo => Ok((0, 0)),
        }
    }

    /// Assigns an address to an inode of `head` bytes, attributes included, and to its tail if that fits.
    fn place(&mut self, head: u64, tail: u64) -> InodePlace {
        let mut address = self.end.next_multiple_of(INODE_UNIT);
        let left = |address: u64| BLOCK_BYTES - address % BLOCK_BYTES;
        let next_block = address.next_multiple_of(BLOCK_BYTES);
        let mut kept = TailPlace::Blocks;
        if tail > 0 {
            // Inode, attributes and tail share one block: the kernel refuses a link target that crosses a block
            // border.
            if head + tail <= left(address) {
                kept = TailPlace::Inline;
            } else if head + tail <= BLOCK_BYTES && tail <= SHORT_TAIL_BYTES {
                address = next_block;
                kept = TailPlace::Inline;
            }
        }
        if left(address) < INODE_BYTES {
            address = next_block;
        }
        self.end = address + head + if kept == TailPlace::Inline { tail } else { 0 };
        InodePlace { address, block: NO_BLOCK, tail: kept }
    }
}

/// The number of the block at `address`.
pub(super) fn block_number(address: u64) -> Result<u32, ErofsError> {
    let blocks = address / BLOCK_BYTES;
    u32::try_from(blocks).ok().filter(|block| *block != NO_BLOCK).ok_or(ErofsError::TooManyBlocks { blocks })
}
