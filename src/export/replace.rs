//! Atomic file replacement: a file appears under its name when it is complete, and not before.
//!
//! The bytes go to a hidden file in the same directory, which is renamed at the end; both names are relative to a
//! held directory. The next run reuses the hidden file of a killed run, and a lock keeps it to one writer at a time.
//! A hidden file that another user could have planted is removed, not reused. Dropping an unfinished replacement
//! removes the hidden file. A descriptor that this process has open, as its standard output, is written to at its
//! current offset.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, FileType, FlockOperation, Mode, OFlags, fchmod, flock, openat, renameat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use crate::owner::{FileOwner, MAX_LINKS};

use super::ExportError;
use super::place::{ExportDestination, is_planted};

/// How often the hidden file is opened anew if another process removed or renamed it.
const MAX_REOPEN_ATTEMPTS: usize = 8;

/// Interval between checks for the turn while another process writes the same file.
const WRITER_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Time limit for another writer to rename its complete file. Another user can hold the lock of a readable file for
/// ever, so the wait has to end.
const NAMING_TIMEOUT: Duration = Duration::from_secs(60);

/// A file that is being written.
pub struct ReplacementFile {
    file: File,
    /// The path as given, for messages.
    target: PathBuf,
    /// The hidden file until the commit; `None` if bytes go to the target itself.
    part: Option<HiddenPart>,
    /// The mode to set before the rename.
    mode: u32,
}

/// The holder of the turn to write a target.
enum WriteTurn {
    /// This process.
    Taken(ReplacementFile),
    /// Another process of this user, which writes.
    Writing,
    /// Another process, apparently of this user, which sets the mode and renames the file, or removes it.
    Naming,
}

/// The hidden file of a target, in the same directory.
struct HiddenPart {
    directory: OwnedFd,
    name: OsString,
    target: OsString,
}

impl ReplacementFile {
    /// Begins to write the file at `path`. A device or pipe is written to directly, and so is an open descriptor, as
    /// `/dev/stdout` or `/dev/fd/5`. A link stays, and its target is replaced, unless another user may have planted
    /// the link.
    pub fn begin(path: &Path) -> Result<Self, ExportError> {
        if let Some(descriptor) = OpenDescriptor::at(path) {
            return Self::open(path, &descriptor);
        }
        let destination = ExportDestination::find(path)?;
        let found = destination.found()?;
        match (&found, destination.name()) {
            (_, None) => return Err(ExportError::place(path, "is a directory")),
            (None, _) if destination.is_linked() => {
                return Err(ExportError::place(path, "is a link that leads to no file"));
            }
            _ => {}
        }
        match found.map(|found| (FileType::from_raw_mode(found.st_mode), found)) {
            None | Some((FileType::RegularFile, _)) => match Self::take(destination)? {
                WriteTurn::Taken(begun) => Ok(begun),
                WriteTurn::Writing | WriteTurn::Naming => {
                    Err(ExportError::place(path, "is being written by another process"))
                }
            },
            Some((FileType::Directory, _)) => Err(ExportError::place(path, "is a directory")),
            Some((FileType::Symlink, _)) => Err(ExportError::place(path, "became a link meanwhile")),
            Some((_, found)) if is_planted(&found, destination.directory()) => {
                let reason = format!("is a pipe or a device of user {}, and is not written to", found.st_uid);
                Err(ExportError::place(path, reason))
            }
            Some(_) => {
                let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
                let name = destination.name().unwrap_or_default();
                let opened = openat(destination.directory(), name, flags, Mode::empty());
                let file = File::from(opened.map_err(destination.failed())?);
                if file.metadata().map_err(ExportError::file(path))?.is_file() {
                    return Err(ExportError::place(path, "became a file meanwhile"));
                }
                Ok(Self { file, target: path.to_owned(), part: None, mode: 0 })
            }
        }
    }

