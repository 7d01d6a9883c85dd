//! Directory walk: every entry of a cache directory, with the section that it lies in.
//!
//! The only reader of these directories: the inventory, the count of usage and the collection of garbage follow it. It
//! opens no file and follows no link. One entry is held at a time.

use std::fs::{self, DirEntry};
use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use super::CacheError;
use super::layout::{ALGORITHMS, ItemKind};

/// The directory of lock files.
const LOCKS: &str = "locks";
/// The directory of files that are being written.
const TEMPORARY: &str = "tmp";
/// The directory of private caches.
const PRIVATE: &str = "private";
/// The file with the usage of the cache.
const ACCOUNT: &str = "account";

/// The directory that an entry lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CacheSection {
    /// `v1` itself.
    Root,
    /// The directory of a kind.
    Kind(ItemKind),
    /// The contents of a kind by one algorithm.
    Contents(ItemKind, &'static str),
    /// A directory of a kind that is no algorithm.
    Foreign(ItemKind),
    /// The directory of locks.
    Locks,
    /// The locks of contents by one algorithm.
    LockFiles(&'static str),
    /// Files that are being written.
    Temporary,
    /// Private caches.
    Private,
}

/// Whether `name` is one that `v1` has.
pub(super) fn is_of_root(name: &str) -> bool {
    is_counted(name) || name == PRIVATE
}

/// Whether the entry `name` of `v1` belongs to the usage of the cache: private caches have accounts of their own.
pub(super) fn is_counted(name: &str) -> bool {
    [LOCKS, TEMPORARY, ACCOUNT].contains(&name) || ItemKind::ALL.iter().any(|kind| kind.directory() == name)
}

/// What a walk does about a directory that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnreadablePolicy {
    /// Fail.
    Fail,
    /// Take it as empty.
    Empty,
}

/// Visits the entries of one directory, which may be missing, until `visit` breaks off.
pub(super) fn each_entry<B>(
    directory: &Path,
    unreadable: UnreadablePolicy,
    mut visit: impl FnMut(&DirEntry) -> Result<ControlFlow<B>, CacheError>,
) -> Result<Option<B>, CacheError> {
    let fail = |error| CacheError::io("list", directory, error);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(_) if unreadable == UnreadablePolicy::Empty => return Ok(None),
        Err(error) => return Err(fail(error)),
    };
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(_) if unreadable == UnreadablePolicy::Empty => continue,
            Err(error) => return Err(fail(error)),
        };
        if let ControlFlow::Break(broken) = visit(&entry)? {
            return Ok(Some(broken));
        }
    }
    Ok(None)
}

/// Visits everything below `root`, until `visit` breaks off. An entry that appears or goes meanwhile may or may not be
/// visited.
pub(super) fn walk<B>(
    root: &Path,
    unreadable: UnreadablePolicy,
    mut visit: impl FnMut(CacheSection, &DirEntry) -> Result<ControlFlow<B>, CacheError>,
) -> Result<Option<B>, CacheError> {
    let mut sections = vec![(CacheSection::Root, root.to_owned())];
    for kind in ItemKind::ALL {
        let directory = root.join(kind.directory());
        sections.extend(ALGORITHMS.map(|name| (CacheSection::Contents(kind, name), directory.join(name))));
        sections.push((CacheSection::Kind(kind), directory));
    }
    let locks = root.join(LOCKS);
    sections.extend(ALGORITHMS.map(|name| (CacheSection::LockFiles(name), locks.join(name))));
    sections.push((CacheSection::Locks, locks));
    sections.push((CacheSection::Temporary, root.join(TEMPORARY)));
    sections.push((CacheSection::Private, root.join(PRIVATE)));
    for (section, directory) in sections {
        // Directories that are no algorithm; the cache makes none.
        let mut foreign = Vec::new();
        let listed = each_entry(&directory, unreadable, |entry| {
            if let CacheSection::Kind(kind) = section
                && is_foreign_directory(entry, unreadable)?
            {
                foreign.push((CacheSection::Foreign(kind), entry.path()));
            }
            visit(section, entry)
        })?;
        if let Some(broken) = listed {
            return Ok(Some(broken));
        }
        for (section, directory) in foreign {
            if let Some(broken) = each_entry(&directory, unreadable, |entry| visit(section, entry))? {
                return Ok(Some(broken));
            }
        }
    }
    Ok(None)
}

/// Whether an entry in the directory of a kind is a directory that is no algorithm.
fn is_foreign_directory(entry: &DirEntry, unreadable: UnreadablePolicy) -> Result<bool, CacheError> {
    if entry.file_name().to_str().is_some_and(|name| ALGORITHMS.contains(&name)) {
        return Ok(false);
    }
    match entry.file_type() {
        Ok(found) => Ok(found.is_dir()),
        Err(_) if unreadable == UnreadablePolicy::Empty => Ok(false),
        Err(error) => Err(CacheError::io("stat", &entry.path(), error)),
    }
}

/// The name of a plain file or directory; `None` for anything else.
pub(super) fn plain_name(entry: &DirEntry) -> Option<String> {
    let is_plain = entry.file_type().is_ok_and(|kind| kind.is_file() || kind.is_dir());
    entry.file_name().into_string().ok().filter(|_| is_plain)
}
