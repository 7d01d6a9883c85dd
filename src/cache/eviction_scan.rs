//! Eviction scan: counts the disk usage of the cache directory and finds its least recently used files.
//!
//! It removes and locks nothing, and no mount or read waits for it. It looks at every name and opens no file, and
//! holds only the names of the oldest contents. The modification time of a sidecar is the last use of its content,
//! because the last use is written there.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::directory_walk::{self, CacheSection, UnreadablePolicy, is_counted};
use super::files::BlockPaths;
use super::layout::MAP_EXTENSION;
use super::remove::{occupied, on_disk};

/// Number of names held, which bounds memory for a directory of any size; once they are used up, a new count follows.
const MAX_SCANNED_NAMES: usize = 4096;

/// Purpose of a scan.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ScanPurpose {
    /// To list eviction candidates.
    List,
    /// Also to correct the account.
    Account,
}

/// Something that can be removed as a whole.
pub(super) struct Victim {
    /// When it was last used.
    pub(super) used: SystemTime,
    pub(super) what: VictimKind,
}

impl Victim {
    /// Disk bytes of its files now.
    pub(super) fn on_disk(&self) -> u64 {
        match &self.what {
            VictimKind::Content(files) => on_disk(&files.data) + on_disk(&files.map),
            VictimKind::Small(path) => on_disk(path),
        }
    }
}

/// The files of a [`Victim`].
pub(super) enum VictimKind {
    /// A data file and its sidecar.
    Content(BlockPaths),
    /// A document, an index, an offer or a trace.
    Small(PathBuf),
}

/// Result of a count.
#[derive(Default)]
pub(super) struct EvictionScan {
    /// Disk bytes of the directory.
    pub(super) used: u64,
    /// Least recently used contents, the oldest one last.
    pub(super) contents: Vec<Victim>,
    /// Least recently used small files, the oldest one last.
    pub(super) small: Vec<Victim>,
}

/// The oldest names of a walk, and no more than [`MAX_SCANNED_NAMES`] of them.
#[derive(Default)]
struct OldestFiles(BinaryHeap<(SystemTime, PathBuf)>);

impl OldestFiles {
    fn add(&mut self, used: SystemTime, path: PathBuf) {
        self.0.push((used, path));
        if self.0.len() > MAX_SCANNED_NAMES {
            self.0.pop();
        }
    }

    fn newest_first(self, what: impl Fn(PathBuf) -> VictimKind) -> Vec<Victim> {
        let mut all = self.0.into_vec();
        all.sort_unstable_by_key(|one| Reverse(one.0));
        all.into_iter().map(|(used, path)| Victim { used, what: what(path) }).collect()
    }
}

/// Counts everything below `root`. A file that appears or goes meanwhile may or may not be counted, and an unreadable
/// directory counts as empty.
pub(super) fn count(root: &Path) -> EvictionScan {
    let mut used = on_disk(root);
    let (mut contents, mut small) = (OldestFiles::default(), OldestFiles::default());
    let walked = directory_walk::walk(root, UnreadablePolicy::Empty, |section, entry| {
        let go_on = ControlFlow::<()>::Continue(());
        let is_ours = match section {
            CacheSection::Root => entry.file_name().to_str().is_some_and(is_counted),
            CacheSection::Private => false,
            _ => true,
        };
        let Some(found) =
            entry.metadata().ok().filter(|found| is_ours && (found.is_file() || found.is_dir()))
        else {
            return Ok(go_on);
        };
        used += occupied(&found);
        let (CacheSection::Kind(kind) | CacheSection::Contents(kind, _) | CacheSection::Foreign(kind)) =
            section
        else {
            // A lock file has no content, and processes find each other by its name.
            return Ok(go_on);
        };
        if !found.is_file() {
            return Ok(go_on);
        }
        let (path, last_use) = (entry.path(), found.modified().unwrap_or(SystemTime::UNIX_EPOCH));
        if kind.paired().is_none() {
            small.add(last_use, path);
        } else if path.extension().is_some_and(|end| end == MAP_EXTENSION) {
            // A file with a sidecar is as old as the sidecar; data without one belongs to no process, and is as old
            // as itself.
            contents.add(last_use, path.with_extension(""));
        } else if fs::symlink_metadata(BlockPaths::of(path.clone()).map).is_err() {
            contents.add(last_use, path);
        }
        Ok(go_on)
    });
    if let Err(error) = walked {
        tracing::debug!(%error, "the count of the cache is not complete");
    }
    EvictionScan {
        used,
        contents: contents.newest_first(|data| VictimKind::Content(BlockPaths::of(data))),
        small: small.newest_first(VictimKind::Small),
    }
}