    /// Begins to write to an open descriptor. Its file may have no name by now, or its name may belong to another
    /// file.
    fn open(path: &Path, descriptor: &OpenDescriptor) -> Result<Self, ExportError> {
        let file = match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => return Err(ExportError::place(path, "is a directory")),
            // Opened anew, it would be written from its start, and longer old content would remain.
            Ok(found) if found.is_file() => descriptor.duplicate().map(File::from),
            Ok(_) => File::options().write(true).open(path),
            Err(error) => Err(error),
        };
        let file = file.map_err(ExportError::file(path))?;
        Ok(Self { file, target: path.to_owned(), part: None, mode: 0 })
    }

    /// Begins to write the file `name` in `directory`. An existing file or link of this name is replaced. Waits for
    /// another writer of the same name.
    pub(super) async fn begin_in_turn(
        directory: &OwnedFd,
        name: &OsStr,
        path: &Path,
    ) -> Result<Self, ExportError> {
        let mut naming_since = None;
        loop {
            let destination = ExportDestination::in_directory(directory, name, path)?;
            let found = destination.found()?;
            if found.is_some_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Directory) {
                return Err(ExportError::place(path, "is a directory"));
            }
            match Self::take(destination)? {
                WriteTurn::Taken(begun) => return Ok(begun),
                WriteTurn::Writing => naming_since = None,
                WriteTurn::Naming => {
                    if naming_since.get_or_insert_with(Instant::now).elapsed() > NAMING_TIMEOUT {
                        return Err(ExportError::place(path, "is being written by another user"));
                    }
                }
            }
            tokio::time::sleep(WRITER_POLL_INTERVAL).await;
        }
    }

    /// Takes the hidden file of a target, unless another process has it.
    fn take(destination: ExportDestination) -> Result<WriteTurn, ExportError> {
        let target = destination.path().to_owned();
        let Some(name) = destination.name().map(OsStr::to_owned) else {
            return Err(ExportError::place(&target, "is no name of a file"));
        };
        let mut hidden = OsString::from(".");
        hidden.push(&name);
        hidden.push(".ocifs-part");
        let shown = target.with_file_name(&hidden);
        let failed = |errno: Errno| ExportError::file(&shown)(errno.into());
        let directory = destination.directory();
        for _ in 0..MAX_REOPEN_ATTEMPTS {
            let plain = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let private = Mode::from_raw_mode(0o600);
            let made = openat(directory, &hidden, plain | OFlags::CREATE | OFlags::EXCL, private);
            let (opened, is_new) = match made {
                Err(errno) if errno.kind() == ErrorKind::AlreadyExists => {
                    (openat(directory, &hidden, plain, Mode::empty()), false)
                }
                made => (made, true),
            };
            let file = match opened {
                Ok(file) => File::from(file),
                Err(Errno::NOENT) if !is_new => continue,
                Err(errno) if is_new => return Err(failed(errno)),
                // A link, or a file that cannot be opened: not one of ours.
                Err(_) => {
                    clear(directory, &hidden, &shown)?;
                    continue;
                }
            };
            let found = file.metadata().map_err(ExportError::file(&shown))?;
            let owner = nix::unistd::geteuid().as_raw();
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) if is_new || is_ours(&found) => return Ok(WriteTurn::Writing),
                Err(Errno::WOULDBLOCK) if found.is_file() && found.uid() == owner && found.nlink() <= 1 => {
                    return Ok(WriteTurn::Naming);
                }
                Err(Errno::WOULDBLOCK) => {
                    return Err(ExportError::place(&target, "is being written by another user"));
                }
                Err(errno) => return Err(failed(errno)),
            }
            // The previous holder of the lock may have renamed or removed the file since it was opened.
            let is_there = statat(directory, &hidden, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|now| now.st_ino == found.ino() && now.st_dev == found.dev());
            if !is_there {
                continue;
            }
            if !is_new && !is_ours(&file.metadata().map_err(ExportError::file(&shown))?) {
                clear(directory, &hidden, &shown)?;
                continue;
            }
            file.set_len(0).map_err(ExportError::file(&shown))?;
            let directory = destination.into_directory();
            let part = HiddenPart { directory, name: hidden, target: name };
            let mode = 0o666 & !mask();
            return Ok(WriteTurn::Taken(Self { file, target, part: Some(part), mode }));
        }
        Ok(WriteTurn::Writing)
    }

    /// The file to write to.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether the bytes go to a hidden file, and not to a device, a pipe or an open descriptor.
    pub(super) fn is_hidden(&self) -> bool {
        self.part.is_some()
    }

    /// Sets the mode to apply: `recorded` under the umask, plus write for the owner. An execute bit of `recorded`
    /// stays where the umask leaves the read bit.
    pub(super) fn recorded(&mut self, recorded: u32) {
        self.mode = (recorded & self.mode | 0o200) | (recorded & 0o111 & (self.mode >> 2));
    }

    /// Writes bytes at an offset.
    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), ExportError> {
        self.file.write_all_at(bytes, offset).map_err(ExportError::file(&self.target))
    }

    /// Sets the mode of the file, and gives it its name.
    pub fn commit(mut self) -> Result<(), ExportError> {
        if let Some(part) = &self.part {
            match fchmod(&self.file, Mode::from_raw_mode(self.mode)) {
                // The file system has no modes of its own, and gives each file the same.
                Err(errno @ (Errno::PERM | Errno::OPNOTSUPP)) => {
                    tracing::debug!(target = %self.target.display(), %errno, "the file has the rights of its file system");
                }
                changed => changed.map_err(|errno| ExportError::file(&self.target)(errno.into()))?,
            }
            renameat(&part.directory, &part.name, &part.directory, &part.target)
                .map_err(|errno| ExportError::file(&self.target)(errno.into()))?;
        }
        self.part = None;
        Ok(())
    }
}

