//! Race-free path resolution: a host path as a held directory and a name in it.
//!
//! The path is walked once, one component at a time, and later operations are relative to the directory found. So a
//! directory on the way that is later replaced by a link has no effect. Links that another user may have planted are
//! not followed.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, fstatfs, open, openat, readlinkat, statat};
use rustix::io::Errno;

use crate::owner::{FileOwner, MAX_LINKS, is_trusted_user};

use super::ExportError;

/// Opens a directory for lookups only.
const OPEN_PATH_FLAGS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Opens a directory for listing, refusing a link.
pub(super) const LIST: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The destination of a write.
pub(super) struct ExportDestination {
    /// The directory.
    directory: OwnedFd,
    /// The name in the directory, either absent or no link; `None` for the directory itself.
    name: Option<OsString>,
    /// Whether the last component of the given path was a link.
    is_linked: bool,
    /// The path as given.
    path: PathBuf,
}

impl ExportDestination {
    /// Resolves the directory of `path`.
    pub(super) fn find(path: &Path) -> Result<Self, ExportError> {
        let mut walk = PathWalk::new(path)?;
        while let Some(step) = walk.todo.pop_front() {
            if let Some(name) = walk.step(step)? {
                let is_linked = walk.links > 0 && walk.linked_last;
                return Ok(Self {
                    directory: walk.directory,
                    name: Some(name),
                    is_linked,
                    path: path.to_owned(),
                });
            }
        }
        Ok(Self { directory: walk.directory, name: None, is_linked: false, path: path.to_owned() })
    }

    /// The name `name` in a held directory. Messages show `path`.
    pub(super) fn in_directory(directory: &OwnedFd, name: &OsStr, path: &Path) -> Result<Self, ExportError> {
        let directory = directory.try_clone().map_err(ExportError::file(path))?;
        Ok(Self { directory, name: Some(name.to_owned()), is_linked: false, path: path.to_owned() })
    }

    /// The name; `None` for a directory without a name of its own, as `/` and `..`.
    pub(super) fn name(&self) -> Option<&OsStr> {
        self.name.as_deref()
    }

    /// Whether the last component of the given path was a link.
    pub(super) fn is_linked(&self) -> bool {
        self.is_linked
    }

    /// The path as given.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The directory.
    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// The directory, by value.
    pub(super) fn into_directory(self) -> OwnedFd {
        self.directory
    }

    /// The file that has the name now; `None` if the name is free.
    pub(super) fn found(&self) -> Result<Option<Stat>, ExportError> {
        let Some(name) = &self.name else {
            return fstat(&self.directory).map(Some).map_err(self.failed());
        };
        match statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.failed()(errno)),
        }
    }

    /// Whether only root and this user can change the entry of the name, also between two of our calls.
    pub(super) fn is_trusted(&self) -> Result<bool, ExportError> {
        let found = fstat(&self.directory).map_err(self.failed())?;
        Ok(FileOwner::from(&found).is_trusted())
    }

    pub(super) fn failed(&self) -> impl FnOnce(Errno) -> ExportError + use<> {
        failed(&self.path)
    }
}

pub(super) fn failed(path: &Path) -> impl FnOnce(Errno) -> ExportError + use<> {
    let path = path.to_owned();
    move |errno| ExportError::file(&path)(errno.into())
}

/// Whether the error means that the name exists already.
pub(super) fn is_taken(errno: Errno) -> bool {
    errno.kind() == std::io::ErrorKind::AlreadyExists
}

/// Whether another user put this pipe or device into a sticky directory, to intercept the bytes.
pub(super) fn is_planted(found: &Stat, directory: BorrowedFd<'_>) -> bool {
    let Ok(above) = fstat(directory) else { return true };
    let is_shared = above.st_mode & 0o1002 == 0o1002;
    is_shared && !is_trusted_user(found.st_uid) && found.st_uid != above.st_uid
}

/// A walk down a path.
struct PathWalk {
    directory: OwnedFd,
    /// The path of the directory, for messages.
    shown: PathBuf,
    todo: VecDeque<PendingComponent>,
    links: usize,
    linked_last: bool,
}

/// A path component left to walk.
enum PendingComponent {
    Root,
    Up,
    Name(OsString),
}

impl PathWalk {
    fn new(path: &Path) -> Result<Self, ExportError> {
        let directory = open(".", OPEN_PATH_FLAGS, Mode::empty()).map_err(failed(Path::new(".")))?;
        let mut walk =
            Self { directory, shown: PathBuf::new(), todo: VecDeque::new(), links: 0, linked_last: false };
        walk.queue(path);
        Ok(walk)
    }

    /// Queues the components of a path before the remaining ones.
    fn queue(&mut self, path: &Path) {
        for component in path.components().rev() {
            match component {
                Component::RootDir => self.todo.push_front(PendingComponent::Root),
                Component::ParentDir => self.todo.push_front(PendingComponent::Up),
                Component::Normal(name) => self.todo.push_front(PendingComponent::Name(name.to_owned())),
                Component::CurDir | Component::Prefix(_) => {}
            }
        }
    }

