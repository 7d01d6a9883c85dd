//! Paths of nodes, for log messages.
//!
//! This module builds nothing and does not wait. Trees do not record the names above a file, so they are searched, up
//! to a limit.

use crate::tree::{FrozenTree, InodeKind};

use super::namespace::{MountNamespace, NodeId};

/// Limit of names to search: a few milliseconds. A node beyond it has no path in messages.
const MAX_SEARCHED_NAMES: usize = 200_000;

impl MountNamespace {
    /// The first path of a node below the root of the mount; `None` if the search does not find it within the limit.
    pub fn path_of(&self, node: NodeId) -> Option<Vec<u8>> {
        if node == self.root() {
            return Some(Vec::new());
        }
        // The subtrees on the way down to the node's own.
        let mut slots = vec![node.slot];
        while let Some(slot) = slots.last().and_then(|last| self.slot(*last))
            && !slots.contains(&slot.parent)
        {
            slots.push(slot.parent);
        }
        let mut todo = vec![(self.root(), Vec::new())];
        let mut left = MAX_SEARCHED_NAMES;
        while let Some((directory, path)) = todo.pop() {
            let Some(subtree) = self.slot(directory.slot).and_then(|slot| slot.built.get()) else { continue };
            for (name, ino) in subtree.tree.entries(directory.ino, 0) {
                left = left.checked_sub(1)?;
                let kind = subtree.tree.attr(ino).map(|attr| attr.kind);
                let found = match kind {
                    Some(InodeKind::Graft(number)) => NodeId { slot: number, ino: FrozenTree::ROOT },
                    _ => NodeId { slot: directory.slot, ino },
                };
                let is_directory = matches!(kind, Some(InodeKind::Directory | InodeKind::Graft(_)));
                if found != node && !(is_directory && slots.contains(&found.slot)) {
                    continue;
                }
                let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                let path = [&path, slash, name].concat();
                if found == node {
                    return Some(path);
                }
                todo.push((found, path));
            }
        }
        None
    }
}
