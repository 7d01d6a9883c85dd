//! Where each inode and each directory block of an image lies.
//!
//! The idea: inodes come in the order of their numbers, which is breadth first, so that the inodes of a directory lie together;
//! a directory's last block and a link's target follow their inode where they fit into its block, and lie behind all inodes
//! otherwise.

use crate::tree::{Ino, Kind, Tree};

use super::attributes::AttributeArea;
use super::directory::DirectorySize;
use super::error::ErofsError;
use super::format::{BLOCK_BYTES, FIRST_INODE, INODE_BYTES, INODE_UNIT, NO_BLOCK};
use super::sparse::ChunkMap;

/// Tails up to here, in bytes, are kept with their inode even if that leaves a gap before it.
const SHORT_TAIL_BYTES: u64 = BLOCK_BYTES / 2;

/// Where an inode is, and where its content.
#[derive(Clone, Copy, Debug)]
pub(super) struct InodePlace {
    /// Its address in the image, a multiple of [`INODE_UNIT`].
    pub(super) address: u64,
    /// The first block of its content, or [`NO_BLOCK`].
    pub(super) block: u32,
    pub(super) tail: TailPlace,
}

/// Where the last block of a directory, or the target of a link, is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TailPlace {
    /// Behind the inode.
    Inline,
    /// In blocks, as all content of files is.
    Blocks,
}

/// The places of everything but the content of files.
#[derive(Debug)]
pub(super) struct MetadataPlaces {
    /// One for each inode of the tree.
    pub(super) inodes: Vec<InodePlace>,
    /// The sparse files. Invariant: in order of inode number.
    pub(super) sparse: Vec<(Ino, ChunkMap)>,
    /// Where the shared attributes begin: a block.
    pub(super) shared: u64,
    /// Where the metadata ends: a block.
    pub(super) end: u64,
}

impl MetadataPlaces {
    /// The places for `tree`.
    pub(super) fn of(tree: &Tree, attributes: &AttributeArea) -> Result<Self, ErofsError> {
        let mut places =
            Self { inodes: Vec::with_capacity(tree.len()), sparse: Vec::new(), shared: 0, end: FIRST_INODE };
        // Blocks that do not fit behind an inode: whose they are, and how many.
        let mut apart: Vec<(Ino, u64)> = Vec::new();
        for ino in 0..tree.len() as Ino {
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
                // The map of chunks follows the attributes, which end at a word.
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
    pub(super) fn number(&self, ino: Ino) -> u64 {
        self.inodes[ino as usize].address / INODE_UNIT
    }

    /// The map of chunks of a sparse file.
    pub(super) fn chunks(&self, ino: Ino) -> Option<&ChunkMap> {
        let at = self.sparse.binary_search_by_key(&ino, |(ino, _)| *ino).ok()?;
        Some(&self.sparse[at].1)
    }

    /// What of an inode's content is metadata: whole blocks, and bytes behind them.
    fn content(&mut self, tree: &Tree, ino: Ino) -> Result<(u64, u64), ErofsError> {
        let Some(attr) = tree.attr(ino) else { return Ok((0, 0)) };
        match attr.kind {
            Kind::Directory => {
                let size = DirectorySize::of(tree, ino);
                Ok((u64::from(size.full), size.tail))
            }
            Kind::Symlink => Ok((0, attr.size)),
            Kind::File if i64::try_from(attr.size).is_err() => {
                Err(ErofsError::FileTooLarge { ino, size: attr.size })
            }
            Kind::File => {
                if let Some(runs) = tree.file(ino).and_then(|file| file.runs) {
                    self.sparse.push((ino, ChunkMap::of(attr.size, runs)));
                }
                Ok((0, 0))
            }
            Kind::Graft(_) => Err(ErofsError::OtherTree { ino }),
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => Ok((0, 0)),
        }
    }

    /// Gives an inode of `head` bytes, attributes included, its place, and its tail if that fits.
    fn place(&mut self, head: u64, tail: u64) -> InodePlace {
        let mut address = self.end.next_multiple_of(INODE_UNIT);
        let left = |address: u64| BLOCK_BYTES - address % BLOCK_BYTES;
        let next_block = address.next_multiple_of(BLOCK_BYTES);
        let mut kept = TailPlace::Blocks;
        if tail > 0 {
            // Inode, attributes and tail in one block: the kernel refuses a link that crosses a border.
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
