//! The life of one mount: from the system call to the end of its last request.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fuser::{Config, Session, SessionACL};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::view::Namespace;

use super::filesystem::Ocifs;
use super::kernel::{self, Access, MountOptions};
use super::mountpoint::{self, MountError, Unmount};

/// Readahead of the mount in KiB, as root: at the kernel's default of 128 a sequential reader sends eight times the
/// requests for the same bytes.
const READAHEAD_KIB: u32 = 1024;

/// Threads that read requests: enough that a slow answer from memory does not hold up the others.
const THREADS: std::ops::RangeInclusive<usize> = 2..=8;

/// How long the kernel may take to say that a lazily unmounted filesystem has no users.
const LAST_REQUESTS: Duration = Duration::from_secs(1);

/// A mounted namespace.
pub struct Mounted {
    dir: PathBuf,
    major: u32,
    minor: u32,
    ended: watch::Receiver<Option<Result<(), String>>>,
}

/// Mounts `namespace` at `dir`. When this returns, the mount answers.
pub fn mount(
    namespace: Arc<Namespace>,
    dir: &Path,
    options: &MountOptions,
    runtime: &Handle,
) -> Result<Mounted, MountError> {
    let dir = mountpoint::check(dir, options.flags.nonempty)?;
    let device = kernel::mount(&dir, options)?;
    let started = start(namespace, device, options, runtime);
    let failed = |source| MountError::Mount { dir: dir.clone(), source };
    let mounted = started.map_err(failed).and_then(|ended| {
        // A look at the root is answered by the threads that were just started: the mount works.
        std::fs::metadata(&dir).map_err(failed)?;
        let entry = mountpoint::find(&dir)?.ok_or_else(|| MountError::NotMounted { dir: dir.clone() })?;
        Ok(Mounted { dir: dir.clone(), major: entry.major, minor: entry.minor, ended })
    });
    let mounted = mounted.inspect_err(|_| {
        // No half mount is left behind; the first error is the one that matters.
        if let Err(error) = kernel::unmount(&dir, Unmount::Lazy) {
            tracing::warn!(%error, "could not take the failed mount away");
        }
    })?;
    match kernel::raise_readahead(mounted.major, mounted.minor, READAHEAD_KIB) {
        Ok(()) => tracing::debug!(kib = READAHEAD_KIB, "readahead raised"),
        Err(error) => tracing::debug!(%error, "readahead stays at the kernel's default"),
    }
    Ok(mounted)
}

type Ended = watch::Receiver<Option<Result<(), String>>>;

fn start(
    namespace: Arc<Namespace>,
    device: std::os::fd::OwnedFd,
    options: &MountOptions,
    runtime: &Handle,
) -> std::io::Result<Ended> {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let mut config = Config::default();
    config.n_threads = Some(cores.clamp(*THREADS.start(), *THREADS.end()));
    let acl = match options.access {
        Access::Owner => SessionACL::Owner,
        Access::OwnerAndRoot => SessionACL::RootAndOwner,
        Access::Everyone => SessionACL::All,
    };
    let depth = kernel::stack_depth(&options.passthrough);
    let session = Session::from_fd(Ocifs::new(namespace, runtime.clone(), depth), device, acl, config)?;
    let (sender, ended) = watch::channel(None);
    std::thread::Builder::new().name("fuse".into()).spawn(move || {
        let result = session.run().map_err(|error| error.to_string());
        // Nobody listens any more when the process is already on its way out.
        sender.send(Some(result)).ok();
    })?;
    Ok(ended)
}

impl Mounted {
    /// The absolute mount point.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Waits until the mount is gone: unmounted by us or by anybody.
    pub async fn ended(&self) -> Result<(), String> {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Ok(())),
            Err(_) => Err("the session thread ended without a word".into()),
        }
    }

    /// Takes the mount away, if it is still the one at its place, and waits for its last requests. When it is in use it is
    /// taken out of the tree all the same, and its users see it end.
    pub async fn unmount(&self) -> Result<(), MountError> {
        let ours = mountpoint::find(&self.dir)?
            .is_some_and(|entry| (entry.major, entry.minor) == (self.major, self.minor));
        if ours {
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
