//! Tree builder: an arena of inodes, and a table of names.
//!
//! The rules of the union are elsewhere (`union.rs`); this module has the operations they use. An inode is a number,
//! and a name maps to a number, so a hard link is the same number twice. Replacing a name does not affect the other
//! names of an inode. Inodes without a name stay in the arena until `freeze` drops them. The nodes already have the
//! form of the frozen tree, with two differences: `nlink` is not counted, and `first` of a directory is the head of
//! its list.

use std::cell::Cell;
use std::sync::Arc;

use crate::io::{MEMORY, MemoryShare};
use crate::layer::{FileContent, RunIter, SparseRun, UnixTime, XattrIter};

use super::error::{EntryProblem, TreeError, shown};
use super::frozen::{InodeNode, NodeBody};
use super::limits::MAX_LINK_STEPS;
use super::names::{END, InodeId, NameTable, PreviousEntry};
use super::path;
use super::xattrs::{SetId, XattrSets};

/// Names a tree may have, replaced ones included. Real images have up to some million. The limit keeps a small
/// hostile archive, one path of which can imply 2048 directories, from exhausting memory (under 1 GiB at this limit).
const MAX_NAMES: u32 = 1 << 23;

/// Bytes of an inode in the arena and its first name, without the text of the name: node 56, name 16, hash slots 18.
const NODE_BYTES: u64 = 92;

/// Bytes of another distinct set of attributes, without the set: two counted pointers and a map entry.
const XATTRS_BYTES: u64 = 96;

/// Step by which a tree reserves memory, in bytes.
const MEMORY_STEP: u64 = 256 * 1024;

/// The root's number in the arena.
pub(super) const ROOT: InodeId = 0;

/// A tree that is being built.
#[derive(Debug)]
pub struct TreeBuilder {
    /// Invariant: `nodes[0]` is the root, a directory.
    pub(super) nodes: Vec<InodeNode>,
    pub(super) names: NameTable,
    /// The targets of all symbolic links.
    pub(super) links: Vec<u8>,
    pub(super) xattrs: XattrSets,
    /// Data runs of the sparse files, in order of their numbers.
    pub(super) runs: Vec<(InodeId, Arc<[SparseRun]>)>,
    /// Number of names ever attached. Invariant: `attached <= limit`.
    attached: u32,
    limit: u32,
    /// Number of times that an existing name was given to another inode.
    pub(super) replaced: u32,
    /// Reservation in the memory budget that all trees share. Invariant: at least `used`.
    pub(super) memory: MemoryShare,
    /// Bytes in use.
    used: u64,
    /// Where the paths of a layer start: the root, except while an archive is unpacked beside the tree.
    pub(super) base: InodeId,
    /// Components of link targets that paths may still follow. Zero fails every later path that meets a link.
    pub(super) link_steps: Cell<u64>,
    /// A detached directory with aufs bookkeeping, which hard links may refer to. `None` if there is no bookkeeping.
    pub(super) aside: Option<InodeId>,
}

/// Attributes that every inode has.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct InodeMeta {
    pub(super) mtime: UnixTime,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) xattrs: SetId,
    pub(super) mode: u16,
}

/// An empty directory.
pub(super) const DIRECTORY: NodeBody = NodeBody::Directory { parent: ROOT, first: END, count: 0 };

/// A synthetic entry, for [`TreeBuilder::insert`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNode {
    /// Type and type-specific content.
    pub kind: NewKind,
    /// Permission bits.
    pub mode: u16,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Modification time.
    pub mtime: UnixTime,
}

/// The type of a synthetic entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewKind {
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A regular file; the caller finds its content by the number `origin`.
    File {
        /// The caller's number.
        origin: u32,
        /// Bytes.
        size: u64,
    },
    /// A directory whose content is another tree, by the caller's number.
    Graft(u32),
}

impl TreeBuilder {
    /// An empty tree: the root is a directory 0755, owner and group 0, mtime 0.
    pub fn new() -> Self {
        Self::with_limit(MAX_NAMES)
    }

