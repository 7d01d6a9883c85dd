//! Census: counts the disk usage of the cache directory and finds its least recently used files.
//!
//! It removes and locks nothing, and no mount or read waits for it. It looks at every name and opens no file, and
//! holds only the names of the oldest contents. The modification time of a sidecar is the last use of its content,
//! because the last use is written there.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::files::BlockPaths;
use super::layout::ItemKind;
use super::remove::occupied;

/// Number of names held, which bounds memory for a directory of any size; once they are used up, a new count follows.
const MAX_SCANNED_NAMES: usize = 4096;

/// Something that can be removed as a whole.
pub(super) struct Victim {
    /// When it was last used.
    pub(super) used: SystemTime,
    pub(super) what: VictimKind,
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

/// Counts everything below `root`. A file that appears or goes meanwhile may or may not be counted.
pub(super) fn count(root: &Path) -> EvictionScan {
    let mut used = 0;
    let mut contents = OldestFiles::default();
    let (paired, alone): (Vec<_>, Vec<_>) =
        ItemKind::ALL.into_iter().partition(|kind| kind.paired().is_some());
    for kind in paired {
        each_file(&root.join(kind.directory()), &mut |path, found| {
            used += occupied(found);
            if !found.is_file() {
                return;
            }
            // A file with a sidecar is as old as the sidecar; data without one belongs to no process, and is as old
            // as itself.
            let last_use = found.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            if path.extension().is_some_and(|end| end == "map") {
                contents.add(last_use, path.with_extension(""));
            } else if fs::symlink_metadata(BlockPaths::of(path.clone()).map).is_err() {
                contents.add(last_use, path);
            }
        });
    }
    let mut small = OldestFiles::default();
    for kind in alone {
        each_file(&root.join(kind.directory()), &mut |path, found| {
            used += occupied(found);
            if found.is_file() {
                small.add(found.modified().unwrap_or(SystemTime::UNIX_EPOCH), path);
            }
        });
    }
    // A lock file has no content, and processes find each other by its name.
    for other in ["locks", "tmp"] {
        each_file(&root.join(other), &mut |_, found| used += occupied(found));
    }
    for own in [root.to_owned(), root.join("account")] {
        used += fs::symlink_metadata(own).map_or(0, |found| occupied(&found));
    }
    EvictionScan {
        used,
        contents: contents.newest_first(|data| VictimKind::Content(BlockPaths::of(data))),
        small: small.newest_first(VictimKind::Small),
    }
}

/// Calls `note` for `dir`, every directory in it, and every file in those. An unreadable directory counts as empty.
fn each_file(dir: &Path, note: &mut dyn FnMut(PathBuf, &fs::Metadata)) {
    let Ok(own) = fs::symlink_metadata(dir) else { return };
    note(dir.to_owned(), &own);
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let Ok(found) = entry.metadata() else { continue };
        let path = entry.path();
        if found.is_file() {
            note(path, &found);
        } else if found.is_dir() {
            note(path.clone(), &found);
            // One directory for each algorithm, and nothing below it.
            for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
                if let Ok(found) = entry.metadata()
                    && found.is_file()
                {
                    note(entry.path(), &found);
                }
            }
        }
    }
}
