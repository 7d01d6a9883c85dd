//! Service manager with one service: it keeps the descriptors that the service sends, and hands them to the next process.
//!
//! The protocol is that of sd_notify(3) and sd_listen_fds(3).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::process::{CONDITION_TIMEOUT, becomes_true, signal};
use crate::scratch::mounted_at;
use crate::site::{Site, binary};

/// After this long a test has hung, and so have its readers.
const HUNG: Duration = Duration::from_secs(900);

/// A service manager with one service.
pub(crate) struct ServiceManager {
    socket: UnixDatagram,
    path: PathBuf,
    log: PathBuf,
    pub(crate) kept: KeptDescriptors,
    received: Vec<String>,
    /// The service, while it runs.
    pub(crate) main: Option<Child>,
    /// Ends the guard by its end.
    _guard: mpsc::Sender<()>,
}

/// The descriptors of a service. Readers that nobody serves cannot be killed: whatever happens, they are let go in the end.
#[derive(Clone)]
pub(crate) struct KeptDescriptors {
    descriptors: Arc<Mutex<Vec<OwnedFd>>>,
    below: PathBuf,
}

impl KeptDescriptors {
    /// How many are kept.
    pub(crate) fn len(&self) -> usize {
        self.descriptors.lock().unwrap().len()
    }

    /// Copies of all of them.
    pub(crate) fn clone_all(&self) -> Vec<OwnedFd> {
        self.descriptors.lock().unwrap().iter().map(|kept| kept.try_clone().unwrap()).collect()
    }

    /// Ends the connections of this test and no others.
    pub(crate) fn abort(&self) {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mounted = table.lines().filter(|line| {
            line.contains(" - fuse.ocifs ")
                && line.split(' ').nth(4).is_some_and(|dir| Path::new(dir).starts_with(&self.below))
        });
        let mounted: Vec<_> = mounted.filter_map(|line| line.split([' ', ':']).nth(3)).collect();
        let descriptors = self.clone_all();
        let kept = descriptors.iter().filter_map(|kept| {
            let about = fs::read_to_string(format!("/proc/self/fdinfo/{}", kept.as_raw_fd())).ok()?;
            let number = about.lines().find_map(|line| line.strip_prefix("fuse_connection:"))?;
            Some(number.trim().to_owned())
        });
        let connections: BTreeSet<String> = kept.chain(mounted.into_iter().map(str::to_owned)).collect();
        // The machine may have the control file system mounted nowhere.
        let control = tempfile::tempdir().unwrap();
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("fusectl"), control.path(), Some("fusectl"), flags, None::<&str>).unwrap();
        let aborted =
            connections.iter().map(|number| fs::write(control.path().join(number).join("abort"), "1"));
        let aborted: Vec<_> = aborted.collect();
        nix::mount::umount2(control.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
        assert!(aborted.iter().all(Result::is_ok), "{connections:?}: {aborted:?}");
    }
}

impl ServiceManager {
    /// A manager whose socket and log are in the site.
    pub(crate) fn new(site: &Site) -> Self {
        let (path, log) = (site.scratch().join("notify"), site.scratch().join("log"));
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let kept = KeptDescriptors { descriptors: Arc::default(), below: site.scratch().path().to_owned() };
        let (guard, ended) = mpsc::channel();
        let guarded = kept.clone();
        std::thread::spawn(move || {
            if ended.recv_timeout(HUNG) == Err(RecvTimeoutError::Timeout) {
                guarded.abort();
            }
        });
        Self { socket, path, log, kept, received: Vec::new(), main: None, _guard: guard }
    }

    /// Starts the service with what is kept, and waits until it is ready.
    #[track_caller]
    pub(crate) fn start(&mut self, site: &Site, arguments: &[&str]) {
        self.spawn(site, arguments);
        self.received.clear();
        let ready = self.receives("READY=1");
        assert!(ready, "not ready: {:?}\n{}", self.received, self.logged());
        // The kernel learns that closing a file needs no answer. Programs that are started while no daemon lives close the
        // files that this test holds, and would wait for the daemon that one of them is to become.
        let dir = Path::new(arguments[arguments.len() - 1]);
        let any = ["manifest.json", "late"].into_iter().find_map(|name| File::open(dir.join(name)).ok());
        drop(any.unwrap());
    }

