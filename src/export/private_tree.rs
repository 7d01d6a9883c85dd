//! Private staging directory: no other user can enter the tree while it is written.
//!
//! A new directory has mode 0700 until its content is complete. In an existing directory another user may rename
//! names at any time, so the content is staged in a new directory inside and moved out. Both directories are held
//! open, and names are created, changed and removed relative to them. Nothing outside of the tree is removed or
//! changed.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, chmod, fstat, mkdirat, openat, renameat,
    renameat_with, statat, unlinkat,
};
use rustix::io::Errno;

use crate::owner::is_trusted_user;

use super::ExportError;
use super::place::{ExportDestination, LIST, failed, is_taken};

/// Names tried for the staging directory.
const STAGING_TRIES: u32 = 64;

/// How often a directory is listed again if names appear while it is removed.
const REMOVAL_ROUNDS: usize = 8;

/// The staging directory. Dropped before [`PrivateTree::keep`], it removes its own content, and nothing else.
pub(super) struct PrivateTree {
    top: OwnedFd,
    place: ContentTarget,
    /// The names created directly in `top`.
    names: Vec<Vec<u8>>,
    is_kept: bool,
    path: PathBuf,
}

/// The final location of the content.
enum ContentTarget {
    /// `top` itself: the directory is new.
    New { parent: OwnedFd, name: OsString },
    /// The parent of `top`: an existing directory.
    Inside { directory: OwnedFd, staging: OsString },
}

impl PrivateTree {
    /// Creates the directory at `path`, or a staging directory in it if it exists and is empty.
    pub(super) fn make(path: &Path) -> Result<Self, ExportError> {
        let destination = ExportDestination::find(path)?;
        let is_trusted = destination.is_trusted()?;
        let directory = match destination.name().map(OsStr::to_owned) {
            None => openat(destination.directory(), ".", LIST, Mode::empty()).map_err(failed(path))?,
            Some(name) => match mkdirat(destination.directory(), &name, Mode::from_raw_mode(0o700)) {
                Ok(()) => {
                    let top = enter_new(destination.directory(), &name, is_trusted, path)?;
                    let place = ContentTarget::New { parent: destination.into_directory(), name };
                    return Ok(Self { top, place, names: Vec::new(), is_kept: false, path: path.to_owned() });
                }
                Err(errno) if is_taken(errno) => {
                    match openat(destination.directory(), &name, LIST, Mode::empty()) {
                        Err(Errno::NOTDIR | Errno::LOOP) => {
                            return Err(ExportError::place(path, "is no directory"));
                        }
                        opened => opened.map_err(failed(path))?,
                    }
                }
                Err(errno) => return Err(failed(path)(errno)),
            },
        };
        if !names(&directory).map_err(failed(path))?.is_empty() {
            return Err(ExportError::place(path, "is not empty"));
        }
        let found = fstat(&directory).map_err(failed(path))?;
        let is_trusted = is_trusted_user(found.st_uid) && found.st_mode & 0o022 == 0;
        for number in 0..STAGING_TRIES {
            let staging = OsString::from(format!(".ocifs-{}-{number}", std::process::id()));
            match mkdirat(&directory, &staging, Mode::from_raw_mode(0o700)) {
                Ok(()) => {}
                Err(errno) if is_taken(errno) => continue,
                Err(errno) => return Err(failed(path)(errno)),
            }
            let top = enter_new(directory.as_fd(), &staging, is_trusted, path)?;
            let place = ContentTarget::Inside { directory, staging };
            return Ok(Self { top, place, names: Vec::new(), is_kept: false, path: path.to_owned() });
        }
        Err(ExportError::place(path, "is not empty"))
    }

