//! Takeover of a mount after a crash, by the descriptor store of a service manager.
//!
//! Inactive unless a service manager started this process in the foreground. The manager stores two descriptors under
//! one name: that of the mount, and that of its record. It returns them only if the process ended without unmounting.
//! The mount then resumes, provided that it is still in place and the command line is the same.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use sd_notify::NotifyState;
use tokio::runtime::Handle;

use crate::mount::{
    self, AttachedMount, HandoverJournal, MountError, MountOptions, MountPersistence, ServedMount,
    SurvivingMount,
};
use crate::oci::Digest;
use crate::registry;
use crate::source::{ArchiveLocation, ImageLocation};
use crate::view::MountNamespace;

use super::exit::CliError;
use super::kernel_choice::{self, BY_KERNEL, MountServer};
use super::notify::NotifySocket;
use super::{background, secret};

/// Name of our descriptors in the manager's store.
const NAME: &str = "ocifs";

/// Most descriptors that are accepted: more than ours, in case a manager returns the same ones twice.
const MAX_STORED_DESCRIPTORS: usize = 16;

/// The connection to the service manager, and a mount that it returned.
pub(super) struct ManagedService {
    /// `None` without a manager.
    manager: Option<NotifySocket>,
    /// The command line without secrets; a mount resumes only under the same one.
    asked: String,
    /// The mount of an earlier process; `None` without one.
    survivor: Option<SurvivingMount>,
}

/// The target of a mount.
pub(super) enum MountTarget<'a> {
    /// To be mounted at this directory.
    At(&'a std::path::Path),
    /// Mounted already, without an image.
    Attached(AttachedMount),
}

impl ManagedService {
    /// Connects to the manager, if any, and accepts the descriptors that it returns. Only a foreground process
    /// belongs to a manager.
    pub(super) fn new() -> Result<Self, CliError> {
        let asked = asked(std::env::args_os().collect());
        let manager = match background::is_child() {
            true => None,
            false => NotifySocket::of_environment().unwrap_or_else(|error| {
                tracing::warn!(%error, "the service manager cannot be reached");
                None
            }),
        };
        if manager.is_none() {
            return Ok(Self { manager, asked, survivor: None });
        }
        let mut service = Self { manager, asked, survivor: None };
        let kept = handed_over().map_err(|error| {
            CliError::local("taking the descriptors that the service manager stored", &error)
        })?;
        if kept.is_empty() {
            return Ok(service);
        }
        match SurvivingMount::find(kept) {
            Ok(survivor) if !survivor.is_in_place() => {
                service.drop_survivor(survivor, "it was taken out of the tree meanwhile");
            }
            Ok(survivor) if survivor.record().asked() != service.asked => {
                service.drop_survivor(survivor, "the reference or the options changed");
            }
            Ok(survivor) => service.survivor = Some(survivor),
            Err(error) => {
                tracing::error!(%error, "stored descriptors are unusable; the mount of an earlier process ends");
                service.forget();
            }
        }
        Ok(service)
    }

    /// Whether the mount outlives this process.
    pub(super) fn keep(&self) -> MountPersistence {
        if self.manager.is_some() { MountPersistence::ByManager } else { MountPersistence::No }
    }

    /// The mount point of a surviving mount; `None` without one. A lookup of it would hang: no process answers.
    pub(super) fn left(&self) -> Option<&std::path::Path> {
        self.survivor.as_ref().map(SurvivingMount::dir)
    }

    /// Whether the kernel serves the surviving mount; `None` without one.
    pub(super) fn left_image(&self) -> Option<bool> {
        self.survivor.as_ref().map(|survivor| survivor.record().image().is_some())
    }

    /// The location to mount: for a surviving mount the digest that the earlier process resolved.
    pub(super) fn location(&self, asked: &ImageLocation) -> Result<ImageLocation, CliError> {
        let Some(survivor) = &self.survivor else { return Ok(asked.clone()) };
        let pinned = survivor.record().pinned();
        tracing::info!(reference = pinned, dir = %survivor.dir().display(), "an earlier process left this mount");
        let parsed = pinned.parse::<ImageLocation>();
        let parsed = parsed.map_err(|error| {
            CliError::local(format!("the reference {pinned} of the mount's record"), &error)
        })?;
        Ok(match (asked, parsed.digest()) {
            // The record lacks the signature that a web address may have.
            (ImageLocation::Archive { at: ArchiveLocation::Web(_), .. }, Some(digest)) => asked.at(digest),
            _ => parsed,
        })
    }

    /// The record of the mount; `None` without a manager. From now on it follows the nodes that `namespace` shows.
    pub(super) fn record(
        &mut self,
        namespace: &mut MountNamespace,
        pinned: &str,
    ) -> Result<Option<Arc<HandoverJournal>>, CliError> {
        if self.manager.is_none() {
            return Ok(None);
        }
        if let Some(survivor) = self.survivor.take() {
            match namespace.watch(survivor.record().witness()) {
                Ok(()) => {
                    let record = survivor.record().clone();
                    self.survivor = Some(survivor);
                    return Ok(Some(record));
                }
                Err(error) => self.drop_survivor(survivor, &error.chain()),
            }
        }
        let record = HandoverJournal::new(&self.asked, pinned);
        let record = Arc::new(record.map_err(|error| CliError::local("beginning a record", &error))?);
        namespace.watch(record.witness()).map_err(|error| CliError::read(&error))?;
        Ok(Some(record))
    }

