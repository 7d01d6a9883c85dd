//! The mount and unmount system calls: direct as root, through `fusermount3` otherwise.
//!
//! The descriptor is opened here and not by `fuser`: its unmount can hit another filesystem that was mounted over
//! ours since, and it passes the source name on unescaped.

use std::fs::{File, OpenOptions};
use std::io::{IoSlice, IoSliceMut, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};
use nix::unistd::{getegid, geteuid};
use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use super::error::{MountError, UnmountMode};
use super::options::{MountAccess, MountOptions, PassthroughMode};

/// Mounts a new FUSE connection at `dir`, always read-only, and returns its descriptor.
pub(super) fn mount(dir: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let device = match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(device) => device,
        Err(source) => return Err(MountError::NoDevice { source }),
    };
    if geteuid().is_root() {
        match mount_directly(dir, options, &device) {
            Ok(()) => return Ok(device.into()),
            // Root without CAP_SYS_ADMIN, as in most containers: the setuid helper may still be allowed to mount.
            Err(Errno::EPERM) => {
                drop(device);
                return mount_by_helper(dir, options).map_err(|error| match error {
                    MountError::NoHelper | MountError::Helper { .. } => {
                        MountError::NoRight { dir: dir.to_owned() }
                    }
                    other => other,
                });
            }
            Err(errno) => return Err(MountError::Mount { dir: dir.to_owned(), source: errno.into() }),
        }
    }
    drop(device);
    mount_by_helper(dir, options)
}

fn mount_directly(dir: &Path, options: &MountOptions, device: &File) -> Result<(), Errno> {
    let mut flags = MsFlags::MS_RDONLY;
    flags.set(MsFlags::MS_NOSUID, !options.flags.suid);
    flags.set(MsFlags::MS_NODEV, !options.flags.dev);
    flags.set(MsFlags::MS_NOEXEC, options.flags.noexec);
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={}",
        device.as_raw_fd(),
        geteuid().as_raw(),
        getegid().as_raw()
    );
    if options.checks_modes() {
        data.push_str(",default_permissions");
    }
    if options.access != MountAccess::Owner {
        data.push_str(",allow_other");
    }
    nix::mount::mount(
        // Unchanged: mount(8) recognises a line of fstab by it.
        Some(options.source.as_str()),
        dir,
        Some("fuse.ocifs"),
        flags,
        Some(data.as_str()),
    )
}

/// Mounts through `fusermount3`, which sends the descriptor over a socket that is its standard input.
fn mount_by_helper(dir: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let mut wanted = format!("ro,fsname={},subtype=ocifs", options.safe_source());
    for (honoured, name, denied) in [
        (options.flags.suid, "suid", "nosuid"),
        (options.flags.dev, "dev", "nodev"),
        (!options.flags.noexec, "exec", "noexec"),
    ] {
        wanted.push(',');
        wanted.push_str(if honoured { name } else { denied });
    }
    if options.checks_modes() {
        wanted.push_str(",default_permissions");
    }
    if options.access != MountAccess::Owner {
        wanted.push_str(",allow_other");
    }
    let failed = |source| MountError::Mount { dir: dir.to_owned(), source };
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let mut helper = Command::new("fusermount3")
        .arg("-o")
        .arg(&wanted)
        .arg("--")
        .arg(dir)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => MountError::NoHelper,
            _ => failed(source),
        })?;
    let received = receive(&ours, &mut [0]);
    let mut output = String::new();
    if let Some(stderr) = &mut helper.stderr {
        stderr.take(4096).read_to_string(&mut output).map_err(failed)?;
    }
    let status = helper.wait().map_err(failed)?;
    match received {
        Ok((_, Some(device))) if status.success() => Ok(device),
        Ok((1.., None)) if status.success() => {
            // The mount succeeded, and this process has no free number for its descriptor.
            if let Err(error) = unmount(dir, UnmountMode::Lazy) {
                tracing::warn!(%error, "cannot unmount; the mount stays without a server");
            }
            Err(failed(Errno::EMFILE.into()))
        }
        Ok(_) => Err(MountError::Helper { dir: dir.to_owned(), output: output.trim().to_owned() }),
        Err(source) => Err(failed(source)),
    }
}

/// Receives a message and the descriptor that came with it; a message of no bytes is the end.
pub(super) fn receive(socket: impl AsFd, message: &mut [u8]) -> std::io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(message)];
    // recvmsg on a socket with a timeout is not restarted after a signal, with SA_RESTART either (signal(7)); SIGCHLD
    // is one.
    let received =
        retry_on_intr(|| recvmsg(socket.as_fd(), &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC));
    let len = received?.bytes;
    let mut received = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            received = fds.last().or(received);
        }
    }
    Ok((len, received))
}

