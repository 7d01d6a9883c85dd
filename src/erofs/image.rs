//! EROFS image of a tree: its metadata, and the address map of its files.

use std::sync::Arc;

use bytes::Bytes;

use crate::io::{ByteRange, MEMORY, MemoryShare};
use crate::tree::{FrozenTree, InodeKind, InodeNumber};

use super::attributes::AttributeArea;
use super::directory::{self, DirectorySize};
use super::error::ErofsError;
use super::extents::{FileExtent, ImageMap};
use super::format::{
    BLOCK_BYTES, DataLayout, HasChunks, INODE_BYTES, InodeRecord, NO_BLOCK, Superblock, device_number,
};
use super::places::{InodePlace, MetadataPlaces, TailPlace, block_number};
use super::sparse::ChunkMap;

/// Version of the layout. It is hashed into the identity of every image, so another layout is another image.
const LAYOUT_NUMBER: u32 = 2;

/// Metadata of an inode that needs no share of its own: inode, directory entry and name. The share of the tree limits
/// the number of inodes. Chunk maps, attributes and long names are beyond it.
const TREE_BYTES: u64 = 128;

/// A computed EROFS image: everything except the content of files.
#[derive(Clone, Debug)]
pub struct ErofsImage {
    metadata: Bytes,
    map: ImageMap,
    omitted: Vec<String>,
    /// The reservation of the metadata beyond [`TREE_BYTES`] an inode, freed with the last copy of the image.
    memory: Arc<MemoryShare>,
}

impl ErofsImage {
    /// Computes the image of `tree`, which `digest` names. The same tree and digest give the same bytes.
    pub fn of(tree: &FrozenTree, digest: &str) -> Result<Self, ErofsError> {
        let attributes = AttributeArea::of(tree);
        let mut places = MetadataPlaces::of(tree, &attributes)?;
        let mut memory = MEMORY.lasting();
        memory.grow(places.end.saturating_sub(tree.len() as u64 * TREE_BYTES))?;
        let (map, spans) = place_files(tree, &mut places)?;
        let mut metadata = vec![0; places.end as usize];
        for ino in 0..tree.len() as InodeNumber {
            write_inode(&mut metadata, tree, &places, &attributes, ino);
        }
        write_chunks(&mut metadata, &places, &attributes, tree, &spans);
        put(&mut metadata, places.shared, &attributes.shared);
        let blocks = block_number(map.size())?;
        let superblock = Superblock {
            inodes: tree.len() as u64,
            blocks,
            shared_xattrs: if attributes.shared.is_empty() { 0 } else { block_number(places.shared)? },
            identity: identity(tree, digest),
            has_chunks: if places.sparse.is_empty() { HasChunks::No } else { HasChunks::Yes },
        };
        superblock.write(&mut metadata);
        let count = attributes.omitted.count;
        let mut omitted = attributes.omitted.named;
        if count > omitted.len() {
            omitted.push(format!("{} more", count - omitted.len()));
        }
        Ok(Self { metadata: metadata.into(), map, omitted, memory: Arc::new(memory) })
    }

    /// The first bytes of the image, up to the content of files.
    pub fn metadata(&self) -> &Bytes {
        &self.metadata
    }

    /// Bytes of memory that the image has reserved.
    pub fn reserved(&self) -> u64 {
        self.memory.bytes()
    }

    /// The address map of the image.
    pub fn map(&self) -> &ImageMap {
        &self.map
    }

    /// Extended attributes that the format cannot hold, each with the reason. A long list ends with the number of the
    /// rest.
    pub fn omitted(&self) -> &[String] {
        &self.omitted
    }
}

/// The identity of an image: a hash over digest, layout version and everything in the tree.
fn identity(tree: &FrozenTree, digest: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("ocifs erofs {LAYOUT_NUMBER}\n{digest}\n").as_bytes());
    hasher.update(&tree.fingerprint());
    hasher.finalize().into()
}

