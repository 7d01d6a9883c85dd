//! DNS resolver: host names to addresses, by the C library of this machine.
//!
//! Answers are not cached: that is up to the machine. If its resolver configuration is rewritten after this process
//! dropped its privileges, this process can no longer read it, and asks the privileged one.

use std::io;
use std::net::{IpAddr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::reach::{AddressClass, PrivateAddress, class_of};
use super::{privileged_rpc, proxies};

/// Resolves with getaddrinfo(3).
pub(super) struct DnsResolver {
    /// The host of the registry that chose the names; `None` for names of the user. Such names may resolve to private
    /// addresses only of the class of the registry's own.
    pub(super) guide: Option<String>,
}

impl Resolve for DnsResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let guide = self.guide.clone();
        Box::pin(async move {
            let mut found = addresses(name.as_str()).await?;
            if let Some(guide) =
                guide.filter(|guide| guide != name.as_str() && !proxies::is_proxy(name.as_str()))
            {
                found = reachable(found, name.as_str(), &guide).await?;
            }
            // The caller fills in the port.
            Ok(Box::new(found.into_iter().map(|ip| SocketAddr::new(ip, 0))) as Addrs)
        })
    }
}

/// The addresses of `name` that the registry at `guide` may lead to.
async fn reachable(found: Vec<IpAddr>, name: &str, guide: &str) -> io::Result<Vec<IpAddr>> {
    if found.iter().all(|address| class_of(*address) == AddressClass::Public) {
        return Ok(found);
    }
    let bare = guide.trim_start_matches('[').trim_end_matches(']');
    let own = match bare.parse::<IpAddr>() {
        Ok(address) => vec![address],
        Err(_) => addresses(bare).await?,
    };
    let refused = found.iter().find(|address| !may_lead(&own, address)).copied();
    let allowed: Vec<IpAddr> = found.into_iter().filter(|address| may_lead(&own, address)).collect();
    match (allowed.is_empty(), refused) {
        (true, Some(address)) => Err(io::Error::other(PrivateAddress { name: name.to_owned(), address })),
        _ => Ok(allowed),
    }
}

/// Whether a registry at `own` may lead to `address`. One with a public address beside a private one does not live in
/// the private network.
fn may_lead(own: &[IpAddr], address: &IpAddr) -> bool {
    let class = class_of(*address);
    class == AddressClass::Public || !own.is_empty() && own.iter().all(|own| class_of(*own) == class)
}

async fn addresses(name: &str) -> io::Result<Vec<IpAddr>> {
    let error = match tokio::net::lookup_host((name, 0)).await {
        Ok(found) => return Ok(found.map(|found| found.ip()).collect()),
        Err(error) => error,
    };
    match privileged_rpc::addresses(name).await {
        Some(Ok(found)) => {
            tracing::debug!(host = name, "resolved outside the sandbox");
            Ok(found)
        }
        Some(Err(reason)) => Err(io::Error::other(reason)),
        None => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_that_adds_a_private_address_to_its_own_leads_to_no_private_network() {
        let ips = ["203.0.113.9", "10.255.255.1", "10.1.2.3"].map(|ip| ip.parse::<IpAddr>().unwrap());
        assert!(!may_lead(&ips[..2], &ips[2]));
        assert!(may_lead(&ips[1..2], &ips[2]));
        assert!(!may_lead(&[], &ips[2]));
        assert!(may_lead(&[], &ips[0]));
    }

    #[tokio::test]
    async fn a_name_is_reached_at_the_addresses_of_the_networks_where_the_registry_lives() {
        let ips = |text: &str| text.split(' ').map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>();
        for (found, guide, expected) in [
            ("203.0.113.9", "203.0.113.7", Some("203.0.113.9")),
            ("169.254.169.254", "203.0.113.7", None),
            ("10.0.0.9 203.0.113.9", "203.0.113.7", Some("203.0.113.9")),
            ("10.0.0.9", "10.0.0.7", Some("10.0.0.9")),
            ("127.0.0.1", "10.0.0.7", None),
            ("127.0.0.1", "localhost", Some("127.0.0.1")),
            ("64:ff9b::a9fe:a9fe", "[2606:4700::1]", None),
        ] {
            let reached = reachable(ips(found), "n.example", guide).await;
            assert_eq!(reached.ok(), expected.map(ips), "{found} from {guide}");
        }
    }
}
