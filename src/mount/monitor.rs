//! Privilege-separation monitor: a small process with the rights that the serving process gives up.
//!
//! It is this same program, started before the sandbox is entered. It serves eight requests: mount at one fixed
//! directory; have the kernel's EROFS mount a file of the serving process there; report whether the kernel-served mount
//! there is dead; unmount that directory if the mount is ours; raise the readahead of that mount; run credential
//! helpers for the registry client; resolve host names for it; continue the serving process after a stop signal.
//!
//! It reads no byte of an image and parses only the requests of its own program. So an attacker in the serving
//! process gains these requests and nothing else. It ends when its socket closes, and leaves the mount in the tree: a
//! dead mount shows that something went wrong.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socketpair};
use nix::unistd::Pid;
use rustix::net::sockopt::Timeout;
use serde::{Deserialize, Serialize};

use super::error::{MountError, UnmountMode};
use super::kernel;
use super::kernel_mount::{self, ImageTerms, PlacedImage};
use super::mount_record::MountRecord;
use super::mount_table::{self, MountEntry};
use super::options::{MountAccess, MountFlags, MountOptions};
use crate::io::concurrency::MONITOR_REQUESTS;
use crate::io::lock;
use crate::registry;
use crate::sandbox;

/// The name of its process.
const MONITOR_NAME: &str = "ocifs-monitor";
/// The longest message: a path and a reference, each limited to a page by the kernel.
const MAX_MESSAGE: usize = 16 * 1024;
/// How long the serving process may be stopped before it is continued.
const DAEMON_POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The monitor of this process, once started. Per process, as the rights are.
static MONITOR: OnceLock<MountMonitor> = OnceLock::new();

struct MountMonitor {
    dir: PathBuf,
    /// Held from a request to its answer.
    socket: Mutex<OwnedFd>,
}

/// Parameters of all requests: the first message.
#[derive(Serialize, Deserialize)]
struct MonitorTerms {
    dir: Vec<u8>,
    access: MountAccess,
    flags: MountFlags,
}

#[derive(Debug, Serialize, Deserialize)]
enum MonitorRequest {
    Mount {
        source: String,
    },
    /// A FUSE mount that is in no tree; its descriptor comes with the answer.
    Connect,
    /// EROFS on the file of that mount; the listener of its record comes with the answer.
    PlaceImage(ImageTerms),
    /// The listener of the record of the EROFS mount with this number, for a process that takes it over.
    ResumeImage {
        major: u32,
        minor: u32,
    },
    /// Whether the process of the kernel-served mount there is gone.
    IsAbandoned,
    /// The mount answers. Before this, it ends with the serving process.
    Serving,
    Unmount {
        lazily: bool,
    },
    Readahead {
        major: u32,
        minor: u32,
        kib: u32,
    },
    /// A request of the registry client; its socket comes along as a descriptor.
    Question,
}

/// The result of a request. The answer to a mount carries the descriptor.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum MonitorAnswer {
    Done,
    /// Device number of the EROFS mount.
    Placed {
        major: u32,
        minor: u32,
    },
    NoDevice(i32),
    NoHelper,
    NoRight,
    Helper(String),
    Busy,
    NotOurs,
    Failed(i32),
}

/// Starts the monitor for a mount at `dir`, an absolute name. From then on this process needs no right to mount or
/// unmount there.
pub fn start_monitor(dir: &Path, options: &MountOptions) -> Result<(), MountError> {
    let failed = |source| MountError::Monitor { source };
    let dir = dir.to_owned();
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|errno| failed(errno.into()))?;
    Command::new("/proc/self/exe")
        .arg0(MONITOR_NAME)
        .env(sandbox::MONITOR_VARIABLE, "1")
        // Credential helpers inherit the user's environment, without the variables that are ours.
        .env_remove(sandbox::CREDENTIALS_VARIABLE)
        .env_remove(sandbox::STDIN_CREDENTIALS_VARIABLE)
        .env_remove(sandbox::NOTIFY_SOCKET)
        .current_dir("/")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let terms = MonitorTerms {
        dir: dir.as_os_str().as_bytes().to_vec(),
        access: options.access,
        flags: options.flags,
    };
    send(&ours, &terms, None).map_err(failed)?;
    let monitor = MONITOR.get_or_init(|| MountMonitor { dir, socket: Mutex::new(ours) });
    registry::work_elsewhere(|socket| monitor_of_process(&MonitorRequest::Question, Some(socket)));
    tracing::debug!(dir = %monitor.dir.display(), "the monitor has started");
    Ok(())
}