    /// The directory to write to.
    pub(super) fn top(&self) -> BorrowedFd<'_> {
        self.top.as_fd()
    }

    /// Whether it is the final directory itself.
    pub(super) fn is_new(&self) -> bool {
        matches!(self.place, ContentTarget::New { .. })
    }

    /// Records a created name for removal. Names below another are removed with it.
    pub(super) fn remember(&mut self, path: &[u8]) {
        if !path.contains(&b'/') {
            self.names.push(path.to_vec());
        }
    }

    /// Moves a name of the top to its final location, unless it exists there.
    pub(super) fn publish(&mut self, name: &[u8]) -> Result<(), ExportError> {
        let ContentTarget::Inside { directory, .. } = &self.place else { return Ok(()) };
        let shown = self.path.join(OsStr::from_bytes(name));
        match renameat_with(&self.top, name, directory, name, RenameFlags::NOREPLACE) {
            // The file system does not support RENAME_NOREPLACE.
            Err(Errno::INVAL | Errno::NOSYS) => {
                match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Err(Errno::NOENT) => {}
                    Ok(_) => return Err(ExportError::place(&shown, "was made by another process meanwhile")),
                    Err(errno) => return Err(failed(&shown)(errno)),
                }
                renameat(&self.top, name, directory, name).map_err(failed(&shown))?;
            }
            Err(errno) if is_taken(errno) => {
                return Err(ExportError::place(&shown, "was made by another process meanwhile"));
            }
            renamed => renamed.map_err(failed(&shown))?,
        }
        // Other users may have changed it from now on, so it is not removed again.
        self.names.retain(|made| made != name);
        Ok(())
    }

    /// Keeps the content, and removes the empty staging directory.
    pub(super) fn keep(&mut self) {
        self.is_kept = true;
        if let ContentTarget::Inside { directory, staging } = &self.place
            && let Err(errno) = unlinkat(directory, staging, AtFlags::REMOVEDIR)
        {
            tracing::warn!(directory = %self.path.display(), staging = %staging.display(), %errno, "an empty directory stays");
        }
    }

    fn clear(&self) -> Result<(), Errno> {
        for name in &self.names {
            remove(self.top.as_fd(), name)?;
        }
        let (parent, name) = match &self.place {
            ContentTarget::New { parent, name } => (parent, name),
            ContentTarget::Inside { directory, staging } => (directory, staging),
        };
        // Another directory may have the name by now. A directory with files of other users is not empty, and stays.
        let (ours, found) = (fstat(&self.top)?, statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?);
        match (ours.st_dev, ours.st_ino) == (found.st_dev, found.st_ino) {
            true => unlinkat(parent, name, AtFlags::REMOVEDIR),
            false => Err(Errno::STALE),
        }
    }
}

impl Drop for PrivateTree {
    fn drop(&mut self) {
        if !self.is_kept
            && let Err(errno) = self.clear()
        {
            tracing::warn!(directory = %self.path.display(), %errno, "files written before the error stay");
        }
    }
}

/// Opens a directory just created. In a directory that another user can change, checks that it is still ours: that
/// user may have replaced it.
fn enter_new(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    is_trusted: bool,
    path: &Path,
) -> Result<OwnedFd, ExportError> {
    let replaced = || ExportError::place(path, "was replaced by another process when it was made");
    let top = match openat(parent, name, LIST, Mode::empty()) {
        Err(Errno::NOTDIR | Errno::LOOP | Errno::NOENT) => return Err(replaced()),
        opened => opened.map_err(failed(path))?,
    };
    let (above, found) = (fstat(parent).map_err(failed(path))?, fstat(&top).map_err(failed(path))?);
    let is_private = found.st_uid == nix::unistd::geteuid().as_raw() && found.st_mode & 0o077 == 0;
    let is_here = found.st_dev == above.st_dev;
    let is_empty = names(&top).map_err(failed(path))?.is_empty();
    if is_empty && (is_trusted || is_private && is_here) { Ok(top) } else { Err(replaced()) }
}

/// The names in a directory, without `.` and `..`.
fn names(directory: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut found = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            found.push(name.to_vec());
        }
    }
    Ok(found)
}

/// Removes a name and everything below it, at any depth, with two descriptors. No link is followed.
fn remove(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    if unlinked(parent, name)? {
        return Ok(());
    }
    let identity = |directory: &OwnedFd| fstat(directory).map(|found| (found.st_dev, found.st_ino));
    let mut here = enter(parent, name)?;
    // The way down: the identity of each directory, and the name entered in it.
    let mut way: Vec<((u64, u64), Vec<u8>)> = Vec::new();
    let mut rounds = 0;
    loop {
        let mut below = None;
        for name in names(&here)? {
            if !unlinked(here.as_fd(), &name)? {
                below = Some(name);
                break;
            }
        }
        if let Some(name) = below {
            let inner = enter(here.as_fd(), &name)?;
            way.push((identity(&here)?, name));
            here = inner;
            continue;
        }
        let Some((above, name)) = way.pop() else { break };
        let up = openat(&here, "..", LIST, Mode::empty())?;
        if identity(&up)? != above {
            return Err(Errno::STALE);
        }
        match unlinkat(&up, &name, AtFlags::REMOVEDIR) {
            // A name appeared meanwhile: the directory is entered again.
            Err(errno) if is_full(errno) && rounds < REMOVAL_ROUNDS => rounds += 1,
            removed => removed?,
        }
        here = up;
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Removes a file or an empty directory. Returns `false` for a directory that is not empty.
fn unlinked(parent: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Errno> {
    let found = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(true),
        found => found?,
    };
    if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
        return unlinkat(parent, name, AtFlags::empty()).map(|()| true);
    }
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(errno) if is_full(errno) => Ok(false),
        removed => removed.map(|()| true),
    }
}