    /// Takes over the mount of an earlier process, or mounts.
    pub(super) fn mount(
        &mut self,
        namespace: Arc<MountNamespace>,
        server: MountServer,
        place: MountTarget<'_>,
        options: &MountOptions,
        runtime: &Handle,
    ) -> Result<ServedMount, CliError> {
        if let Some(survivor) = self.survivor.take() {
            let taken = match server.disk().cloned() {
                Some(disk) => mount::take_over_image(disk, &namespace, &survivor, options, runtime),
                None => mount::take_over(namespace.clone(), &survivor, options, runtime),
            };
            match taken {
                // The manager still has the descriptors that it returned.
                Ok(mounted) => {
                    note_kernel(&namespace, &server);
                    return Ok(mounted);
                }
                Err(error) => self.drop_survivor(survivor, &crate::io::chain(&error)),
            }
        }
        let mounted = match place {
            MountTarget::At(dir) => mount_at(namespace, server, dir, options, runtime)?,
            MountTarget::Attached(attached) => attached.serve(namespace, options)?,
        };
        if let Some(descriptors) = mounted.descriptors() {
            self.notify(&[NotifyState::FdStore, NotifyState::FdName(NAME)], &descriptors);
        }
        Ok(mounted)
    }

    /// Reports to the manager that the mount answers.
    pub(super) fn ready(&self, message: &str) {
        self.notify(&[NotifyState::Ready, NotifyState::Status(message)], &[]);
    }

    /// Reports to the manager that the mount ended by intent: its stored descriptors are obsolete.
    pub(super) fn ended(&self) {
        self.notify(&[NotifyState::Stopping, NotifyState::Status("unmounted")], &[]);
        self.forget();
    }

    fn drop_survivor(&self, survivor: SurvivingMount, reason: &str) {
        tracing::warn!(dir = %survivor.dir().display(), reason, "the mount of an earlier process ends");
        if let Err(error) = survivor.let_go() {
            tracing::warn!(%error, "cannot unmount the mount of an earlier process");
        }
        self.forget();
    }

    fn forget(&self) {
        self.notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(NAME)], &[]);
    }

    /// Notifies the manager. The mount works also without the manager's knowledge.
    fn notify(&self, state: &[NotifyState<'_>], descriptors: &[BorrowedFd<'_>]) {
        if let Some(manager) = &self.manager
            && let Err(error) = manager.send(state, descriptors)
        {
            tracing::warn!(%error, "the service manager could not be notified");
        }
    }
}

/// Mounts at `dir`.
fn mount_at(
    namespace: Arc<MountNamespace>,
    server: MountServer,
    dir: &std::path::Path,
    options: &MountOptions,
    runtime: &Handle,
) -> Result<ServedMount, MountError> {
    if let Some(disk) = server.disk().cloned() {
        match (mount::mount_image(disk, &namespace, dir, options, runtime), &server) {
            (Err(error), MountServer::KernelFirst(_)) => {
                kernel_choice::by_fuse(&namespace, &crate::io::chain(&error));
            }
            (mounted, _) => {
                note_kernel(&namespace, &server);
                return mounted;
            }
        }
    }
    mount::mount(namespace, dir, options, runtime)
}

/// Records that the kernel serves the mount, if it does.
fn note_kernel(namespace: &MountNamespace, server: &MountServer) {
    if server.disk().is_some() {
        namespace.note_serving(BY_KERNEL.to_owned());
        tracing::info!("the kernel's EROFS serves the mount");
    }
}

/// The command line without the program's name and without secrets: of a web address, which may hold a password or a
/// signature, it has the digest.
fn asked(argv: Vec<OsString>) -> String {
    let (kept, _) = secret::split(argv.get(1..).unwrap_or_default());
    let shown = |word: &OsStr| match word.as_encoded_bytes() {
        text if registry::shown_address(&word.to_string_lossy()).is_some() => {
            Digest::sha256(text).to_string()
        }
        _ => format!("{word:?}"),
    };
    let words: Vec<_> = kept.into_iter().map(shown).collect();
    words.join(" ")
}

/// Our descriptors in the manager's store, by sd_listen_fds(3).
fn handed_over() -> std::io::Result<Vec<OwnedFd>> {
    let mut kept = Vec::new();
    let named: Vec<(RawFd, String)> =
        sd_notify::listen_fds_with_names()?.take(MAX_STORED_DESCRIPTORS).collect();
    if named.is_empty() {
        return Ok(kept);
    }
    let ourselves = pidfd_open(getpid(), PidfdFlags::empty())?;
    for (number, name) in named {
        if name == NAME {
            kept.push(pidfd_getfd(ourselves.as_fd(), number, PidfdGetfdFlags::empty())?);
            // A second descriptor of a mount would keep the mount from ending.
            nix::unistd::close(number)?;
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_request_words_are_quoted_and_omit_the_password() {
        let words = |words: &[&str]| asked(words.iter().map(OsString::from).collect());
        assert_eq!(words(&["ocifs", "mount", "--creds", "u:p", "a", "b"]), "\"mount\" \"a\" \"b\"");
        assert_eq!(words(&["/bin/ocifs", "mount", "--creds=u:p", "a", "b"]), "\"mount\" \"a\" \"b\"");
        assert_ne!(words(&["ocifs", "a b"]), words(&["ocifs", "a", "b"]));
    }
}
