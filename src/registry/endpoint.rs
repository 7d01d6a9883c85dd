//! Routes: the endpoints of a repository in order, with the settings of each connection.
//!
//! A route lists the hosts that may have the bytes of one repository, mirrors first and the registry itself last.
//! Digests verify the bytes, so a route only decides which host is asked, by which name, and with which certificates
//! and headers. Nothing is sent here.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use reqwest::Url;
use reqwest::header::HeaderMap;

use super::RegistryError;
use super::reach::RedirectGuide;
use super::redact::{host_of, origin, sanitised};

/// The verification of a server's certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum TlsVerify {
    /// The certificate must be valid for the name, with a trusted signer.
    #[default]
    Certificate,
    /// Any certificate is accepted.
    Nothing,
}

/// The TLS settings for connections to one host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct TlsConfig {
    /// Files with authorities that are trusted in addition to the system's.
    pub(super) authorities: Vec<PathBuf>,
    /// Client certificates: a certificate file, and a key file (`None` if the key is in the same file).
    pub(super) pairs: Vec<(PathBuf, Option<PathBuf>)>,
    /// The verification of the server's certificate.
    pub(super) verify: TlsVerify,
}

/// The role of an endpoint in a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EndpointRole {
    /// The registry itself, at its configured location.
    Primary,
    /// A mirror.
    Mirror,
}

/// The kinds of requests that an endpoint is configured for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EndpointScope {
    /// Resolving tags.
    pub(super) tags: bool,
    /// Fetching content by digest.
    pub(super) digests: bool,
}

impl EndpointScope {
    pub(super) const ALL: Self = Self { tags: true, digests: true };
}

/// Whether an endpoint gets logins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LoginUse {
    Sent,
    /// They would cross a network in clear text, and no option or configuration accepts that.
    Withheld,
}

/// The author of the address of a file.
#[derive(Clone, Debug)]
pub(super) enum AddressAuthor {
    User,
    /// The author of an image. Its registry decides about addresses of private networks; `None` for a local image.
    Image {
        home: Option<Url>,
    },
}

/// One address of one repository.
#[derive(Debug)]
pub(super) struct RegistryEndpoint {
    /// The host as the user names it: the key of its credentials.
    pub(super) registry: String,
    /// The repository's name at this host.
    pub(super) repository: String,
    /// The repository's own address, with a trailing slash. Credentials go to this scheme, host and port only.
    pub(super) root: Url,
    /// The registry whose image names this address; `None` for an address of the user or the configuration.
    pub(super) led_by: Option<Url>,
    /// The `ns` parameter: the registry that a proxy has to fetch from; `None` sends none.
    pub(super) namespace: Option<String>,
    /// For connections to this scheme, host and port.
    pub(super) tls: TlsConfig,
    /// Sent to this scheme, host and port only.
    pub(super) headers: HeaderMap,
    /// Whether stored and given logins are sent to it.
    pub(super) logins: LoginUse,
    /// The role in the route.
    pub(super) role: EndpointRole,
    /// The kinds of requests it is configured for.
    pub(super) serves: EndpointScope,
    /// `--tls-verify=false`: accept any certificate of any host.
    pub(super) accepts_any_certificate: bool,
    /// Hosts named in the configuration, without ports: redirects may lead there, also into a private network.
    pub(super) named: Arc<HashSet<String>>,
}

impl RegistryEndpoint {
    /// Scheme, host and port.
    pub(super) fn origin(&self) -> String {
        origin(&self.root)
    }

    /// Whether `other` is the same repository at the same host over the other scheme.
    pub(super) fn is_other_way_of(&self, other: &Self) -> bool {
        self.registry == other.registry && self.repository == other.repository && self.role == other.role
    }

    /// The TLS settings for a connection to `url`: the endpoint itself, or an address it sent us to. Its authorities
    /// are trusted for other hosts too, because an organisation that signs for its registry signs for the storage
    /// behind it. Other hosts do not get the client certificate, and need a valid certificate unless the user accepts
    /// any.
    pub(super) fn tls_for(&self, url: &Url) -> TlsConfig {
        if origin(url) == self.origin() {
            return self.tls.clone();
        }
        let same_host = url.host() == self.root.host();
        TlsConfig {
            authorities: self.tls.authorities.clone(),
            pairs: Vec::new(),
            verify: if same_host || self.accepts_any_certificate {
                self.tls.verify
            } else {
                TlsVerify::Certificate
            },
        }
    }

