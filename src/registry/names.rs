//! From names of hosts to addresses, as the C library of this machine has it.
//!
//! Keeps no answer: that is the business of the machine. The idea: a process that can no longer read how names are resolved,
//! because that was written anew since it gave up its rights, asks the one that still can.

use std::io;
use std::net::SocketAddr;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::elsewhere;

/// Resolves with getaddrinfo(3).
pub(super) struct Names;

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let error = match tokio::net::lookup_host((name.as_str(), 0)).await {
                Ok(found) => {
                    let found: Vec<SocketAddr> = found.collect();
                    return Ok(Box::new(found.into_iter()) as Addrs);
                }
                Err(error) => error,
            };
            match elsewhere::addresses(name.as_str()).await {
                Some(Ok(found)) => {
                    tracing::debug!(host = name.as_str(), "resolved outside the sandbox");
                    // The port is put in by who asked.
                    Ok(Box::new(found.into_iter().map(|ip| SocketAddr::new(ip, 0))) as Addrs)
                }
                Some(Err(reason)) => Err(io::Error::other(reason).into()),
                None => Err(error.into()),
            }
        })
    }
}