/// Consecutive chunks of a sparse file, and the block of the first.
struct ChunkSpan {
    ino: InodeNumber,
    chunks: (u64, u64),
    block: u32,
}

/// Assigns addresses to the content of files, in order of layers and of offsets in their streams.
fn place_files(
    tree: &FrozenTree,
    places: &mut MetadataPlaces,
) -> Result<(ImageMap, Vec<ChunkSpan>), ErofsError> {
    let files = (0..tree.len() as InodeNumber).filter_map(|ino| Some((ino, tree.file(ino)?)));
    let mut files: Vec<(u32, u64, InodeNumber)> =
        files.filter(|(_, file)| file.size > 0).map(|(ino, file)| (file.origin, file.offset, ino)).collect();
    files.sort_unstable();
    let (mut map, mut spans) = (ImageMap::new(places.end), Vec::new());
    for (_, _, ino) in files {
        let Some(file) = tree.file(ino) else { continue };
        let Some((runs, chunks)) = file.runs.zip(places.chunks(ino).cloned()) else {
            places.inodes[ino as usize].block = block_number(map.size())?;
            map.push(FileExtent { address: map.size(), ino, offset: 0, len: file.size });
            continue;
        };
        // The runs are in order: none before `at` reaches the data that follows.
        let mut at = 0;
        for data in &chunks.data {
            let (address, offset) = (map.size(), (data.0 << chunks.bits) * BLOCK_BYTES);
            let len = (chunks.blocks(*data, file.size) * BLOCK_BYTES).min(file.size - offset);
            spans.push(ChunkSpan { ino, chunks: *data, block: block_number(address)? });
            map.push(FileExtent { address, ino, offset, len });
            let mut from = offset;
            at += runs[at..].partition_point(|run| run.offset + run.len <= offset);
            for run in runs[at..].iter().take_while(|run| run.offset < offset + len) {
                if run.offset > from {
                    map.push_hole(ByteRange::new(address + (from - offset), address + (run.offset - offset)));
                }
                from = from.max(run.offset + run.len);
            }
            if from < offset + len {
                map.push_hole(ByteRange::new(address + (from - offset), map.size()));
            }
        }
    }
    // The number of blocks has to fit as well.
    block_number(map.size())?;
    Ok((map, spans))
}

fn write_inode(
    to: &mut [u8],
    tree: &FrozenTree,
    places: &MetadataPlaces,
    attributes: &AttributeArea,
    ino: InodeNumber,
) {
    let (Some(attr), place) = (tree.attr(ino), places.inodes[ino as usize]) else { return };
    let xattrs = attributes.behind_inode(tree, ino);
    let head = INODE_BYTES + xattrs.len() as u64;
    let chunks = places.chunks(ino);
    let (kind, size, what) = match attr.kind {
        InodeKind::File => (0o100_000, attr.size, chunks.map_or(place.block, |map| u32::from(map.bits))),
        InodeKind::Directory | InodeKind::Graft(_) => {
            write_directory(to, tree, places, ino, head);
            (0o040_000, DirectorySize::of(tree, ino).bytes(), place.block)
        }
        InodeKind::Symlink => {
            let target = tree.link(ino).unwrap_or_default();
            put(to, tail_address(&place, head, 0), target);
            (0o120_000, attr.size, place.block)
        }
        InodeKind::CharDevice => (0o020_000, 0, device_number(attr.rdev)),
        InodeKind::BlockDevice => (0o060_000, 0, device_number(attr.rdev)),
        InodeKind::Fifo => (0o010_000, 0, 0),
    };
    let layout = match place.tail {
        _ if chunks.is_some() => DataLayout::ChunkBased,
        TailPlace::Inline => DataLayout::FlatInline,
        TailPlace::Blocks => DataLayout::FlatPlain,
    };
    let record = InodeRecord {
        layout,
        xattr_bytes: xattrs.len() as u64,
        mode: kind | attr.mode & 0o7777,
        size,
        place: what,
        serial: ino + 1,
        uid: attr.uid,
        gid: attr.gid,
        mtime: attr.mtime,
        nlink: attr.nlink,
    };
    let at = place.address as usize;
    record.write(&mut to[at..at + INODE_BYTES as usize]);
    put(to, place.address + INODE_BYTES, xattrs);
}

