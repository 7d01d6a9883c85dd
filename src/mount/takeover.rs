//! Serving a mount whose daemon is gone, from the descriptor that somebody kept of it.
//!
//! Never mounts, and never serves a number that would mean another file. The idea: the kernel keeps a mount for as long as
//! anybody holds its descriptor, and requests wait. Who reads on from it must not expect the first request of a connection,
//! which was answered long ago, but `fuser` does; so it gets that request from us over a socket, and then the descriptor
//! under the number of the socket. Requests that the old daemon had taken and not answered are asked for again.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, IntoRawFd as _, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::sync::Arc;

use fuser::{Config, Session, SessionACL};
use nix::sys::resource::{Resource, getrlimit};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::runtime::Handle;

use crate::view::{Namespace, Scope};

use super::distrust;
use super::gate::Ocifs;
use super::kernel::{self, MountOptions};
use super::mountpoint::{self, FS_TYPE, MountError, Unmount};
use super::record::{Place, Record};
use super::session::{self, Mounted};
use super::waiting::Waiting;

/// `FUSE_INIT` of `linux/fuse.h`.
const INIT: u32 = 26;

/// The version of the protocol that `fuser` speaks; what the kernel agreed to with the old daemon stays as it is.
const VERSION: (u32, u32) = (7, 40);

/// `FUSE_NOTIFY_RESEND` of `linux/fuse.h`: all requests that were taken and not answered are to be taken again. Since Linux 6.9.
const NOTIFY_RESEND: i32 = 7;

/// The highest number for the descriptor that changes what it stands for: far above those that other threads get meanwhile,
/// which are always the lowest that are free.
const HIGH: u64 = 16_384;

/// What is left of a mount whose daemon is gone.
#[derive(Debug)]
pub struct Survivor {
    device: OwnedFd,
    record: Arc<Record>,
    place: Place,
}

impl Survivor {
    /// Finds the descriptor of a mount and its record among `kept`. The error says why there is nothing to go on with.
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
            .and_then(Record::read)
            .and_then(|record| match record.place() {
                Some(place) => Ok((record, place)),
                None => Err(missing("the record does not say where the mount is")),
            });
        match believed {
            Ok((record, place)) => Ok(Self { device, record: Arc::new(record), place }),
            Err(error) => {
                give_up(&device);
                Err(error)
            }
        }
    }

    /// What the mount's first process noted.
    pub fn record(&self) -> &Arc<Record> {
        &self.record
    }

    /// Whether the mount is where it was, and on top.
    pub fn is_in_place(&self) -> bool {
        matches!(mountpoint::find(&self.place.dir), Ok(Some(entry)) if entry.fs_type == FS_TYPE
            && (entry.major, entry.minor) == (self.place.major, self.place.minor))
    }

    /// Where the mount was made.
    pub fn dir(&self) -> &Path {
        &self.place.dir
    }

    /// Takes what is left out of the tree. Who has files of it open sees it end, once nobody keeps its descriptor.
    pub fn let_go(self) -> Result<(), MountError> {
        match self.is_in_place() {
            true => kernel::unmount(&self.place.dir, Unmount::Lazy),
            false => Ok(()),
        }
    }
}

/// Takes the mount of a descriptor out of the tree that no record tells of. Where the kernel does not say which one it is (before
/// Linux 6.16), it stays until nobody keeps the descriptor, and is dead then.
fn give_up(device: &OwnedFd) {
    let path = format!("/proc/self/fdinfo/{}", device.as_raw_fd());
    let about = std::fs::read_to_string(path).unwrap_or_default();
    let connection = about.lines().find_map(|line| line.strip_prefix("fuse_connection:"));
    let Some(minor) = connection.and_then(|number| number.trim().parse::<u32>().ok()) else { return };
    let entries = mountpoint::table().unwrap_or_default();
    for entry in entries.iter().filter(|entry| entry.fs_type == FS_TYPE && entry.minor == minor) {
        // Only what is on top can be named.
        let is_on_top = mountpoint::find(&entry.dir).is_ok_and(|top| top.as_ref() == Some(entry));
        if is_on_top && let Err(error) = kernel::unmount(&entry.dir, Unmount::Lazy) {
            tracing::warn!(%error, "a mount that nobody can serve stays");
        }
    }
}

