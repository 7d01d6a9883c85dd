//! Mount points: checks before a mount, the mount table, and unmounting.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use super::kernel::{self, MountFlags};
use super::{errno, keeper, stale};

/// The mounts that this process sees, proc_pid_mountinfo(5).
const TABLE: &str = "/proc/self/mountinfo";

/// The type of our mounts in the mount table.
pub(super) const FS_TYPE: &str = "fuse.ocifs";

/// The type of an automounter's trigger, where a mount appears on first access (autofs(5)).
const AUTOFS: &str = "autofs";

/// How long a directory may take to answer before a mount. A served mount answers from memory.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// The extended attribute of a mount's root that holds its reference with the digest.
pub(super) const REFERENCE: &str = "user.ocifs.reference";
/// The extended attribute of the root while the image is not resolved.
pub(super) const WAITING: &str = "user.ocifs.waiting";
/// The longest value of an extended attribute (xattr(7)).
const MAX_VALUE_BYTES: usize = 64 * 1024;

/// Why a mount or unmount failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The directory does not exist.
    #[error("mount point {} does not exist", dir.display())]
    Missing {
        /// The mount point.
        dir: PathBuf,
    },
    /// The name is not a directory.
    #[error("mount point {} is not a directory", dir.display())]
    NotADirectory {
        /// The mount point.
        dir: PathBuf,
    },
    /// The mount would hide content.
    #[error("mount point {} is not empty", dir.display())]
    NotEmpty {
        /// The mount point.
        dir: PathBuf,
    },
    /// The directory is a mount point already.
    #[error("{} is already a mount point, of {source_name} ({fs_type})", dir.display())]
    AlreadyMounted {
        /// The mount point.
        dir: PathBuf,
        /// The source of the existing mount.
        source_name: String,
        /// Its file system type.
        fs_type: String,
    },
    /// Access to the directory is not answered in time.
    #[error("{} does not answer within {} s{}", dir.display(), LOOK_TIMEOUT.as_secs(), mounted_there(there))]
    Unanswered {
        /// The mount point.
        dir: PathBuf,
        /// Source and type of the mount at this directory; `None` if another directory of the path is mounted, or
        /// unknown.
        there: Option<(String, String)>,
    },
    /// A dead mount of another program.
    #[error("{} is a mount point of {source_name} ({fs_type}), whose server is gone", dir.display())]
    Stale {
        /// The mount point.
        dir: PathBuf,
        /// The source of the dead mount.
        source_name: String,
        /// Its file system type.
        fs_type: String,
    },
    /// A directory above the mount point belongs to a dead mount.
    #[error("{} is below a mount point whose server is gone", dir.display())]
    BelowStale {
        /// The mount point.
        dir: PathBuf,
    },
    /// The mount of an earlier daemon could not be taken over.
    #[error("taking over the mount at {}", dir.display())]
    TakeOver {
        /// The mount point.
        dir: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The user may not mount at the directory.
    #[error("mount point {} belongs to another user", dir.display())]
    NotOurs {
        /// The mount point.
        dir: PathBuf,
    },
    /// No mount of ours is at the directory.
    #[error("{} is not an ocifs mount", dir.display())]
    NotMounted {
        /// The directory.
        dir: PathBuf,
    },
    /// The status of a mount cannot be read.
    #[error("asking the mount at {} how it is", dir.display())]
    Status {
        /// The mount point.
        dir: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A writable overlay over the mount cannot be created.
    #[error("laying a writable layer over a mount")]
    Overlay {
        /// The system's error.
        source: io::Error,
    },
    /// The user may not create a mount namespace.
    #[error("only root can lay a writable layer over a mount")]
    NoNamespace,
    /// The mount is in use.
    #[error("{} is in use", dir.display())]
    Busy {
        /// The mount point.
        dir: PathBuf,
    },
    /// The kernel has no FUSE, or this process may not use it.
    #[error("cannot open /dev/fuse")]
    NoDevice {
        /// The system's error.
        source: io::Error,
    },
    /// The process that holds the mount rights cannot be started.
    #[error("cannot start the process that mounts and unmounts")]
    Keeper {
        /// The system's error.
        source: io::Error,
    },
    /// Root lacks the right, and so does the setuid helper.
    #[error("mounting at {} takes CAP_SYS_ADMIN, and root has not got it here", dir.display())]
    NoRight {
        /// The mount point.
        dir: PathBuf,
    },
    /// The setuid helper is not installed.
    #[error("fusermount3 is not installed, and without it only root can mount and unmount")]
    NoHelper,
    /// The setuid helper refused.
    #[error("fusermount3 refused {}: {said}", dir.display())]
    Helper {
        /// The mount point.
        dir: PathBuf,
        /// Its error output.
        said: String,
    },
    /// The kernel refused to mount.
    #[error("mounting at {}", dir.display())]
    Mount {
        /// The mount point.
        dir: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The table of all mounts cannot be read.
    #[error("reading the mount table {TABLE}")]
    Table {
        /// The system's error.
        source: io::Error,
    },
    /// A new mount did not answer in time.
    #[error("the new mount at {} did not answer within {seconds} s", dir.display())]
    Silent {
        /// The mount point.
        dir: PathBuf,
        /// The time limit, in seconds.
        seconds: u64,
    },
    /// The kernel refused to unmount.
    #[error("unmounting {}", dir.display())]
    Unmount {
        /// The mount point.
        dir: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// How to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmount {
    /// Fail if the mount is in use.
    Now,
    /// Detach from the tree now; the file system ends with its last user.
    Lazy,
}

/// One line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MountEntry {
    pub(super) dir: PathBuf,
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) fs_type: String,
    pub(super) source: String,
}

fn mounted_there(there: &Option<(String, String)>) -> String {
    match there {
        Some((source, fs_type)) => format!(": it is already a mount point, of {source} ({fs_type})"),
        None => String::new(),
    }
}

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
    let dir = &stale::repair(dir)?;
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
    match in_time(dir, stale::clear_above)? {
        Some(dir) => Ok(dir),
        None => check(dir, allow_content),
    }
}

