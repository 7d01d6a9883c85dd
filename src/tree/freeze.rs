//! From the mutable arena to the flat arrays of a [`Tree`].
//!
//! Decides nothing about content. The idea: directories are taken breadth first and names in order of their bytes, so
//! the same layers always give the same inode numbers, and what no name holds is never reached.

use std::collections::BTreeMap;

use super::builder::{Body, Builder, Id, Inode, Meta, ROOT};
use super::frozen::{Dirent, Ino, Node, NodeBody, Tree};

/// An arena inode that has no number yet.
const UNSEEN: Ino = Ino::MAX;

impl Builder {
    /// Makes the tree immutable and compact. Children are in order of their name's bytes, the root's number is
    /// [`Tree::ROOT`], and equal input gives equal numbers.
    pub fn freeze(self) -> Tree {
        let Builder { inodes, xattrs, runs, .. } = self;
        let mut frozen =
            Freezing { numbers: vec![UNSEEN; inodes.len()], inodes, runs, tree: Parts::default() };
        frozen.number(ROOT, 0);
        let mut ino = 0;
        while let Some(&id) = frozen.tree.order.get(ino as usize) {
            frozen.list(ino, id);
            ino += 1;
        }
        let Parts { nodes, mut dirents, names, links, runs, .. } = frozen.tree;
        // A name ends where the next one starts.
        dirents.push(Dirent { name: names.len() as u32, ino: UNSEEN });
        Tree {
            nodes: nodes.into(),
            dirents: dirents.into(),
            names: names.into(),
            links: links.into(),
            runs: runs.into(),
            xattrs: xattrs.into_sets(),
        }
    }
}

struct Freezing {
    inodes: Vec<Inode>,
    runs: Vec<Box<[crate::layer::Run]>>,
    /// The new number of each inode of the arena.
    numbers: Vec<Ino>,
    tree: Parts,
}

/// The arrays of the tree, growing.
#[derive(Default)]
struct Parts {
    /// The arena number of each node: the queue of the walk.
    order: Vec<Id>,
    nodes: Vec<Node>,
    dirents: Vec<Dirent>,
    names: Vec<u8>,
    links: Vec<u8>,
    runs: Vec<(Ino, Box<[crate::layer::Run]>)>,
}

impl Freezing {
    /// Lists the children of a directory, numbering those that have no number.
    fn list(&mut self, ino: Ino, id: Id) {
        let Body::Directory(children) = &mut self.inodes[id as usize].body else { return };
        let children: BTreeMap<Box<[u8]>, Id> = std::mem::take(children);
        // The builder limits names, and the bytes of names and targets, to what 32 bits address.
        let first = self.tree.dirents.len() as u32;
        let mut subdirectories = 0;
        for (name, child) in &children {
            let number = match self.numbers[*child as usize] {
                UNSEEN => self.number(*child, ino),
                number => number,
            };
            let node = &mut self.tree.nodes[number as usize];
            match node.body {
                NodeBody::Directory { .. } | NodeBody::Graft(_) => subdirectories += 1,
                _ => node.nlink += 1,
            }
            self.tree.dirents.push(Dirent { name: self.tree.names.len() as u32, ino: number });
            self.tree.names.extend_from_slice(name);
        }
        let node = &mut self.tree.nodes[ino as usize];
        node.nlink += subdirectories;
        if let NodeBody::Directory { first: start, count, .. } = &mut node.body {
            *start = first;
            *count = children.len() as u32;
        }
    }

    /// Gives an inode the next number; a directory's children come later.
    fn number(&mut self, id: Id, parent: Ino) -> Ino {
        let ino = self.tree.nodes.len() as Ino;
        self.numbers[id as usize] = ino;
        self.tree.order.push(id);
        let Inode { body, meta } = &mut self.inodes[id as usize];
        let (body, nlink) = match body {
            Body::Directory(_) => (NodeBody::Directory { parent, first: 0, count: 0 }, 2),
            Body::Graft(tree) => (NodeBody::Graft(*tree), 2),
            Body::Symlink(target) => {
                let start = self.tree.links.len() as u32;
                self.tree.links.extend_from_slice(target);
                (NodeBody::Symlink { start, len: target.len() as u32 }, 0)
            }
            Body::File { origin, runs, offset, size } => {
                let runs = (*runs as usize).checked_sub(1).and_then(|index| self.runs.get_mut(index));
                let sparse = runs.is_some();
                if let Some(runs) = runs {
                    self.tree.runs.push((ino, std::mem::take(runs)));
                }
                (NodeBody::File { sparse, origin: *origin, offset: *offset, size: *size }, 0)
            }
            Body::CharDevice(device) => (NodeBody::CharDevice(*device), 0),
            Body::BlockDevice(device) => (NodeBody::BlockDevice(*device), 0),
            Body::Fifo => (NodeBody::Fifo, 0),
        };
        let Meta { mtime, uid, gid, xattrs, mode } = *meta;
        self.tree.nodes.push(Node {
            body,
            secs: mtime.secs,
            nanos: mtime.nanos,
            uid,
            gid,
            nlink,
            xattrs,
            mode,
        });
        ino
    }
}
