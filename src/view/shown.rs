//! Reverse lookup: from a blob to the files of a mount that contain its bytes.
//!
//! Only subtrees that were built are searched, without any I/O: files of other subtrees cannot have been read. A
//! failed verification names a blob, but caches of file content have to be invalidated by file.

use crate::oci::Digest;
use crate::tree::Ino;

use super::namespace::{Namespace, NodeId};
use super::subtree::{Made, Origins};

impl Namespace {
    /// The files that contain bytes of `blob`, including those for which this cannot be excluded.
    pub fn shown_of(&self, blob: &Digest) -> Vec<NodeId> {
        let mut nodes = Vec::new();
        for slot in self.slots() {
            let Some(subtree) = slot.built.get() else { continue };
            let manifest = slot.image.as_ref().map(|image| image.manifest());
            if manifest.is_some_and(|manifest| !manifest.blobs().any(|one| one.digest == *blob)) {
                continue;
            }
            let shows = |origin: u32| match &subtree.origins {
                Origins::Layers => {
                    let layer = manifest.and_then(|manifest| manifest.layers.get(origin as usize));
                    layer.is_some_and(|layer| layer.digest == *blob)
                }
                Origins::Made(made) => match made.get(origin as usize) {
                    Some(Made::Blob(descriptor)) => descriptor.digest == *blob,
                    // A few files only, each made from several blobs.
                    Some(
                        Made::Disk(_) | Made::Raw(_) | Made::File(_) | Made::Inside(..) | Made::DiskInfo,
                    ) => true,
                    Some(Made::Archive(archive, _)) => archive.holds(blob),
                    Some(Made::Rootfs(disk)) => disk.shows(blob),
                    Some(Made::Bytes(_) | Made::Status) | None => false,
                },
            };
            // The tree's inode numbers run from 0 to its length.
            for ino in 0..subtree.tree.len() as Ino {
                if subtree.tree.file(ino).is_some_and(|file| shows(file.origin)) {
                    nodes.push(NodeId { slot: slot.number, ino });
                }
            }
        }
        nodes
    }
}