/// The absolute name of `dir` just before the mount. The directory of a keeper was checked before; this process
/// itself may not access it any more.
pub(super) fn take(dir: &Path, flags: MountFlags) -> Result<PathBuf, MountError> {
    if flags.over_dead
        && let Some(dir) = stale::clear_above(dir)?
    {
        return Ok(dir);
    }
    match absolute(dir) {
        Ok(dir) if keeper::of(&dir).is_some() => refuse_mounted(&dir).map(|()| dir),
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

/// The topmost mount at exactly `dir`.
pub(super) fn find(dir: &Path) -> Result<Option<MountEntry>, MountError> {
    Ok(table()?.into_iter().rfind(|entry| entry.dir == dir))
}

/// Every mount that this process sees; an upper mount comes after the lower one.
pub(super) fn table() -> Result<Vec<MountEntry>, MountError> {
    let table = fs::read(TABLE).map_err(|source| MountError::Table { source })?;
    Ok(parse(&table))
}

/// The mount table as an open file, so that it can be read without a free descriptor.
#[derive(Debug)]
pub(super) struct MountTable(fs::File);

impl MountTable {
    pub(super) fn open() -> Result<Self, MountError> {
        fs::File::open(TABLE).map(Self).map_err(|source| MountError::Table { source })
    }

    /// The topmost mount at exactly `dir`, now.
    pub(super) fn find(&self, dir: &Path) -> Result<Option<MountEntry>, MountError> {
        use std::os::unix::fs::FileExt as _;
        let (mut table, mut piece) = (Vec::new(), vec![0; 64 * 1024]);
        loop {
            match self.0.read_at(&mut piece, table.len() as u64) {
                Ok(0) => return Ok(parse(&table).into_iter().rfind(|entry| entry.dir == dir)),
                Ok(len) => table.extend_from_slice(&piece[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(MountError::Table { source }),
            }
        }
    }
}

/// The reference mounted at `dir`, if it is a mount of ours. Its digest is included if the mount answers.
pub fn reference_at(dir: &Path) -> Result<Option<String>, MountError> {
    let Some(entry) = find(&name_of(dir)?)?.filter(|entry| entry.fs_type == FS_TYPE) else { return Ok(None) };
    let pinned = in_time(&entry.dir, |dir| Ok(pinned_at(dir)));
    Ok(Some(pinned.ok().flatten().unwrap_or(entry.source)))
}

/// The reference with the digest, from the mount itself. Blocks until the mount answers.
pub(super) fn pinned_at(dir: &Path) -> Option<String> {
    let mut value = Vec::with_capacity(MAX_VALUE_BYTES);
    rustix::fs::getxattr(dir, REFERENCE, rustix::buffer::spare_capacity(&mut value)).ok()?;
    String::from_utf8(value).ok()
}

/// Whether the mount waits for its registry. Blocks until the mount answers.
pub(super) fn is_waiting(dir: &Path) -> bool {
    rustix::fs::getxattr(dir, WAITING, &mut [0; 1]).is_ok()
}

/// Unmounts `dir` if it is a mount of ours.
pub fn unmount(dir: &Path, how: Unmount) -> Result<(), MountError> {
    // Only the parent is resolved: access to a dead mount fails.
    let dir = name_of(dir)?;
    match find(&dir)? {
        Some(entry) if entry.fs_type == FS_TYPE => kernel::unmount(&dir, how),
        _ => Err(MountError::NotMounted { dir }),
    }
}

/// The name of a mount at `dir` in the kernel's table.
pub(super) fn name_of(dir: &Path) -> Result<PathBuf, MountError> {
    absolute(dir).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => MountError::NotMounted { dir: dir.to_owned() },
        _ => MountError::Unmount { dir: dir.to_owned(), source },
    })
}

/// The name of `dir` in the mount table, for a dead mount too.
pub(super) fn absolute(dir: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(dir) {
        Ok(dir) => Ok(dir),
        Err(_) => {
            let dir = std::path::absolute(dir)?;
            match (dir.parent(), dir.file_name()) {
                (Some(parent), Some(name)) => Ok(fs::canonicalize(parent)?.join(name)),
                _ => Ok(dir),
            }
        }
    }
}

/// Parses proc_pid_mountinfo(5). Lines of another form are skipped.
fn parse(table: &[u8]) -> Vec<MountEntry> {
    table.split(|&byte| byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    use std::os::unix::ffi::OsStringExt as _;
    let mut fields = line.split(|&byte| byte == b' ');
    let (major, minor) = std::str::from_utf8(fields.nth(2)?).ok()?.split_once(':')?;
    let dir = std::ffi::OsString::from_vec(unescape(fields.nth(1)?)).into();
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let fs_type = String::from_utf8_lossy(fields.next()?).into_owned();
    let source = String::from_utf8_lossy(&unescape(fields.next()?)).into_owned();
    Some(MountEntry { dir, major: major.parse().ok()?, minor: minor.parse().ok()?, fs_type, source })
}

/// Undoes the kernel's `\040` escapes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let digits =
            tail.get(..3).filter(|_| byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(code) = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            plain.push(code);
            rest = &tail[3..];
        } else {
            plain.push(byte);
            rest = tail;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_is_read_with_its_escapes() {
        let table =
            b"36 35 98:0 /mnt1 /mnt/a\\040b rw,noatime master:1 - fuse.ocifs ghcr.io/a/b@sha256:1 ro\n\
                      37 35 0:5 / /x rw - ext4 /dev/x rw\nnot a line\n";
        let entries = parse(table);
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].dir, Path::new("/mnt/a b"));
        assert_eq!((entries[0].major, entries[0].minor), (98, 0));
        assert_eq!(
            (entries[0].fs_type.as_str(), entries[0].source.as_str()),
            ("fuse.ocifs", "ghcr.io/a/b@sha256:1")
        );
        assert_eq!(entries[1].fs_type, "ext4");
    }

    #[test]
    fn a_table_that_is_held_open_is_the_table_of_every_moment_it_is_asked() {
        let table = MountTable::open().unwrap();
        for _ in 0..2 {
            let proc = table.find(Path::new("/proc")).unwrap();
            assert_eq!(proc, find(Path::new("/proc")).unwrap());
            assert!(proc.is_some_and(|entry| entry.fs_type == "proc"));
        }
        assert_eq!(table.find(Path::new("/no/such/mount")).unwrap(), None);
    }
}
