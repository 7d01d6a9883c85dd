//! Takeover: serving a mount whose daemon is gone, from a stored descriptor.
//!
//! Makes no mount, and rejects an inode number that would mean another file. The kernel keeps a mount while any
//! process holds its descriptor, and requests wait. A new session must not expect the first request of a connection,
//! which was answered long ago, but `fuser` does. So `fuser` gets that request from this process over a socket, and
//! then the descriptor under the number of the socket. Requests that the old daemon had read and not answered are
//! requested again.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, IntoRawFd as _, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::sync::Arc;

use fuser::{Config, Filesystem, Session, SessionACL};
use nix::sys::resource::{Resource, getrlimit};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::runtime::Handle;

use crate::view::{MountNamespace, ViewScope};

use super::error::{MountError, UnmountMode};
use super::gate::OcifsFilesystem;
use super::handover::{HandoverJournal, HandoverPlace};
use super::invalidate;
use super::mount_table::{self, FS_TYPE, MountEntry};
use super::options::MountOptions;
use super::privileged;
use super::session::{self, ServedMount};
use super::waiting::PendingMount;

/// `FUSE_INIT` of `linux/fuse.h`.
const INIT: u32 = 26;

/// The protocol version of `fuser`; the kernel's agreement with the old daemon stays unchanged.
const VERSION: (u32, u32) = (7, 40);

/// `FUSE_NOTIFY_RESEND` of `linux/fuse.h`: the kernel sends all unanswered requests again. Since Linux 6.9.
const NOTIFY_RESEND: i32 = 7;

/// The highest number for the descriptor that is replaced: far above those of other threads meanwhile, which get the
/// lowest free number.
const HIGH: u64 = 16_384;

/// The remains of a mount whose daemon is gone.
#[derive(Debug)]
pub struct SurvivingMount {
    device: OwnedFd,
    record: Arc<HandoverJournal>,
    place: HandoverPlace,
}

impl SurvivingMount {
    /// Finds the descriptor of a mount and its journal among `kept`. The error states why the mount cannot be
    /// resumed.
    pub fn find(kept: Vec<OwnedFd>) -> io::Result<Self> {
        let (mut device, mut record) = (None, None);
        for descriptor in kept {
            let file = File::from(descriptor);
            let kind = file.metadata()?.file_type();
            if kind.is_char_device() {
                device = Some(OwnedFd::from(file));
            } else if kind.is_file() {
                record = Some(OwnedFd::from(file));
            }
        }
        let missing = |what: &str| io::Error::new(io::ErrorKind::NotFound, what.to_owned());
        let device = device.ok_or_else(|| missing("the descriptor of the mount was not kept"))?;
        let believed = record
            .ok_or_else(|| missing("the record of the mount was not kept"))
            .and_then(HandoverJournal::read)
            .and_then(|record| match record.place() {
                Some(place) => Ok((record, place)),
                None => Err(missing("the record names no mount point")),
            });
        match believed {
            Ok((record, place)) => Ok(Self { device, record: Arc::new(record), place }),
            Err(error) => {
                give_up(&device);
                Err(error)
            }
        }
    }

    /// The journal of the mount.
    pub fn record(&self) -> &Arc<HandoverJournal> {
        &self.record
    }

    /// Whether the mount is still on top at its directory.
    pub fn is_in_place(&self) -> bool {
        let is_this = |entry: &MountEntry| {
            entry.is_ours() && (entry.major, entry.minor) == (self.place.major, self.place.minor)
        };
        matches!(mount_table::find(&self.place.dir), Ok(Some(entry)) if is_this(&entry))
    }

    /// The connection of the mount.
    pub(super) fn device(&self) -> &OwnedFd {
        &self.device
    }

    /// Where the mount was made, and its device number.
    pub(super) fn place(&self) -> &HandoverPlace {
        &self.place
    }

    /// Where the mount was made.
    pub fn dir(&self) -> &Path {
        &self.place.dir
    }

    /// Detaches the mount from the tree. Open files in it fail once its last descriptor is closed.
    pub fn let_go(self) -> Result<(), MountError> {
        match self.is_in_place() {
            true => privileged::detach(&self.place.dir, UnmountMode::Lazy),
            false => Ok(()),
        }
    }
}

/// Detaches the mount of a descriptor without a journal. Before Linux 6.16 the kernel does not report which mount
/// that is; the mount then stays until the descriptor is closed, and is dead afterwards.
fn give_up(device: &OwnedFd) {
    let path = format!("/proc/self/fdinfo/{}", device.as_raw_fd());
    let about = std::fs::read_to_string(path).unwrap_or_default();
    let connection = about.lines().find_map(|line| line.strip_prefix("fuse_connection:"));
    let Some(minor) = connection.and_then(|number| number.trim().parse::<u32>().ok()) else { return };
    let entries = mount_table::table().unwrap_or_default();
    for entry in entries.iter().filter(|entry| entry.fs_type == FS_TYPE && entry.minor == minor) {
        // Only the topmost mount can be named.
        let is_on_top = mount_table::find(&entry.dir).is_ok_and(|top| top.as_ref() == Some(entry));
        if is_on_top && let Err(error) = privileged::detach(&entry.dir, UnmountMode::Lazy) {
            tracing::warn!(%error, "cannot unmount; the mount stays without a server");
        }
    }
}

