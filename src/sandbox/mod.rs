//! Sandbox: drops capabilities, new privileges, file access and system calls of this process for good.
//!
//! Independent of mounts and registries: the caller lists the files that must stay accessible. The kernel stores all
//! four per thread and passes them on to later threads, so [`enter`] is called before the first thread starts. Each
//! part is applied on its own; a part that the kernel lacks is reported and does not block the others.

mod calls;
mod capabilities;
mod files;
mod private_variables;

use std::path::PathBuf;

pub use private_variables::{
    BACKGROUND_VARIABLE, CREDENTIALS_VARIABLE, MONITOR_VARIABLE, NOTIFY_SOCKET, OWNER_VARIABLE,
    PRIVATE_VARIABLES, SERVICE_VARIABLES, STDIN_CREDENTIALS_VARIABLE, TEMPORARY_VARIABLE,
};

/// Access that must remain.
#[derive(Clone, Debug, Default)]
pub struct SandboxPolicy {
    /// Files, and directories with their content, that are read. Missing ones are skipped.
    pub read: Vec<PathBuf>,
    /// Directories in which files are created, written and removed.
    pub write: Vec<PathBuf>,
    /// Directories from which sockets are removed. Creating one is denied.
    pub sockets: Vec<PathBuf>,
    /// Whether to retain CAP_SYS_ADMIN.
    pub stay_admin: bool,
}

/// The result of one part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppliedPart {
    /// Fully applied.
    Whole,
    /// Applied, with this exception.
    Part(String),
    /// Not applied, for this reason.
    No(String),
}

/// The results of all parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxReport {
    /// Dropped capabilities of root.
    pub capabilities: AppliedPart,
    /// Executed programs gain no rights beyond those of this process.
    pub no_new_privileges: AppliedPart,
    /// File access (Landlock).
    pub files: AppliedPart,
    /// System calls (seccomp).
    pub calls: AppliedPart,
}

