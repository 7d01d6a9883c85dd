//! Process of a mount: sandbox, signals, statistics.
//!
//! Everything that needs a right is done before the sandbox is entered. The sandbox is entered before the first
//! thread is started and the first byte comes from a network.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal as NixSignal;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cache::BlockCache;
use crate::mount::{self, MountOptions};
use crate::registry::RegistryClient;
use crate::sandbox::{self, AppliedPart, SandboxPolicy, SandboxReport};
use crate::source::ImageLocation;

use super::args::{MountArgs, PassthroughWhen, ServeArgs};
use super::daemon_args::SandboxWhen;
use super::exit::CliError;
use super::metrics_server::MetricsSocket;
use super::setup::StopSignals;
use super::{metrics_server, network, output, run_child};

/// Directories and files of certificates, as distributions have them; private keys of this machine lie beside them.
const CERTIFICATES: &[&str] = &[
    "/etc/ssl/certs",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/ca-trust",
    "/etc/ca-certificates",
    "/usr/lib/ssl",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/usr/share/pki",
];

/// Files that the C library reads to resolve names, and directories of the modules that it loads on the first lookup.
const NAMES: &[&str] = &[
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/protocols",
    "/etc/ld.so.cache",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/nix/store",
    "/gnu/store",
];

/// Kernel interfaces that this process reads. All of /proc, not only /proc/self: under memory pressure the kernel
/// recreates its inodes, and a rule for the old inode then covers nothing. Data of other processes (memory,
/// environment, open files) stays out of reach, because Landlock denies access to processes outside the sandbox. With
/// CAP_SYS_ADMIN new kernels still show some of it.
const KERNEL: &[&str] = &["/proc", "/dev/urandom", "/sys/devices/system/cpu", "/sys/fs/cgroup"];

/// How long threads that looked at a mount may take to end.
const THREADS_TIMEOUT: Duration = Duration::from_secs(2);

/// Drops the rights that serving this mount does not need, and logs the result. Called before any thread is started.
pub(super) fn confine(
    args: &MountArgs,
    dir: &Path,
    options: &MountOptions,
    endpoint: Option<&MetricsSocket>,
    registry: &RegistryClient,
) -> Result<Option<SandboxReport>, CliError> {
    if args.serve.daemon.sandbox == SandboxWhen::Off {
        return Ok(None);
    }
    // Creates the cache directory: a sandbox rule needs an existing path.
    drop(BlockCache::open(&args.image.cache.dir()?)?);
    mount::start_monitor(dir, options)?;
    only_thread()?;
    let report = sandbox::enter(&policy(args, endpoint, registry)?);
    for (part, applied) in report.parts() {
        match applied {
            AppliedPart::Whole => tracing::debug!(part, "the sandbox holds"),
            AppliedPart::Part(what) => tracing::warn!(part, less = what, "the sandbox holds in part"),
            AppliedPart::No(why) => tracing::warn!(part, why, "the sandbox does not hold"),
        }
    }
    Ok(Some(report))
}

