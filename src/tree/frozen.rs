//! Frozen tree: answers the requests of a mount from flat arrays.
//!
//! Only answers with paths allocate. An inode number out of range has no answer. A node takes 56 bytes, a name 8
//! bytes and its text. A directory is a run of names in order, so a lookup is a binary search and a listing can start
//! anywhere. Data that few nodes have (runs, attributes) is in separate arrays.

use std::sync::Arc;

use crate::io::MemoryShare;
use crate::layer::{DeviceNumber, SparseRun, UnixTime};

use super::error::{TreeError, shown};
use super::path;
use super::xattrs::{self, SetId};
use crate::owner::MAX_LINKS;

/// The number of an inode in one tree. The same layers give the same numbers.
pub type InodeNumber = u32;

/// An immutable tree.
#[derive(Debug)]
pub struct FrozenTree {
    /// Invariant: `nodes[0]` is the root, a directory.
    pub(super) nodes: Box<[InodeNode]>,
    /// The names of each directory, contiguous and in order. Invariant: one entry more than there are names, and name
    /// `i` is `names[dirents[i].name .. dirents[i + 1].name]`.
    pub(super) dirents: Box<[DirectoryName]>,
    pub(super) names: Box<[u8]>,
    /// The targets of all symbolic links.
    pub(super) links: Box<[u8]>,
    /// The data runs of the sparse files. Invariant: in order of inode number.
    pub(super) runs: Box<[(InodeNumber, Arc<[SparseRun]>)]>,
    /// Distinct sets of extended attributes, packed.
    pub(super) xattrs: Box<[Arc<[u8]>]>,
    /// Reservation in the memory budget that all trees share.
    pub(super) _memory: MemoryShare,
}

/// One inode. `mtime` is flattened to save its padding.
#[derive(Debug)]
pub(super) struct InodeNode {
    pub(super) body: NodeBody,
    pub(super) secs: i64,
    pub(super) nanos: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) nlink: u32,
    pub(super) xattrs: SetId,
    pub(super) mode: u16,
}

/// Type-specific part of an inode.
#[derive(Clone, Copy, Debug)]
pub(super) enum NodeBody {
    File { sparse: bool, origin: u32, offset: u64, size: u64 },
    Directory { parent: InodeNumber, first: u32, count: u32 },
    Symlink { start: u32, len: u32 },
    CharDevice(DeviceNumber),
    BlockDevice(DeviceNumber),
    Fifo,
    Graft(u32),
}

/// One name: the start of its bytes, and its inode.
#[derive(Clone, Copy, Debug)]
pub(super) struct DirectoryName {
    pub(super) name: u32,
    pub(super) ino: InodeNumber,
}

/// The attributes of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InodeAttr {
    /// Type.
    pub kind: InodeKind,
    /// Permission bits; 0777 for every symbolic link.
    pub mode: u16,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Size in bytes of a file or of a link's target; 0 for any other type.
    pub size: u64,
    /// Modification time.
    pub mtime: UnixTime,
    /// Number of names; for a directory 2 and its subdirectories.
    pub nlink: u32,
    /// Device number; 0:0 for an inode that is not a device.
    pub rdev: DeviceNumber,
}

/// The type of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InodeKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A directory whose content is another tree, by the number given when it was inserted.
    Graft(u32),
}

/// Location of the content of a regular file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileRef<'a> {
    /// Number of the layer, or of the content of a synthetic file, as given when the file was added.
    pub origin: u32,
    /// Offset of the first stored byte in the layer's uncompressed stream.
    pub offset: u64,
    /// Bytes that readers see.
    pub size: u64,
    /// Data runs of a sparse file; `None` for any other file.
    pub runs: Option<&'a Arc<[SparseRun]>>,
}

/// Which symbolic links of a path to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FollowLinks {
    /// All links.
    All,
    /// All links, except one at the end of the path.
    Parents,
}

/// The result of resolving a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedPath {
    /// The inode.
    pub ino: InodeNumber,
    /// When `ino` is a graft, the path to walk from that tree's root, links not yet followed; otherwise empty.
    pub rest: Vec<u8>,
}