/// Resumes the mount of `survivor` with `namespace`, which the survivor's journal has checked. The options are those
/// of the mount.
pub fn take_over(
    namespace: Arc<MountNamespace>,
    survivor: &SurvivingMount,
    options: &MountOptions,
    runtime: &Handle,
) -> Result<ServedMount, MountError> {
    let SurvivingMount { device, record, place } = survivor;
    let failed = |source| MountError::TakeOver { dir: place.dir.clone(), source };
    record.taken_over().map_err(failed)?;
    let waiting = Arc::new(PendingMount::new(record.pinned().to_owned(), ViewScope::default()));
    let filesystem = OcifsFilesystem::new(waiting, runtime.clone(), None, record.earlier());
    filesystem.show(namespace.clone());
    let (acl, config) = session::settings(options);
    let session = on_descriptor(filesystem, device, acl, config).map_err(failed)?;
    // No thread reads from the connection yet, so no request is in progress that would be sent again.
    resend(device).map_err(failed)?;
    let notifier = session.notifier();
    let ended = session::serve(session).map_err(failed)?;
    invalidate::listen(&namespace, notifier, ended.clone(), runtime);
    // Makes no access to the mount: a process that waits for its own answer cannot be killed, and delays the next
    // process.
    ServedMount::new(place, ended, Some((device.try_clone().map_err(failed)?, record.clone())))
}

/// A session that reads from `device`, on which the first request was answered long ago.
pub(super) fn on_descriptor<F: Filesystem>(
    filesystem: F,
    device: &OwnedFd,
    acl: SessionACL,
    config: Config,
) -> io::Result<Session<F>> {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let lowest = i32::try_from(HIGH.min(limit / 2)).map_err(io::Error::other)?;
    let theirs = rustix::io::fcntl_dupfd_cloexec(&theirs, lowest)?;
    let number = theirs.as_raw_fd();
    let mut ours = File::from(ours);
    ours.write_all(&first_request())?;
    let session = Session::from_fd(filesystem, theirs, acl, config)?;
    // This reply is discarded: the kernel has its own already.
    let answered = ours.read(&mut [0; 256])?;
    // The session owns the number and no thread reads from it yet. Between close and dup no other thread gets the
    // number, because new descriptors have the lowest free one.
    nix::unistd::close(number)?;
    let device = rustix::io::fcntl_dupfd_cloexec(device, number)?;
    if device.as_raw_fd() != number {
        return Err(io::Error::other("the number of a descriptor was taken by another thread"));
    }
    // The session owns the descriptor from here on.
    let number = device.into_raw_fd();
    tracing::debug!(number, answered, "the connection has the number of the socket");
    Ok(session)
}

/// `fuse_in_header` and `fuse_init_in` of `linux/fuse.h`, offering everything; the features in use were agreed on
/// with the old daemon.
fn first_request() -> Vec<u8> {
    const LEN: u32 = 40 + 64;
    let mut request = Vec::with_capacity(LEN as usize);
    for number in [LEN, INIT, 1, 0, 0, 0, 0, 0, 0, 0, VERSION.0, VERSION.1, 1 << 20, u32::MAX, u32::MAX] {
        request.extend_from_slice(&number.to_ne_bytes());
    }
    request.resize(LEN as usize, 0);
    request
}

/// Asks the kernel to send unanswered requests again; without it their callers would wait for ever.
pub(super) fn resend(device: &OwnedFd) -> io::Result<()> {
    const LEN: u32 = 16;
    let mut notice = Vec::with_capacity(LEN as usize);
    notice.extend_from_slice(&LEN.to_ne_bytes());
    notice.extend_from_slice(&NOTIFY_RESEND.to_ne_bytes());
    notice.extend_from_slice(&0_u64.to_ne_bytes());
    match rustix::io::write(device, &notice)? {
        len if len == notice.len() => Ok(()),
        len => Err(io::Error::new(io::ErrorKind::WriteZero, format!("{len} bytes of a notice were taken"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_descriptors_are_classified_by_their_kind() {
        let record = || HandoverJournal::new("a", "b").unwrap();
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        let memory =
            |record: &HandoverJournal| std::os::fd::AsFd::as_fd(record).try_clone_to_owned().unwrap();
        let placed = record();
        placed.mounted(Path::new("/nowhere"), 0, 1).unwrap();
        let found = SurvivingMount::find(vec![memory(&placed), null()]).unwrap();
        assert_eq!(found.dir(), Path::new("/nowhere"));
        assert!(!found.is_in_place());
        assert!(SurvivingMount::find(vec![null()]).is_err());
        assert!(SurvivingMount::find(vec![memory(&placed)]).is_err());
        assert!(
            SurvivingMount::find(vec![null(), memory(&record())]).is_err(),
            "it does not say where it is"
        );
        assert!(SurvivingMount::find(Vec::new()).is_err());
    }
}
