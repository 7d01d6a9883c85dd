//! The life of one mount: from the system call to the end of its last request.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fuser::{Config, Session, SessionACL};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::view::Namespace;

use super::distrust;
use super::filesystem::Ocifs;
use super::kernel::{self, Access, MountOptions};
use super::mountpoint::{self, MountError, Unmount};
use super::record::{Place, Record};
use super::stale;

/// Readahead of the mount in KiB, as root: at the kernel's default of 128 a sequential reader sends eight times the
/// requests for the same bytes.
const READAHEAD_KIB: u32 = 1024;

/// Threads that read requests: enough that a slow answer from memory does not hold up the others.
const THREADS: std::ops::RangeInclusive<usize> = 2..=8;

/// How long the kernel may take to say that a lazily unmounted filesystem has no users.
const LAST_REQUESTS: Duration = Duration::from_millis(500);

/// A mounted namespace.
pub struct Mounted {
    dir: PathBuf,
    major: u32,
    minor: u32,
    ended: Ended,
    /// What keeps the mount when this process ends before its time.
    kept: Option<(OwnedFd, Arc<Record>)>,
}

/// Mounts `namespace` at `dir`. When this returns, the mount answers.
pub fn mount(
    namespace: Arc<Namespace>,
    dir: &Path,
    options: &MountOptions,
    runtime: &Handle,
) -> Result<Mounted, MountError> {
    attach(dir, options)?.serve(namespace, options, runtime)
}

/// A mount that is in the tree, and that nobody answers yet: whoever looks into it waits.
pub struct Attached {
    dir: PathBuf,
    device: OwnedFd,
    /// The device number of the file system, by which it is told from another one at the same place.
    number: (u32, u32),
}

/// Puts a mount at `dir` into the tree, before it is known what will be in it.
pub fn attach(dir: &Path, options: &MountOptions) -> Result<Attached, MountError> {
    let dir = mountpoint::take(dir, options.flags)?;
    let device = kernel::mount(&dir, options)?;
    let number = mountpoint::find(&dir)?.map(|entry| (entry.major, entry.minor));
    let number = number.ok_or_else(|| MountError::NotMounted { dir: dir.clone() })?;
    Ok(Attached { dir, device, number })
}

impl Attached {
    /// The absolute mount point.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether nobody has taken it away.
    pub fn is_in_place(&self) -> bool {
        is_at(&self.dir, self.number).unwrap_or(false)
    }

    /// Takes it away again, if nobody has. Who waits for it gets an error.
    pub fn detach(self) -> Result<(), MountError> {
        if self.is_in_place() { kernel::unmount(&self.dir, Unmount::Lazy) } else { Ok(()) }
    }

    /// Answers what waits, and everything from now on.
    pub fn serve(
        self,
        namespace: Arc<Namespace>,
        options: &MountOptions,
        runtime: &Handle,
    ) -> Result<Mounted, MountError> {
        if !self.is_in_place() {
            return Err(MountError::NotMounted { dir: self.dir });
        }
        let Self { dir, device, number } = self;
        let failed = |source| MountError::Mount { dir: dir.clone(), source };
        let kept =
            options.record.as_ref().map(|record| Ok((device.try_clone()?, record.clone()))).transpose();
        let started = kept.and_then(|kept| Ok((start(namespace, device, options, runtime)?, kept)));
        let mounted = started.map_err(failed).and_then(|(ended, kept)| {
            // A look at the root is answered by the threads that were just started: the mount works.
            std::fs::metadata(&dir).map_err(failed)?;
            let entry = mountpoint::find(&dir)?.ok_or_else(|| MountError::NotMounted { dir: dir.clone() })?;
            let place = Place { dir: dir.clone(), major: entry.major, minor: entry.minor };
            if let Some((_, record)) = &kept {
                record.mounted(&place.dir, place.major, place.minor).map_err(failed)?;
            }
            Ok(Mounted::new(&place, ended, kept))
        });
        let mounted = mounted.inspect_err(|_| {
            // No half mount is left behind; the first error is the one that matters.
            if is_at(&dir, number).unwrap_or(false)
                && let Err(error) = kernel::unmount(&dir, Unmount::Lazy)
            {
                tracing::warn!(%error, "could not take the failed mount away");
            }
        })?;
        match kernel::raise_readahead(mounted.major, mounted.minor, READAHEAD_KIB) {
            Ok(()) => tracing::debug!(kib = READAHEAD_KIB, "readahead raised"),
            Err(error) => tracing::debug!(%error, "readahead stays at the kernel's default"),
        }
        Ok(mounted)
    }
}

