//! Tree fingerprint: a hash that detects changed inode numbers.
//!
//! A process that holds inode numbers of a tree may use them after the tree was rebuilt. The hash covers everything
//! that an inode number stands for, so equal fingerprints mean that every number means the same.

use super::frozen::{FrozenTree, NodeBody};

/// Bytes that are hashed at once: blake3 hashes several of its chunks in parallel only if they come in one call.
const HASHED_STEP_BYTES: usize = 64 * 1024;

/// Feeds numbers to the hash in one fixed form.
#[derive(Default)]
struct FingerprintFeed {
    hasher: blake3::Hasher,
    /// Bytes that are not hashed yet.
    pending: Vec<u8>,
}

impl FingerprintFeed {
    fn bytes(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= HASHED_STEP_BYTES {
            self.hasher.update(&self.pending);
            self.pending.clear();
        }
    }

    fn finish(mut self) -> [u8; 32] {
        self.hasher.update(&self.pending);
        self.hasher.finalize().into()
    }

    fn u32(&mut self, number: u32) {
        self.bytes(&number.to_le_bytes());
    }

    fn u64(&mut self, number: u64) {
        self.bytes(&number.to_le_bytes());
    }
}

impl FrozenTree {
    /// Hash over all inodes, names and content locations, in order of inode number.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut feed = FingerprintFeed::default();
        feed.u64(self.nodes.len() as u64);
        for node in &self.nodes {
            let (kind, a, b, c) = match node.body {
                NodeBody::File { sparse: false, origin, offset, size } => (0, origin, offset, size),
                NodeBody::File { sparse: true, origin, offset, size } => (1, origin, offset, size),
                NodeBody::Directory { parent, first, count } => (2, parent, first.into(), count.into()),
                NodeBody::Symlink { start, len } => (3, start, len.into(), 0),
                NodeBody::CharDevice(device) => (4, 0, device.major.into(), device.minor.into()),
                NodeBody::BlockDevice(device) => (5, 0, device.major.into(), device.minor.into()),
                NodeBody::Fifo => (6, 0, 0, 0),
                NodeBody::Graft(tree) => (7, tree, 0, 0),
            };
            feed.u32(kind);
            feed.u32(a);
            feed.u64(b);
            feed.u64(c);
            feed.u64(node.secs as u64);
            for number in [node.nanos, node.uid, node.gid, node.nlink, node.xattrs, node.mode.into()] {
                feed.u32(number);
            }
        }
        feed.u64(self.dirents.len() as u64);
        for dirent in &self.dirents {
            feed.u32(dirent.name);
            feed.u32(dirent.ino);
        }
        for (ino, runs) in &self.runs {
            feed.u32(*ino);
            feed.u64(runs.len() as u64);
            for run in runs.iter() {
                feed.u64(run.offset);
                feed.u64(run.len);
            }
        }
        // Their lengths are in the names, the links and the heads of the sets.
        feed.bytes(&self.names);
        feed.bytes(&self.links);
        for set in &self.xattrs {
            feed.u64(set.len() as u64);
            feed.bytes(set);
        }
        feed.finish()
    }
}

#[cfg(test)]
mod tests {
    use crate::layer::UnixTime;
    use crate::tree::{FrozenTree, NewKind, NewNode, TreeBuilder};

    fn tree(entries: &[(&str, u32, u64)]) -> FrozenTree {
        let mut builder = TreeBuilder::new();
        for (path, origin, size) in entries {
            let kind = NewKind::File { origin: *origin, size: *size };
            let node = NewNode { kind, mode: 0o444, uid: 0, gid: 0, mtime: UnixTime { secs: 1, nanos: 2 } };
            builder.insert(path.as_bytes(), node).unwrap();
        }
        builder.freeze()
    }

    #[test]
    fn the_same_entries_have_one_fingerprint_and_any_difference_another() {
        let base = [("a/x", 1, 5), ("b", 2, 7)];
        let fingerprint = |entries: &[(&str, u32, u64)]| tree(entries).fingerprint();
        assert_eq!(fingerprint(&base), fingerprint(&base));
        for other in [
            &[("a/x", 1, 5), ("b", 2, 8)][..],
            &[("a/x", 1, 5), ("b", 3, 7)],
            &[("a/x", 1, 5), ("c", 2, 7)],
            &[("a/y", 1, 5), ("b", 2, 7)],
            &[("a/x", 1, 5)],
            &[("a/x", 1, 5), ("b", 2, 7), ("c", 0, 0)],
            &[("x", 1, 5), ("b", 2, 7)],
        ] {
            assert_ne!(fingerprint(&base), fingerprint(other), "{other:?}");
        }
    }
}