    /// The policy for addresses chosen by this endpoint.
    pub(super) fn guide(&self) -> RedirectGuide<'_> {
        RedirectGuide { home: self.led_by.as_ref().unwrap_or(&self.root), named: &self.named }
    }

    /// The target of a redirect or upload location from `from`; an error if the policy forbids it.
    pub(super) fn follow(&self, from: &Url, location: &[u8]) -> Result<Url, String> {
        // Some servers do not encode the characters of a path; the URL parser does.
        let location = String::from_utf8_lossy(location);
        let mut next =
            from.join(&location).map_err(|_| "a redirect to something that is not a URL".to_owned())?;
        match (from.scheme(), next.scheme()) {
            (_, "https") | ("http", "http") => {}
            // If certificates are not verified, plain HTTP is no worse.
            ("https", "http") if self.tls.verify == TlsVerify::Nothing => {}
            ("https", "http") => return Err(format!("a redirect from https to http at {}", host_of(&next))),
            _ => return Err("a redirect to something that is not http".into()),
        }
        if origin(&next) != origin(from) {
            self.guide().check_host(&next).map_err(|reason| format!("a redirect {reason}"))?;
        }
        next.set_fragment(None);
        Ok(next)
    }

    /// The URL of a path in the repository.
    pub(super) fn url(&self, place: &str, what: &str) -> Result<Url, RegistryError> {
        let url = format!("{}{place}", self.root).parse::<Url>();
        let mut url = url.map_err(|error| RegistryError::Address {
            host: sanitised(&self.registry),
            what: what.to_owned(),
            reason: error.to_string(),
        })?;
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    /// The scope of a request to this endpoint.
    pub(super) fn scope(self: &Arc<Self>, access: RepositoryAction) -> TokenScope {
        TokenScope { endpoint: self.clone(), access }
    }
}

/// The repository of a request and the access it needs.
#[derive(Clone, Debug)]
pub(super) struct TokenScope {
    /// The address: credentials go to its scheme, host and port only.
    pub(super) endpoint: Arc<RegistryEndpoint>,
    /// The access that a token must allow.
    pub(super) access: RepositoryAction,
}

/// The kind of access to a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum RepositoryAction {
    /// Reading.
    Pull,
    /// Reading and writing.
    Push,
}

/// All endpoints of one repository, in the order of failover.
#[derive(Debug)]
pub(super) struct RepositoryRoute {
    /// Invariant: not empty, and the last one is the primary.
    pub(super) endpoints: Vec<Arc<RegistryEndpoint>>,
}

impl RepositoryRoute {
    /// The endpoints that may resolve tags; possibly none.
    pub(super) fn for_tags(&self) -> Vec<Arc<RegistryEndpoint>> {
        self.endpoints.iter().filter(|endpoint| endpoint.serves.tags).cloned().collect()
    }

    /// The endpoints that may serve digests; possibly none.
    pub(super) fn for_digests(&self) -> Vec<Arc<RegistryEndpoint>> {
        self.endpoints.iter().filter(|endpoint| endpoint.serves.digests).cloned().collect()
    }

    /// The endpoints of the registry itself: HTTPS and HTTP if certificates are not verified, otherwise one.
    pub(super) fn primaries(&self) -> Vec<Arc<RegistryEndpoint>> {
        self.endpoints.iter().filter(|endpoint| endpoint.role == EndpointRole::Primary).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::ConfigPaths;
    use crate::registry::config::RegistryConfig;

    fn endpoint(registry: &str, tls_verify: Option<bool>) -> Arc<RegistryEndpoint> {
        let given = crate::registry::config::ConnectionArgs { tls_verify, ..Default::default() };
        let config = RegistryConfig::load(&ConfigPaths::default(), given).unwrap();
        config.route(&format!("{registry}/a").parse().unwrap()).unwrap().endpoints[0].clone()
    }

    #[test]
    fn a_redirect_leaves_https_only_where_certificates_do_not_matter() {
        let from = |from: &str, to: &str| {
            let from: Url = from.parse().unwrap();
            endpoint(&host_of(&from), None).follow(&from, to.as_bytes()).map(|url| url.to_string())
        };
        assert_eq!(from("https://r.example/v2/a", "/other?x=1").unwrap(), "https://r.example/other?x=1");
        assert_eq!(
            from("https://r.example/v2/a", "/gr\u{f6}\u{df}e").unwrap(),
            "https://r.example/gr%C3%B6%C3%9Fe"
        );
        assert_eq!(from("http://r.example/", "https://cdn.example/").unwrap(), "https://cdn.example/");
        assert_eq!(from("http://127.0.0.1:1/", "http://127.0.0.1:2/").unwrap(), "http://127.0.0.1:2/");
        for bad in ["http://r.example/", "file:///etc/passwd", "ftp://x/", "https://user:pw@cdn.example/"] {
            let reason = from("https://r.example/", bad).unwrap_err();
            assert!(!reason.contains("pw"), "{reason}");
        }
        let careless = endpoint("r.example", Some(false));
        let url: Url = "https://r.example/v2/a".parse().unwrap();
        assert!(careless.follow(&url, b"http://cdn.example/x").is_ok());
        assert!(careless.follow(&url, b"http://169.254.169.254/x").is_err());
    }
}
