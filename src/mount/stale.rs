//! Mount points whose daemon is gone: what a crash leaves in the tree, and how the next mount takes it away.
//!
//! Never touches a mount that answers, nor one of another program. The idea: the kernel keeps a dead mount and answers every
//! request with ENOTCONN, so that readers see that something is wrong instead of an empty directory; only who mounts anew at the
//! same place says by that that the old one is not wanted any more. Who has a copy of the dead mount in another mount namespace,
//! as a container has, sees of a new one only what is mounted over the dead one: for those one dead mount can be left below.

use std::path::{Path, PathBuf};

use nix::sys::statfs::statfs;

use super::mountpoint::{self, FS_TYPE, MountError, Unmount};
use super::{errno, kernel};

/// How many dead mounts are taken away from one directory. More than one are there when a mount was made with the directory
/// hidden below another, which then died as well.
const MAX_STACKED: usize = 64;

/// What is at a directory, as far as mounts go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No mount.
    Nothing,
    /// A mount of ours that answers, of this reference.
    Alive(String),
    /// A mount of ours that nobody serves any more, of this reference.
    Dead(String),
    /// A mount of another program, of this type.
    Foreign(String),
}

/// What is at `dir`. Asks who serves it, and so can take as long as they do. A directory that is not there has no mount.
pub fn standing(dir: &Path) -> Result<Standing, MountError> {
    let dead = is_dead(dir);
    let name = match mountpoint::absolute(dir) {
        Ok(name) => name,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Standing::Nothing),
        Err(_) => name_of(dir)?,
    };
    Ok(match mountpoint::find(&name)? {
        None if dead => return Err(MountError::BelowStale { dir: name }),
        None => Standing::Nothing,
        Some(entry) if entry.fs_type != FS_TYPE => Standing::Foreign(entry.fs_type),
        Some(entry) if dead => Standing::Dead(entry.source),
        Some(entry) => Standing::Alive(mountpoint::pinned_at(&name).unwrap_or(entry.source)),
    })
}

/// How full the file system at `dir` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filling {
    /// Bytes: all there are, and those that are left.
    pub bytes: (u64, u64),
    /// Files: all there are, and those that are left.
    pub files: (u64, u64),
}

/// How full the mount at `dir` is. Asks who serves it.
pub fn filling(dir: &Path) -> Result<Filling, MountError> {
    let told =
        statfs(dir).map_err(|errno| MountError::Mount { dir: dir.to_owned(), source: errno.into() })?;
    let block = u64::try_from(told.block_size()).unwrap_or(0);
    Ok(Filling {
        bytes: (told.blocks().saturating_mul(block), told.blocks_available().saturating_mul(block)),
        files: (told.files(), told.files_free()),
    })
}

/// Takes dead mounts of ours away from `dir` but for the lowest, and gives its absolute name if that one is there to be mounted
/// over.
pub(super) fn clear_above(dir: &Path) -> Result<Option<PathBuf>, MountError> {
    if !is_dead(dir) {
        return Ok(None);
    }
    let name = name_of(dir)?;
    for _ in 0..MAX_STACKED {
        let there: Vec<_> = mountpoint::table()?.into_iter().filter(|entry| entry.dir == name).collect();
        match there.last() {
            Some(top) if top.fs_type == FS_TYPE && is_dead(&name) => {}
            _ => return Ok(None),
        }
        if there.len() == 1 {
            return Ok(Some(name));
        }
        tracing::warn!(dir = %name.display(), "a mount whose daemon is gone is taken away from above another");
        kernel::unmount(&name, Unmount::Lazy)?;
    }
    Ok(None)
}

/// Takes dead mounts of ours away from `dir`, and gives the name to go on with: the absolute one, if there were any.
pub(super) fn repair(dir: &Path) -> Result<PathBuf, MountError> {
    let mut name = dir.to_owned();
    for _ in 0..MAX_STACKED {
        if !is_dead(&name) {
            return Ok(name);
        }
        name = name_of(dir)?;
        let Some(dead) = mountpoint::find(&name)? else {
            // Not the directory is dead, but something on the way to it.
            return Err(MountError::BelowStale { dir: name });
        };
        if dead.fs_type != FS_TYPE {
            return Err(MountError::Stale { dir: name, source_name: dead.source, fs_type: dead.fs_type });
        }
        // Somebody else may be repairing the same place, and what is there by now may be alive.
        if is_dead(&name) && mountpoint::find(&name)?.as_ref() == Some(&dead) {
            tracing::warn!(dir = %name.display(), source = dead.source, "a mount whose daemon is gone is taken away");
            kernel::unmount(&name, Unmount::Lazy)?;
        }
    }
    Ok(name)
}

/// What the kernel knows of a directory it goes on telling when nobody serves the mount any more; how full the file system is it
/// always asks.
pub(super) fn is_dead(dir: &Path) -> bool {
    statfs(dir).is_err_and(|error| errno::is_dead_mount(&error.into()))
}

/// The absolute name of a directory that cannot be looked at.
fn name_of(dir: &Path) -> Result<PathBuf, MountError> {
    mountpoint::absolute(dir).map_err(|source| match errno::is_dead_mount(&source) {
        true => MountError::BelowStale { dir: dir.to_owned() },
        false => MountError::Mount { dir: dir.to_owned(), source },
    })
}
