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
use super::layout::{ItemKind, MAP_EXTENSION};
use super::quota::CacheQuota;
use super::remove::{RemoveOutcome, on_disk, remove};
use super::usage::UsageFile;
use crate::oci::Digest;

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
        forget(&self.root, digest, &self.origin, &self.room.account);
    }
}

/// Removes the files derived from the blob `digest` of origin `place` that are not open; returns the disk bytes
/// freed, which it subtracted from the account.
pub(super) fn forget(root: &Path, digest: &Digest, place: &str, account: &UsageFile) -> u64 {
    let offer = root
        .join(ItemKind::Offer.directory())
        .join(digest.algorithm_name())
        .join(format!("{}.{place}", digest.encoded()));
    let offered = on_disk(&offer);
    let removal = account.begin_removal(offered);
    let offered = if fs::remove_file(&offer).is_ok() { offered } else { 0 };
    removal.finish(offered);
    offered + forget_decoded(root, digest, place, account)
}

/// Removes the decoded streams alone; returns the disk bytes freed, which it subtracted from the account.
pub(super) fn forget_decoded(root: &Path, digest: &Digest, place: &str, account: &UsageFile) -> u64 {
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
            let data = if path.extension().is_some_and(|end| end == MAP_EXTENSION) {
                path.with_extension("")
            } else {
                path
            };
            if is_of_blob {
                let files = BlockPaths::of(data);
                let removal = account.begin_removal(files.on_disk());
                let gone = match remove(&files) {
                    Ok(RemoveOutcome::Gone(bytes)) => bytes,
                    Ok(RemoveOutcome::InUse | RemoveOutcome::Absent) | Err(_) => 0,
                };
                removal.finish(gone);
                freed += gone;
            }
            Ok(ControlFlow::<()>::Continue(()))
        });
        if let Err(error) = walked {
            tracing::debug!(%error, "a directory of derived files was not read to its end");
        }
    }
    freed
}
