//! A file that appears under its name when it is whole, and not before.
//!
//! Never leaves a part behind when it is dropped, and never takes over a part that another user could have planted. The idea: the
//! bytes go to a hidden file beside it, which takes the name at the end; what a killed run left there is used again by the next one,
//! and a lock keeps two from writing to it at a time. What this process has open already, as its standard output, is written to where
//! it stands.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags, fchmod, flock, open};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use super::ExportError;

/// How often a file is opened anew that somebody took away meanwhile.
const ROUNDS: usize = 8;

/// How many links are followed, as by the kernel.
const LINKS: usize = 40;

/// How long another writer of the same file is left alone before it is looked at again.
const PAUSE: Duration = Duration::from_millis(20);

/// A file that is being written.
pub struct Replacement {
    file: File,
    target: PathBuf,
    /// Where its bytes are until it is whole; `None` where they go to the target itself.
    part: Option<PathBuf>,
    /// The rights that it gets together with its name.
    mode: u32,
}

impl Replacement {
    /// Begins to write what is to be called `path`. A device or a pipe is written to as it is, and so is what is open already, as
    /// `/dev/stdout` or `/dev/fd/5`. A link stays, and what it leads to is replaced.
    pub fn begin(path: &Path) -> Result<Self, ExportError> {
        let descriptor = Descriptor::at(path);
        // What a descriptor leads to may have no name, or one of another file by now.
        let target = match std::fs::canonicalize(path) {
            _ if descriptor.is_some() => path.to_owned(),
            Ok(target) => target,
            Err(_) if path.is_symlink() => {
                return Err(ExportError::place(path, "is a link that leads to no file"));
            }
            Err(_) => path.to_owned(),
        };
        let file = match (std::fs::metadata(&target), &descriptor) {
            (Ok(found), _) if found.is_dir() => return Err(ExportError::place(path, "is a directory")),
            // Opened anew it would begin at its start, and leave behind what is longer there.
            (Ok(found), Some(descriptor)) if found.is_file() => descriptor.duplicate().map(File::from),
            (Ok(found), _) if !found.is_file() => File::options().write(true).open(&target),
            (Err(error), Some(_)) => Err(error),
            _ => {
                let begun = Self::take(&target)?;
                return begun.ok_or_else(|| ExportError::place(path, "is being written by another process"));
            }
        };
        let file = file.map_err(ExportError::file(path))?;
        Ok(Self { file, target, part: None, mode: 0 })
    }

