//! Notification socket of a service manager (sd_notify(3)).
//!
//! Connected once, before the sandbox is entered: inside no local socket can be created.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use sd_notify::NotifyState;

/// Most descriptors of one message: those of a mount and of its record.
const MAX_DESCRIPTORS: usize = 2;

/// A socket connected to the manager.
pub(super) struct NotifySocket(UnixDatagram);

impl NotifySocket {
    /// Connects to the manager that the environment names; `None` when there is none.
    pub(super) fn of_environment() -> io::Result<Option<Self>> {
        std::env::var_os(crate::sandbox::NOTIFY_SOCKET).map(|name| Self::to(&name)).transpose()
    }

    /// Connects to a path, or to `@` and an abstract name.
    fn to(name: &OsStr) -> io::Result<Self> {
        let address = match name.as_bytes() {
            [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
            _ => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        Ok(Self(socket))
    }

    /// Sends `state` as one message, together with `descriptors`.
    pub(super) fn send(&self, state: &[NotifyState<'_>], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let message: String = state.iter().map(|state| format!("{state}\n")).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let sent = rustix::net::sendmsg(
            &self.0,
            &[IoSlice::new(message.as_bytes())],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )?;
        if sent == message.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_manager_hears_every_state_in_one_message_by_path_and_by_abstract_name() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("notify");
        let abstract_name = format!("ocifs-notify-{}", std::process::id());
        let by_path = UnixDatagram::bind(&path).unwrap();
        let address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        for (manager, name) in
            [(by_path, path.into_os_string()), (by_name, format!("@{abstract_name}").into())]
        {
            let socket = NotifySocket::to(&name).unwrap();
            socket.send(&[NotifyState::Ready, NotifyState::Status("served")], &[]).unwrap();
            let mut heard = [0; 100];
            let len = manager.recv(&mut heard).unwrap();
            assert_eq!(&heard[..len], b"READY=1\nSTATUS=served\n");
            socket.send(&[NotifyState::FdStore], &[manager.as_fd(), manager.as_fd()]).unwrap();
            let len = manager.recv(&mut heard).unwrap();
            assert_eq!(&heard[..len], b"FDSTORE=1\n");
        }
        assert!(NotifySocket::to(OsStr::new("/nowhere/at/all")).is_err());
    }
}