/// Sends a request that is not about one directory.
fn monitor_of_process(order: &MonitorRequest, with: Option<OwnedFd>) -> io::Result<()> {
    let monitor = MONITOR.get().ok_or(io::ErrorKind::NotConnected)?;
    match monitor.ask(order, with)?.0 {
        MonitorAnswer::Done => Ok(()),
        other => Err(other.into_io()),
    }
}

/// The monitor of this process, if it is responsible for `dir`.
pub(super) fn of(dir: &Path) -> Option<HeldDirectory> {
    MONITOR.get().filter(|monitor| monitor.dir == dir).map(HeldDirectory)
}

/// A directory that the monitor may mount at.
pub(super) struct HeldDirectory(&'static MountMonitor);

impl HeldDirectory {
    /// Mounts there and returns the descriptor.
    pub(super) fn mount(&self, source: &str) -> Result<OwnedFd, MountError> {
        let dir = &self.0.dir;
        let failed = |source| MountError::Mount { dir: dir.clone(), source };
        let (answer, device) =
            self.0.ask(&MonitorRequest::Mount { source: source.to_owned() }, None).map_err(failed)?;
        match (answer, device) {
            (MonitorAnswer::Done, Some(device)) => Ok(device),
            (MonitorAnswer::Done, None) => {
                // The mount succeeded, and this process has no free number for its descriptor.
                if let Some(Err(error)) = self.unmount(UnmountMode::Lazy) {
                    tracing::warn!(%error, "cannot unmount; the mount stays without a server");
                }
                Err(failed(Errno::EMFILE.into()))
            }
            (MonitorAnswer::NoDevice(code), _) => {
                Err(MountError::NoDevice { source: io::Error::from_raw_os_error(code) })
            }
            (MonitorAnswer::NoHelper, _) => Err(MountError::NoHelper),
            (MonitorAnswer::NoRight, _) => Err(MountError::NoRight { dir: dir.clone() }),
            (MonitorAnswer::Helper(output), _) => Err(MountError::Helper { dir: dir.clone(), output }),
            (other, _) => Err(failed(other.into_io())),
        }
    }

    /// Makes a FUSE mount that is in no tree, and returns its device.
    pub(super) fn connect(&self) -> io::Result<OwnedFd> {
        match self.0.ask(&MonitorRequest::Connect, None)? {
            (MonitorAnswer::Done, Some(device)) => Ok(device),
            (MonitorAnswer::Done, None) => Err(Errno::EMFILE.into()),
            (other, _) => Err(other.into_io()),
        }
    }

    /// Mounts the file of that FUSE mount as EROFS. Returns the device number, and the listener of the record.
    pub(super) fn place_image(&self, terms: ImageTerms) -> io::Result<((u32, u32), OwnedFd)> {
        self.placed(&MonitorRequest::PlaceImage(terms))
    }

    /// The listener of the record of the EROFS mount with this number.
    pub(super) fn resume_image(&self, (major, minor): (u32, u32)) -> io::Result<((u32, u32), OwnedFd)> {
        self.placed(&MonitorRequest::ResumeImage { major, minor })
    }

    fn placed(&self, order: &MonitorRequest) -> io::Result<((u32, u32), OwnedFd)> {
        match self.0.ask(order, None)? {
            (MonitorAnswer::Placed { major, minor }, Some(listener)) => Ok(((major, minor), listener)),
            (MonitorAnswer::Placed { .. }, None) => {
                if let Some(Err(error)) = self.unmount(UnmountMode::Lazy) {
                    tracing::warn!(%error, "the mount stays, and nothing serves it");
                }
                Err(Errno::EMFILE.into())
            }
            (other, _) => Err(other.into_io()),
        }
    }

    /// Whether the process of the kernel-served mount there is gone. The sandbox refuses the serving process to connect
    /// to the socket of a record.
    pub(super) fn is_abandoned(&self) -> io::Result<bool> {
        match self.0.ask(&MonitorRequest::IsAbandoned, None)? {
            (MonitorAnswer::Done, _) => Ok(true),
            (MonitorAnswer::NotOurs, _) => Ok(false),
            (other, _) => Err(other.into_io()),
        }
    }

    /// Reports that the mount answers: it may then outlive the serving process.
    pub(super) fn note_serving(&self) {
        if let Err(error) = self.0.ask(&MonitorRequest::Serving, None) {
            tracing::warn!(%error, "the monitor of the mount is gone");
        }
    }

    /// Unmounts the directory; `None` when the monitor is gone.
    pub(super) fn unmount(&self, how: UnmountMode) -> Option<Result<(), MountError>> {
        let dir = self.0.dir.clone();
        let answer = match self.0.ask(&MonitorRequest::Unmount { lazily: how == UnmountMode::Lazy }, None) {
            Ok((answer, _)) => answer,
            Err(error) => {
                tracing::warn!(%error, "the monitor of the mount is gone");
                return None;
            }
        };
        Some(match answer {
            MonitorAnswer::Done => Ok(()),
            MonitorAnswer::Busy => Err(MountError::Busy { dir }),
            MonitorAnswer::NotOurs => Err(MountError::NotMounted { dir }),
            MonitorAnswer::NoHelper => Err(MountError::NoHelper),
            MonitorAnswer::Helper(output) => Err(MountError::Helper { dir, output }),
            other => Err(MountError::Unmount { dir, source: other.into_io() }),
        })
    }
}

/// Raises the readahead of the mount with this device number; `None` without a monitor.
pub(super) fn raise_readahead(major: u32, minor: u32, kib: u32) -> Option<io::Result<()>> {
    MONITOR.get()?;
    Some(monitor_of_process(&MonitorRequest::Readahead { major, minor, kib }, None))
}

impl MountMonitor {
    fn ask(
        &self,
        order: &MonitorRequest,
        with: Option<OwnedFd>,
    ) -> io::Result<(MonitorAnswer, Option<OwnedFd>)> {
        let socket = lock(&self.socket);
        send(&socket, order, with)?;
        let mut message = vec![0; MAX_MESSAGE];
        let (len, fd) = kernel::receive(&*socket, &mut message)?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok((parse(&message[..len])?, fd))
    }
}

impl MonitorAnswer {
    fn into_io(self) -> io::Error {
        match self {
            MonitorAnswer::NoDevice(code) | MonitorAnswer::Failed(code) => io::Error::from_raw_os_error(code),
            other => io::Error::other(format!("the monitor answered {other:?}")),
        }
    }

    fn of(error: &MountError) -> Self {
        let code = |source: &io::Error| source.raw_os_error().unwrap_or(libc::EIO);
        match error {
            MountError::NoDevice { source } => MonitorAnswer::NoDevice(code(source)),
            MountError::NoHelper => MonitorAnswer::NoHelper,
            MountError::NoRight { .. } => MonitorAnswer::NoRight,
            MountError::Helper { output, .. } => {
                // The helper's output is a line; a message has room for more than one.
                MonitorAnswer::Helper(output.chars().take(MAX_MESSAGE / 8).collect())
            }
            MountError::Busy { .. } => MonitorAnswer::Busy,
            MountError::NotMounted { .. } => MonitorAnswer::NotOurs,
            MountError::Mount { source, .. } | MountError::Unmount { source, .. } => {
                MonitorAnswer::Failed(code(source))
            }
            _ => MonitorAnswer::Failed(libc::EIO),
        }
    }
}

fn send(socket: &OwnedFd, message: &impl Serialize, with: Option<OwnedFd>) -> io::Result<()> {
    let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
    kernel::send(socket, &bytes, with.as_ref().map(OwnedFd::as_fd))
}

fn parse<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> io::Result<T> {
    postcard::from_bytes(bytes).map_err(io::Error::other)
}

/// Whether this process was started as a monitor.
pub fn is_monitor() -> bool {
    // The variable alone may come from a caller.
    std::env::var_os(sandbox::MONITOR_VARIABLE).is_some()
        && std::env::args_os().next().is_some_and(|name| name == MONITOR_NAME)
}

/// Runs the monitor until the parent process is gone.
pub fn keep() -> io::Result<()> {
    nix::sys::prctl::set_name(c"ocifs-monitor")?;
    // Credentials pass through this process.
    nix::sys::prctl::set_dumpable(false)?;
    // Signals to the process group are for the serving process, which then requests the unmount.
    let others = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1];
    SigSet::from_iter(others).thread_block()?;
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let mut message = vec![0; MAX_MESSAGE];
    // The terms are read once, before any request.
    let len = recv(socket.as_raw_fd(), &mut message, MsgFlags::empty())?;
    let terms: MonitorTerms = parse(&message[..len])?;
    let dir = PathBuf::from(std::ffi::OsString::from_vec(terms.dir));
    let mut questions = Vec::new();
    let mut images = HeldImage::default();
    let served_by = nix::unistd::getppid();
    // Whether a mount was made and has not answered yet.
    let mut is_starting = false;
    rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(DAEMON_POLL_INTERVAL))?;
    loop {
        let (len, with) = match kernel::receive(&socket, &mut message) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wake(served_by);
                continue;
            }
            Err(error) => return Err(error),
        };
        if len == 0 {
            images.forget();
            if is_starting && let Ok(dir) = mount_table::ours(&dir) {
                // The process ended without unmounting: a signal, or no memory.
                kernel::unmount(&dir, UnmountMode::Lazy).ok();
            }
            if std::env::var_os(sandbox::TEMPORARY_VARIABLE).is_some() {
                remove_place(&dir);
            }
            return Ok(());
        }
        let (answer, device) = match (parse(&message[..len])?, with) {
            (MonitorRequest::Mount { source }, _) => {
                let options =
                    MountOptions { access: terms.access, flags: terms.flags, source, ..Default::default() };
                match kernel::mount(&dir, &options) {
                    Ok(device) => {
                        // Only now: an automounter lets its own process group alone mount there. The call fails for a
                        // group leader, which is harmless.
                        nix::unistd::setsid().ok();
                        is_starting = true;
                        (MonitorAnswer::Done, Some(device))
                    }
                    Err(error) => (MonitorAnswer::of(&error), None),
                }
            }
            (MonitorRequest::Connect, _) => images.connect(),
            (MonitorRequest::PlaceImage(image), _) => {
                let placed = images.place(&dir, &image, terms.flags);
                is_starting = matches!(placed.0, MonitorAnswer::Placed { .. });
                placed
            }
            (MonitorRequest::Serving, _) => {
                is_starting = false;
                (MonitorAnswer::Done, None)
            }
            (MonitorRequest::ResumeImage { major, minor }, _) => {
                images.hold(kernel_mount::resume(&dir, (major, minor)))
            }
            (MonitorRequest::IsAbandoned, _) => (is_abandoned(&dir), None),
            (MonitorRequest::Unmount { lazily }, _) => {
                let how = if lazily { UnmountMode::Lazy } else { UnmountMode::Now };
                // Unmounts only a mount of ours, whatever the request.
                (
                    mount_table::ours(&dir)
                        .and_then(|dir| kernel::unmount(&dir, how))
                        .map_or_else(|error| MonitorAnswer::of(&error), |()| MonitorAnswer::Done),
                    None,
                )
            }
            (MonitorRequest::Readahead { major, minor, kib }, _) => {
                (readahead(&dir, major, minor, kib), None)
            }
            (MonitorRequest::Question, Some(socket)) => (answer(&mut questions, socket), None),
            (MonitorRequest::Question, None) => (MonitorAnswer::Failed(libc::EBADF), None),
        };
        send(&socket, &answer, device)?;
    }
}

