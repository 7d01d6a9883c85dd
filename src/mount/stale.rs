//! Mount points whose daemon is gone: what a crash leaves in the tree, and how the next mount takes it away.
//!
//! Never touches a mount that answers, nor one of another program. The idea: the kernel keeps a dead mount and answers every
//! request with ENOTCONN, so that readers see that something is wrong instead of an empty directory; only who mounts anew at the
//! same place says by that that the old one is not wanted any more.

use std::path::{Path, PathBuf};

use nix::sys::statfs::statfs;

use super::mountpoint::{self, FS_TYPE, MountError, Unmount};
use super::{errno, kernel};

/// How many dead mounts are taken away from one directory. More than one are there when a mount was made with the directory
/// hidden below another, which then died as well.
const MAX_STACKED: usize = 64;

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
fn is_dead(dir: &Path) -> bool {
    statfs(dir).is_err_and(|error| errno::is_dead_mount(&error.into()))
}

/// The absolute name of a directory that cannot be looked at.
fn name_of(dir: &Path) -> Result<PathBuf, MountError> {
    mountpoint::absolute(dir).map_err(|source| match errno::is_dead_mount(&source) {
        true => MountError::BelowStale { dir: dir.to_owned() },
        false => MountError::Mount { dir: dir.to_owned(), source },
    })
}
