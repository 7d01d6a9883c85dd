//! A layer over a mount that takes what is written, seen by one process and those that it starts.
//!
//! Never changes what is below. The idea: it is laid in a mount namespace of its own, so that the kernel clears it away with the last
//! process in it, whatever ends that.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};

use super::errno;
use super::mountpoint::MountError;

/// A layer over the mount that takes what is written. It is taken away, and its content removed, when this is dropped.
pub struct Overlay {
    /// The changes.
    _upper: Upper,
    /// Where the command looks.
    root: Made,
}

/// Where changes go.
struct Upper {
    dir: Made,
    /// Whether a file system in memory is mounted there.
    in_memory: bool,
}

impl Overlay {
    /// Lays one over `lower`, with what it needs in `room`, an empty directory or one without `rw` and `root`. From then on this thread,
    /// which has to be the one that starts whoever is to see it, has mounts of its own; what is unmounted elsewhere goes here too.
    pub fn over(lower: &Path, room: &Path) -> Result<Self, MountError> {
        own_mounts().map_err(|errno| match errno::is_refusal(errno) {
            true => MountError::NoNamespace,
            false => MountError::Overlay { source: errno.into() },
        })?;
        let failed = |source: io::Error| MountError::Overlay { source };
        let mut upper = Upper { dir: Made::new(room, "rw").map_err(failed)?, in_memory: false };
        let root = Made::new(room, "root").map_err(failed)?;
        upper.prepare(lower).map_err(failed)?;
        if let Err(errno) = lay(lower, &upper.dir.0, &root.0) {
            // A layer's changes cannot be kept on another overlay, as the temporary directory of a container often is.
            tracing::debug!(%errno, "the directory cannot hold a layer, memory does");
            upper.move_to_memory().map_err(failed)?;
            upper.prepare(lower).map_err(failed)?;
            lay(lower, &upper.dir.0, &root.0).map_err(|errno| failed(errno.into()))?;
        }
        Ok(Self { _upper: upper, root })
    }

    /// Where both are seen as one.
    pub fn dir(&self) -> &Path {
        &self.root.0
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        detach(&self.root.0);
    }
}

/// Takes a mount out of the tree. What processes of the command still use of it goes when they end.
fn detach(dir: &Path) {
    if let Err(error) = nix::mount::umount2(dir, MntFlags::MNT_DETACH) {
        tracing::warn!(%error, dir = %dir.display(), "cannot take the writable layer away");
    }
}

impl Upper {
    /// Makes the directories that a layer needs. Its root looks like that of the mount.
    fn prepare(&self, lower: &Path) -> io::Result<()> {
        let like = fs::metadata(lower)?;
        let upper = self.dir.0.join("upper");
        fs::create_dir(&upper)?;
        fs::create_dir(self.dir.0.join("work"))?;
        std::os::unix::fs::chown(&upper, Some(like.uid()), Some(like.gid()))?;
        fs::set_permissions(&upper, fs::Permissions::from_mode(like.mode() & 0o7777))
    }

    fn move_to_memory(&mut self) -> io::Result<()> {
        self.clear()?;
        nix::mount::mount(
            Some("tmpfs"),
            &self.dir.0,
            Some("tmpfs"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            Some("mode=0700"),
        )?;
        self.in_memory = true;
        Ok(())
    }

    fn clear(&self) -> io::Result<()> {
        for name in ["upper", "work"] {
            match fs::remove_dir_all(self.dir.0.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Drop for Upper {
    fn drop(&mut self) {
        if self.in_memory {
            // Also when nothing could be laid over it in the end.
            detach(&self.dir.0);
        } else if let Err(error) = self.clear() {
            tracing::warn!(%error, dir = %self.dir.0.display(), "what the command wrote is left");
        }
    }
}

fn own_mounts() -> nix::Result<()> {
    let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    nix::mount::mount(None::<&str>, "/", None::<&str>, slave, None::<&str>)
}

/// Mounts an overlay of both at `root`. Root of a user namespace may keep its marks only where users may.
fn lay(lower: &Path, changes: &Path, root: &Path) -> nix::Result<()> {
    let mut options = b"lowerdir=".to_vec();
    options.extend(escaped(lower));
    for (option, name) in [(&b",upperdir="[..], "upper"), (b",workdir=", "work")] {
        options.extend_from_slice(option);
        options.extend(escaped(&changes.join(name)));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let attempt = |options: &[u8]| {
        nix::mount::mount(Some("overlay"), root, Some("overlay"), flags, Some(OsStr::from_bytes(options)))
    };
    attempt(&options).or_else(|first| {
        options.extend_from_slice(b",userxattr");
        attempt(&options).map_err(|_| first)
    })
}

/// A path as an option of an overlay: what separates options and layers has a backslash before it.
fn escaped(path: &Path) -> Vec<u8> {
    let bytes = path.as_os_str().as_bytes().iter();
    bytes.flat_map(|byte| b"\\".iter().filter(|_| b"\\:,".contains(byte)).chain([byte])).copied().collect()
}

/// A directory, removed when it is not needed any more.
struct Made(PathBuf);

impl Made {
    fn new(room: &Path, name: &str) -> io::Result<Self> {
        let dir = room.join(name);
        fs::create_dir(&dir)?;
        Ok(Self(dir))
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.0) {
            tracing::warn!(%error, dir = %self.0.display(), "cannot remove a directory");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    #[test]
    fn a_path_with_separators_is_one_directory_of_an_overlay() {
        assert_eq!(OsString::from_vec(escaped(Path::new("/a:b,c\\d"))), "/a\\:b\\,c\\\\d");
    }
}
