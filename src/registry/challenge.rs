//! What a 401 asks for, and whether the token server it names may be told a password.
//!
//! Nothing is sent here. The idea: a realm is text that the registry chose, so it must not lead a credential over a
//! readable connection or into a private network that the registry itself is not part of.
//! Rules: RFC 9110 section 11.6.1, distribution's token specification, and `validateRealmURL` of go-containerregistry.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use reqwest::Url;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

use super::redact::host_of;

/// How a registry wants to be authenticated.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Challenge {
    /// User and password with every request.
    Basic,
    /// A token of the realm.
    Bearer {
        /// The token server. Invariant: it passed [`check_realm`].
        realm: Url,
        /// What the registry calls itself there.
        service: Option<String>,
        /// What the token must allow, separated by spaces; of the challenge or else of the request.
        scope: String,
    },
}

impl Challenge {
    /// The same, asking for a token that may also write to `repository`. A scope is `type:name:actions`, the actions
    /// joined by commas (distribution's token specification).
    pub(super) fn for_writing(self, repository: &str) -> Self {
        let Challenge::Bearer { realm, service, scope } = self else { return self };
        let prefix = format!("repository:{repository}:");
        let mut found = false;
        let mut words: Vec<String> = Vec::new();
        for word in scope.split(' ').filter(|word| !word.is_empty()) {
            let actions = word.strip_prefix(&prefix);
            found |= actions.is_some();
            let writes =
                actions.is_none_or(|actions| actions.split(',').any(|one| matches!(one, "push" | "*")));
            words.push(if writes { word.to_owned() } else { format!("{prefix}pull,push") });
        }
        if !found {
            words.push(format!("{prefix}pull,push"));
        }
        Challenge::Bearer { realm, service, scope: words.join(" ") }
    }
}

/// The challenge of a 401 that `url` answered: Bearer before Basic, because a token is worth less to a thief. `None` when
/// there is none that we know; an error says why the realm cannot be trusted.
pub(super) fn challenge(
    url: &Url,
    headers: &HeaderMap,
    default_scope: &str,
) -> Result<Option<Challenge>, String> {
    let mut basic = None;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let Ok(text) = value.to_str() else { continue };
        let challenges = http_auth::parse_challenges(text)
            .map_err(|_| "a WWW-Authenticate header that is not valid".to_owned())?;
        for parsed in challenges {
            let parameter = |name: &str| {
                let (_, value) = parsed.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
                Some(value.to_unescaped()).filter(|value| !value.is_empty())
            };
            if parsed.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            } else if parsed.scheme.eq_ignore_ascii_case("bearer") {
                let realm = parameter("realm").ok_or("a bearer challenge without realm")?;
                let realm: Url = realm.parse().map_err(|_| "a token realm that is not a URL".to_owned())?;
                check_realm(url, &realm)?;
                let scope = parameter("scope").unwrap_or_else(|| default_scope.to_owned());
                return Ok(Some(Challenge::Bearer { realm, service: parameter("service"), scope }));
            }
        }
    }
    Ok(basic)
}

/// Whether a registry at `registry` may send us to `realm` for a token.
fn check_realm(registry: &Url, realm: &Url) -> Result<(), String> {
    let refuse = |why: &str| Err(format!("a token realm at {} that {why}", host_of(realm)));
    let local_registry = registry.scheme() == "http" && is_loopback(registry);
    let same_host = registry.host() == realm.host() || (is_loopback(registry) && is_loopback(realm));
    if is_private(realm) && !same_host {
        return refuse("is an address of a private network");
    }
    match realm.scheme() {
        "https" => {}
        "http" if local_registry && is_loopback(realm) => {}
        _ => return refuse("is not https"),
    }
    if !realm.username().is_empty() || realm.password().is_some() {
        return refuse("names a user");
    }
    Ok(())
}

/// Whether a URL names this machine: `localhost`, 127.0.0.0/8 or `[::1]`.
pub(super) fn is_loopback(url: &Url) -> bool {
    match (url.host_str(), address(url)) {
        (_, Some(address)) => address.is_loopback(),
        (Some(name), None) => name.eq_ignore_ascii_case("localhost"),
        (None, None) => false,
    }
}

