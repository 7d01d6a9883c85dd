//! Takeover check: inode numbers of an earlier process must mean the same files in this one.
//!
//! A number is a subtree and an inode in it. A witness receives each subtree when it is built, as a fingerprint of
//! everything that its numbers mean. If the fingerprint differs from the recorded one, the subtree is refused like
//! one that cannot be built. So a number never comes to mean another file.

use std::sync::Arc;

use crate::io::ReadError;
use crate::tree::FrozenTree;

use super::namespace::{InodeCheck, MountNamespace, NodeId};
use super::subtree::ViewSubtree;
use super::subtree_ids::{SubtreeRole, SubtreeSlot};

impl MountNamespace {
    /// Passes every subtree to `witness`: built ones now, the others when they are built. After an error there is no
    /// witness.
    pub fn watch(&mut self, witness: InodeCheck) -> Result<(), ReadError> {
        self.witness = Some(witness);
        let shown = self.slots.iter().try_for_each(|slot| match slot.built.get() {
            Some(subtree) => self.show(slot, subtree),
            None => Ok(()),
        });
        shown.inspect_err(|_| self.witness = None)
    }

    /// Waits until the subtree of `node`, and the subtrees above it, are built. After a takeover the kernel may use
    /// `node` although this process has not resolved its path.
    pub async fn build_path(&self, node: NodeId) -> Result<(), ReadError> {
        let mut above = vec![node.slot];
        // Every subtree except the root's is grafted into one with another number, and none below itself.
        while let Some(slot) = above.last().and_then(|number| self.slot(*number))
            && slot.parent != slot.number
            && above.len() <= self.slots.len()
        {
            above.push(slot.parent);
        }
        for slot in above.into_iter().rev() {
            self.build(NodeId { slot, ino: FrozenTree::ROOT }).await?;
        }
        Ok(())
    }

    /// Passes a subtree to the witness, if there is one.
    pub(super) fn show(&self, slot: &SubtreeSlot, subtree: &Arc<ViewSubtree>) -> Result<(), ReadError> {
        let Some(witness) = &self.witness else { return Ok(()) };
        let mut hasher = blake3::Hasher::new();
        hasher.update(&subtree.tree.fingerprint());
        // The image is part of it: origins in the tree are numbers of its layers, or of files made from its manifest.
        let whose = slot.image.as_ref().map_or_else(|| self.family().pinned(), |image| image.pinned());
        let whose = whose.rsplit_once('@').map_or(whose, |(_, digest)| digest);
        let role = match &slot.role {
            SubtreeRole::Top(_) => "top".to_owned(),
            SubtreeRole::Status => "status".to_owned(),
            SubtreeRole::Export(_) => "archive".to_owned(),
            SubtreeRole::View { view, .. } => format!("view {}", view.name()),
            SubtreeRole::Inner { view, layer } => format!("{} {layer}", view.name()),
        };
        let layout = self.layout_of(slot.number);
        hasher.update(format!("\n{whose}\n{role}\n{}\n{layout:?}", slot.parent).as_bytes());
        witness(slot.number, hasher.finalize().into())
    }
}