fn write_directory(to: &mut [u8], tree: &FrozenTree, places: &MetadataPlaces, ino: InodeNumber, head: u64) {
    let place = places.inodes[ino as usize];
    let blocks = directory::blocks(tree, ino, |ino| places.number(ino));
    let last = blocks.len() - 1;
    for (nth, block) in (0u64..).zip(&blocks) {
        let address = if nth == last as u64 {
            tail_address(&place, head, nth)
        } else {
            u64::from(place.block) * BLOCK_BYTES + nth * BLOCK_BYTES
        };
        put(to, address, block);
    }
}

/// Address of an inode's tail, which follows `full` blocks.
fn tail_address(place: &InodePlace, head: u64, full: u64) -> u64 {
    match place.tail {
        TailPlace::Inline => place.address + head,
        TailPlace::Blocks if place.block == NO_BLOCK => place.address,
        TailPlace::Blocks => (u64::from(place.block) + full) * BLOCK_BYTES,
    }
}

/// Writes the chunk maps of sparse files: for each chunk its block, or the mark of a hole.
fn write_chunks(
    to: &mut [u8],
    places: &MetadataPlaces,
    attributes: &AttributeArea,
    tree: &FrozenTree,
    spans: &[ChunkSpan],
) {
    let map_of = |ino: InodeNumber| {
        let xattrs = attributes.behind_inode(tree, ino).len() as u64;
        places.inodes[ino as usize].address + INODE_BYTES + xattrs
    };
    for (ino, ChunkMap { chunks, .. }) in &places.sparse {
        let at = map_of(*ino) as usize;
        to[at..at + *chunks as usize * 4].fill(0xff);
    }
    for span in spans {
        let Some(bits) = places.chunks(span.ino).map(|map| map.bits) else { continue };
        for (nth, chunk) in (span.chunks.0..span.chunks.1).enumerate() {
            // Cannot overflow: these blocks were counted when the span was placed.
            let block = span.block + ((nth as u32) << bits);
            put(to, map_of(span.ino) + chunk * 4, &block.to_le_bytes());
        }
    }
}

/// Writes `bytes` at an address of the metadata.
fn put(to: &mut [u8], address: u64, bytes: &[u8]) {
    let at = address as usize;
    to[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{FileContent, SparseRun, TocEntry, TocEntryKind, UnixTime};
    use crate::tree::TreeBuilder;

    #[test]
    fn metadata_beyond_that_of_inodes_has_a_share_of_the_memory() {
        let file = |at: u64, runs: Vec<SparseRun>| TocEntry {
            path: format!("f{at}").into_bytes(),
            kind: TocEntryKind::File(FileContent { size: 1 << 40, offset: 512 * at, runs: Some(runs) }),
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: UnixTime::default(),
            xattrs: Vec::new(),
            header: 512 * at,
        };
        let image = |runs: Vec<SparseRun>| {
            let mut builder = TreeBuilder::new();
            builder.apply(0, &(0..100).map(|at| file(at, runs.clone())).collect()).unwrap();
            let image = ErofsImage::of(&builder.freeze(), "sha256:a").unwrap();
            (image.metadata().len() as u64, image.reserved())
        };
        let (metadata, reserved) = image(vec![SparseRun { offset: 0, len: 1 }]);
        assert!(metadata > 100 * 4096, "{metadata} bytes");
        assert_eq!(reserved, metadata - 101 * TREE_BYTES);
        let (metadata, _) = image(Vec::new());
        assert!(metadata < 5 * BLOCK_BYTES, "{metadata} bytes for files without data");
    }
}
