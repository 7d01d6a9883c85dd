//! EROFS directory blocks.
//!
//! Names are in byte order over the whole directory, `.` and `..` among them. Each block holds a run of entries of 12
//! bytes, then their names. A lookup is a binary search over blocks and then over entries.

use crate::tree::{FrozenTree, InodeKind, InodeNumber};

use super::format::BLOCK_BYTES;

/// Bytes of an entry without its name.
const ENTRY_BYTES: usize = 12;

/// Size of a directory in blocks and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DirectorySize {
    /// Blocks before the last one.
    pub(super) full: u32,
    /// Bytes of the last block.
    pub(super) tail: u64,
}

impl DirectorySize {
    /// Size that `stat` shows, in bytes.
    pub(super) fn bytes(self) -> u64 {
        u64::from(self.full) * BLOCK_BYTES + self.tail
    }

    /// Computes the size of the directory `dir`.
    pub(super) fn of(tree: &FrozenTree, dir: InodeNumber) -> Self {
        let mut size = Self { full: 0, tail: 0 };
        for (name, _) in names(tree, dir) {
            let entry = (ENTRY_BYTES + name.len()) as u64;
            if size.tail + entry > BLOCK_BYTES {
                size.full += 1;
                size.tail = 0;
            }
            size.tail += entry;
        }
        size
    }
}

/// The blocks of a directory; the last one is only as long as its content. `number` maps an inode to its number in
/// the image.
pub(super) fn blocks(
    tree: &FrozenTree,
    dir: InodeNumber,
    number: impl Fn(InodeNumber) -> u64,
) -> Vec<Vec<u8>> {
    let (mut blocks, mut run, mut used) = (Vec::new(), Vec::new(), 0);
    for (name, ino) in names(tree, dir) {
        let entry = ENTRY_BYTES + name.len();
        if used + entry > BLOCK_BYTES as usize {
            blocks.push(block(tree, &run, &number));
            run.clear();
            used = 0;
        }
        run.push((name, ino));
        used += entry;
    }
    blocks.push(block(tree, &run, &number));
    blocks
}

fn block(tree: &FrozenTree, run: &[(&[u8], InodeNumber)], number: &impl Fn(InodeNumber) -> u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK_BYTES as usize);
    // Fits: the entries take at most one block.
    let mut name_at = (run.len() * ENTRY_BYTES) as u16;
    for (name, ino) in run {
        bytes.extend_from_slice(&number(*ino).to_le_bytes());
        bytes.extend_from_slice(&name_at.to_le_bytes());
        bytes.extend_from_slice(&[file_type(tree, *ino), 0]);
        name_at += name.len() as u16;
    }
    run.iter().for_each(|(name, _)| bytes.extend_from_slice(name));
    bytes
}

/// The names of a directory in byte order, `.` and `..` among them.
fn names(tree: &FrozenTree, dir: InodeNumber) -> impl Iterator<Item = (&[u8], InodeNumber)> {
    let mut dots = [(&b"."[..], dir), (&b".."[..], tree.parent(dir))].into_iter().peekable();
    let mut named = tree.entries(dir, 0).peekable();
    std::iter::from_fn(move || match (dots.peek(), named.peek()) {
        (Some((dot, _)), Some((name, _))) if dot < name => dots.next(),
        (Some(_), None) => dots.next(),
        _ => named.next(),
    })
}

/// The file type of an entry, numbered as in `linux/fs_types.h`.
fn file_type(tree: &FrozenTree, ino: InodeNumber) -> u8 {
    match tree.attr(ino).map(|attr| attr.kind) {
        Some(InodeKind::File) => 1,
        Some(InodeKind::Directory | InodeKind::Graft(_)) => 2,
        Some(InodeKind::CharDevice) => 3,
        Some(InodeKind::BlockDevice) => 4,
        Some(InodeKind::Fifo) => 5,
        Some(InodeKind::Symlink) => 7,
        None => 0,
    }
}