impl FrozenTree {
    /// The inode number of the root.
    pub const ROOT: InodeNumber = 0;

    /// The attributes of an inode; `None` for a number this tree does not have.
    pub fn attr(&self, ino: InodeNumber) -> Option<InodeAttr> {
        let node = self.node(ino)?;
        let none = DeviceNumber::default();
        let (kind, size, rdev) = match node.body {
            NodeBody::File { size, .. } => (InodeKind::File, size, none),
            NodeBody::Directory { .. } => (InodeKind::Directory, 0, none),
            NodeBody::Symlink { len, .. } => (InodeKind::Symlink, u64::from(len), none),
            NodeBody::CharDevice(device) => (InodeKind::CharDevice, 0, device),
            NodeBody::BlockDevice(device) => (InodeKind::BlockDevice, 0, device),
            NodeBody::Fifo => (InodeKind::Fifo, 0, none),
            NodeBody::Graft(tree) => (InodeKind::Graft(tree), 0, none),
        };
        // Linux knows no other mode for a link, whatever an archive records.
        let mode = if kind == InodeKind::Symlink { 0o777 } else { node.mode };
        let mtime = UnixTime { secs: node.secs, nanos: node.nanos };
        Some(InodeAttr { kind, mode, uid: node.uid, gid: node.gid, size, mtime, nlink: node.nlink, rdev })
    }