fn is_abandoned(dir: &Path) -> MonitorAnswer {
    match mount_table::find(dir) {
        Ok(entry) if entry.as_ref().is_some_and(MountEntry::is_abandoned) => MonitorAnswer::Done,
        Ok(_) => MonitorAnswer::NotOurs,
        Err(error) => MonitorAnswer::of(&error),
    }
}

/// The parts of a kernel-served mount that the monitor has.
#[derive(Default)]
struct HeldImage {
    /// The FUSE mount that is in no tree; `None` before it is made, and once EROFS has its file.
    connection: Option<OwnedFd>,
    /// The record of the mount, and the number of its socket file; `None` before the mount.
    record: Option<(MountRecord, u64)>,
}

/// The answer to a request, and the descriptor that comes with it.
type AnswerParts = (MonitorAnswer, Option<OwnedFd>);

impl HeldImage {
    fn connect(&mut self) -> AnswerParts {
        match kernel_mount::connect() {
            Ok((device, mount)) => {
                self.connection = Some(mount);
                (MonitorAnswer::Done, Some(device))
            }
            Err(error) => (failed(&error), None),
        }
    }

    fn place(&mut self, dir: &Path, terms: &ImageTerms, flags: MountFlags) -> AnswerParts {
        // The FUSE mount ends with this descriptor if EROFS did not open its file.
        let placed = match self.connection.take() {
            Some(connection) => kernel_mount::place(&connection, dir, terms, flags),
            None => Err(Errno::ENOTCONN.into()),
        };
        if placed.is_ok() {
            // Only now, as for a FUSE mount.
            nix::unistd::setsid().ok();
        }
        self.hold(placed)
    }

