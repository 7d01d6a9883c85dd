//! Canonical host names: one spelling for each host, with its port.
//!
//! No name is resolved. Host names ignore case, and an address has many spellings. A host is canonicalized when it is
//! parsed, so that rules about hosts can be compared as text. Rules: RFC 4343, RFC 5952, and the IPv4 parser of the
//! URL standard, which the HTTP client uses.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The host of names without a host.
pub(super) const DOCKER_HUB: &str = "docker.io";
/// Other names of Docker Hub: the one that clients write, and the one of its API.
const HUB_NAMES: [&str; 2] = ["index.docker.io", "registry-1.docker.io"];

/// The canonical form of `HOST[:PORT]`: lower case, an address in its canonical form, no dot at the end, and no port
/// that the scheme implies (443; 80 on this machine, which is accessed by http). `None` if the text is not a host.
pub fn canonical_host(text: &str) -> Option<String> {
    let (name, port) = split_port(text)?;
    let name = match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => shown(address.parse::<Ipv6Addr>().ok()?.to_canonical()),
        None => {
            let lower = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
            match ipv4(&lower) {
                Some(Ok(address)) => address.to_string(),
                Some(Err(())) => return None,
                None if lower.split('.').all(is_label) => lower,
                None => return None,
            }
        }
    };
    let name = if HUB_NAMES.contains(&name.as_str()) { DOCKER_HUB.to_owned() } else { name };
    let implied = if is_this_machine(&name) { 80 } else { 443 };
    Some(match port {
        Some(port) if port != implied => format!("{name}:{port}"),
        _ => name,
    })
}

/// Splits a host into name and port.
fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    let end = match text.starts_with('[') {
        true => text.find(']')? + 1,
        false => text.find(':').unwrap_or(text.len()),
    };
    let (name, port) = text.split_at(end);
    if port.is_empty() {
        return Some((name, None));
    }
    let digits = port.strip_prefix(':')?;
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten().map(|port| (name, Some(port)))
}

fn shown(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// Whether a canonical name is `localhost`, an address of 127.0.0.0/8, or `[::1]`.
fn is_this_machine(name: &str) -> bool {
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn is_label(label: &str) -> bool {
    !label.is_empty()
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// Parses an IPv4 address in any form of inet_aton(3): one to four numbers, each decimal, octal or hexadecimal.
/// `None` for a name. An error for a name whose last label is a number but which is not an address: such a name is
/// not resolved.
fn ipv4(name: &str) -> Option<Result<Ipv4Addr, ()>> {
    let parts: Vec<&str> = name.split('.').collect();
    let last = parts.last()?;
    let is_decimal = !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit());
    if !is_decimal && number(last).is_none() {
        return None;
    }
    Some(joined(&parts).map(Ipv4Addr::from).ok_or(()))
}

/// Joins the numbers: each but the last is one byte, and the last fills the rest.
fn joined(parts: &[&str]) -> Option<u32> {
    let numbers: Vec<u64> = parts.iter().map(|part| number(part)).collect::<Option<_>>()?;
    let (last, bytes) = numbers.split_last()?;
    if bytes.len() > 3 || bytes.iter().any(|byte| *byte > 255) || *last >= 1 << (8 * (4 - bytes.len())) {
        return None;
    }
    let high = bytes.iter().zip([24, 16, 8]).fold(0, |sum, (byte, shift)| sum | (byte << shift));
    u32::try_from(high | last).ok()
}

/// A number in C's notation; `0x` alone is 0 in URL parsers.
fn number(text: &str) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix("0x") {
        Some("") => return Some(0),
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (&text[1..], 8),
        None => (text, 10),
    };
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_number.then(|| u64::from_str_radix(digits, radix).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_host_becomes_one() {
        for (written, expected) in [
            ("R.Example", "r.example"),
            ("r.example.", "r.example"),
            ("r.example:443", "r.example"),
            ("r.example:0443", "r.example"),
            ("r.example:80", "r.example:80"),
            ("r.example:05000", "r.example:5000"),
            ("LOCALHOST.:5000", "localhost:5000"),
            ("localhost:80", "localhost"),
            ("localhost:443", "localhost:443"),
            ("127.1:5000", "127.0.0.1:5000"),
            ("0x7f.1", "127.0.0.1"),
            ("0X7F.0.0.1", "127.0.0.1"),
            ("2130706433:80", "127.0.0.1"),
            ("0177.0.0.01", "127.0.0.1"),
            ("017700000001", "127.0.0.1"),
            ("127.0.0.1.", "127.0.0.1"),
            ("10.0.513:5000", "10.0.2.1:5000"),
            ("[::ffff:127.0.0.1]:5000", "127.0.0.1:5000"),
            ("[0:0:0:0:0:0:0:1]", "[::1]"),
            ("[2001:DB8::0:1]:443", "[2001:db8::1]"),
            ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
            ("Index.Docker.IO", "docker.io"),
            ("registry-1.docker.io:443", "docker.io"),
        ] {
            assert_eq!(canonical_host(written).as_deref(), Some(expected), "{written}");
            assert_eq!(canonical_host(expected).as_deref(), Some(expected), "{expected}");
        }
    }

    #[test]
    fn text_that_no_client_could_connect_to_is_no_host() {
        for bad in [
            "",
            ".",
            "a..b",
            "-a",
            "a-",
            "a_b",
            "1.2.3.4.5",
            "256.1.1.1",
            "1.2.3.256",
            "a.0x7g.1",
            "0x100000000",
            "4294967296",
            "r.example:",
            "r.example:+5",
            "r.example:65536",
            "[::x]",
            "[::1",
            "[::1]5000",
            "::1",
            "r.example..",
            "08.1",
            "b\u{fc}cher.example",
        ] {
            assert_eq!(canonical_host(bad), None, "{bad}");
        }
    }
}
