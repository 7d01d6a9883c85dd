//! Mount points: checks before a mount, the mount table, and unmounting.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use super::error::{LOOK_TIMEOUT, MountError};
use super::mount_table::{MountEntry, absolute, find, name_of, pinned_at};
use super::options::MountFlags;
use super::{dead_mount, errno, monitor};

/// The type of an automounter's trigger, where a mount appears on first access (autofs(5)).
const AUTOFS: &str = "autofs";

/// Checks that `dir` can be a mount point, and returns its absolute name. Dead mounts of ours are unmounted first. A
/// mount that is not served blocks a thread, which ends with this process.
pub fn check(dir: &Path, allow_content: bool) -> Result<PathBuf, MountError> {
    in_time(dir, move |dir| check_now(dir, allow_content))
}

/// Accesses `dir` on another thread, and waits for as long as a mount may take to answer.
pub(super) fn in_time<T: Send + 'static>(
    dir: &Path,
    look: impl FnOnce(&Path) -> Result<T, MountError> + Send + 'static,
) -> Result<T, MountError> {
    let (answer, answers) = mpsc::channel();
    let owned = dir.to_owned();
    let looking = std::thread::Builder::new().name("look".into()).spawn(move || {
        // The send fails when the access took too long.
        answer.send(look(&owned)).ok();
    });
    let looking = looking.map_err(|source| MountError::Mount { dir: dir.to_owned(), source })?;
    let Ok(answer) = answers.recv_timeout(LOOK_TIMEOUT) else {
        // By the name as written: the path itself is not answering.
        let name = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        let there = find(&name).ok().flatten().map(|entry| (entry.source, entry.fs_type));
        return Err(MountError::Unanswered { dir: dir.to_owned(), there });
    };
    // This process is about to give up rights, and a running thread would keep them.
    looking.join().ok();
    answer
}

fn check_now(dir: &Path, allow_content: bool) -> Result<PathBuf, MountError> {
    let dir = &dead_mount::repair(dir)?;
    let owned = dir.to_owned();
    let failed = |source: io::Error| match source.kind() {
        _ if errno::is_dead_mount(&source) => MountError::BelowStale { dir: owned.clone() },
        io::ErrorKind::NotFound => MountError::Missing { dir: owned.clone() },
        _ => MountError::Mount { dir: owned.clone(), source },
    };
    let meta = fs::metadata(dir).map_err(&failed)?;
    if !meta.is_dir() {
        return Err(MountError::NotADirectory { dir: dir.to_owned() });
    }
    let dir = fs::canonicalize(dir).map_err(&failed)?;
    refuse_mounted(&dir)?;
    if !nix::unistd::geteuid().is_root() && nix::unistd::access(&dir, nix::unistd::AccessFlags::W_OK).is_err()
    {
        return Err(MountError::NotOurs { dir });
    }
    if !allow_content && fs::read_dir(&dir).map_err(&failed)?.next().is_some() {
        return Err(MountError::NotEmpty { dir });
    }
    Ok(dir)
}

/// The absolute name of `dir` with symbolic links followed; `None` if that fails or takes too long.
pub fn resolved(dir: &Path) -> Option<PathBuf> {
    in_time(dir, |dir| Ok(fs::canonicalize(dir).ok())).ok().flatten()
}

/// As [`check`], for a mount over a dead mount of ours, if there is one. A container that was started with the dead
/// mount then sees the new one through mount propagation.
pub fn check_over_dead(dir: &Path, allow_content: bool) -> Result<PathBuf, MountError> {
    match in_time(dir, dead_mount::clear_above)? {
        Some(dir) => Ok(dir),
        None => check(dir, allow_content),
    }
}

/// The absolute name of `dir` just before the mount. The directory of a monitor was checked before; this process
/// itself may not access it any more.
pub(super) fn take(dir: &Path, flags: MountFlags) -> Result<PathBuf, MountError> {
    if flags.over_dead
        && let Some(dir) = dead_mount::clear_above(dir)?
    {
        return Ok(dir);
    }
    match absolute(dir) {
        Ok(dir) if monitor::of(&dir).is_some() => refuse_mounted(&dir).map(|()| dir),
        _ => check(dir, flags.nonempty),
    }
}

fn refuse_mounted(dir: &Path) -> Result<(), MountError> {
    match find(dir)? {
        None => Ok(()),
        // The trigger of an automounter, which expects a mount above it.
        Some(MountEntry { fs_type, .. }) if fs_type == AUTOFS => Ok(()),
        Some(MountEntry { source, fs_type, .. }) => {
            Err(MountError::AlreadyMounted { dir: dir.to_owned(), source_name: source, fs_type })
        }
    }
}

/// The reference mounted at `dir`, if it is a mount of ours. Its digest is included if the mount answers.
pub fn reference_at(dir: &Path) -> Result<Option<String>, MountError> {
    let Some(entry) = find(&name_of(dir)?)?.filter(MountEntry::is_ours) else { return Ok(None) };
    let asked = entry.clone();
    let pinned = in_time(&entry.dir, move |_| Ok(pinned_at(&asked)));
    Ok(Some(pinned.ok().flatten().unwrap_or(entry.source)))
}