/// Whether a directory was not removed because it is not empty.
fn is_full(errno: Errno) -> bool {
    errno == Errno::NOTEMPTY || is_taken(errno)
}

/// Opens a directory for emptying it, whatever its recorded mode.
fn enter(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let held = openat(
        parent,
        name,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    if fstat(&held)?.st_mode & 0o700 != 0o700 {
        use std::os::fd::AsRawFd as _;
        chmod(format!("/proc/self/fd/{}", held.as_raw_fd()), Mode::from_raw_mode(0o700))?;
    }
    openat(&held, ".", LIST, Mode::empty())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;

    fn listed(directory: &Path) -> Vec<String> {
        let names = std::fs::read_dir(directory).unwrap();
        let mut names: Vec<_> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn make(tree: &mut PrivateTree, name: &str) {
        mkdirat(tree.top(), name, Mode::from_raw_mode(0o500)).unwrap();
        tree.remember(name.as_bytes());
    }

    #[test]
    fn aborted_tree_removes_only_its_own_files() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["new", "empty"] {
            let directory = dir.path().join(name);
            if name == "empty" {
                std::fs::create_dir(&directory).unwrap();
            }
            let mut tree = PrivateTree::make(&directory).unwrap();
            let top = if tree.is_new() { directory.clone() } else { directory.join(&listed(&directory)[0]) };
            assert_eq!(std::fs::metadata(&top).unwrap().permissions().mode() & 0o777, 0o700);
            make(&mut tree, "d");
            std::fs::set_permissions(top.join("d"), std::fs::Permissions::from_mode(0o700)).unwrap();
            // Deeper than descriptors and paths go.
            let mut inner = top.join("d");
            for _ in 0..40 {
                inner.push("x");
                std::fs::create_dir(&inner).unwrap();
                std::fs::write(inner.join("f"), b"f").unwrap();
            }
            std::fs::set_permissions(&inner, std::fs::Permissions::from_mode(0o0)).unwrap();
            symlink("/etc", top.join("d/link")).unwrap();
            std::fs::write(directory.join("mine"), b"mine").unwrap();
            drop(tree);
            assert_eq!(listed(&directory), ["mine"], "{name}");
            std::fs::remove_file(directory.join("mine")).unwrap();
            drop(PrivateTree::make(&directory).unwrap());
            assert!(directory.exists());
        }
    }

    #[test]
    fn replacement_of_the_tree_is_neither_written_nor_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (out, victim) = (dir.path().join("out"), dir.path().join("victim"));
        std::fs::create_dir_all(victim.join("d/keys")).unwrap();
        std::fs::write(victim.join("d/keys/host"), b"k").unwrap();
        let mut tree = PrivateTree::make(&out).unwrap();
        make(&mut tree, "d");
        std::fs::rename(&out, dir.path().join("moved")).unwrap();
        symlink(&victim, &out).unwrap();
        make(&mut tree, "e");
        drop(tree);
        assert_eq!(listed(&dir.path().join("moved")), [""; 0]);
        assert!(victim.join("d/keys/host").exists() && listed(&victim) == ["d"]);
    }

    #[test]
    fn a_tree_inside_a_directory_appears_name_by_name_and_takes_no_name_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut tree = PrivateTree::make(dir.path()).unwrap();
        make(&mut tree, "a");
        make(&mut tree, "b");
        std::fs::write(dir.path().join("b"), b"mine").unwrap();
        tree.publish(b"a").unwrap();
        assert!(tree.publish(b"b").unwrap_err().to_string().contains("meanwhile"));
        drop(tree);
        assert_eq!(listed(dir.path()), ["a", "b"]);
        assert_eq!(std::fs::read(dir.path().join("b")).unwrap(), b"mine");
        assert!(PrivateTree::make(dir.path()).err().unwrap().to_string().contains("is not empty"));
    }

    #[test]
    fn a_directory_of_another_user_holds_no_tree_that_this_user_can_enter() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let theirs = dir.path().join("theirs");
        std::fs::create_dir(&theirs).unwrap();
        chown(&theirs, Some(12_345), Some(12_345)).unwrap();
        let parent = openat(rustix::fs::CWD, &theirs, LIST, Mode::empty()).unwrap();
        for (mode, owner) in [(0o700, 12_345), (0o777, 0)] {
            let planted = theirs.join("planted");
            std::fs::create_dir(&planted).unwrap();
            std::fs::set_permissions(&planted, std::fs::Permissions::from_mode(mode)).unwrap();
            chown(&planted, Some(owner), None).unwrap();
            let entered = enter_new(parent.as_fd(), OsStr::new("planted"), false, &planted);
            assert!(entered.unwrap_err().to_string().contains("was replaced"));
            std::fs::remove_dir(&planted).unwrap();
        }
        assert!(PrivateTree::make(&theirs).is_ok());
    }
}
