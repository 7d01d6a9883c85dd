//! Errors of mounting and unmounting.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// The mounts that this process sees, proc_pid_mountinfo(5).
pub(super) const TABLE: &str = "/proc/self/mountinfo";

/// How long a directory may take to answer before a mount. A served mount answers from memory.
pub(super) const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

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
    #[error("querying the state of the mount at {}", dir.display())]
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
    Monitor {
        /// The system's error.
        source: io::Error,
    },
    /// Root lacks the right, and so does the setuid helper.
    #[error("mounting at {} requires CAP_SYS_ADMIN, which root lacks", dir.display())]
    NoRight {
        /// The mount point.
        dir: PathBuf,
    },
    /// The setuid helper is not installed.
    #[error("fusermount3 is not installed, and without it only root can mount and unmount")]
    NoHelper,
    /// The setuid helper refused.
    #[error("fusermount3 refused {}: {output}", dir.display())]
    Helper {
        /// The mount point.
        dir: PathBuf,
        /// Its error output.
        output: String,
    },
    /// The kernel's EROFS mounts no file without a loop device.
    #[error("this kernel mounts EROFS from block devices alone (it lacks CONFIG_EROFS_FS_BACKED_BY_FILE)")]
    NoFileMounts,
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
pub enum UnmountMode {
    /// Fail if the mount is in use.
    Now,
    /// Detach from the tree now; the file system ends with its last user.
    Lazy,
}

fn mounted_there(there: &Option<(String, String)>) -> String {
    match there {
        Some((source, fs_type)) => format!(": it is already a mount point, of {source} ({fs_type})"),
        None => String::new(),
    }
}
