//! FUSE session: the life of one mount from the system call to its last request.

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{Config, Filesystem, Notifier, Session, SessionACL};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::io::can_start_threads;
use crate::io::concurrency::request_threads;
use crate::view::{MountNamespace, ViewScope};

use super::dead_mount;
use super::error::{MountError, UnmountMode};
use super::gate::OcifsFilesystem;
use super::handover::{HandoverJournal, HandoverPlace};
use super::invalidate;
use super::invalidate::SessionEnd;
use super::mount_table::MountTable;
use super::options::{MountAccess, MountOptions, MountPersistence};
use super::waiting::PendingMount;
use super::{kernel, mountpoint, privileged};

/// How long the kernel may take to report that a lazily unmounted filesystem has no users.
const LAST_REQUESTS: Duration = Duration::from_millis(500);

/// How long a new mount may take to answer the first access, which needs no registry. A busy machine may let its
/// threads stand still for many seconds.
const FIRST_ANSWER: Duration = Duration::from_secs(60);

/// Poll interval during the start of the threads.
const START_INTERVAL: Duration = Duration::from_millis(1);

/// A mounted namespace. Dropping it unmounts it, unless another process may take it over.
pub struct ServedMount {
    placed: PlacedMount,
    ended: SessionEnd,
    /// Descriptor and journal for another process; `None` if the mount ends with this one.
    kept: Option<(OwnedFd, Arc<HandoverJournal>)>,
}

/// Mounts `namespace` at `dir`. When this returns, the mount answers.
pub fn mount(
    namespace: Arc<MountNamespace>,
    dir: &Path,
    options: &MountOptions,
    runtime: &Handle,
) -> Result<ServedMount, MountError> {
    attach(dir, options, ViewScope::default(), runtime)?.serve(namespace, options)
}

/// A mount in the tree. Dropping it unmounts it after any failure, without allocating a descriptor.
struct PlacedMount {
    dir: PathBuf,
    /// The device number of the file system, which distinguishes it from another one at the same directory.
    number: (u32, u32),
    table: MountTable,
    /// The end of its session; `None` before there is one.
    ended: Option<SessionEnd>,
    /// Whether the mount outlives this value.
    stays: bool,
}

impl PlacedMount {
    /// Whether the mount is still on top at its directory. The kernel reuses the number of a mount that is gone. Once
    /// the kernel has ended the session, only a dead mount of that number is this one.
    fn is_in_place(&self) -> Result<bool, MountError> {
        if !self.is_number_in_place()? {
            return Ok(false);
        }
        let is_over = self.ended.as_ref().is_some_and(|ended| matches!(*ended.borrow(), Some(Ok(()))));
        Ok(!is_over || mountpoint::in_time(&self.dir, |dir| Ok(dead_mount::is_dead(dir))).unwrap_or(false))
    }

    /// Whether the topmost mount at its directory has its number.
    fn is_number_in_place(&self) -> Result<bool, MountError> {
        let found = self.table.find(&self.dir)?;
        Ok(found.is_some_and(|entry| (entry.major, entry.minor) == self.number))
    }

    fn unmount(&self, how: UnmountMode) -> Result<(), MountError> {
        privileged::detach(&self.dir, how)
    }
}

impl Drop for PlacedMount {
    fn drop(&mut self) {
        if self.stays || !self.is_in_place().unwrap_or(false) {
            return;
        }
        if let Err(error) = self.unmount(UnmountMode::Lazy) {
            tracing::warn!(dir = %self.dir.display(), %error, "cannot unmount; the mount stays without a server");
        }
    }
}

/// A mount that is in the tree and answers, before its image is resolved; a lookup of a name waits. Dropping it
/// unmounts it.
pub struct AttachedMount {
    placed: PlacedMount,
    filesystem: OcifsFilesystem,
    waiting: Arc<PendingMount>,
    connection: SessionHandle,
    runtime: Handle,
}

/// The session of a mount, as seen from outside its threads.
struct SessionHandle {
    /// A second descriptor, if the mount is to survive this process; else `None`.
    device: Option<OwnedFd>,
    notifier: Notifier,
    ended: SessionEnd,
}

/// Mounts at `dir` before the content of `scope` is known.
pub fn attach(
    dir: &Path,
    options: &MountOptions,
    scope: ViewScope,
    runtime: &Handle,
) -> Result<AttachedMount, MountError> {
    let dir = mountpoint::take(dir, options.flags)?;
    // Opened before the mount: without a free descriptor the mount could not be found again.
    let table = MountTable::open()?;
    let device = privileged::mount(&dir, options)?;
    let entry = table.find(&dir).and_then(|entry| entry.ok_or(MountError::NotMounted { dir: dir.clone() }));
    let number = match entry {
        Ok(entry) => (entry.major, entry.minor),
        Err(error) => {
            privileged::detach(&dir, UnmountMode::Lazy).ok();
            return Err(error);
        }
    };
    let mut placed = PlacedMount { dir, number, table, ended: None, stays: false };
    let waiting = Arc::new(PendingMount::new(options.source.clone(), scope));
    let (filesystem, connection) = start(&waiting, device, options, runtime)
        .map_err(|source| MountError::Mount { dir: placed.dir.clone(), source })?;
    placed.ended = Some(connection.ended.clone());
    Ok(AttachedMount { placed, filesystem, waiting, connection, runtime: runtime.clone() })
}