    /// The inode of a name in a directory.
    pub fn lookup(&self, dir: InodeNumber, name: &[u8]) -> Option<InodeNumber> {
        let (mut low, mut high) = self.listing(dir);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.name(middle).cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some(self.dirents[middle].ino),
            }
        }
        None
    }

    /// The names of a directory in byte order, after the first `skip`; none for any other type.
    pub fn entries(&self, dir: InodeNumber, skip: usize) -> impl Iterator<Item = (&[u8], InodeNumber)> {
        let (first, end) = self.listing(dir);
        (first.saturating_add(skip).min(end)..end).map(|index| (self.name(index), self.dirents[index].ino))
    }

    /// Number of names in a directory.
    pub fn entry_count(&self, dir: InodeNumber) -> usize {
        let (first, end) = self.listing(dir);
        end - first
    }

    /// The parent of a directory; the root for the root, and for any other type.
    pub fn parent(&self, dir: InodeNumber) -> InodeNumber {
        match self.node(dir).map(|node| node.body) {
            Some(NodeBody::Directory { parent, .. }) => parent,
            _ => Self::ROOT,
        }
    }

    /// The target of a symbolic link, verbatim.
    pub fn link(&self, ino: InodeNumber) -> Option<&[u8]> {
        match self.node(ino)?.body {
            NodeBody::Symlink { start, len } => Some(&self.links[start as usize..][..len as usize]),
            _ => None,
        }
    }

    /// Location of the content of a regular file; `None` for any other type.
    pub fn file(&self, ino: InodeNumber) -> Option<FileRef<'_>> {
        let NodeBody::File { sparse, origin, offset, size } = self.node(ino)?.body else { return None };
        let runs = if sparse {
            let index = self.runs.binary_search_by_key(&ino, |(ino, _)| *ino).ok();
            index.map(|index| &self.runs[index].1)
        } else {
            None
        };
        Some(FileRef { origin, offset, size, runs })
    }

    /// The extended attributes of an inode, in recorded order.
    pub fn xattrs(&self, ino: InodeNumber) -> impl Iterator<Item = (&[u8], &[u8])> {
        let set = self.node(ino).map_or(0, |node| node.xattrs);
        xattrs::get(&self.xattrs, set)
    }

    /// The number of an inode's set of extended attributes. Equal numbers mean equal attributes; 0 means none.
    pub fn xattr_set(&self, ino: InodeNumber) -> u32 {
        self.node(ino).map_or(0, |node| node.xattrs)
    }

    /// Resolves a path from the root. Symbolic links are followed inside the tree, `..` stops at its root, and a
    /// graft ends the walk.
    pub fn resolve(&self, path: &[u8], follow: FollowLinks) -> Result<ResolvedPath, TreeError> {
        let mut ahead: Vec<&[u8]> = path::components(path).rev().collect();
        let mut here = Self::ROOT;
        let mut links = 0;
        while let Some(name) = ahead.pop() {
            match self.node(here).map(|node| node.body) {
                Some(NodeBody::Directory { .. }) => {}
                Some(NodeBody::Graft(_)) => {
                    ahead.push(name);
                    ahead.reverse();
                    return Ok(ResolvedPath { ino: here, rest: ahead.join(&b'/') });
                }
                _ => return Err(TreeError::NotADirectory { path: shown(path) }),
            }
            if name == b".." {
                here = self.parent(here);
                continue;
            }
            let child = self.lookup(here, name).ok_or_else(|| TreeError::NotFound { path: shown(path) })?;
            match self.link(child) {
                Some(target) if !ahead.is_empty() || follow == FollowLinks::All => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(TreeError::TooManyLinks { path: shown(path) });
                    }
                    if target.is_empty() {
                        return Err(TreeError::NotFound { path: shown(path) });
                    }
                    if target.starts_with(b"/") {
                        here = Self::ROOT;
                    }
                    ahead.extend(path::components(target).rev());
                }
                _ => here = child,
            }
        }
        Ok(ResolvedPath { ino: here, rest: Vec::new() })
    }

    /// Number of inodes, the root included.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether the root is the only inode.
    pub fn is_empty(&self) -> bool {
        self.nodes.len() <= 1
    }

    /// Memory that the tree holds, in bytes, without the overhead of the allocator.
    pub fn heap_bytes(&self) -> usize {
        let runs: usize = self.runs.iter().map(|(_, runs)| size_of_val::<[SparseRun]>(runs)).sum();
        let xattrs: usize = self.xattrs.iter().map(|set| set.len()).sum();
        size_of_val::<[InodeNode]>(&self.nodes)
            + size_of_val::<[DirectoryName]>(&self.dirents)
            + self.names.len()
            + self.links.len()
            + size_of_val::<[(InodeNumber, Arc<[SparseRun]>)]>(&self.runs)
            + runs
            + size_of_val::<[Arc<[u8]>]>(&self.xattrs)
            + xattrs
    }

    /// Every name below the root with its inode, depth first in name order. Paths have no leading slash, and the root
    /// itself is not included. An inode with several names appears once for each.
    pub fn walk(&self) -> TreeWalk<'_> {
        let (first, end) = self.listing(Self::ROOT);
        TreeWalk {
            tree: self,
            open: vec![ListedDirectory { next: first, end, path_len: 0 }],
            path: Vec::new(),
        }
    }

    fn node(&self, ino: InodeNumber) -> Option<&InodeNode> {
        self.nodes.get(ino as usize)
    }

    /// The range of a directory in `dirents`.
    fn listing(&self, dir: InodeNumber) -> (usize, usize) {
        match self.node(dir).map(|node| node.body) {
            Some(NodeBody::Directory { first, count, .. }) => {
                (first as usize, first as usize + count as usize)
            }
            _ => (0, 0),
        }
    }

    fn name(&self, index: usize) -> &[u8] {
        &self.names[self.dirents[index].name as usize..self.dirents[index + 1].name as usize]
    }
}

/// The iterator of [`FrozenTree::walk`].
#[derive(Debug)]
pub struct TreeWalk<'a> {
    tree: &'a FrozenTree,
    open: Vec<ListedDirectory>,
    path: Vec<u8>,
}

/// A directory that is being listed.
#[derive(Debug)]
struct ListedDirectory {
    next: usize,
    end: usize,
    /// Bytes of the directory's own path.
    path_len: usize,
}

impl Iterator for TreeWalk<'_> {
    type Item = (Vec<u8>, InodeNumber);

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(top) = self.open.last_mut() {
            self.path.truncate(top.path_len);
            if top.next == top.end {
                self.open.pop();
                continue;
            }
            let index = top.next;
            top.next += 1;
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(self.tree.name(index));
            let ino = self.tree.dirents[index].ino;
            let (first, end) = self.tree.listing(ino);
            if first < end {
                self.open.push(ListedDirectory { next: first, end, path_len: self.path.len() });
            }
            return Some((self.path.clone(), ino));
        }
        None
    }
}