/// Sends a message, with an optional descriptor.
pub(super) fn send(socket: impl AsFd, message: &[u8], fd: Option<BorrowedFd<'_>>) -> std::io::Result<()> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    // A dead peer is reported as an error, not as a signal.
    retry_on_intr(|| sendmsg(socket.as_fd(), &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Unmounts `dir`.
pub(super) fn unmount(dir: &Path, how: UnmountMode) -> Result<(), MountError> {
    let when = match how {
        UnmountMode::Now => MntFlags::empty(),
        UnmountMode::Lazy => MntFlags::MNT_DETACH,
    };
    let flags = when | MntFlags::UMOUNT_NOFOLLOW;
    let errno = match nix::mount::umount2(dir, flags) {
        Ok(()) => return Ok(()),
        Err(errno) => errno,
    };
    match errno {
        Errno::EPERM => {}
        Errno::EBUSY => return Err(MountError::Busy { dir: dir.to_owned() }),
        errno => return Err(MountError::Unmount { dir: dir.to_owned(), source: errno.into() }),
    }
    let mut helper = Command::new("fusermount3");
    helper.arg("-u");
    if how == UnmountMode::Lazy {
        helper.arg("-z");
    }
    let output =
        helper.arg("--").arg(dir).stdin(Stdio::null()).output().map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => MountError::NoHelper,
            _ => MountError::Unmount { dir: dir.to_owned(), source },
        })?;
    if output.status.success() {
        return Ok(());
    }
    let output = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.contains("busy") {
        return Err(MountError::Busy { dir: dir.to_owned() });
    }
    Err(MountError::Helper { dir: dir.to_owned(), output })
}

/// Filesystem levels below passed-through files, this mount included, as the kernel counts them; `None` without
/// passthrough.
///
/// The kernel allows two levels in all. One leaves room for an overlay on top of the mount. A cache that lies on an
/// overlay needs both, and then nothing can be stacked on the mount.
pub(super) fn stack_depth(passthrough: &PassthroughMode) -> Option<u32> {
    let PassthroughMode::Auto { cache } = passthrough else { return None };
    match mount_right() {
        Ok(MountRight::Machine) => {}
        Ok(_) => {
            tracing::debug!("no passthrough: it needs CAP_SYS_ADMIN of the host");
            return None;
        }
        Err(error) => {
            tracing::debug!(%error, "no passthrough: cannot read the capabilities of this process");
            return None;
        }
    }
    match statfs(cache) {
        Ok(found) if found.filesystem_type() == OVERLAYFS_SUPER_MAGIC => {
            tracing::debug!("the cache lies on an overlay: no overlay can be put on this mount");
            Some(2)
        }
        Ok(_) => Some(1),
        Err(error) => {
            tracing::debug!(%error, cache = %cache.display(), "no passthrough: cannot inspect the cache directory");
            None
        }
    }
}

/// Whether `path`, or its nearest existing ancestor, lies on an overlay.
pub fn is_on_overlay(path: &Path) -> bool {
    let found = path.ancestors().find_map(|path| statfs(path).ok());
    found.is_some_and(|found| found.filesystem_type() == OVERLAYFS_SUPER_MAGIC)
}

/// Whether this process has the right to pass files through, checked before files are stored for it.
pub fn may_pass_through() -> bool {
    mount_right().is_ok_and(|right| right == MountRight::Machine)
}

/// The source of the right to mount (CAP_SYS_ADMIN).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MountRight {
    /// CAP_SYS_ADMIN in the initial user namespace.
    Machine,
    /// CAP_SYS_ADMIN in another user namespace.
    Namespace,
    /// Not in this process, but possibly in a setuid program.
    Helper,
    /// In no program that this process can start.
    Absent,
}

/// The mount right of this process, by its status and its user namespace.
pub(super) fn mount_right() -> std::io::Result<MountRight> {
    let users = std::fs::read_to_string("/proc/self/uid_map")?;
    Ok(right_of(&users, &std::fs::read_to_string("/proc/self/status")?))
}

/// By user_namespaces(7) and proc_pid_status(5).
fn right_of(users: &str, status: &str) -> MountRight {
    /// The number of CAP_SYS_ADMIN in capabilities(7).
    const SYS_ADMIN: u32 = 21;
    /// The uid map of the initial namespace: every user maps to itself.
    const EVERYBODY: [&str; 3] = ["0", "0", "4294967295"];
    let has = |set: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix(set)?.strip_prefix(':'));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        mask.is_some_and(|mask| mask & (1 << SYS_ADMIN) != 0)
    };
    match (has("CapEff"), users.split_whitespace().eq(EVERYBODY)) {
        (true, true) => MountRight::Machine,
        (true, false) => MountRight::Namespace,
        (false, _) if has("CapBnd") => MountRight::Helper,
        (false, _) => MountRight::Absent,
    }
}

/// Readahead of a mount in KiB, as root. At the kernel's default of 128 a sequential reader sends eight times the
/// requests for the same bytes.
pub(super) const READAHEAD_KIB: u32 = 1024;

/// Raises the readahead of the mount with this device number, in KiB. Root only; without it a READ has at most 128
/// KiB.
pub(super) fn raise_readahead(major: u32, minor: u32, kib: u32) -> std::io::Result<()> {
    std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), kib.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_cannot_inject_mount_options() {
        let options = MountOptions { source: "oci:/a,allow_other\\x y:t".into(), ..Default::default() };
        assert_eq!(options.safe_source(), "oci:/a_allow_other_x_y:t");
    }

    #[test]
    fn the_right_to_mount_is_found_in_the_status_of_a_process() {
        let status = |effective: &str, bounding: &str| {
            format!("Name:\tx\nCapEff:\t{effective}\nCapBnd:\t{bounding}\n")
        };
        let (all, none) = ("000001ffffffffff", "00000000a80425fb");
        let (machine, namespace) = ("         0          0 4294967295\n", "0 1000 1\n");
        assert_eq!(right_of(machine, &status(all, all)), MountRight::Machine);
        assert_eq!(right_of(namespace, &status(all, all)), MountRight::Namespace);
        assert_eq!(right_of(machine, &status(none, all)), MountRight::Helper);
        assert_eq!(right_of(machine, &status(none, none)), MountRight::Absent);
    }
}