impl AttachedMount {
    /// The absolute mount point.
    pub fn dir(&self) -> &Path {
        &self.placed.dir
    }

    /// Whether it is still mounted.
    pub fn is_in_place(&self) -> bool {
        self.placed.is_in_place().unwrap_or(false)
    }

    /// Records in the status why the image is not open yet.
    pub fn note_error(&self, error: String) {
        self.waiting.note_error(error);
    }

    /// Unmounts it, unless it is gone. Waiting requests get an error.
    pub fn detach(mut self) -> Result<(), MountError> {
        self.placed.stays = true;
        if self.is_in_place() { self.placed.unmount(UnmountMode::Lazy) } else { Ok(()) }
    }

    /// Answers the waiting requests, and every later one.
    pub fn serve(
        self,
        namespace: Arc<MountNamespace>,
        options: &MountOptions,
    ) -> Result<ServedMount, MountError> {
        let Self { placed, filesystem, connection, runtime, .. } = self;
        let dir = placed.dir.clone();
        if !placed.is_in_place()? {
            return Err(MountError::NotMounted { dir });
        }
        let failed = |source| MountError::Mount { dir: dir.clone(), source };
        let SessionHandle { device, notifier, ended } = connection;
        let kept = device.zip(options.record.clone());
        filesystem.show(namespace.clone());
        invalidate::listen(&namespace, notifier, ended.clone(), &runtime);
        look(&dir)?;
        privileged::note_serving(&dir);
        if !placed.is_in_place()? {
            return Err(MountError::NotMounted { dir });
        }
        let (major, minor) = placed.number;
        if let Some((_, record)) = &kept {
            record.mounted(&dir, major, minor).map_err(failed)?;
        }
        match privileged::raise_readahead(major, minor, kernel::READAHEAD_KIB) {
            Ok(()) => tracing::debug!(kib = kernel::READAHEAD_KIB, "readahead raised"),
            Err(error) => tracing::debug!(%error, "readahead stays at the kernel's default"),
        }
        Ok(ServedMount::of(placed, ended, kept))
    }
}

/// Accesses the root, which the session's threads answer, to prove that the mount works. Runs on a thread of its own,
/// because without them the access waits for ever, and with descriptors of its own: the kernel ends the connection of a
/// process that is killed when its device is closed, and lets the thread go when the connection ends.
fn look(dir: &Path) -> Result<(), MountError> {
    let failed = |source| MountError::Mount { dir: dir.to_owned(), source };
    let (sender, answer) = std::sync::mpsc::channel();
    let looked_at = dir.to_owned();
    let looking = std::thread::Builder::new().name("look".into());
    let started = looking.spawn(move || {
        release_descriptors();
        sender.send(std::fs::metadata(looked_at).map(drop)).ok()
    });
    started.map_err(failed)?;
    match answer.recv_timeout(FIRST_ANSWER) {
        Ok(looked) => looked.map_err(failed),
        Err(_) => Err(MountError::Silent { dir: dir.to_owned(), seconds: FIRST_ANSWER.as_secs() }),
    }
}

/// Gives this thread a table of descriptors that has none of those of the process.
fn release_descriptors() {
    /// Descriptors that are closed: those of a connection are opened early.
    const MAX_CLOSED: i32 = 1024;
    if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_FILES) {
        tracing::debug!(%error, "the first access shares its descriptors");
        return;
    }
    for descriptor in 0..MAX_CLOSED {
        // Most numbers are of no descriptor.
        nix::unistd::close(descriptor).ok();
    }
}

/// Answers the kernel's first request here, and every other on threads of its own.
fn start(
    waiting: &Arc<PendingMount>,
    device: OwnedFd,
    options: &MountOptions,
    runtime: &Handle,
) -> std::io::Result<(OcifsFilesystem, SessionHandle)> {
    // Disables passthrough for a mount that survives. The next process could not know which files the kernel reads by
    // itself, and the kernel refuses to open a file in two modes at once.
    let is_kept = options.keep == MountPersistence::ByManager;
    let depth = if is_kept { None } else { kernel::stack_depth(&options.passthrough) };
    let second = is_kept.then(|| device.try_clone()).transpose()?;
    let (acl, config) = settings(options);
    let filesystem = OcifsFilesystem::new(waiting.clone(), runtime.clone(), depth, 0);
    let session = Session::from_fd(filesystem.clone(), device, acl, config)?;
    let notifier = session.notifier();
    Ok((filesystem, SessionHandle { device: second, notifier, ended: serve(session)? }))
}

