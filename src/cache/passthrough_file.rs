//! Whole verified files for the kernel to read by itself.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use nix::unistd::{Whence, lseek};

use super::block_data::BlockData;
use super::block_file::BlockFile;
use super::lock;
use super::sidecar::ContentKind;

impl BlockFile {
    /// The data file of a blob that is verified and whole on disk. Nothing is evicted from it while the descriptor
    /// lives.
    pub(super) fn hand_out(&self, size: u64) -> Option<Arc<OwnedFd>> {
        let mut backing = lock(&self.backing);
        if let Some(known) = backing.upgrade() {
            return Some(known);
        }
        // A file that is handed out stays open: when descriptors run out, it is read through this process instead.
        if self.room.as_ref().is_some_and(|room| !room.spare_descriptors()) {
            return None;
        }
        // On disk, and not only in the memory of this process: until then another process may still poison it.
        let verified = self.sidecar.is_verified();
        let file = Arc::new(self.whole_file(size).filter(|_| verified)?);
        *backing = Arc::downgrade(&file);
        Some(file)
    }

    /// The data file, when it has `size` bytes and no hole. `None` also where the file system cannot report holes,
    /// and where it stores zeros as holes.
    fn whole_file(&self, size: u64) -> Option<OwnedFd> {
        if self.kind != ContentKind::Blob {
            return None;
        }
        let data = match &self.data {
            BlockData::Own(data) => data,
            BlockData::Local(bytes) => return bytes.whole_file().filter(|_| bytes.size() == size),
        };
        let ours = data.metadata().ok()?;
        let names = [Some(&self.data_path), self.promotion.as_ref().map(|(_, to)| &to.data)];
        // Opened read-only, because another process gets it. A name may lead to another file by now.
        let file = names.into_iter().flatten().find_map(|name| {
            let file = File::open(name).ok()?;
            let theirs = file.metadata().ok()?;
            ((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino())).then_some(file)
        })?;
        // The first hole is the implicit one at the end of every file. Offsets of a file fit off_t.
        let hole = lseek(&file, 0, Whence::SeekHole).ok().and_then(|hole| u64::try_from(hole).ok());
        (size > 0 && ours.len() == size && hole == Some(size)).then(|| OwnedFd::from(file))
    }

    /// Whether a reader has the data file as a descriptor of its own.
    pub(super) fn is_handed_out(&self) -> bool {
        lock(&self.backing).strong_count() > 0
    }
}
