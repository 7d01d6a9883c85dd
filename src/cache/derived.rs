//! Derived files of a blob: decoded streams, and offered indexes, for one origin.
//!
//! The name of each file holds the digest and the origin, so that files derived from wrong bytes are removed with
//! them. Files are not opened, and a content that is open stays.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::directory_walk::{UnreadablePolicy, each_entry};
use super::files::BlockPaths;
use super::layout::ItemKind;
use super::quota::CacheQuota;
use super::remove::{RemoveOutcome, occupied, remove};
use crate::oci::Digest;

/// Doubt of the account while an unknown number of bytes is removed.
pub(super) const UNKNOWN_BYTES: u64 = 1 << 30;

/// Derived files of one origin.
pub(super) struct DerivedFiles {
    pub(super) root: PathBuf,
    /// The name of the origin; empty where there is none.
    pub(super) origin: Arc<str>,
    /// Room that accounts for the removed bytes.
    pub(super) room: Arc<CacheQuota>,
}

impl DerivedFiles {
    /// Removes the files derived from the blob `digest` that are not open.
    pub(super) fn forget(&self, digest: &Digest) {
        if self.origin.is_empty() {
            return;
        }
        let removal = self.room.begin_removal(UNKNOWN_BYTES);
        removal.finish(forget(&self.root, digest, &self.origin));
    }
}

/// Removes the files derived from the blob `digest` of origin `place` that are not open; returns the disk bytes
/// freed.
pub(super) fn forget(root: &Path, digest: &Digest, place: &str) -> u64 {
    let offer = root
        .join(ItemKind::Offer.directory())
        .join(digest.algorithm_name())
        .join(format!("{}.{place}", digest.encoded()));
    let found = fs::symlink_metadata(&offer);
    let offered = found.ok().filter(|_| fs::remove_file(&offer).is_ok());
    offered.map_or(0, |found| occupied(&found)) + forget_decoded(root, digest, place)
}

/// Removes the decoded streams alone; returns the disk bytes freed.
pub(super) fn forget_decoded(root: &Path, digest: &Digest, place: &str) -> u64 {
    let mut freed = 0;
    for kind in [ItemKind::Stream, ItemKind::Claim] {
        let directory = root.join(kind.directory()).join(digest.algorithm_name());
        let walked = each_entry(&directory, UnreadablePolicy::Empty, |entry| {
            let name = entry.file_name();
            let is_of_blob = name.to_str().is_some_and(|name| {
                let ends = name.strip_prefix(digest.encoded()).and_then(|rest| rest.strip_prefix('.'));
                ends.is_some_and(|ends| ends.trim_end_matches(".map").rsplit('.').next() == Some(place))
            });
            let path = entry.path();
            let data =
                if path.extension().is_some_and(|end| end == "map") { path.with_extension("") } else { path };
            if is_of_blob && let Ok(RemoveOutcome::Gone(bytes)) = remove(&BlockPaths::of(data)) {
                freed += bytes;
            }
            Ok(ControlFlow::<()>::Continue(()))
        });
        if let Err(error) = walked {
            tracing::debug!(%error, "a directory of derived files was not read to its end");
        }
    }
    freed
}