/// Access control and number of threads of a session.
pub(super) fn settings(options: &MountOptions) -> (SessionACL, Config) {
    let mut config = Config::default();
    config.n_threads = Some(request_threads());
    let acl = match options.access {
        MountAccess::Owner => SessionACL::Owner,
        MountAccess::Everyone => SessionACL::All,
    };
    (acl, config)
}

/// Serves requests until the session ends. When this returns, all its threads run: `fuser` ends a session that gets
/// too few, and until then some of them answer.
pub(super) fn serve<F: Filesystem + 'static>(session: Session<F>) -> std::io::Result<SessionEnd> {
    // A session that cannot start all its threads would end while some of them answer, or while none does.
    can_start_threads(request_threads() + 1)?;
    let (sender, ended) = watch::channel(None);
    let before = last_threads();
    std::thread::Builder::new().name("fuse".into()).spawn(move || {
        let result = session.run().map_err(|error| error.to_string());
        // The send fails when the process is already exiting.
        sender.send(Some(result)).ok();
    })?;
    let deadline = Instant::now() + FIRST_ANSWER;
    while last_threads().is_subset(&before) {
        match &*ended.borrow() {
            Some(Err(error)) => {
                return Err(std::io::Error::other(format!("starting the threads of the mount: {error}")));
            }
            Some(Ok(())) => break,
            None => {}
        }
        if Instant::now() > deadline {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(START_INTERVAL);
    }
    Ok(ended)
}

/// Ids of the threads of this process that `fuser` started as the last of their session, by their names.
fn last_threads() -> HashSet<OsString> {
    let name = format!("fuser-{}", request_threads() - 1);
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let is_last = |task: &std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
    };
    tasks.filter(is_last).map(|task| task.file_name()).collect()
}

/// Whether the mount at `dir` is dead. A mount that does not answer in time counts as served.
async fn is_dead(dir: PathBuf) -> bool {
    let asked = tokio::task::spawn_blocking(move || dead_mount::is_dead(&dir));
    matches!(tokio::time::timeout(LAST_REQUESTS * 4, asked).await, Ok(Ok(true)))
}

impl ServedMount {
    /// A mount of an earlier process, served by this one.
    pub(super) fn new(
        place: &HandoverPlace,
        ended: SessionEnd,
        kept: Option<(OwnedFd, Arc<HandoverJournal>)>,
    ) -> Result<Self, MountError> {
        let number = (place.major, place.minor);
        let (dir, table) = (place.dir.clone(), MountTable::open()?);
        let placed = PlacedMount { dir, number, table, ended: Some(ended.clone()), stays: false };
        Ok(Self::of(placed, ended, kept))
    }

    fn of(mut placed: PlacedMount, ended: SessionEnd, kept: Option<(OwnedFd, Arc<HandoverJournal>)>) -> Self {
        placed.stays = kept.is_some();
        Self { placed, ended, kept }
    }

    /// The descriptors that a manager has to store so that another process can take the mount over; `None` unless the
    /// options have a journal.
    pub fn descriptors(&self) -> Option<[BorrowedFd<'_>; 2]> {
        self.kept.as_ref().map(|(device, record)| [device.as_fd(), record.as_fd()])
    }

    /// The absolute mount point.
    pub fn dir(&self) -> &Path {
        &self.placed.dir
    }

    /// Waits until the mount is gone, whichever process unmounts it. An error means that a dead mount is left.
    pub async fn ended(&self) -> Result<(), String> {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Ok(()))?,
            Err(_) => return Err("the session thread ended without a result".into()),
        }
        // An unmount removes it from the tree first.
        match self.placed.is_number_in_place() {
            // The next mount may have the same number, and is served.
            Ok(true) if is_dead(self.placed.dir.clone()).await => {
                Err("the connection was closed; the mount stays".into())
            }
            _ => Ok(()),
        }
    }

    /// Detaches the mount from the tree, if it is still on top at its directory; does not wait for requests.
    pub fn detach(&self) -> Result<(), MountError> {
        if self.placed.is_in_place()? { self.placed.unmount(UnmountMode::Lazy) } else { Ok(()) }
    }

    /// Unmounts, if the mount is still on top at its directory, and waits for its last requests. A mount in use is
    /// detached all the same, and its users see it end.
    pub async fn unmount(&self) -> Result<(), MountError> {
        let dir = self.dir().display();
        if self.placed.is_in_place()? {
            match self.placed.unmount(UnmountMode::Now) {
                Err(MountError::Busy { .. }) => {
                    tracing::warn!(%dir, "in use, unmounting lazily");
                    self.placed.unmount(UnmountMode::Lazy)?;
                }
                result => result?,
            }
        }
        if tokio::time::timeout(LAST_REQUESTS, self.ended()).await.is_err() {
            tracing::warn!(%dir, "files are still open, they end with this process");
        }
        Ok(())
    }
}
