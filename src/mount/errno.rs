//! Errno mapping: the only module where an error becomes an errno, and where an errno about a file becomes a
//! decision.

use fuser::Errno;

use crate::io::FaultClass;

use super::passthrough::RefusalReach;

/// The errno of a failed lookup or open.
pub(super) fn of_open(fault: FaultClass) -> Errno {
    match fault {
        // A disk that ocifs refuses to show, or a source that permanently refuses the caller.
        FaultClass::Denied => Errno::EPERM,
        FaultClass::Unsupported => Errno::EOPNOTSUPP,
        FaultClass::Usage => Errno::EINVAL,
        // A name that exists must not look absent.
        FaultClass::NotFound
        | FaultClass::Unavailable
        | FaultClass::Misbehaved
        | FaultClass::Malformed
        | FaultClass::Mismatch
        | FaultClass::Io => Errno::EIO,
    }
}

/// The errno of a failure inside an existing directory or file. An unavailable part is an input/output error,
/// whichever side is at fault, and a name that exists must not look absent.
pub(super) fn of_read(fault: FaultClass) -> Errno {
    match fault {
        FaultClass::Usage => Errno::EINVAL,
        FaultClass::NotFound
        | FaultClass::Denied
        | FaultClass::Unsupported
        | FaultClass::Unavailable
        | FaultClass::Misbehaved
        | FaultClass::Malformed
        | FaultClass::Mismatch
        | FaultClass::Io => Errno::EIO,
    }
}

/// Decides from the kernel's refusal of one backing file whether it would accept others.
pub(super) fn refusal_of_backing(error: &std::io::Error) -> RefusalReach {
    // EPERM: this process lacks CAP_SYS_ADMIN. The others: a kernel without the call, or without passthrough on this
    // mount.
    const NEVER: [i32; 4] = [libc::EPERM, libc::EOPNOTSUPP, libc::ENOSYS, libc::ENOTTY];
    if error.raw_os_error().is_some_and(|errno| NEVER.contains(&errno)) {
        RefusalReach::EveryFile
    } else {
        // ELOOP: the file lies on a filesystem that is stacked too high. EINVAL: it is not a regular file.
        RefusalReach::ThisFile
    }
}

/// Whether access to a directory failed because its mount lost the server, before or during the call.
pub(super) fn is_dead_mount(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
}

/// Whether the system refused for lack of permission.
pub(super) fn is_refusal(errno: nix::Error) -> bool {
    errno as i32 == libc::EPERM
}

pub(super) const NO_SUCH_NAME: Errno = Errno::ENOENT;
pub(super) const NO_SUCH_HANDLE: Errno = Errno::EBADF;
pub(super) const NO_SUCH_XATTR: Errno = Errno::NO_XATTR;
pub(super) const XATTR_TOO_BIG: Errno = Errno::ERANGE;
pub(super) const NOT_A_LINK: Errno = Errno::EINVAL;
pub(super) const PAST_END: Errno = Errno::ENXIO;
pub(super) const BAD_SEEK: Errno = Errno::EINVAL;
/// Reply to opendir and open after which the kernel sends no more of them (for opendir: `FUSE_NO_OPENDIR_SUPPORT`).
pub(super) const NEVER_ASK: Errno = Errno::ENOSYS;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_right_ends_passthrough_and_an_unfit_file_only_its_own() {
        let refusal = |errno| refusal_of_backing(&std::io::Error::from_raw_os_error(errno));
        for errno in [libc::EPERM, libc::EOPNOTSUPP, libc::ENOSYS, libc::ENOTTY] {
            assert_eq!(refusal(errno), RefusalReach::EveryFile, "{errno}");
        }
        for errno in [libc::ELOOP, libc::EINVAL, libc::ENOMEM, libc::EBADF] {
            assert_eq!(refusal(errno), RefusalReach::ThisFile, "{errno}");
        }
        assert_eq!(refusal_of_backing(&std::io::Error::other("no number")), RefusalReach::ThisFile);
    }
}
