//! Reverse lookup: from a blob to the files of a mount that contain its bytes.
//!
//! Only subtrees that were built are searched, without any I/O: files of other subtrees cannot have been read. A
//! failed verification names a blob, but caches of file content have to be invalidated by file.

use crate::oci::Digest;
use crate::tree::InodeNumber;

use super::namespace::{MountNamespace, NodeId};
use super::subtree::{OriginMeaning, SyntheticFile};

impl MountNamespace {
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
                OriginMeaning::Layers => {
                    let layer = manifest.and_then(|manifest| manifest.layers.get(origin as usize));
                    layer.is_some_and(|layer| layer.digest == *blob)
                }
                OriginMeaning::Made(made) => match made.get(origin as usize) {
                    Some(SyntheticFile::Blob(descriptor)) => descriptor.digest == *blob,
                    // A few files only, each made from several blobs.
                    Some(
                        SyntheticFile::Disk(_)
                        | SyntheticFile::Raw(_)
                        | SyntheticFile::File(_)
                        | SyntheticFile::Inside(..)
                        | SyntheticFile::DiskInfo,
                    ) => true,
                    Some(SyntheticFile::Archive(archive, _)) => archive.holds(blob),
                    Some(SyntheticFile::Rootfs(disk)) => disk.shows(blob),
                    Some(SyntheticFile::Bytes(_) | SyntheticFile::Status) | None => false,
                },
            };
            // The tree's inode numbers run from 0 to its length.
            for ino in 0..subtree.tree.len() as InodeNumber {
                if subtree.tree.file(ino).is_some_and(|file| shows(file.origin)) {
                    nodes.push(NodeId { slot: slot.number, ino });
                }
            }
        }
        nodes
    }
}
