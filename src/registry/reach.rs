//! Address policy: the hosts that a registry may lead to by redirects, token realms and upload locations.
//!
//! An address that a registry chose is requested from this machine's position in the network. So it must not be one
//! that only has a meaning there, unless the registry is there as well or the user named the host. One policy covers
//! all such addresses; names are checked when they are resolved. Nothing is sent here.
//! Rules: RFC 6890, RFC 6052, RFC 6761 section 6.3, and `validateRealmURL` of go-containerregistry.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use reqwest::Url;

use super::redact::host_of;

/// The scope in which an address is reachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AddressClass {
    /// Reachable from everywhere.
    Public,
    /// Reachable in the network of an organisation.
    Private,
    /// Reachable on the same link, as the metadata services of clouds.
    LinkLocal,
    /// Reachable on this machine.
    Loopback,
}

/// The class of an address. An IPv4 address inside an IPv6 address counts as IPv4.
pub(super) fn class_of(address: IpAddr) -> AddressClass {
    match address.to_canonical() {
        IpAddr::V4(address) => class_of_v4(address),
        IpAddr::V6(address) => match embedded(address) {
            Some(inside) => class_of_v4(inside),
            None => class_of_v6(address),
        },
    }
}

fn class_of_v4(address: Ipv4Addr) -> AddressClass {
    let [first, second, ..] = address.octets();
    // 0.0.0.0/8 is "this host on this network".
    if address.is_loopback() || first == 0 {
        return AddressClass::Loopback;
    }
    if address.is_link_local() || address.is_broadcast() {
        return AddressClass::LinkLocal;
    }
    // RFC 6598: carrier-grade NAT.
    match address.is_private() || (first == 100 && second & 0xc0 == 64) {
        true => AddressClass::Private,
        false => AddressClass::Public,
    }
}

fn class_of_v6(address: Ipv6Addr) -> AddressClass {
    let first = address.segments()[0];
    if address.is_loopback() || address.is_unspecified() {
        return AddressClass::Loopback;
    }
    if address.is_unicast_link_local() {
        return AddressClass::LinkLocal;
    }
    // fec0::/10: the site-local addresses of RFC 3513. 64:ff9b:1::/48: NAT64 of one network (RFC 8215).
    let is_local_nat64 = address.segments()[..3] == [0x64, 0xff9b, 1];
    match address.is_unique_local() || first & 0xffc0 == 0xfec0 || is_local_nat64 {
        true => AddressClass::Private,
        false => AddressClass::Public,
    }
}

/// The IPv4 address to which an IPv6 address is translated: NAT64 (RFC 6052), 6to4 (RFC 3056), and the compatible
/// form.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let joined = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match (a, b, c, d, e, f) {
        (0x64, 0xff9b, 0, 0, 0, 0) => Some(joined(g, h)),
        (0x2002, ..) => Some(joined(b, c)),
        // ::1 and :: are IPv6 addresses.
        (0, 0, 0, 0, 0, 0) if g != 0 => Some(joined(g, h)),
        _ => None,
    }
}

/// Whether a URL names this machine: `localhost`, 127.0.0.0/8 or `[::1]`.
pub(super) fn is_loopback(url: &Url) -> bool {
    match (url.host_str(), address(url)) {
        (_, Some(address)) => address.is_loopback(),
        (Some(name), None) => name.trim_end_matches('.').eq_ignore_ascii_case("localhost"),
        (None, None) => false,
    }
}

/// The address in a URL; `None` for a name. An IPv4-mapped IPv6 address is returned as IPv4.
pub(super) fn address(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

/// The class of a URL's host; `None` for a name that has to be resolved first.
fn class(url: &Url) -> Option<AddressClass> {
    if let Some(address) = address(url) {
        return Some(class_of(address));
    }
    let name = url.host_str()?.trim_end_matches('.').to_ascii_lowercase();
    (name == "localhost" || name.ends_with(".localhost")).then_some(AddressClass::Loopback)
}

/// A registry that chooses addresses.
#[derive(Clone, Copy)]
pub(super) struct RedirectGuide<'a> {
    /// The registry's own address.
    pub(super) home: &'a Url,
    /// Hosts named in this machine's configuration, without ports.
    pub(super) named: &'a HashSet<String>,
}