    /// Begins to write what is to be called `path` itself: whatever has this name, be it a link, is replaced. Whoever writes it
    /// already is waited for.
    pub(super) async fn begin_in_turn(path: &Path) -> Result<Self, ExportError> {
        loop {
            if std::fs::symlink_metadata(path).is_ok_and(|found| found.is_dir()) {
                return Err(ExportError::place(path, "is a directory"));
            }
            if let Some(begun) = Self::take(path)? {
                return Ok(begun);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Takes the hidden file of `target`; `None` when another process of this user has it.
    fn take(target: &Path) -> Result<Option<Self>, ExportError> {
        let Some(name) = target.file_name() else {
            return Err(ExportError::place(target, "is no name of a file"));
        };
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(".ocifs-part");
        let part = target.with_file_name(hidden);
        let failed = |errno: Errno| ExportError::file(&part)(errno.into());
        for _ in 0..ROUNDS {
            let plain = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let private = Mode::from_raw_mode(0o600);
            let (opened, is_new) = match open(&part, plain | OFlags::CREATE | OFlags::EXCL, private) {
                Err(errno) if errno.kind() == ErrorKind::AlreadyExists => {
                    (open(&part, plain, Mode::empty()), false)
                }
                made => (made, true),
            };
            let file = match opened {
                Ok(file) => File::from(file),
                Err(Errno::NOENT) if !is_new => continue,
                Err(errno) if is_new => return Err(failed(errno)),
                // A link, or what we may not open: nothing of ours.
                Err(_) => {
                    clear(&part)?;
                    continue;
                }
            };
            let found = file.metadata().map_err(ExportError::file(&part))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) if is_new || is_ours(&found) => return Ok(None),
                Err(Errno::WOULDBLOCK) => {
                    return Err(ExportError::place(target, "is being written by another user"));
                }
                Err(errno) => return Err(failed(errno)),
            }
            // Whoever had the lock before may have renamed or removed the file since it was opened here.
            let is_there = std::fs::symlink_metadata(&part)
                .is_ok_and(|now| now.ino() == found.ino() && now.dev() == found.dev());
            if !is_there {
                continue;
            }
            if !is_new && !is_ours(&file.metadata().map_err(ExportError::file(&part))?) {
                clear(&part)?;
                continue;
            }
            file.set_len(0).map_err(ExportError::file(&part))?;
            return Ok(Some(Self {
                file,
                target: target.to_owned(),
                part: Some(part),
                mode: 0o666 & !mask(),
            }));
        }
        Ok(None)
    }

    /// The file that has the bytes.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether the bytes go to a file that nobody sees yet, and not to a device, a pipe or what is open already.
    pub(super) fn is_hidden(&self) -> bool {
        self.part.is_some()
    }

    /// Lets the file be run by whoever may read it, as far as `recorded` has these bits, and written only by whom that names.
    pub(super) fn recorded(&mut self, recorded: u32) {
        self.mode = (recorded & self.mode | 0o200) | (recorded & 0o111 & (self.mode >> 2));
    }

    /// Writes bytes at a place.
    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), ExportError> {
        self.file.write_all_at(bytes, offset).map_err(ExportError::file(&self.target))
    }

    /// Gives the file its name, and its rights.
    pub fn commit(mut self) -> Result<(), ExportError> {
        if let Some(part) = &self.part {
            match fchmod(&self.file, Mode::from_raw_mode(self.mode)) {
                // A file system that has no rights, and gives each file the same.
                Err(errno @ (Errno::PERM | Errno::OPNOTSUPP)) => {
                    tracing::debug!(target = %self.target.display(), %errno, "the file has the rights of its file system");
                }
                changed => changed.map_err(|errno| ExportError::file(&self.target)(errno.into()))?,
            }
            std::fs::rename(part, &self.target).map_err(ExportError::file(&self.target))?;
        }
        self.part = None;
        Ok(())
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if let Some(part) = &self.part
            && let Err(error) = std::fs::remove_file(part)
        {
            tracing::warn!(part = %part.display(), %error, "an unfinished file stays");
        }
    }
}

/// Whether a hidden file can only be what this user left: nobody else could open it, and it has no other name.
fn is_ours(found: &Metadata) -> bool {
    let is_private = found.mode() & 0o077 == 0 && found.nlink() == 1;
    found.is_file() && is_private && found.uid() == nix::unistd::geteuid().as_raw()
}

/// Takes away a name of a hidden file that is not of ours.
fn clear(part: &Path) -> Result<(), ExportError> {
    match std::fs::remove_file(part) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(ExportError::file(part)(error)),
        _ => Ok(()),
    }
}

/// The rights that this process takes from its files. They can be read without a change only here; where nothing is told, none but
/// the owner gets any.
fn mask() -> u32 {
    let told = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = told.lines().find_map(|line| line.strip_prefix("Umask:"));
    mask.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o077)
}

/// What a process has open.
struct Descriptor {
    process: Pid,
    number: i32,
}