/// The address that a URL has for a host, an IPv4 address in IPv6 clothes being an IPv4 address.
fn address(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

/// Whether a URL names an address that only means something near the machine that uses it.
fn is_private(url: &Url) -> bool {
    match address(url) {
        Some(IpAddr::V4(address)) => is_private_v4(address),
        Some(IpAddr::V6(address)) => is_private_v6(address),
        None => is_loopback(url),
    }
}

fn is_private_v4(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_broadcast()
        || first == 0
        // Carrier-grade NAT, RFC 6598.
        || (first == 100 && second & 0xc0 == 64)
}

fn is_private_v6(address: Ipv6Addr) -> bool {
    address.is_loopback()
        || address.is_unspecified()
        || address.is_unique_local()
        || address.is_unicast_link_local()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(registry: &str, header: &str) -> Result<Option<Challenge>, String> {
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, header.parse().unwrap());
        challenge(&registry.parse().unwrap(), &headers, "repository:a/b:pull")
    }

    fn realm(registry: &str, realm: &str) -> Result<(), String> {
        check_realm(&registry.parse().unwrap(), &realm.parse().unwrap())
    }

    #[test]
    fn scope_is_of_the_challenge_and_else_of_the_request() {
        let of = |parameters: &str| match of(
            "https://r.example/",
            &format!("Bearer realm=\"https://t.example/token\"{parameters}"),
        ) {
            Ok(Some(Challenge::Bearer { service, scope, .. })) => (service, scope),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            of(",service=\"s\",scope=\"repository:x/y:pull,push\""),
            (Some("s".into()), "repository:x/y:pull,push".into())
        );
        assert_eq!(of(""), (None, "repository:a/b:pull".into()));
    }

    #[test]
    fn a_challenge_to_read_becomes_one_to_write_and_keeps_the_rest() {
        let widened = |scope: &str| {
            let realm = "https://t.example/".parse().unwrap();
            let read = Challenge::Bearer { realm, service: Some("s".into()), scope: scope.into() };
            match read.for_writing("a/b") {
                Challenge::Bearer { service, scope, .. } if service.as_deref() == Some("s") => scope,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(widened("repository:a/b:pull"), "repository:a/b:pull,push");
        for kept in ["repository:a/b:push,pull", "repository:a/b:*", "repository:a/b:pull,push,delete"] {
            assert_eq!(widened(kept), kept);
        }
        assert_eq!(widened(""), "repository:a/b:pull,push");
        assert_eq!(widened("repository:a/bc:pull"), "repository:a/bc:pull repository:a/b:pull,push");
        assert_eq!(Challenge::Basic.for_writing("a/b"), Challenge::Basic);
    }

    #[test]
    fn bearer_is_preferred_to_basic() {
        let both =
            of("https://r.example/", "Basic realm=\"r\", Bearer realm=\"https://t.example/\"").unwrap();
        assert!(matches!(both, Some(Challenge::Bearer { .. })));
        assert_eq!(of("https://r.example/", "Basic realm=\"r\"").unwrap(), Some(Challenge::Basic));
        assert_eq!(of("https://r.example/", "Negotiate").unwrap(), None);
    }

    #[test]
    fn a_realm_must_be_https_unless_the_registry_is_plain_on_this_machine() {
        assert!(realm("https://r.example", "https://auth.example/token").is_ok());
        assert!(realm("https://r.example", "http://r.example/token").is_err());
        assert!(realm("http://r.example", "http://r.example/token").is_err());
        assert!(realm("http://127.0.0.1:5000", "http://localhost:5001/token").is_ok());
        assert!(realm("https://localhost", "http://localhost/token").is_err());
        assert!(realm("https://r.example", "file:///etc/passwd").is_err());
        assert!(realm("https://r.example", "https://u:p@auth.example/token").is_err());
    }

    #[test]
    fn a_realm_in_a_private_network_is_only_for_a_registry_there() {
        for private in [
            "10.0.0.1",
            "172.16.3.4",
            "192.168.1.1",
            "169.254.169.254",
            "127.0.0.1",
            "100.64.0.1",
            "0.0.0.0",
            "localhost",
            "[::1]",
            "[fe80::1]",
            "[fd00::1]",
            "[::ffff:10.0.0.1]",
            // Other ways to write an IPv4 address, which URL parsers read as one.
            "0x7f.1",
            "2130706433",
        ] {
            assert!(realm("https://r.example", &format!("https://{private}/token")).is_err(), "{private}");
        }
        assert!(realm("https://10.0.0.1:5000", "https://10.0.0.1/token").is_ok());
        assert!(realm("https://10.0.0.1", "https://10.0.0.2/token").is_err());
        assert!(realm("https://r.example", "https://8.8.8.8/token").is_ok());
    }
}
