//! The mutable form of a tree: an arena of inodes, directories with their names in order.
//!
//! No rule of the union lives here; this is what the rules are carried out on. The idea: inodes are numbers, a name is
//! a number in a table, so a hard link is the same number twice, and replacing a name never destroys what other names
//! still hold. What no name holds any more stays in the arena until `freeze` leaves it behind. The nodes are those of
//! the frozen tree already, with two differences: no `nlink` is counted, and a directory's `first` is the head of its list.

use crate::io::{MEMORY, MemoryShare};
use crate::layer::{Content, Run, Runs, Time, Xattrs};

use super::error::{Problem, TreeError, shown};
use super::frozen::{Node, NodeBody};
use super::names::{END, Names, Was};
use super::path;
use super::xattrs::{SetId, XattrSets};

/// Names a tree may have, those that were replaced included. Real images have up to some million; the limit keeps a
/// small hostile archive, one path of which can imply 2048 directories, from taking all memory (under 1 GiB here).
const MAX_NAMES: u32 = 1 << 23;

/// Bytes of an inode in the arena and its first name, beside the text of the name: node 56, name 16, slots of the table 18.
const NODE_BYTES: u64 = 92;

/// Bytes of another distinct set of attributes, beside the set: two counted pointers and their place in a map.
const XATTRS_BYTES: u64 = 96;

/// Steps in which a tree takes memory.
const MEMORY_STEP: u64 = 256 * 1024;

/// The number of an inode in the arena.
pub(super) type Id = u32;

/// The root's place in the arena.
pub(super) const ROOT: Id = 0;

/// A tree that is being built.
#[derive(Debug)]
pub struct Builder {
    /// Invariant: `nodes[0]` is the root, a directory.
    pub(super) nodes: Vec<Node>,
    pub(super) names: Names,
    /// The targets of all symbolic links.
    pub(super) links: Vec<u8>,
    pub(super) xattrs: XattrSets,
    /// Runs of the sparse files, in order of their numbers.
    pub(super) runs: Vec<(Id, Box<[Run]>)>,
    /// Invariant: names ever attached, `attached <= limit`.
    attached: u32,
    limit: u32,
    /// How often a name that was there was given to another inode.
    pub(super) replaced: u32,
    /// What it takes of the memory that all trees share. Invariant: at least `used`.
    pub(super) memory: MemoryShare,
    /// Bytes that it has come to.
    used: u64,
    /// Where the paths of a layer start: the root, but while an archive is unpacked beside the tree.
    pub(super) base: Id,
    /// A directory that no name holds, with the bookkeeping of aufs: hard links may mean files in it. `None` while there is none.
    pub(super) aside: Option<Id>,
}

/// Attributes that every inode has.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Meta {
    pub(super) mtime: Time,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) xattrs: SetId,
    pub(super) mode: u16,
}

/// An empty directory.
pub(super) const DIRECTORY: NodeBody = NodeBody::Directory { parent: ROOT, first: END, count: 0 };

/// A made-up entry, for [`Builder::insert`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNode {
    /// What it is.
    pub kind: NewKind,
    /// Permission bits.
    pub mode: u16,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Time,
}

/// The type of a made-up entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewKind {
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A regular file; `origin` is whatever number the caller finds its content by.
    File {
        /// The caller's number.
        origin: u32,
        /// Bytes.
        size: u64,
    },
    /// A directory whose content is another tree, by the caller's number.
    Graft(u32),
}

impl Builder {
    /// A tree of nothing but its root: a directory 0755, owner and group 0, mtime 0.
    pub fn new() -> Self {
        Self::with_limit(MAX_NAMES)
    }

    /// As `new`, for at most `limit` names.
    pub(super) fn with_limit(limit: u32) -> Self {
        Self {
            nodes: vec![implied(0o755).node(DIRECTORY)],
            names: Names::default(),
            links: Vec::new(),
            xattrs: XattrSets::default(),
            runs: Vec::new(),
            attached: 0,
            limit,
            replaced: 0,
            memory: MEMORY.lasting(),
            used: 0,
            base: ROOT,
            aside: None,
        }
    }

    /// Puts a made-up entry at `path`, a relative path of plain names. Missing parents become directories 0555, owner
    /// and group 0, mtime 0; symbolic links on the way are not followed. A name that exists is an error.
    pub fn insert(&mut self, path: &[u8], node: NewNode) -> Result<(), TreeError> {
        self.try_insert(path, node).map_err(|problem| TreeError::Insert { path: shown(path), problem })
    }

