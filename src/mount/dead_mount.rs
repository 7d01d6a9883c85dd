//! Dead mounts: detecting and removing mounts whose daemon is gone.
//!
//! A mount that answers, or one of another program, is not touched. The kernel keeps a dead mount and answers every
//! request with ENOTCONN, so readers see an error instead of an empty directory. Only a new mount at the same
//! directory shows that the old one is obsolete. Another mount namespace, as of a container, may have a copy of the
//! dead mount; it sees a new mount only if that lies over the dead one. For such copies one dead mount can stay
//! below.

use std::path::{Path, PathBuf};

use nix::sys::statfs::{FsType, statfs};

use super::error::{MountError, UnmountMode};
use super::mount_table;
use super::{errno, privileged};

/// How many dead mounts are removed from one directory. A stack of them arises when a mount was made while its
/// directory was hidden below another mount, which died as well.
const MAX_STACKED: usize = 64;

/// The state of a directory as a mount point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DirectoryMount {
    /// No mount.
    Nothing,
    /// A served mount of ours, with its reference.
    Alive(String),
    /// A dead mount of ours, with its reference.
    Dead(String),
    /// A mount of another program, with its type.
    Foreign(String),
}

/// The state of `dir`. Queries the server of the mount, so it can block. A missing directory counts as no mount.
pub fn standing(dir: &Path) -> Result<DirectoryMount, MountError> {
    let dead = is_dead(dir);
    let name = match mount_table::absolute(dir) {
        Ok(name) => name,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(DirectoryMount::Nothing),
        Err(_) => name_of(dir)?,
    };
    Ok(match mount_table::find(&name)? {
        None if dead => return Err(MountError::BelowStale { dir: name }),
        None => DirectoryMount::Nothing,
        Some(entry) if !entry.is_ours() => DirectoryMount::Foreign(entry.fs_type),
        Some(entry) if dead => DirectoryMount::Dead(entry.source),
        Some(entry) => DirectoryMount::Alive(mount_table::pinned_at(&entry).unwrap_or(entry.source)),
    })
}

/// Usage of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilesystemUsage {
    /// Bytes: total and free.
    pub bytes: (u64, u64),
    /// Files: total and free.
    pub files: (u64, u64),
}

/// Usage of the file system at `dir`. Queries its server, so it can block.
pub fn filling(dir: &Path) -> Result<FilesystemUsage, MountError> {
    let stats =
        statfs(dir).map_err(|errno| MountError::Mount { dir: dir.to_owned(), source: errno.into() })?;
    let block = u64::try_from(stats.block_size()).unwrap_or(0);
    Ok(FilesystemUsage {
        bytes: (stats.blocks().saturating_mul(block), stats.blocks_available().saturating_mul(block)),
        files: (stats.files(), stats.files_free()),
    })
}

/// Unmounts dead mounts of ours at `dir` except the lowest, and returns the absolute name if that one is left to be
/// mounted over.
pub(super) fn clear_above(dir: &Path) -> Result<Option<PathBuf>, MountError> {
    if !is_dead(dir) {
        return Ok(None);
    }
    let name = name_of(dir)?;
    for _ in 0..MAX_STACKED {
        let there: Vec<_> = mount_table::table()?.into_iter().filter(|entry| entry.dir == name).collect();
        match there.last() {
            Some(top) if top.is_ours() && is_dead(&name) => {}
            _ => return Ok(None),
        }
        if there.len() == 1 {
            return Ok(Some(name));
        }
        tracing::warn!(dir = %name.display(), "unmounting a dead mount above another mount");
        privileged::detach(&name, UnmountMode::Lazy)?;
    }
    Ok(None)
}

/// Unmounts dead mounts of ours at `dir`, and returns the name to continue with: the absolute one, if there were any.
pub(super) fn repair(dir: &Path) -> Result<PathBuf, MountError> {
    let mut name = dir.to_owned();
    for _ in 0..MAX_STACKED {
        if !is_dead(&name) {
            return Ok(name);
        }
        name = name_of(dir)?;
        let Some(dead) = mount_table::find(&name)? else {
            // The dead mount is above the directory, on its path.
            return Err(MountError::BelowStale { dir: name });
        };
        if !dead.is_ours() {
            return Err(MountError::Stale { dir: name, source_name: dead.source, fs_type: dead.fs_type });
        }
        // Another process may be repairing the same directory, and the mount there may be alive by now.
        if is_dead(&name) && mount_table::find(&name)?.as_ref() == Some(&dead) {
            tracing::warn!(dir = %name.display(), source = dead.source, "unmounting a dead mount");
            privileged::detach(&name, UnmountMode::Lazy)?;
        }
    }
    Ok(name)
}

/// Uses statfs, which always asks the server; cached attributes of a directory would be answered without one. EROFS
/// answers it without the server of its file, so the record of the mount decides.
pub(super) fn is_dead(dir: &Path) -> bool {
    /// `EROFS_SUPER_MAGIC_V1` of `linux/magic.h`.
    const EROFS_MAGIC: FsType = FsType(0xe0f5_e1e2);
    match statfs(dir) {
        Err(errno) => errno::is_dead_mount(&errno.into()),
        Ok(found) if found.filesystem_type() == EROFS_MAGIC => {
            let entry = mount_table::absolute(dir).ok().and_then(|name| mount_table::find(&name).ok()?);
            entry.is_some_and(|entry| privileged::is_abandoned(&entry))
        }
        Ok(_) => false,
    }
}

/// The absolute name of a directory that fails to answer.
fn name_of(dir: &Path) -> Result<PathBuf, MountError> {
    mount_table::absolute(dir).map_err(|source| match errno::is_dead_mount(&source) {
        true => MountError::BelowStale { dir: dir.to_owned() },
        false => MountError::Mount { dir: dir.to_owned(), source },
    })
}
