//! What somebody has to know who was told numbers of nodes by an earlier process.
//!
//! Never changes what is shown. The idea: a number is a subtree and an inode in it; each subtree is shown to a witness when it
//! is built, by a fingerprint of all that its numbers mean, and one that is not what the witness remembers is refused as if it
//! could not be built. So a number never comes to mean another thing.

use std::sync::Arc;

use crate::io::ReadError;
use crate::tree::Tree;

use super::namespace::{Namespace, NodeId};
use super::slots::{Role, Slot};
use super::subtree::Subtree;

/// Gets the number of a subtree and its fingerprint, and refuses the subtree by an error.
pub type Witness = Box<dyn Fn(u32, [u8; 32]) -> Result<(), ReadError> + Send + Sync>;

impl Namespace {
    /// Shows every subtree to `witness`: those that are built now, the others when they are. After an error there is no
    /// witness.
    pub fn watch(&mut self, witness: Witness) -> Result<(), ReadError> {
        self.witness = Some(witness);
        let shown = self.slots.iter().try_for_each(|slot| match slot.built.get() {
            Some(subtree) => self.show(slot, subtree),
            None => Ok(()),
        });
        shown.inspect_err(|_| self.witness = None)
    }

    /// Waits until what is inside `node` is known, and what is inside the subtrees above it. Who was told the number of `node`
    /// by an earlier process has not come down to it in this one.
    pub async fn build_path(&self, node: NodeId) -> Result<(), ReadError> {
        let mut above = vec![node.slot];
        // Every subtree but the root's is grafted into one with another number, and none below itself.
        while let Some(slot) = above.last().and_then(|number| self.slot(*number))
            && slot.parent != slot.number
            && above.len() <= self.slots.len()
        {
            above.push(slot.parent);
        }
        for slot in above.into_iter().rev() {
            self.build(NodeId { slot, ino: Tree::ROOT }).await?;
        }
        Ok(())
    }

    /// Shows a subtree to the witness, if there is one.
    pub(super) fn show(&self, slot: &Slot, subtree: &Arc<Subtree>) -> Result<(), ReadError> {
        let Some(witness) = &self.witness else { return Ok(()) };
        let mut hasher = blake3::Hasher::new();
        hasher.update(&subtree.tree.fingerprint());
        // Which image: the origins in the tree are numbers of its layers, and of what is made from its manifest.
        let whose = slot.image.as_ref().map_or_else(|| self.family().pinned(), |image| image.pinned());
        let whose = whose.rsplit_once('@').map_or(whose, |(_, digest)| digest);
        let role = match &slot.role {
            Role::Top(_) => "top".to_owned(),
            Role::Status => "status".to_owned(),
            Role::Export(_) => "archive".to_owned(),
            Role::View { view, .. } => format!("view {}", view.name()),
            Role::Inner { view, layer } => format!("{} {layer}", view.name()),
        };
        let layout = self.layout_of(slot.number);
        hasher.update(format!("\n{whose}\n{role}\n{}\n{layout:?}", slot.parent).as_bytes());
        witness(slot.number, hasher.finalize().into())
    }
}