pub(super) type Ended = watch::Receiver<Option<Result<(), String>>>;

fn start(
    namespace: Arc<Namespace>,
    device: OwnedFd,
    options: &MountOptions,
    runtime: &Handle,
) -> std::io::Result<Ended> {
    // The process after this one could not know which files the kernel reads by itself, and the kernel refuses to open a file
    // in two ways at once.
    let is_kept = options.record.is_some();
    let depth = if is_kept { None } else { kernel::stack_depth(&options.passthrough) };
    let (acl, config) = settings(options);
    let filesystem = Ocifs::new(namespace.clone(), runtime.clone(), depth, 0);
    serve(Session::from_fd(filesystem, device, acl, config)?, &namespace, runtime)
}

/// Who is answered, and by how many threads.
pub(super) fn settings(options: &MountOptions) -> (SessionACL, Config) {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let mut config = Config::default();
    config.n_threads = Some(cores.clamp(*THREADS.start(), *THREADS.end()));
    let acl = match options.access {
        Access::Owner => SessionACL::Owner,
        Access::OwnerAndRoot => SessionACL::RootAndOwner,
        Access::Everyone => SessionACL::All,
    };
    (acl, config)
}

/// Answers requests until there are none any more.
pub(super) fn serve(
    session: Session<Ocifs>,
    namespace: &Arc<Namespace>,
    runtime: &Handle,
) -> std::io::Result<Ended> {
    let (sender, ended) = watch::channel(None);
    distrust::listen(namespace, session.notifier(), ended.clone(), runtime);
    std::thread::Builder::new().name("fuse".into()).spawn(move || {
        let result = session.run().map_err(|error| error.to_string());
        // Nobody listens any more when the process is already on its way out.
        sender.send(Some(result)).ok();
    })?;
    Ok(ended)
}

/// Whether nobody serves what is mounted at `dir`. One that does not answer in time is somebody's.
async fn is_dead(dir: PathBuf) -> bool {
    let asked = tokio::task::spawn_blocking(move || stale::is_dead(&dir));
    matches!(tokio::time::timeout(LAST_REQUESTS * 4, asked).await, Ok(Ok(true)))
}

/// Whether the mount on top at `dir` is the one with this device number.
fn is_at(dir: &Path, number: (u32, u32)) -> Result<bool, MountError> {
    Ok(mountpoint::find(dir)?.is_some_and(|entry| (entry.major, entry.minor) == number))
}

impl Mounted {
    pub(super) fn new(place: &Place, ended: Ended, kept: Option<(OwnedFd, Arc<Record>)>) -> Self {
        Self { dir: place.dir.clone(), major: place.major, minor: place.minor, ended, kept }
    }

    /// What somebody has to keep so that another process can take the mount over: there is something if the options brought
    /// a record.
    pub fn descriptors(&self) -> Option<[BorrowedFd<'_>; 2]> {
        self.kept.as_ref().map(|(device, record)| [device.as_fd(), record.as_fd()])
    }

    /// The absolute mount point.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Waits until the mount is gone: unmounted by us or by anybody. It is an error when nobody can serve what is still there.
    pub async fn ended(&self) -> Result<(), String> {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Ok(()))?,
            Err(_) => return Err("the session thread ended without a word".into()),
        }
        // Whoever unmounts takes it out of the tree first.
        match self.is_in_place() {
            // The kernel gives the number of a mount that is gone to the next one, which may be there by now, and is served.
            Ok(true) if is_dead(self.dir.clone()).await => {
                Err("the connection was ended, and the mount is still there".into())
            }
            _ => Ok(()),
        }
    }

    fn is_in_place(&self) -> Result<bool, MountError> {
        is_at(&self.dir, (self.major, self.minor))
    }

    /// Takes the mount away, if it is still the one at its place, and waits for its last requests. When it is in use it is
    /// taken out of the tree all the same, and its users see it end.
    pub async fn unmount(&self) -> Result<(), MountError> {
        if self.is_in_place()? {
            match kernel::unmount(&self.dir, Unmount::Now) {
                Err(MountError::Busy { .. }) => {
                    tracing::warn!(dir = %self.dir.display(), "in use, unmounting lazily");
                    kernel::unmount(&self.dir, Unmount::Lazy)?;
                }
                result => result?,
            }
        }
        if tokio::time::timeout(LAST_REQUESTS, self.ended()).await.is_err() {
            tracing::warn!(dir = %self.dir.display(), "files are still open, they end with this process");
        }
        Ok(())
    }
}