impl SandboxReport {
    /// The parts by name.
    pub fn parts(&self) -> [(&'static str, &AppliedPart); 4] {
        [
            ("capabilities", &self.capabilities),
            ("no_new_privileges", &self.no_new_privileges),
            ("files", &self.files),
            ("calls", &self.calls),
        ]
    }
}

/// Drops all rights outside `policy`, in this thread and in all that it starts.
pub fn enter(policy: &SandboxPolicy) -> SandboxReport {
    // The order matters. Before no_new_privs is set, only root may restrict files and calls. The last step denies the
    // calls that the others use.
    let capabilities = capabilities::drop_all_but(policy);
    let no_new_privileges = match nix::sys::prctl::set_no_new_privs() {
        Ok(()) => AppliedPart::Whole,
        Err(errno) => AppliedPart::No(errno.to_string()),
    };
    let files = files::restrict(policy);
    let calls = calls::refuse();
    SandboxReport { capabilities, no_new_privileges, files, calls }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::ErrorKind;
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    use super::*;

    /// The sandbox is of a thread, so that a test can have one for itself.
    fn inside(policy: SandboxPolicy, test: impl FnOnce(SandboxReport) + Send + 'static) {
        let inside = std::thread::spawn(move || test(enter(&policy)));
        inside.join().unwrap();
    }

    fn complete(report: &SandboxReport) -> bool {
        let complete = report.parts().iter().all(|(_, applied)| **applied == AppliedPart::Whole);
        // An old kernel is no fault of the program; a machine of tests has a new one.
        assert!(complete || std::env::var_os("CI").is_none(), "{report:?}");
        complete
    }

    #[test]
    fn files_outside_and_programs_and_mounts_are_out_of_reach_and_the_rest_is_not() {
        let room = tempfile::tempdir().unwrap();
        for name in ["inside", "outside", "readable", "sockets"] {
            fs::create_dir(room.path().join(name)).unwrap();
            fs::write(room.path().join(name).join("file"), name).unwrap();
        }
        let at = |name: &str| room.path().join(name);
        let policy = SandboxPolicy {
            read: vec![at("readable"), at("missing")],
            write: vec![at("inside")],
            sockets: vec![at("sockets")],
            stay_admin: false,
        };
        drop(UnixListener::bind(at("sockets").join("socket")).unwrap());
        let (inside_dir, outside) = (at("inside"), at("outside"));
        let (readable, sockets) = (at("readable"), at("sockets"));
        inside(policy, move |report| {
            if !complete(&report) {
                return;
            }
            let denied = |result: std::io::Result<()>| {
                assert_eq!(result.unwrap_err().kind(), ErrorKind::PermissionDenied);
            };
            denied(fs::read(outside.join("file")).map(|_| ()));
            denied(fs::read_dir(&outside).map(|_| ()));
            denied(fs::write(outside.join("new"), "x"));
            denied(fs::read("/etc/passwd").map(|_| ()));
            denied(Command::new("/bin/true").status().map(|_| ()));
            denied(fs::write(readable.join("file"), "x"));
            denied(fs::remove_file(sockets.join("file")).and_then(|()| fs::write(sockets.join("file"), "x")));
            let flags = nix::mount::MsFlags::MS_RDONLY;
            let mounted = nix::mount::mount(Some("none"), &inside_dir, Some("tmpfs"), flags, None::<&str>);
            assert_eq!(mounted, Err(nix::errno::Errno::EPERM));
            assert_eq!(nix::mount::umount(&inside_dir), Err(nix::errno::Errno::EPERM));
            let made = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER);
            assert_eq!(made, Err(nix::errno::Errno::EPERM));

            assert_eq!(fs::read(readable.join("file")).unwrap(), b"readable");
            fs::write(inside_dir.join("new"), "x").unwrap();
            fs::rename(inside_dir.join("new"), inside_dir.join("newer")).unwrap();
            fs::create_dir(inside_dir.join("deeper")).unwrap();
            fs::remove_file(inside_dir.join("newer")).unwrap();
            fs::remove_file(sockets.join("socket")).unwrap();
            std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            // Threads that come later are inside, too.
            let later = std::thread::spawn(move || fs::read(outside.join("file")).unwrap_err().kind());
            assert_eq!(later.join().unwrap(), ErrorKind::PermissionDenied);
        });
        assert_eq!(fs::read(at("outside").join("file")).unwrap(), b"outside");
    }

    #[test]
    fn no_local_socket_is_reached_and_no_mode_owner_time_or_attribute_of_a_file_changes() {
        use std::os::linux::net::SocketAddrExt as _;
        use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
        let room = tempfile::tempdir().unwrap();
        let (file, socket) = (room.path().join("file"), room.path().join("socket"));
        fs::write(&file, "x").unwrap();
        let _listens = UnixListener::bind(&socket).unwrap();
        let name = SocketAddr::from_abstract_name(format!("ocifs-sandbox-{}", std::process::id())).unwrap();
        let _hears = UnixListener::bind_addr(&name).unwrap();
        // In the directory that it may write to: as far as Landlock goes, all of it is allowed.
        let policy = SandboxPolicy { write: vec![room.path().to_owned()], ..SandboxPolicy::default() };
        inside(policy, move |report| {
            if !complete(&report) {
                return;
            }
            let denied = |what: &str, result: std::io::Result<()>| {
                assert_eq!(result.unwrap_err().kind(), ErrorKind::PermissionDenied, "{what}");
            };
            denied("a path", UnixStream::connect(&socket).map(drop));
            denied("an abstract name", UnixStream::connect_addr(&name).map(drop));
            denied("a datagram", UnixDatagram::unbound().map(drop));
            denied("a pair of datagrams", UnixDatagram::pair().map(drop));
            UnixStream::pair().unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode;
            denied("chmod", fs::set_permissions(&file, mode(0o4755)));
            denied("chown", std::os::unix::fs::chown(&file, Some(0), Some(0)));
            denied("lchown", std::os::unix::fs::lchown(&file, Some(0), Some(0)));
            let opened = fs::File::options().write(true).open(&file).unwrap();
            denied("fchmod", opened.set_permissions(mode(0o4755)));
            denied("fchown", std::os::unix::fs::fchown(&opened, Some(0), Some(0)));
            denied("futimens", opened.set_modified(std::time::SystemTime::UNIX_EPOCH));
            denied("setxattr", xattr::set(&file, "user.x", b"x"));
            denied("fsetxattr", xattr::FileExt::set_xattr(&opened, "user.x", b"x"));
            fs::write(&file, "y").unwrap();
        });
        assert_eq!(fs::read(room.path().join("file")).unwrap(), b"y");
    }

