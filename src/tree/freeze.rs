//! Freezing: from the mutable arena to the flat arrays of a [`FrozenTree`].
//!
//! Directories are visited breadth first and names in byte order, so the same layers always give the same inode
//! numbers. Inodes without a name are not reached. Nodes are permuted in place, so that a large tree is not in memory
//! twice.

use std::sync::Arc;

use crate::layer::SparseRun;

use super::builder::{ROOT, TreeBuilder};
use super::frozen::{DirectoryName, FrozenTree, InodeNode, InodeNumber, NodeBody};
use super::names::InodeId;
use super::names::NameLists;

/// Estimated bytes of one more allocation, and of the pointer to it.
const RUNS_BYTES: usize = 40;

/// The number of an arena inode that was not reached yet.
const UNSEEN: InodeNumber = InodeNumber::MAX;

impl TreeBuilder {
    /// Makes the tree immutable and compact. Children are in order of their name's bytes, the root's number is
    /// [`FrozenTree::ROOT`], and equal input gives equal numbers.
    pub fn freeze(self) -> FrozenTree {
        let TreeBuilder { nodes, names, links, runs, xattrs, mut memory, .. } = self;
        let mut frozen = TreeFreezer {
            numbers: vec![UNSEEN; nodes.len()],
            nodes,
            lists: names.into_lists(),
            order: Vec::new(),
            dirents: Vec::new(),
            names: Vec::new(),
        };
        frozen.number(ROOT, 0);
        let (mut ino, mut children) = (0, Vec::new());
        while let Some(&id) = frozen.order.get(ino as usize) {
            frozen.list(ino, id, &mut children);
            ino += 1;
        }
        let TreeFreezer { numbers, mut nodes, lists, order, mut dirents, names } = frozen;
        drop(lists);
        let links = reached_links(&mut nodes, &order, links);
        // A name ends where the next one starts.
        dirents.push(DirectoryName { name: names.len() as u32, ino: UNSEEN });
        let numbered = runs.into_iter().map(|(id, runs)| (numbers[id as usize], runs));
        let mut runs: Vec<_> = numbered.filter(|&(ino, _)| ino != UNSEEN).collect();
        runs.sort_unstable_by_key(|&(ino, _)| ino);
        permute(&mut nodes, numbers, order.len());
        let xattrs = xattrs.into_sets();
        let of_runs = |(_, runs): &(InodeNumber, Arc<[SparseRun]>)| size_of_val(&**runs) + RUNS_BYTES;
        let kept = size_of_val(&nodes[..])
            + size_of_val(&dirents[..])
            + names.len()
            + links.len()
            + runs.iter().map(of_runs).sum::<usize>()
            + xattrs.iter().map(|set| set.len() + RUNS_BYTES).sum::<usize>();
        memory.shrink_to(kept as u64);
        FrozenTree {
            nodes: nodes.into(),
            dirents: dirents.into(),
            names: names.into(),
            links: links.into(),
            runs: runs.into(),
            xattrs,
            _memory: memory,
        }
    }
}

struct TreeFreezer {
    /// In the order of the arena.
    nodes: Vec<InodeNode>,
    lists: NameLists,
    /// The new number of each node of the arena.
    numbers: Vec<InodeNumber>,
    /// The arena number of each node that was reached: the queue of the walk.
    order: Vec<InodeId>,
    dirents: Vec<DirectoryName>,
    names: Vec<u8>,
}

impl TreeFreezer {
    /// Lists the children of a directory, numbering those that have no number.
    fn list(&mut self, ino: InodeNumber, id: InodeId, children: &mut Vec<(u32, InodeId)>) {
        let NodeBody::Directory { parent, first: head, .. } = self.nodes[id as usize].body else { return };
        self.lists.sorted(head, children);
        // The builder limits names, and the bytes of names and targets, to what 32 bits address.
        let first = self.dirents.len() as u32;
        let mut subdirectories = 0;
        for &(name, child) in &*children {
            let number = match self.numbers[child as usize] {
                UNSEEN => self.number(child, ino),
                number => number,
            };
            let node = &mut self.nodes[child as usize];
            match node.body {
                NodeBody::Directory { .. } | NodeBody::Graft(_) => subdirectories += 1,
                _ => node.nlink += 1,
            }
            self.dirents.push(DirectoryName { name: self.names.len() as u32, ino: number });
            self.names.extend_from_slice(self.lists.name(name));
        }
        let node = &mut self.nodes[id as usize];
        node.nlink += subdirectories;
        node.body = NodeBody::Directory { parent, first, count: children.len() as u32 };
    }

    /// Gives an inode the next number; a directory's children come later.
    fn number(&mut self, id: InodeId, above: InodeNumber) -> InodeNumber {
        let ino = self.order.len() as InodeNumber;
        self.numbers[id as usize] = ino;
        self.order.push(id);
        let node = &mut self.nodes[id as usize];
        node.nlink = match &mut node.body {
            NodeBody::Directory { parent, .. } => {
                *parent = above;
                2
            }
            NodeBody::Graft(_) => 2,
            _ => 0,
        };
        ino
    }
}

/// The targets of the links in `order`, and those alone.
fn reached_links(nodes: &mut [InodeNode], order: &[InodeId], all: Vec<u8>) -> Vec<u8> {
    let mut links = Vec::new();
    for &id in order {
        if let NodeBody::Symlink { start, len } = &mut nodes[id as usize].body {
            let target = &all[*start as usize..][..*len as usize];
            *start = links.len() as u32;
            links.extend_from_slice(target);
        }
    }
    links
}

/// Moves each node to the index of its number, 0 to `reached - 1`, and drops those without a number.
fn permute(nodes: &mut Vec<InodeNode>, mut numbers: Vec<InodeNumber>, reached: usize) {
    for at in 0..nodes.len() {
        // Every swap moves one node to its final index.
        while numbers[at] != UNSEEN && numbers[at] as usize != at {
            let to = numbers[at] as usize;
            nodes.swap(at, to);
            numbers.swap(at, to);
        }
    }
    nodes.truncate(reached);
}
