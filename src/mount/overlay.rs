//! Writable overlay over a mount, visible to one process and its children.
//!
//! The lower mount is not changed. The overlay lives in a mount namespace of its own, so the kernel removes it with
//! the last process in the namespace, however that process ends.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags};

use super::errno;
use super::error::MountError;

/// A writable overlay over the mount. Dropping it unmounts it and deletes its content.
pub struct WritableOverlay {
    /// The upper layer.
    _upper: OverlayUpper,
    /// The root of the overlay.
    root: TemporaryDirectory,
}

/// The directory of the upper layer.
struct OverlayUpper {
    dir: TemporaryDirectory,
    /// Whether a tmpfs is mounted there.
    in_memory: bool,
}

impl WritableOverlay {
    /// Creates an overlay over `lower`, with its directories in `room`, which has no `rw` and no `root`. From then on
    /// this thread has a mount namespace of its own, so it has to start the processes that use the overlay. Unmounts
    /// outside still propagate into the namespace.
    pub fn over(lower: &Path, room: &Path) -> Result<Self, MountError> {
        own_mounts().map_err(|errno| match errno::is_refusal(errno) {
            true => MountError::NoNamespace,
            false => MountError::Overlay { source: errno.into() },
        })?;
        let failed = |source: io::Error| MountError::Overlay { source };
        let mut upper =
            OverlayUpper { dir: TemporaryDirectory::new(room, "rw").map_err(failed)?, in_memory: false };
        let root = TemporaryDirectory::new(room, "root").map_err(failed)?;
        upper.prepare(lower).map_err(failed)?;
        if let Err(errno) = lay(lower, &upper.dir.0, &root.0) {
            // An overlay cannot be the upper layer of another; the temporary directory of a container often lies on
            // one.
            tracing::debug!(%errno, "the directory cannot hold a writable layer; using memory");
            upper.move_to_memory().map_err(failed)?;
            upper.prepare(lower).map_err(failed)?;
            lay(lower, &upper.dir.0, &root.0).map_err(|errno| failed(errno.into()))?;
        }
        Ok(Self { _upper: upper, root })
    }

    /// The mount point of the overlay.
    pub fn dir(&self) -> &Path {
        &self.root.0
    }
}

impl Drop for WritableOverlay {
    fn drop(&mut self) {
        detach(&self.root.0);
    }
}

/// Detaches a mount from the tree. Processes of the command that still use it delay its end.
fn detach(dir: &Path) {
    if let Err(error) = nix::mount::umount2(dir, MntFlags::MNT_DETACH) {
        tracing::warn!(%error, dir = %dir.display(), "cannot unmount the writable layer");
    }
}

impl OverlayUpper {
    /// Creates the directories of an upper layer. Its root gets owner and mode of the lower root.
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

impl Drop for OverlayUpper {
    fn drop(&mut self) {
        if self.in_memory {
            // Also when mounting the overlay failed in the end.
            detach(&self.dir.0);
        } else if let Err(error) = self.clear() {
            tracing::warn!(%error, dir = %self.dir.0.display(), "cannot remove the files that the command wrote");
        }
    }
}

fn own_mounts() -> nix::Result<()> {
    let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    nix::mount::mount(None::<&str>, "/", None::<&str>, slave, None::<&str>)
}

/// Mounts an overlay of both at `root`. In a user namespace its marks are extended attributes of the `user.` class.
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

/// A path as an option of an overlay; separators of options and layers get a backslash.
fn escaped(path: &Path) -> Vec<u8> {
    let bytes = path.as_os_str().as_bytes().iter();
    bytes.flat_map(|byte| b"\\".iter().filter(|_| b"\\:,".contains(byte)).chain([byte])).copied().collect()
}

/// A directory, removed on drop.
struct TemporaryDirectory(PathBuf);

impl TemporaryDirectory {
    fn new(room: &Path, name: &str) -> io::Result<Self> {
        let dir = room.join(name);
        fs::create_dir(&dir)?;
        Ok(Self(dir))
    }
}

impl Drop for TemporaryDirectory {
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
