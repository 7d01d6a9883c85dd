//! The mutable form of a tree: an arena of inodes, directories with their names in order.
//!
//! No rule of the union lives here; this is what the rules are carried out on. The idea: inodes are numbers, a name is
//! a number in a directory's map, so a hard link is the same number twice, and replacing a name never destroys what
//! other names still hold. What no name holds any more stays in the arena until `freeze` leaves it behind.

use std::collections::BTreeMap;

use crate::layer::{Content, Device, Run, Time, Xattr};

use super::error::{Problem, TreeError, shown};
use super::path;
use super::xattrs::{SetId, XattrSets};

/// Names a tree may have, those that were replaced included. Real images have up to some million; the limit keeps a
/// small hostile archive, one path of which can imply 2048 directories, from taking all memory (about 2 GiB here).
const MAX_NAMES: u32 = 1 << 24;

/// The number of an inode in the arena.
pub(super) type Id = u32;

/// The root's place in the arena.
pub(super) const ROOT: Id = 0;

/// A tree that is being built.
#[derive(Debug)]
pub struct Builder {
    /// Invariant: `inodes[0]` is the root, a directory.
    pub(super) inodes: Vec<Inode>,
    pub(super) xattrs: XattrSets,
    /// Runs of the sparse files; a file says which by index + 1.
    pub(super) runs: Vec<Box<[Run]>>,
    /// Invariant: names ever attached, `names <= limit`.
    names: u32,
    /// Bytes of the names and link targets ever attached; `freeze` addresses them with 32 bits.
    bytes: u32,
    limit: u32,
}

/// What an inode is and the attributes it has.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) body: Body,
    pub(super) meta: Meta,
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

/// What only inodes of one type have.
#[derive(Debug)]
pub(super) enum Body {
    File {
        origin: u32,
        /// Index in [`Builder::runs`] plus one; 0 when the file is not sparse.
        runs: u32,
        offset: u64,
        size: u64,
    },
    Directory(BTreeMap<Box<[u8]>, Id>),
    Symlink(Box<[u8]>),
    CharDevice(Device),
    BlockDevice(Device),
    Fifo,
    Graft(u32),
}

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
        let root = Inode { body: Body::Directory(BTreeMap::new()), meta: implied(0o755) };
        Self { inodes: vec![root], xattrs: XattrSets::default(), runs: Vec::new(), names: 0, bytes: 0, limit }
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
            let Some(children) = self.children(dir) else { return Err(Problem::BelowNonDirectory) };
            let Some(&child) = children.get(*name) else {
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
            dir = self.attach_new(dir, name, Body::Directory(BTreeMap::new()), implied(0o555))?;
        }
        let NewNode { kind, mode, uid, gid, mtime } = node;
        let body = match kind {
            NewKind::Directory => Body::Directory(BTreeMap::new()),
            NewKind::Symlink(target) => Body::Symlink(target.into()),
            NewKind::File { origin, size } => Body::File { origin, runs: 0, offset: 0, size },
            NewKind::Graft(tree) => Body::Graft(tree),
        };
        self.attach_new(dir, last, body, Meta { mtime, uid, gid, xattrs: 0, mode })?;
        Ok(())
    }

    /// The inode with that number.
    pub(super) fn inode(&self, id: Id) -> &Inode {
        &self.inodes[id as usize]
    }

    /// The names of a directory; `None` for anything else.
    pub(super) fn children(&self, id: Id) -> Option<&BTreeMap<Box<[u8]>, Id>> {
        match &self.inode(id).body {
            Body::Directory(children) => Some(children),
            _ => None,
        }
    }

    /// Takes a name, and what lies below it, out of a directory, if it is there.
    pub(super) fn detach(&mut self, dir: Id, name: &[u8]) {
        if let Body::Directory(children) = &mut self.inodes[dir as usize].body {
            children.remove(name);
        }
    }

    /// Takes all names out of a directory.
    pub(super) fn clear(&mut self, dir: Id) {
        if let Body::Directory(children) = &mut self.inodes[dir as usize].body {
            children.clear();
        }
    }

    /// Gives a new inode a name, in place of whatever has it.
    pub(super) fn attach_new(&mut self, dir: Id, name: &[u8], body: Body, meta: Meta) -> Result<Id, Problem> {
        let target = if let Body::Symlink(target) = &body { target.len() } else { 0 };
        self.count(name.len() + target)?;
        // At most one inode for each name ever attached, and those are limited by a u32.
        let id = self.inodes.len() as Id;
        self.inodes.push(Inode { body, meta });
        self.hang(dir, name, id);
        Ok(id)
    }

    /// Gives an inode that exists one more name, in place of whatever has it.
    pub(super) fn attach(&mut self, dir: Id, name: &[u8], id: Id) -> Result<(), Problem> {
        self.count(name.len())?;
        self.hang(dir, name, id);
        Ok(())
    }

    /// Replaces the attributes of an inode.
    pub(super) fn set_meta(&mut self, id: Id, meta: Meta) {
        self.inodes[id as usize].meta = meta;
    }

    /// The body of a regular file of a layer.
    pub(super) fn file(&mut self, origin: u32, content: &Content) -> Body {
        let runs = content.runs.as_ref().map_or(0, |runs| {
            self.runs.push(runs.as_slice().into());
            // At most one list for each entry of a table of contents in memory, each over 100 bytes long.
            self.runs.len() as u32
        });
        Body::File { origin, runs, offset: content.offset, size: content.size }
    }

    /// The number of a set of extended attributes.
    pub(super) fn intern(&mut self, set: &[Xattr]) -> SetId {
        self.xattrs.intern(set)
    }

    fn count(&mut self, bytes: usize) -> Result<(), Problem> {
        if self.names == self.limit {
            return Err(Problem::TooManyNames { limit: self.limit });
        }
        let bytes = u32::try_from(bytes).ok().and_then(|bytes| self.bytes.checked_add(bytes));
        self.bytes = bytes.ok_or(Problem::TooManyBytes)?;
        self.names += 1;
        Ok(())
    }

    fn hang(&mut self, dir: Id, name: &[u8], id: Id) {
        if let Body::Directory(children) = &mut self.inodes[dir as usize].body {
            match children.get_mut(name) {
                Some(child) => *child = id,
                None => {
                    children.insert(name.into(), id);
                }
            }
        }
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