    /// Takes one step. Returns the name if it is the last one.
    fn step(&mut self, component: PendingComponent) -> Result<Option<OsString>, ExportError> {
        let name = match component {
            PendingComponent::Root => {
                self.directory = open("/", OPEN_PATH_FLAGS, Mode::empty()).map_err(failed(Path::new("/")))?;
                self.shown = "/".into();
                return Ok(None);
            }
            PendingComponent::Up => {
                self.directory = openat(&self.directory, "..", OPEN_PATH_FLAGS, Mode::empty())
                    .map_err(failed(&self.shown))?;
                self.shown.push("..");
                return Ok(None);
            }
            PendingComponent::Name(name) => name,
        };
        let is_last = self.todo.is_empty();
        let here = self.shown.join(&name);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = match openat(&self.directory, &name, flags, Mode::empty()) {
            Err(Errno::NOENT) if is_last => return Ok(Some(name)),
            Err(Errno::NOENT) => return Err(ExportError::place(&here, "does not exist")),
            opened => opened.map_err(failed(&here))?,
        };
        let found = fstat(&opened).map_err(failed(&here))?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Symlink => self.follow(&opened, &found, &name, &here)?,
            _ if is_last => return Ok(Some(name)),
            FileType::Directory => {
                self.directory = opened;
                self.shown = here;
            }
            _ => return Err(ExportError::place(&here, "is no directory")),
        }
        Ok(None)
    }

    fn follow(&mut self, link: &OwnedFd, found: &Stat, name: &OsStr, here: &Path) -> Result<(), ExportError> {
        let is_last = self.todo.is_empty();
        if is_procfs(&self.directory) {
            // A magic link: only the kernel knows its target, and its text is no path.
            self.directory =
                openat(&self.directory, name, OPEN_PATH_FLAGS, Mode::empty()).map_err(failed(here))?;
            self.shown = here.to_owned();
            return Ok(());
        }
        let above = fstat(&self.directory).map_err(failed(here))?;
        if !FileOwner::from(found).may_be_followed(FileOwner::from(&above)) {
            let reason = format!("is a link of user {}, and is not followed", found.st_uid);
            return Err(ExportError::place(here, reason));
        }
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(failed(here)(Errno::LOOP));
        }
        self.linked_last |= is_last;
        let target = readlinkat(link, c"", Vec::new()).map_err(failed(here))?;
        self.queue(Path::new(&OsString::from_vec(target.into_bytes())));
        Ok(())
    }
}

fn is_procfs(directory: &OwnedFd) -> bool {
    /// PROC_SUPER_MAGIC of statfs(2).
    const PROC: u64 = 0x9fa0;
    fstatfs(directory).is_ok_and(|found| u64::try_from(found.f_type).is_ok_and(|kind| kind == PROC))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};

    use super::*;

    fn inode(path: &Path) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        std::fs::metadata(path).unwrap().ino()
    }

    #[test]
    fn a_path_is_a_held_directory_and_a_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("rel")).unwrap();
        symlink(dir.path().join("a/x"), dir.path().join("abs")).unwrap();
        for (path, name, linked) in
            [("a/x", "x", false), ("rel/x", "x", false), ("abs", "x", true), ("a/./../rel/x/", "x", false)]
        {
            let found = ExportDestination::find(&dir.path().join(path)).unwrap();
            assert_eq!((found.name(), found.is_linked()), (Some(OsStr::new(name)), linked), "{path}");
            assert_eq!(fstat(found.directory()).unwrap().st_ino, inode(&dir.path().join("a")), "{path}");
            assert!(found.found().unwrap().is_none());
        }
        assert_eq!(ExportDestination::find(Path::new("/")).unwrap().name(), None);
        assert_eq!(ExportDestination::find(&dir.path().join("a/..")).unwrap().name(), None);
        let error = |path: &str| ExportDestination::find(&dir.path().join(path)).err().unwrap().to_string();
        assert!(error("none/x").ends_with("/none does not exist"));
        std::fs::write(dir.path().join("f"), b"").unwrap();
        assert!(error("f/x").contains("is no directory"));
        symlink("loop", dir.path().join("loop")).unwrap();
        assert!(ExportDestination::find(&dir.path().join("loop/x")).is_err());
    }

    #[test]
    fn a_directory_that_becomes_a_link_meanwhile_is_the_one_that_was_found() {
        let dir = tempfile::tempdir().unwrap();
        let (a, victim) = (dir.path().join("a"), dir.path().join("victim"));
        std::fs::create_dir(&a).unwrap();
        std::fs::create_dir(&victim).unwrap();
        let found = ExportDestination::find(&a.join("x")).unwrap();
        std::fs::rename(&a, dir.path().join("b")).unwrap();
        symlink(&victim, &a).unwrap();
        assert_eq!(fstat(found.directory()).unwrap().st_ino, inode(&dir.path().join("b")));
    }

    #[test]
    fn links_of_other_users_are_not_followed_by_root_anywhere_on_the_way() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        let shared = dir.path().join("shared");
        std::fs::create_dir(&shared).unwrap();
        std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o1777)).unwrap();
        for place in [dir.path(), &shared] {
            let (way, last) = (place.join("way"), place.join("last"));
            symlink(dir.path().join("real"), &way).unwrap();
            symlink(dir.path().join("real/x"), &last).unwrap();
            for path in [way.join("x"), last.clone()] {
                assert!(ExportDestination::find(&path).is_ok());
            }
            lchown(&way, Some(12_345), Some(12_345)).unwrap();
            lchown(&last, Some(12_345), Some(12_345)).unwrap();
            for path in [way.join("x"), last] {
                let error = ExportDestination::find(&path).err().unwrap().to_string();
                assert!(error.contains("is a link of user 12345"), "{error}");
            }
        }
    }
}