    fn hold(&mut self, placed: io::Result<PlacedImage>) -> AnswerParts {
        match placed {
            Ok(PlacedImage { number: (major, minor), listener, record }) => {
                self.record = record.file_number().map(|file| (record, file));
                (MonitorAnswer::Placed { major, minor }, Some(listener.into()))
            }
            Err(error) => (failed(&error), None),
        }
    }

    /// Removes the record, unless a dead mount is left.
    fn forget(&self) {
        if let Some((record, file)) = &self.record {
            kernel_mount::forget(record, *file);
        }
    }
}

fn failed(error: &io::Error) -> MonitorAnswer {
    MonitorAnswer::Failed(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Continues the serving process if it was stopped. Nothing else ends the waits of readers of the mount, and the
/// kernel lets none of them be killed whose request was read.
fn wake(served_by: Pid) {
    let stat = std::fs::read_to_string(format!("/proc/{served_by}/stat")).unwrap_or_default();
    // The state is behind the name, which may contain anything (proc_pid_stat(5)). T: stopped by a signal; t: by a
    // debugger.
    let is_stopped = stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'));
    if is_stopped && nix::unistd::getppid() == served_by {
        // The process may have ended by now.
        nix::sys::signal::kill(served_by, Signal::SIGCONT).ok();
    }
}

/// Removes the directory of a mount and its parent, if they are empty and nothing is mounted there. Their owner may
/// have removed them already.
fn remove_place(dir: &Path) {
    let room = dir.parent().filter(|_| std::fs::remove_dir(dir).is_ok());
    if let Some(room) = room {
        std::fs::remove_dir(room).ok();
    }
}

/// Raises the readahead, if the number is that of the mount at `dir`.
fn readahead(dir: &Path, major: u32, minor: u32, kib: u32) -> MonitorAnswer {
    match mount_table::find(dir) {
        Ok(Some(entry)) if (entry.major, entry.minor) == (major, minor) => {}
        _ => return MonitorAnswer::NotOurs,
    }
    match kernel::raise_readahead(major, minor, kib) {
        Ok(()) => MonitorAnswer::Done,
        Err(error) => MonitorAnswer::Failed(error.raw_os_error().unwrap_or(libc::EIO)),
    }
}

/// Serves one request of the registry client on a thread of its own, so that an unmount need not wait for it.
fn answer(questions: &mut Vec<std::thread::JoinHandle<()>>, socket: OwnedFd) -> MonitorAnswer {
    questions.retain(|question| !question.is_finished());
    if questions.len() >= MONITOR_REQUESTS {
        return MonitorAnswer::Failed(Errno::EAGAIN as i32);
    }
    let started = std::thread::Builder::new().name("question".into()).spawn(move || {
        // The client sees an error as the end of its socket; the monitor has no log.
        registry::serve_elsewhere(socket.into()).ok();
    });
    match started {
        Ok(question) => {
            questions.push(question);
            MonitorAnswer::Done
        }
        Err(error) => MonitorAnswer::Failed(error.raw_os_error().unwrap_or(libc::EIO)),
    }
}