    fn try_insert(&mut self, path: &[u8], node: NewNode) -> Result<(), Problem> {
        let names: Vec<&[u8]> = path.split(|&byte| byte == b'/').collect();
        if names.iter().any(|name| matches!(*name, b"" | b"." | b"..") || name.contains(&0)) {
            return Err(Problem::BadName);
        }
        path::check(&names)?;
        // Checked before the first change, so that a refused insertion leaves no parents behind.
        let mut dir = ROOT;
        let mut missing = 0;
        for (depth, name) in names.iter().enumerate() {
            if !self.is_directory(dir) {
                return Err(Problem::BelowNonDirectory);
            }
            let Some(child) = self.child(dir, name) else {
                missing = names.len() - depth;
                break;
            };
            dir = child;
        }
        if missing == 0 {
            return Err(Problem::Exists);
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
        self.attach_new(dir, last, body, Meta { mtime, uid, gid, xattrs: 0, mode })?;
        Ok(())
    }

    /// What the inode with that number is.
    pub(super) fn body(&self, id: Id) -> NodeBody {
        self.nodes[id as usize].body
    }

    pub(super) fn is_directory(&self, id: Id) -> bool {
        matches!(self.body(id), NodeBody::Directory { .. })
    }

    /// The inode of a name in a directory.
    pub(super) fn child(&self, dir: Id, name: &[u8]) -> Option<Id> {
        self.names.get(dir, name)
    }

    /// The target of the symbolic link with this body; nothing for any other.
    pub(super) fn target(&self, body: NodeBody) -> Option<&[u8]> {
        let NodeBody::Symlink { start, len } = body else { return None };
        Some(&self.links[start as usize..][..len as usize])
    }

    /// The first name of a directory, for [`Names::listed`]; nothing for what is no directory.
    pub(super) fn first(&self, id: Id) -> u32 {
        match self.body(id) {
            NodeBody::Directory { first, .. } => first,
            _ => END,
        }
    }

    /// A directory that no name holds yet.
    pub(super) fn detached(&mut self) -> Id {
        // One for each layer, and inodes with names are limited far below 2^32.
        let id = self.nodes.len() as Id;
        self.nodes.push(implied(0o755).node(DIRECTORY));
        id
    }

    /// Takes a name, and what lies below it, out of a directory, if it is there.
    pub(super) fn detach(&mut self, dir: Id, name: &[u8]) {
        self.names.remove(dir, name);
    }

    /// Takes all names out of a directory.
    pub(super) fn clear(&mut self, dir: Id) {
        if let NodeBody::Directory { first, .. } = &mut self.nodes[dir as usize].body {
            self.names.clear(first);
        }
    }

    /// Gives a new inode a name, in place of whatever has it.
    pub(super) fn attach_new(
        &mut self,
        dir: Id,
        name: &[u8],
        body: NodeBody,
        meta: Meta,
    ) -> Result<Id, Problem> {
        // At most one inode for each name ever attached, and those are limited by a u32.
        let id = self.nodes.len() as Id;
        self.attach(dir, name, id)?;
        self.nodes.push(meta.node(body));
        Ok(id)
    }

    /// Gives an inode that exists one more name, in place of whatever has it.
    pub(super) fn attach(&mut self, dir: Id, name: &[u8], id: Id) -> Result<(), Problem> {
        if self.attached == self.limit {
            return Err(Problem::TooManyNames { limit: self.limit });
        }
        self.charge(NODE_BYTES + name.len() as u64)?;
        if let NodeBody::Directory { first, .. } = &mut self.nodes[dir as usize].body {
            if self.names.set(dir, first, name, id)? == Was::Taken {
                self.replaced += 1;
            }
            self.attached += 1;
        }
        Ok(())
    }

    /// Counts bytes that the tree is about to take.
    fn charge(&mut self, bytes: u64) -> Result<(), Problem> {
        self.used += bytes;
        let missing = self.used.saturating_sub(self.memory.bytes());
        if missing > 0 {
            self.memory.grow(missing.next_multiple_of(MEMORY_STEP))?;
        }
        Ok(())
    }

    /// The attributes of an inode.
    pub(super) fn meta(&self, id: Id) -> Meta {
        let Node { secs, nanos, uid, gid, xattrs, mode, .. } = self.nodes[id as usize];
        Meta { mtime: Time { secs, nanos }, uid, gid, xattrs, mode }
    }

    /// Replaces the attributes of an inode.
    pub(super) fn set_meta(&mut self, id: Id, meta: Meta) {
        let node = &mut self.nodes[id as usize];
        *node = meta.node(node.body);
    }

    /// The body of a symbolic link.
    pub(super) fn symlink(&mut self, target: &[u8]) -> Result<NodeBody, Problem> {
        // `freeze` addresses targets, and the text of names, with 32 bits.
        let end = self.links.len() + target.len();
        let (Ok(start), Ok(len), Ok(_)) =
            (u32::try_from(self.links.len()), u32::try_from(target.len()), u32::try_from(end))
        else {
            return Err(Problem::TooManyBytes);
        };
        self.charge(target.len() as u64)?;
        self.links.extend_from_slice(target);
        Ok(NodeBody::Symlink { start, len })
    }

    /// Gives a regular file of a layer a name, in place of whatever has it.
    pub(super) fn attach_file(
        &mut self,
        dir: Id,
        name: &[u8],
        (origin, content): (u32, Content<Runs<'_>>),
        meta: Meta,
    ) -> Result<(), Problem> {
        let Content { size, offset, runs } = content;
        let body = NodeBody::File { sparse: runs.is_some(), origin, offset, size };
        let id = self.attach_new(dir, name, body, meta)?;
        if let Some(runs) = runs {
            let runs: Box<[Run]> = runs.collect();
            self.charge(size_of_val(&*runs) as u64 + 32)?;
            self.runs.push((id, runs));
        }
        Ok(())
    }

    /// The number of a set of extended attributes.
    pub(super) fn intern(&mut self, set: Xattrs<'_>) -> Result<SetId, Problem> {
        if !self.xattrs.has(set) {
            self.charge(XATTRS_BYTES + set.as_packed().len() as u64)?;
        }
        Ok(self.xattrs.intern(set))
    }
}

impl Meta {
    /// A node with these attributes.
    fn node(self, body: NodeBody) -> Node {
        let Self { mtime: Time { secs, nanos }, uid, gid, xattrs, mode } = self;
        Node { body, secs, nanos, uid, gid, nlink: 0, xattrs, mode }
    }
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

/// Attributes of a directory that nobody recorded.
pub(super) fn implied(mode: u16) -> Meta {
    Meta { mode, ..Meta::default() }
}