impl RedirectGuide<'_> {
    /// Checks that the registry may lead to the host of `to`, as far as possible before a name is resolved.
    pub(super) fn check_host(self, to: &Url) -> Result<(), String> {
        if !to.username().is_empty() || to.password().is_some() {
            return Err(format!("at {} that names a user", host_of(to)));
        }
        let is_home = self.home.host() == to.host() || (is_loopback(self.home) && is_loopback(to));
        let is_named = to.host_str().is_some_and(|host| self.named.contains(host));
        match class(to) {
            None | Some(AddressClass::Public) => Ok(()),
            Some(_) if is_home || is_named => Ok(()),
            Some(_) => Err(format!("at {} that is an address of a private network", host_of(to))),
        }
    }

    /// Checks that a token may be requested from `realm`, which receives a password. HTTP is accepted only on the
    /// host of a registry that itself uses HTTP.
    pub(super) fn check_realm(self, realm: &Url) -> Result<(), String> {
        self.check_host(realm).map_err(|reason| format!("a token realm {reason}"))?;
        let is_same = self.home.host() == realm.host() || (is_loopback(self.home) && is_loopback(realm));
        match realm.scheme() {
            "https" => Ok(()),
            "http" if self.home.scheme() == "http" && is_same => Ok(()),
            _ => Err(format!("a token realm at {} that is not https", host_of(realm))),
        }
    }
}

/// A name chosen by a registry that resolved to a forbidden address.
#[derive(Debug)]
pub(super) struct PrivateAddress {
    /// The name.
    pub(super) name: String,
    /// Its address.
    pub(super) address: IpAddr,
}

impl fmt::Display for PrivateAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a redirect at {} that is {}, an address of a private network", self.name, self.address)
    }
}

impl std::error::Error for PrivateAddress {}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(home: &str, to: &str) -> Result<(), String> {
        let named = HashSet::from(["10.7.7.7".to_owned()]);
        RedirectGuide { home: &home.parse().unwrap(), named: &named }.check_host(&to.parse().unwrap())
    }

    fn realm(home: &str, to: &str) -> Result<(), String> {
        let named = HashSet::new();
        RedirectGuide { home: &home.parse().unwrap(), named: &named }.check_realm(&to.parse().unwrap())
    }

    #[test]
    fn redirects_into_private_networks_need_a_private_registry_or_configuration() {
        for private in [
            "10.0.0.1",
            "172.16.3.4",
            "192.168.1.1",
            "169.254.169.254",
            "127.0.0.1",
            "100.64.0.1",
            "0.0.0.0",
            "localhost",
            "localhost.",
            "a.localhost",
            "[::1]",
            "[::]",
            "[fe80::1]",
            "[fd00::1]",
            "[fec0::1]",
            "[::ffff:10.0.0.1]",
            "[::10.0.0.1]",
            "[64:ff9b::169.254.169.254]",
            "[64:ff9b:1::a00:1]",
            "[2002:a00:1::]",
            // Other ways to write an IPv4 address, which URL parsers read as one.
            "0x7f.1",
            "2130706433",
        ] {
            assert!(check("https://r.example", &format!("http://{private}/x")).is_err(), "{private}");
            assert!(realm("https://r.example", &format!("https://{private}/token")).is_err(), "{private}");
        }
        assert!(check("http://10.0.0.1:5000", "http://10.0.0.1:9000/x").is_ok());
        assert!(check("http://10.0.0.1:5000", "http://10.0.0.2/x").is_err());
        assert!(check("http://127.0.0.1:5000", "http://localhost:9000/x").is_ok());
        assert!(check("http://127.0.0.1:5000", "http://10.0.0.2/x").is_err());
        assert!(check("https://r.example", "http://10.7.7.7:9000/x").is_ok());
        for public in ["8.8.8.8", "cdn.example", "[64:ff9b::8.8.8.8]", "[2606:4700::1]"] {
            assert!(check("https://r.example", &format!("https://{public}/x")).is_ok(), "{public}");
        }
        assert!(check("https://r.example", "https://user:pw@cdn.example/x").is_err());
    }

    #[test]
    fn a_realm_is_https_unless_the_registry_on_that_host_is_spoken_to_by_http() {
        assert!(realm("https://r.example", "https://auth.example/token").is_ok());
        assert!(realm("https://r.example", "http://r.example/token").is_err());
        assert!(realm("http://r.example", "http://r.example:8080/token").is_ok());
        assert!(realm("http://r.example", "http://auth.example/token").is_err());
        assert!(realm("http://10.0.0.1:5000", "http://10.0.0.1/token").is_ok());
        assert!(realm("http://127.0.0.1:5000", "http://localhost:5001/token").is_ok());
        assert!(realm("https://localhost", "http://localhost/token").is_err());
        assert!(realm("https://r.example", "file:///etc/passwd").is_err());
        assert!(realm("https://10.0.0.1", "https://10.0.0.2/token").is_err());
    }
}