/// Serves the mount of `survivor` on, with `namespace`, which the survivor's record has witnessed. The options are those of
/// the mount.
pub fn take_over(
    namespace: Arc<Namespace>,
    survivor: &Survivor,
    options: &MountOptions,
    runtime: &Handle,
) -> Result<Mounted, MountError> {
    let Survivor { device, record, place } = survivor;
    let failed = |source| MountError::TakeOver { dir: place.dir.clone(), source };
    record.taken_over().map_err(failed)?;
    let waiting = Arc::new(Waiting::new(record.pinned().to_owned(), Scope::default()));
    let filesystem = Ocifs::new(waiting, runtime.clone(), None, record.earlier());
    filesystem.show(namespace.clone());
    let (acl, config) = session::settings(options);
    let session = on_descriptor(filesystem, device, acl, config).map_err(failed)?;
    // Nobody reads from the connection now: what is to be sent again cannot be under way.
    resend(device).map_err(failed)?;
    let notifier = session.notifier();
    let ended = session::serve(session).map_err(failed)?;
    distrust::listen(&namespace, notifier, ended.clone(), runtime);
    // Nothing is asked of the mount here: who waits for an answer of its own process cannot be killed, and a process that does not
    // end keeps the next one away.
    Mounted::new(place, ended, Some((device.try_clone().map_err(failed)?, record.clone())))
}

/// A session that reads from `device`, on which the first request was answered long ago.
fn on_descriptor(
    filesystem: Ocifs,
    device: &OwnedFd,
    acl: SessionACL,
    config: Config,
) -> io::Result<Session<Ocifs>> {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let lowest = i32::try_from(HIGH.min(limit / 2)).map_err(io::Error::other)?;
    let theirs = rustix::io::fcntl_dupfd_cloexec(&theirs, lowest)?;
    let number = theirs.as_raw_fd();
    let mut ours = File::from(ours);
    ours.write_all(&first_request())?;
    let session = Session::from_fd(filesystem, theirs, acl, config)?;
    // What it answers is for a kernel that has its answer already.
    let answered = ours.read(&mut [0; 256])?;
    // The session owns the number and nobody reads from it yet. No other thread is given it in between: new descriptors have
    // the lowest number that is free.
    nix::unistd::close(number)?;
    let device = rustix::io::fcntl_dupfd_cloexec(device, number)?;
    if device.as_raw_fd() != number {
        return Err(io::Error::other("the number of a descriptor was taken by another thread"));
    }
    // From here on it is the session's.
    let number = device.into_raw_fd();
    tracing::debug!(number, answered, "the connection has the number of the socket");
    Ok(session)
}

/// `fuse_in_header` and `fuse_init_in` of `linux/fuse.h`, offering everything: what is used of it was agreed on long ago.
fn first_request() -> Vec<u8> {
    const LEN: u32 = 40 + 64;
    let mut request = Vec::with_capacity(LEN as usize);
    for number in [LEN, INIT, 1, 0, 0, 0, 0, 0, 0, 0, VERSION.0, VERSION.1, 1 << 20, u32::MAX, u32::MAX] {
        request.extend_from_slice(&number.to_ne_bytes());
    }
    request.resize(LEN as usize, 0);
    request
}

/// Asks the kernel to send again what was taken and not answered: without it, who waits for these answers waits for ever.
fn resend(device: &OwnedFd) -> io::Result<()> {
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
    fn what_was_kept_is_told_apart_by_what_it_is() {
        let record = || Record::new("a", "b").unwrap();
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        let memory = |record: &Record| std::os::fd::AsFd::as_fd(record).try_clone_to_owned().unwrap();
        let placed = record();
        placed.mounted(Path::new("/nowhere"), 0, 1).unwrap();
        let found = Survivor::find(vec![memory(&placed), null()]).unwrap();
        assert_eq!(found.dir(), Path::new("/nowhere"));
        assert!(!found.is_in_place());
        assert!(Survivor::find(vec![null()]).is_err());
        assert!(Survivor::find(vec![memory(&placed)]).is_err());
        assert!(Survivor::find(vec![null(), memory(&record())]).is_err(), "it does not say where it is");
        assert!(Survivor::find(Vec::new()).is_err());
    }
}