    #[test]
    fn no_other_process_is_limited_moved_or_signalled() {
        use nix::errno::Errno;
        use nix::sys::signal::{Signal, kill};
        use nix::unistd::{Pid, getpid, getppid};
        inside(SandboxPolicy::default(), |report| {
            if !complete(&report) {
                return;
            }
            let other = getppid();
            let rustix = rustix::process::Pid::from_raw(other.as_raw());
            let none = rustix::process::Rlimit { current: None, maximum: None };
            let limit = rustix::process::Resource::Core;
            assert_eq!(rustix::process::prlimit(rustix, limit, none).map(drop), Err(rustix::io::Errno::PERM));
            assert_eq!(nix::sched::sched_setaffinity(other, &nix::sched::CpuSet::new()), Err(Errno::EPERM));
            for pid in [other, Pid::from_raw(1), Pid::from_raw(-1), Pid::from_raw(0)] {
                assert_eq!(kill(pid, None::<Signal>), Err(Errno::EPERM), "{pid}");
            }
            kill(getpid(), None::<Signal>).unwrap();
            rustix::process::getrlimit(limit);
        });
    }

    #[test]
    fn no_right_of_root_is_left_but_the_one_that_was_asked_for() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let room = tempfile::tempdir().unwrap();
        for stay_admin in [false, true] {
            let policy =
                SandboxPolicy { write: vec![room.path().to_owned()], stay_admin, ..SandboxPolicy::default() };
            let had = caps::has_cap(None, caps::CapSet::Permitted, caps::Capability::CAP_SYS_ADMIN).unwrap();
            inside(policy, move |report| {
                assert_eq!(report.capabilities, AppliedPart::Whole);
                for set in [caps::CapSet::Effective, caps::CapSet::Permitted, caps::CapSet::Inheritable] {
                    let left = caps::read(None, set).unwrap();
                    let admin = stay_admin && had && !matches!(set, caps::CapSet::Inheritable);
                    let expected: Vec<_> =
                        admin.then_some(caps::Capability::CAP_SYS_ADMIN).into_iter().collect();
                    assert_eq!(left.into_iter().collect::<Vec<_>>(), expected, "{set:?}");
                }
            });
        }
    }

    #[test]
    fn paths_that_need_root_stay_reachable_and_are_reported() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let room = tempfile::tempdir().unwrap();
        let theirs = room.path().join("theirs");
        fs::create_dir(&theirs).unwrap();
        fs::create_dir(theirs.join("cache")).unwrap();
        std::os::unix::fs::chown(&theirs, Some(12345), Some(12345)).unwrap();
        fs::set_permissions(&theirs, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let cache = theirs.join("cache");
        inside(SandboxPolicy { write: vec![cache.clone()], ..SandboxPolicy::default() }, move |report| {
            assert!(
                matches!(&report.capabilities, AppliedPart::Part(what) if what.contains("CAP_DAC_OVERRIDE")),
                "{report:?}"
            );
            fs::write(cache.join("file"), "x").unwrap();
        });
    }
}
