//! Reserved port: a loopback port that no other process is given between its choice and its use, nor while its server is down.
//!
//! A socket stays bound to it with SO_REUSEADDR and never listens. The kernel then gives the port to no other socket that asks
//! for any port, refuses connections to it, and lets a server bind it by number, as all servers set SO_REUSEADDR (socket(7)).

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};

/// A port of 127.0.0.1, until it is dropped.
pub struct ReservedPort {
    address: SocketAddr,
    _bound: OwnedFd,
}

impl ReservedPort {
    /// A port of the kernel's choice.
    pub fn new() -> Self {
        let kind = (AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC);
        let bound = socket_with(kind.0, kind.1, kind.2, None).unwrap();
        sockopt::set_socket_reuseaddr(&bound, true).unwrap();
        bind(&bound, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = SocketAddr::try_from(getsockname(&bound).unwrap()).unwrap();
        Self { address, _bound: bound }
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The number.
    pub fn number(&self) -> u16 {
        self.address.port()
    }
}