/// Waits until this is the only thread: another one would keep the rights that this one gives up.
fn only_thread() -> Result<(), CliError> {
    let failed = |error: std::io::Error| CliError::local("counting the threads before the sandbox", &error);
    let deadline = Instant::now() + THREADS_TIMEOUT;
    while fs::read_dir("/proc/self/task").map_err(failed)?.count() > 1 {
        if Instant::now() > deadline {
            let stuck = std::io::Error::from(std::io::ErrorKind::TimedOut);
            return Err(CliError::local("entering the sandbox beside a thread that does not end", &stuck));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Whether files are passed through to the kernel, which takes CAP_SYS_ADMIN for each one.
pub(super) fn passes_through(args: &ServeArgs) -> bool {
    match args.passthrough {
        PassthroughWhen::On => true,
        PassthroughWhen::Auto => args.daemon.sandbox == SandboxWhen::Off,
        PassthroughWhen::Off => false,
    }
}

/// Rejects paths of this process below its own mount point: its own request would go unanswered.
pub(super) fn keep_clear(args: &MountArgs) -> Result<(), CliError> {
    // Faults of the mount point are reported by the mount itself.
    let Some(dir) = mount::resolved(&args.dir) else { return Ok(()) };
    let kind = match &args.image.location {
        ImageLocation::Layout { .. } => "the layout",
        ImageLocation::Registry(_) | ImageLocation::Archive { .. } => "the image",
    };
    let own = [
        ("the cache", Some(args.image.cache.dir()?)),
        (kind, args.image.location.path().map(Path::to_owned)),
        ("the credential file", args.image.network.authfile.clone()),
        ("the log", args.image.log_file.clone()),
    ];
    for (what, path) in own {
        let Some(path) = path else { continue };
        // A path that does not exist yet can still be made absolute.
        let full = std::fs::canonicalize(&path).or_else(|_| std::path::absolute(&path));
        if full.is_ok_and(|full| full.starts_with(&dir)) {
            let (path, dir) = (path.display(), dir.display());
            return Err(CliError::usage(format!(
                "{what}, {path}, is below the mount point {dir}, which would hide it"
            )));
        }
    }
    Ok(())
}

/// The rights that serving needs.
fn policy(
    args: &MountArgs,
    endpoint: Option<&MetricsSocket>,
    registry: &RegistryClient,
) -> Result<SandboxPolicy, CliError> {
    Ok(SandboxPolicy {
        read: readable(args, registry)?,
        write: vec![args.image.cache.reach()?],
        sockets: endpoint.and_then(MetricsSocket::directory).into_iter().collect(),
        stay_admin: passes_through(&args.serve) && mount::may_pass_through(),
    })
}

/// The paths that serving reads, beside the cache.
fn readable(args: &MountArgs, registry: &RegistryClient) -> Result<Vec<PathBuf>, CliError> {
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(|error| CliError::local("finding the working directory", &error))
    };
    let known = [CERTIFICATES, NAMES, KERNEL].concat();
    let mut paths: Vec<PathBuf> = known.iter().map(PathBuf::from).collect();
    paths.extend(args.serve.trace.as_deref().map(absolute).transpose()?);
    paths.extend(resolver());
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    paths.extend(variable("SSL_CERT_FILE"));
    paths.extend(variable("SSL_CERT_DIR"));
    paths.extend(args.image.trust.files());
    paths.extend(args.image.index_source.files());
    let location = network::in_full(&args.image.location, registry)?;
    paths.extend(registry.reads(location.reference()));
    for repository in args.image.index_source.repositories(registry)? {
        paths.extend(registry.reads(Some(&repository)));
    }
    paths.extend(location.path().map(Path::to_owned));
    paths.extend(args.image.content.stores()?);
    Ok(paths)
}

/// The directory in which resolv.conf is replaced, if it is not /etc. A change of network brings a new file under the
/// old name, which a rule for the old file does not cover. /etc is left out because of the secrets in it; where the
/// file is replaced there, the monitor resolves names from then on.
fn resolver() -> Option<PathBuf> {
    let real = std::fs::canonicalize("/etc/resolv.conf").ok()?;
    real.parent().filter(|dir| *dir != Path::new("/etc") && dir.parent().is_some()).map(Path::to_owned)
}

/// The signals of a mount: those that end it, reload, and statistics.
pub(super) struct DaemonSignals {
    /// The signals that end the mount.
    pub(super) stop: StopSignals,
    reload: Signal,
    statistics: Signal,
    terminal: ControllingTerminal,
}

impl DaemonSignals {
    /// Catches the signals from now on.
    pub(super) fn new() -> Result<Self, CliError> {
        let failed = |error: std::io::Error| CliError::local("catching signals", &error);
        // nohup(1) ignores SIGHUP for its command.
        let terminal = ControllingTerminal::of_process(run_child::is_ignored(NixSignal::SIGHUP));
        Ok(Self {
            terminal,
            stop: StopSignals::new()?,
            reload: signal(SignalKind::hangup()).map_err(failed)?,
            statistics: signal(SignalKind::user_defined1()).map_err(failed)?,
        })
    }

    /// Waits for any signal that ends a command: before the mount exists there is nothing to reload.
    pub(super) async fn until_any(&mut self) {
        tokio::select! {
            () = self.stop.wait() => {}
            _ = self.reload.recv() => {}
        }
    }

    /// Handles signals until one comes that ends the mount.
    pub(super) async fn until_stop(&mut self, registry: &RegistryClient) {
        loop {
            tokio::select! {
                () = self.stop.wait() => return,
                _ = self.reload.recv() => if self.terminal.is_gone() {
                    tracing::info!("the terminal of the mount is gone");
                    return;
                } else { match registry.forget_logins() {
                    Ok(()) => tracing::info!("credentials and configuration reloaded"),
                    Err(error) => tracing::warn!(%error, "cannot reload the configuration; the old one stays"),
                } },
                _ = self.statistics.recv() => output::statistics(&metrics_server::json()),
            }
        }
    }
}

/// Whether the mount ends with its terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ControllingTerminal {
    /// There is no terminal, or the caller wants the mount to outlive it.
    None,
    /// The process had a terminal at the start.
    AtStart,
}

impl ControllingTerminal {
    fn of_process(ignores_its_end: bool) -> Self {
        if !ignores_its_end && has_terminal() { Self::AtStart } else { Self::None }
    }

    /// Whether the kernel has detached this process from its terminal.
    fn is_gone(self) -> bool {
        self == Self::AtStart && !has_terminal()
    }
}

/// Field 7 of proc_pid_stat(5): the device of the controlling terminal, 0 for none. The process name before it may
/// contain any character.
fn has_terminal() -> bool {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let behind_name = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    behind_name.split_whitespace().nth(4).is_some_and(|device| device != "0")
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use clap::Parser as _;
    use nix::errno::Errno;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

    use super::super::parser::{Cli, CliCommand};
    use super::super::setup;
    use super::*;

    #[test]
    fn in_the_sandbox_of_a_mount_no_program_is_run_and_nothing_else_is_opened() {
        let room = tempfile::tempdir().unwrap();
        let at = |name: &str| room.path().join(name).display().to_string();
        for dir in ["cache", "login", "mnt", "hosts"] {
            std::fs::create_dir(at(dir)).unwrap();
        }
        let (login, key) = (at("login/auth.json"), at("key.pem"));
        for file in [&login, &key, &at("beside")] {
            std::fs::write(file, "x").unwrap();
        }
        let (cache, hosts, dir) = (at("cache"), at("hosts"), at("mnt"));
        let words =
            ["ocifs", "mount", "--authfile", &login, "--cache-dir", &cache, "--require-signature", &key];
        let words = words.into_iter().chain(["--hosts-dir", &hosts, "127.0.0.1:1/a:v1", &dir]);
        let CliCommand::Mount(args) = Cli::try_parse_from(words).unwrap().command else {
            panic!("another command");
        };
        let registry = setup::registry(&args.image).unwrap();
        let policy = policy(&args, None, &registry).unwrap();
        let (cache, beside) = (PathBuf::from(&cache), at("beside"));
        // The sandbox is of a thread and of those that it starts.
        let inside = std::thread::spawn(move || {
            let report = sandbox::enter(&policy);
            if report.parts().iter().any(|(_, applied)| matches!(applied, AppliedPart::No(_))) {
                assert!(std::env::var_os("CI").is_none(), "{report:?}");
                return;
            }
            let denied = |what: &str, result: std::io::Result<()>| {
                assert_eq!(result.unwrap_err().kind(), ErrorKind::PermissionDenied, "{what}");
            };
            for file in ["/etc/shadow", "/etc/passwd", "/dev/fuse", "/proc/1/environ", &beside] {
                denied(file, std::fs::File::open(file).map(drop));
            }
            for dir in ["/root", "/etc", "/etc/ssl/private"].into_iter().filter(|dir| Path::new(dir).exists())
            {
                denied(dir, std::fs::read_dir(dir).map(drop));
            }
            denied("writing", std::fs::write(&login, "y"));
            for program in ["/bin/true", "/usr/bin/id", "/proc/self/exe"] {
                denied(program, std::process::Command::new(program).status().map(drop));
            }
            let tried = nix::sys::ptrace::attach(nix::unistd::getppid());
            assert_eq!(tried, Err(Errno::EPERM));
            for family in [AddressFamily::Packet, AddressFamily::Vsock, AddressFamily::Alg] {
                let made = socket(family, SockType::Datagram, SockFlag::empty(), None);
                assert_eq!(made.map(drop), Err(Errno::EPERM), "{family:?}");
            }
            // What serving needs is there all the same.
            std::fs::write(cache.join("block"), "x").unwrap();
            assert_eq!(std::fs::read(&login).unwrap(), b"x");
            assert_eq!(std::fs::read(&key).unwrap(), b"x");
            std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            std::fs::read("/proc/self/mountinfo").unwrap();
            std::net::ToSocketAddrs::to_socket_addrs(&("localhost", 1)).unwrap();
        });
        inside.join().unwrap();
    }
}