impl Descriptor {
    /// What is open under the name `path`, as `/dev/stdout`, `/dev/fd/5`, `/proc/7/fd/5`, or a link to one of these.
    fn at(path: &Path) -> Option<Self> {
        let mut path = path.to_owned();
        for _ in 0..LINKS {
            let parent = match path.parent() {
                Some(parent) if parent != Path::new("") => parent,
                _ => Path::new("."),
            };
            // The links on the way are those of directories: only the last name may lead to what is open.
            let parent = std::fs::canonicalize(parent).ok()?;
            let here = parent.join(path.file_name()?);
            if let Ok(inside) = parent.strip_prefix("/proc")
                && parent.ends_with("fd")
            {
                let process = inside.iter().next()?.to_str()?.parse().ok()?;
                let number = here.file_name()?.to_str()?.parse().ok()?;
                // The numbers of processes there may be those of another namespace.
                let ours = std::fs::read_link("/proc/self").ok()?;
                let process = match ours.to_str()?.parse::<i32>().ok()? == process {
                    true => getpid(),
                    false => Pid::from_raw(process)?,
                };
                return Some(Self { process, number });
            }
            path = parent.join(std::fs::read_link(&here).ok()?);
        }
        None
    }

    /// The same open file, with its place and its way of writing.
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

    #[test]
    fn a_file_has_its_name_only_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let names = || std::fs::read_dir(dir.path()).unwrap().count();
        std::fs::write(&path, b"old").unwrap();
        let begun = Replacement::begin(&path).unwrap();
        begun.write_at(b"new and longer", 0).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        drop(begun);
        assert_eq!((std::fs::read(&path).unwrap(), names()), (b"old".to_vec(), 1));
        // What a killed process left is written over.
        std::fs::write(dir.path().join(".x.ocifs-part"), [b'z'; 100]).unwrap();
        let begun = Replacement::begin(&path).unwrap();
        begun.write_at(b"new", 0).unwrap();
        begun.commit().unwrap();
        assert_eq!((std::fs::read(&path).unwrap(), names()), (b"new".to_vec(), 1));
    }

    #[test]
    fn two_do_not_write_one_file_at_a_time_and_no_link_is_followed_to_write_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let first = Replacement::begin(&path).unwrap();
        let second = Replacement::begin(&path);
        assert!(second.err().unwrap().to_string().contains("another process"));
        drop(first);
        let victim = dir.path().join("victim");
        std::fs::write(&victim, b"mine").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join(".x.ocifs-part")).unwrap();
        let begun = Replacement::begin(&path).unwrap();
        begun.write_at(b"new", 0).unwrap();
        begun.commit().unwrap();
        assert!(!path.is_symlink());
        assert_eq!(std::fs::read(&victim).unwrap(), b"mine");
        assert!(Replacement::begin(dir.path()).err().unwrap().to_string().contains("is a directory"));
    }

    #[test]
    fn the_target_of_a_link_is_replaced_and_the_link_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("x"), dir.path().join("link"));
        std::fs::write(&path, b"old").unwrap();
        std::os::unix::fs::symlink("x", &link).unwrap();
        let begun = Replacement::begin(&link).unwrap();
        begun.write_at(b"new", 0).unwrap();
        begun.commit().unwrap();
        assert!(link.is_symlink());
        let dangling = dir.path().join("dangling");
        std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
        assert!(Replacement::begin(&dangling).err().unwrap().to_string().contains("leads to no file"));
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn a_hidden_file_that_another_may_have_open_is_not_taken_over_and_nobody_reads_a_part() {
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
            let begun = Replacement::begin(&path).unwrap();
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
        let begun = Replacement::begin(&path).unwrap();
        begun.write_at(b"new", 0).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old and longer");
        begun.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        let null = Replacement::begin(Path::new("/dev/null")).unwrap();
        assert!(!null.is_hidden());
    }

    #[test]
    fn what_is_open_already_is_written_to_where_it_stands() {
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
            let begun = Replacement::begin(&name).unwrap();
            assert!(!begun.is_hidden());
            begun.file().write_all(part.as_bytes()).unwrap();
            begun.commit().unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"head a b c d ");
        assert!(Replacement::begin(Path::new("/dev/fd/4000000")).is_err());
    }
}