impl Drop for ReplacementFile {
    fn drop(&mut self) {
        if let Some(part) = &self.part
            && let Err(errno) = unlinkat(&part.directory, &part.name, AtFlags::empty())
        {
            tracing::warn!(target = %self.target.display(), part = %part.name.display(), %errno, "an unfinished file stays");
        }
    }
}

/// Whether only this user can have left a hidden file: no other user could open it, and it has no other name.
fn is_ours(found: &Metadata) -> bool {
    let is_private = found.mode() & 0o077 == 0 && found.nlink() == 1;
    found.is_file() && is_private && found.uid() == nix::unistd::geteuid().as_raw()
}

/// Removes a hidden file that is not ours.
fn clear(directory: BorrowedFd<'_>, part: &OsStr, shown: &Path) -> Result<(), ExportError> {
    match unlinkat(directory, part, AtFlags::empty()) {
        Err(errno) if errno != Errno::NOENT => Err(ExportError::file(shown)(errno.into())),
        _ => Ok(()),
    }
}

/// The umask. Only `/proc/self/status` shows it without changing it; if that cannot be read, only the owner gets
/// permissions.
fn mask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    mask.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o077)
}

/// An open descriptor of a process.
struct OpenDescriptor {
    process: Pid,
    number: i32,
}

impl OpenDescriptor {
    /// The descriptor that `path` names: `/dev/stdout`, `/dev/fd/5`, `/proc/7/fd/5`, or a link to one of these.
    fn at(path: &Path) -> Option<Self> {
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            let parent = match path.parent() {
                Some(parent) if parent != Path::new("") => parent,
                _ => Path::new("."),
            };
            // Links on the way lead to directories: only the last name may lead to a descriptor.
            let parent = std::fs::canonicalize(parent).ok()?;
            let here = parent.join(path.file_name()?);
            if let Ok(inside) = parent.strip_prefix("/proc")
                && parent.ends_with("fd")
            {
                let process = inside.iter().next()?.to_str()?.parse().ok()?;
                let number = here.file_name()?.to_str()?.parse().ok()?;
                // The process ids under this `/proc` may be those of another namespace.
                let ours = std::fs::read_link("/proc/self").ok()?;
                let process = match ours.to_str()?.parse::<i32>().ok()? == process {
                    true => getpid(),
                    false => Pid::from_raw(process)?,
                };
                return Some(Self { process, number });
            }
            let (link, above) = (std::fs::symlink_metadata(&here).ok()?, std::fs::metadata(&parent).ok()?);
            if !FileOwner::from(&link).may_be_followed(FileOwner::from(&above)) {
                return None;
            }
            path = parent.join(std::fs::read_link(&here).ok()?);
        }
        None
    }

    /// Duplicates the descriptor: the same open file, with its offset and its flags.
    fn duplicate(&self) -> std::io::Result<OwnedFd> {
        match self.number {
            0 if self.process == getpid() => std::io::stdin().as_fd().try_clone_to_owned(),
            1 if self.process == getpid() => std::io::stdout().as_fd().try_clone_to_owned(),
            2 if self.process == getpid() => std::io::stderr().as_fd().try_clone_to_owned(),
            number => {
                let process = pidfd_open(self.process, PidfdFlags::empty())?;
                Ok(pidfd_getfd(process, number, PidfdGetfdFlags::empty())?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_is_about_to_get_its_name_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let held = ReplacementFile::begin(&path).unwrap();
        // As its commit begins.
        fchmod(held.file(), Mode::from_raw_mode(0o644)).unwrap();
        assert!(ReplacementFile::begin(&path).is_err());
        let directory = OwnedFd::from(File::open(dir.path()).unwrap());
        let mut next = std::pin::pin!(ReplacementFile::begin_in_turn(&directory, OsStr::new("x"), &path));
        assert!(
            tokio::time::timeout(WRITER_POLL_INTERVAL * 3, &mut next).await.is_err(),
            "it is not waited for"
        );
        held.commit().unwrap();
        next.await.unwrap().commit().unwrap();
    }

    #[test]
    fn a_file_has_its_name_only_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let names = || std::fs::read_dir(dir.path()).unwrap().count();
        std::fs::write(&path, b"old").unwrap();
        let begun = ReplacementFile::begin(&path).unwrap();
        begun.write_at(b"new and longer", 0).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        drop(begun);
        assert_eq!((std::fs::read(&path).unwrap(), names()), (b"old".to_vec(), 1));
        // What a killed process left is written over.
        std::fs::write(dir.path().join(".x.ocifs-part"), [b'z'; 100]).unwrap();
        let begun = ReplacementFile::begin(&path).unwrap();
        begun.write_at(b"new", 0).unwrap();
        begun.commit().unwrap();
        assert_eq!((std::fs::read(&path).unwrap(), names()), (b"new".to_vec(), 1));
    }

    #[test]
    fn two_do_not_write_one_file_at_a_time_and_no_link_is_followed_to_write_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let first = ReplacementFile::begin(&path).unwrap();
        let second = ReplacementFile::begin(&path);
        assert!(second.err().unwrap().to_string().contains("another process"));
        drop(first);
        let victim = dir.path().join("victim");
        std::fs::write(&victim, b"mine").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join(".x.ocifs-part")).unwrap();
        let begun = ReplacementFile::begin(&path).unwrap();
        begun.write_at(b"new", 0).unwrap();
        begun.commit().unwrap();
        assert!(!path.is_symlink());
        assert_eq!(std::fs::read(&victim).unwrap(), b"mine");
        assert!(ReplacementFile::begin(dir.path()).err().unwrap().to_string().contains("is a directory"));
    }

    #[test]
    fn the_target_of_a_link_is_replaced_and_the_link_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("x"), dir.path().join("link"));
        std::fs::write(&path, b"old").unwrap();
        std::os::unix::fs::symlink("x", &link).unwrap();
        let begun = ReplacementFile::begin(&link).unwrap();
        begun.write_at(b"new", 0).unwrap();
        begun.commit().unwrap();
        assert!(link.is_symlink());
        let dangling = dir.path().join("dangling");
        std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
        assert!(ReplacementFile::begin(&dangling).err().unwrap().to_string().contains("leads to no file"));
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn a_planted_link_is_not_written_through_and_a_planted_pipe_not_written_to() {
        use std::os::unix::fs::{PermissionsExt as _, lchown};
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (shared, victim) = (dir.path().join("shared"), dir.path().join("victim"));
        std::fs::create_dir(&shared).unwrap();
        std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o1777)).unwrap();
        std::fs::write(&victim, b"mine").unwrap();
        let (link, pipe) = (shared.join("out"), shared.join("pipe"));
        std::os::unix::fs::symlink(&victim, &link).unwrap();
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [&link, &pipe] {
            lchown(path, Some(12_345), Some(12_345)).unwrap();
            let error = ReplacementFile::begin(path).err().unwrap().to_string();
            assert!(error.contains("of user 12345"), "{error}");
        }
        assert_eq!(std::fs::read(&victim).unwrap(), b"mine");
    }

    #[test]
    fn hidden_file_open_elsewhere_is_not_reused_nor_partially_read() {
        let dir = tempfile::tempdir().unwrap();
        let (path, part) = (dir.path().join("x"), dir.path().join(".x.ocifs-part"));
        let victim = dir.path().join("victim");
        std::fs::write(&victim, b"mine").unwrap();
        let usual = std::fs::metadata(&victim).unwrap().mode();
        let fifo = || nix::unistd::mkfifo(&part, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let plants: [&dyn Fn(); 3] = [
            &|| std::fs::hard_link(&victim, &part).unwrap(),
            &|| {
                std::fs::write(&part, b"open to all").unwrap();
                fchmod(File::open(&part).unwrap(), Mode::from_raw_mode(0o666)).unwrap();
            },
            &fifo,
        ];
        for plant in plants {
            plant();
            let planted = std::fs::metadata(&part).unwrap().ino();
            let spy = File::options().read(true).write(true).open(&part).unwrap();
            let begun = ReplacementFile::begin(&path).unwrap();
            let found = begun.file().metadata().unwrap();
            assert!(found.ino() != planted && found.mode() & 0o7777 == 0o600 && found.nlink() == 1);
            begun.write_at(b"new", 0).unwrap();
            begun.commit().unwrap();
            drop(spy);
            assert_eq!(
                (std::fs::read(&victim).unwrap(), std::fs::read(&path).unwrap()),
                (b"mine".to_vec(), b"new".to_vec())
            );
            assert_eq!(std::fs::metadata(&path).unwrap().mode(), usual, "as any new file");
        }
    }

    #[test]
    fn a_file_below_dev_is_replaced_as_any_other() {
        // Not every machine has this one.
        let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return };
        let path = dir.path().join("x");
        std::fs::write(&path, b"old and longer").unwrap();
        let begun = ReplacementFile::begin(&path).unwrap();
        begun.write_at(b"new", 0).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old and longer");
        begun.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        let null = ReplacementFile::begin(Path::new("/dev/null")).unwrap();
        assert!(!null.is_hidden());
    }

    #[test]
    fn open_file_is_written_at_its_current_offset() {
        use std::io::Write as _;
        use std::os::fd::AsRawFd as _;
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("x"), dir.path().join("link"));
        let mut open = File::create(&path).unwrap();
        open.write_all(b"head ").unwrap();
        let number = open.as_raw_fd();
        std::os::unix::fs::symlink(format!("/dev/fd/{number}"), &link).unwrap();
        for (name, part) in [
            (PathBuf::from(format!("/dev/fd/{number}")), "a "),
            (PathBuf::from(format!("/proc/self/fd/{number}")), "b "),
            (PathBuf::from(format!("/proc/{}/fd/{number}", std::process::id())), "c "),
            (link, "d "),
        ] {
            let begun = ReplacementFile::begin(&name).unwrap();
            assert!(!begun.is_hidden());
            begun.file().write_all(part.as_bytes()).unwrap();
            begun.commit().unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"head a b c d ");
        assert!(ReplacementFile::begin(Path::new("/dev/fd/4000000")).is_err());
    }
}