    /// Like `new`, for at most `limit` names.
    pub(super) fn with_limit(limit: u32) -> Self {
        Self {
            nodes: vec![implied(0o755).node(DIRECTORY)],
            names: NameTable::default(),
            links: Vec::new(),
            xattrs: XattrSets::default(),
            runs: Vec::new(),
            attached: 0,
            limit,
            replaced: 0,
            memory: MEMORY.lasting(),
            used: 0,
            base: ROOT,
            link_steps: Cell::new(MAX_LINK_STEPS),
            aside: None,
        }
    }

    /// Inserts a synthetic entry at `path`, a relative path of plain names. Missing parents become directories 0555,
    /// owner and group 0, mtime 0. Symbolic links on the way are not followed. A name that exists is an error.
    pub fn insert(&mut self, path: &[u8], node: NewNode) -> Result<(), TreeError> {
        self.try_insert(path, node).map_err(|problem| TreeError::Insert { path: shown(path), problem })
    }

    fn try_insert(&mut self, path: &[u8], node: NewNode) -> Result<(), EntryProblem> {
        let names: Vec<&[u8]> = path.split(|&byte| byte == b'/').collect();
        if names.iter().any(|name| matches!(*name, b"" | b"." | b"..") || name.contains(&0)) {
            return Err(EntryProblem::BadName);
        }
        path::check(&names)?;
        // Checked before the first change, so that a refused insertion leaves no parents behind.
        let mut dir = ROOT;
        let mut missing = 0;
        for (depth, name) in names.iter().enumerate() {
            if !self.is_directory(dir) {
                return Err(EntryProblem::BelowNonDirectory);
            }
            let Some(child) = self.child(dir, name) else {
                missing = names.len() - depth;
                break;
            };
            dir = child;
        }
        if missing == 0 {
            return Err(EntryProblem::Exists);
        }
        let (parents, last) = (&names[names.len() - missing..names.len() - 1], names[names.len() - 1]);
        for name in parents {
            dir = self.attach_new(dir, name, DIRECTORY, implied(0o555))?;
        }
        let NewNode { kind, mode, uid, gid, mtime } = node;
        let body = match kind {
            NewKind::Directory => DIRECTORY,
            NewKind::Symlink(target) => self.symlink(&target)?,
            NewKind::File { origin, size } => NodeBody::File { sparse: false, origin, offset: 0, size },
            NewKind::Graft(tree) => NodeBody::Graft(tree),
        };
        self.attach_new(dir, last, body, InodeMeta { mtime, uid, gid, xattrs: 0, mode })?;
        Ok(())
    }

    /// The body of an inode.
    pub(super) fn body(&self, id: InodeId) -> NodeBody {
        self.nodes[id as usize].body
    }

    pub(super) fn is_directory(&self, id: InodeId) -> bool {
        matches!(self.body(id), NodeBody::Directory { .. })
    }

    /// The inode of a name in a directory.
    pub(super) fn child(&self, dir: InodeId, name: &[u8]) -> Option<InodeId> {
        self.names.get(dir, name)
    }

    /// The target of the symbolic link with this body; `None` for any other type.
    pub(super) fn target(&self, body: NodeBody) -> Option<&[u8]> {
        let NodeBody::Symlink { start, len } = body else { return None };
        Some(&self.links[start as usize..][..len as usize])
    }

    /// The first name of a directory, for [`NameTable::listed`]; [`END`] for any other type.
    pub(super) fn first(&self, id: InodeId) -> u32 {
        match self.body(id) {
            NodeBody::Directory { first, .. } => first,
            _ => END,
        }
    }

    /// A new directory without a name.
    pub(super) fn detached(&mut self) -> InodeId {
        // Fits: one for each layer, and inodes with names are limited far below 2^32.
        let id = self.nodes.len() as InodeId;
        self.nodes.push(implied(0o755).node(DIRECTORY));
        id
    }

    /// Removes a name and everything below it from a directory, if it exists.
    pub(super) fn detach(&mut self, dir: InodeId, name: &[u8]) {
        self.names.remove(dir, name);
    }

    /// Removes all names from a directory.
    pub(super) fn clear(&mut self, dir: InodeId) {
        if let NodeBody::Directory { first, .. } = &mut self.nodes[dir as usize].body {
            self.names.clear(first);
        }
    }