    /// Starts the service with what is kept.
    pub(crate) fn spawn(&mut self, site: &Site, arguments: &[&str]) {
        let mut command = Command::new("sh");
        // sd_listen_fds(3): the descriptors from 3 on, and the process that they are meant for.
        let script = "test \"$KEPT\" = 0 || {
                export LISTEN_PID=$$ LISTEN_FDS=$KEPT LISTEN_FDNAMES=ocifs:ocifs
                exec 3<&0 4<&1; }
            exec </dev/null >/dev/null; exec \"$0\" \"$@\"";
        command.args(["-euc", script]).arg(binary()).args(["mount", "-f"]).args(arguments);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.env("HOME", site.scratch().join("home")).env("OCIFS_CACHE_DIR", site.cache());
        command.env("NOTIFY_SOCKET", &self.path).env("KEPT", self.kept.len().to_string());
        command.env("OCIFS_LOG", "info,ocifs=debug");
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        if let Ok([first, second]) = <[OwnedFd; 2]>::try_from(self.kept.clone_all()) {
            command.stdin(first).stdout(second);
        }
        self.main = Some(command.spawn().unwrap());
    }

    /// Takes what was sent.
    pub(crate) fn receive(&mut self) {
        loop {
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut text = [0; 4096];
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let received =
                rustix::net::recvmsg(&self.socket, &mut [IoSliceMut::new(&mut text)], &mut ancillary, flags);
            let Ok(received) = received else { return };
            let mut sent = Vec::new();
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    sent.extend(descriptors);
                }
            }
            let text = String::from_utf8_lossy(&text[..received.bytes]).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            if lines.contains(&"FDSTORE=1") {
                assert!(lines.contains(&"FDNAME=ocifs"), "{text}");
                self.kept.descriptors.lock().unwrap().append(&mut sent);
            }
            if lines.contains(&"FDSTOREREMOVE=1") {
                assert!(lines.contains(&"FDNAME=ocifs"), "{text}");
                self.kept.descriptors.lock().unwrap().clear();
            }
            self.received.extend(lines.into_iter().map(str::to_owned));
        }
    }

    /// Whether the service says `line`, while it lives.
    fn receives(&mut self, line: &str) -> bool {
        becomes_true(CONDITION_TIMEOUT, || {
            let ended = self.main.as_mut().is_none_or(|main| main.try_wait().unwrap().is_some());
            self.receive();
            ended || self.received.iter().any(|received| received == line)
        }) && self.received.iter().any(|received| received == line)
    }

    /// Ends the service as a crash would.
    #[track_caller]
    pub(crate) fn crash(&mut self) {
        let mut main = self.main.take().unwrap();
        signal(main.id(), Signal::SIGKILL);
        main.wait().unwrap();
        self.receive();
        assert_eq!(self.kept.len(), 2, "{:?}", self.received);
    }

    /// Stops the service, which takes its mount away.
    #[track_caller]
    pub(crate) fn stop(&mut self, dir: &Path) {
        signal(self.main.as_ref().unwrap().id(), Signal::SIGTERM);
        let status = self.main.take().unwrap().wait().unwrap();
        self.receive();
        assert_eq!(status.code(), Some(0), "{}", self.logged());
        assert!(self.received.iter().any(|received| received == "STOPPING=1"), "{:?}", self.received);
        assert_eq!(self.kept.len(), 0);
        assert!(mounted_at(dir).is_none());
    }

    /// What the service has logged.
    pub(crate) fn logged(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for ServiceManager {
    fn drop(&mut self) {
        // First of all, so that nobody hangs, not even the service itself.
        if self.main.is_some() || self.kept.len() > 0 {
            self.kept.abort();
        }
        if let Some(mut main) = self.main.take() {
            main.kill().unwrap();
            main.wait().unwrap();
        }
    }
}
