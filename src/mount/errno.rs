//! The only place where an error becomes an errno.

use fuser::Errno;

use crate::io::Fault;

/// For the operations that find and open things.
pub(super) fn of_open(fault: Fault) -> Errno {
    match fault {
        // A disk that ocifs refuses to show, or a source that refuses the caller for good.
        Fault::Denied => Errno::EPERM,
        Fault::Unsupported => Errno::EOPNOTSUPP,
        Fault::Usage => Errno::EINVAL,
        // A name that exists must never look as if it did not.
        Fault::NotFound
        | Fault::Unavailable
        | Fault::Misbehaved
        | Fault::Malformed
        | Fault::Mismatch
        | Fault::Io => Errno::EIO,
    }
}

/// For what happens inside a directory or a file that exists: a part that cannot be had is an input/output error, whoever
/// is wrong; a name that exists must never look as if it did not.
pub(super) fn of_read(fault: Fault) -> Errno {
    match fault {
        Fault::Usage => Errno::EINVAL,
        Fault::NotFound
        | Fault::Denied
        | Fault::Unsupported
        | Fault::Unavailable
        | Fault::Misbehaved
        | Fault::Malformed
        | Fault::Mismatch
        | Fault::Io => Errno::EIO,
    }
}

pub(super) const NO_SUCH_NAME: Errno = Errno::ENOENT;
pub(super) const NO_SUCH_HANDLE: Errno = Errno::EBADF;
pub(super) const NO_SUCH_XATTR: Errno = Errno::NO_XATTR;
pub(super) const XATTR_TOO_BIG: Errno = Errno::ERANGE;
pub(super) const NOT_A_LINK: Errno = Errno::EINVAL;
pub(super) const PAST_END: Errno = Errno::ENXIO;
pub(super) const BAD_SEEK: Errno = Errno::EINVAL;
/// Tells the kernel that opendir needs no server: it then never asks again (`FUSE_NO_OPENDIR_SUPPORT`).
pub(super) const NEVER_ASK: Errno = Errno::ENOSYS;