    /// Adds a new inode under a name, replacing the inode that has it.
    pub(super) fn attach_new(
        &mut self,
        dir: InodeId,
        name: &[u8],
        body: NodeBody,
        meta: InodeMeta,
    ) -> Result<InodeId, EntryProblem> {
        // Fits: at most one inode for each name ever attached, and those are limited by a u32.
        let id = self.nodes.len() as InodeId;
        self.attach(dir, name, id)?;
        self.nodes.push(meta.node(body));
        Ok(id)
    }

    /// Adds one more name to an existing inode, replacing the inode that has it.
    pub(super) fn attach(&mut self, dir: InodeId, name: &[u8], id: InodeId) -> Result<(), EntryProblem> {
        if self.attached == self.limit {
            return Err(EntryProblem::TooManyNames { limit: self.limit });
        }
        self.charge(NODE_BYTES + name.len() as u64)?;
        if let NodeBody::Directory { first, .. } = &mut self.nodes[dir as usize].body {
            if self.names.set(dir, first, name, id)? == PreviousEntry::Taken {
                self.replaced += 1;
            }
            self.attached += 1;
        }
        Ok(())
    }

    /// Reserves memory for bytes that the tree is about to use.
    fn charge(&mut self, bytes: u64) -> Result<(), EntryProblem> {
        self.used += bytes;
        let missing = self.used.saturating_sub(self.memory.bytes());
        if missing > 0 {
            self.memory.grow(missing.next_multiple_of(MEMORY_STEP))?;
        }
        Ok(())
    }

    /// The attributes of an inode.
    pub(super) fn meta(&self, id: InodeId) -> InodeMeta {
        let InodeNode { secs, nanos, uid, gid, xattrs, mode, .. } = self.nodes[id as usize];
        InodeMeta { mtime: UnixTime { secs, nanos }, uid, gid, xattrs, mode }
    }

    /// Replaces the attributes of an inode.
    pub(super) fn set_meta(&mut self, id: InodeId, meta: InodeMeta) {
        let node = &mut self.nodes[id as usize];
        *node = meta.node(node.body);
    }

    /// The body of a symbolic link.
    pub(super) fn symlink(&mut self, target: &[u8]) -> Result<NodeBody, EntryProblem> {
        // `freeze` addresses targets, and the text of names, with 32 bits.
        let end = self.links.len() + target.len();
        let (Ok(start), Ok(len), Ok(_)) =
            (u32::try_from(self.links.len()), u32::try_from(target.len()), u32::try_from(end))
        else {
            return Err(EntryProblem::TooManyBytes);
        };
        self.charge(target.len() as u64)?;
        self.links.extend_from_slice(target);
        Ok(NodeBody::Symlink { start, len })
    }

    /// Adds a regular file of a layer under a name, replacing the inode that has it.
    pub(super) fn attach_file(
        &mut self,
        dir: InodeId,
        name: &[u8],
        (origin, content): (u32, FileContent<RunIter<'_>>),
        meta: InodeMeta,
    ) -> Result<(), EntryProblem> {
        let FileContent { size, offset, runs } = content;
        let body = NodeBody::File { sparse: runs.is_some(), origin, offset, size };
        let id = self.attach_new(dir, name, body, meta)?;
        if let Some(runs) = runs {
            let runs: Arc<[SparseRun]> = runs.collect();
            self.charge(size_of_val(&*runs) as u64 + 32)?;
            self.runs.push((id, runs));
        }
        Ok(())
    }

    /// The number of a set of extended attributes; a new set is stored.
    pub(super) fn intern(&mut self, set: XattrIter<'_>) -> Result<SetId, EntryProblem> {
        if !self.xattrs.has(set) {
            self.charge(XATTRS_BYTES + set.as_packed().len() as u64)?;
        }
        Ok(self.xattrs.intern(set))
    }
}

impl InodeMeta {
    /// A node with these attributes.
    fn node(self, body: NodeBody) -> InodeNode {
        let Self { mtime: UnixTime { secs, nanos }, uid, gid, xattrs, mode } = self;
        InodeNode { body, secs, nanos, uid, gid, nlink: 0, xattrs, mode }
    }
}

impl Default for TreeBuilder {
    fn default() -> Self {
        Self::new()
    }
}

/// Attributes of a directory that no archive recorded.
pub(super) fn implied(mode: u16) -> InodeMeta {
    InodeMeta { mode, ..InodeMeta::default() }
}
