//! Where a repository is asked for: addresses in their order, and how each one is spoken to.
//!
//! Nothing is sent here. The idea: a route is the list of hosts that may have the bytes of one repository, mirrors first and the
//! registry itself last; what may be believed of them is decided by digests, so a route is only about who is asked, by what
//! name, and with which certificates and headers.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use reqwest::Url;
use reqwest::header::HeaderMap;

use super::RegistryError;
use super::auth::{Access, Scope, origin};
use super::reach::Guide;
use super::redact::{host_of, sanitised};

/// Whether the certificate of a server counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Verify {
    /// It has to be valid for the name, and signed by somebody trusted.
    #[default]
    Certificate,
    /// Any will do.
    Nothing,
}

/// The certificates for the connections to one host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Tls {
    /// Files with authorities that are trusted beside the system's.
    pub(super) authorities: Vec<PathBuf>,
    /// What we show when the server asks who we are: a certificate, and its key where that is another file.
    pub(super) pairs: Vec<(PathBuf, Option<PathBuf>)>,
    /// Whether the server's certificate counts.
    pub(super) verify: Verify,
}

/// What an endpoint is to the registry of the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The registry itself, wherever it lives.
    Primary,
    /// Somebody who has copies.
    Mirror,
}

/// What an endpoint may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Serves {
    /// What a tag points at now.
    pub(super) tags: bool,
    /// What a digest names.
    pub(super) digests: bool,
}

impl Serves {
    pub(super) const ALL: Self = Self { tags: true, digests: true };
}

/// One address of one repository.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// The host as a user names it: credentials are kept under it.
    pub(super) registry: String,
    /// The repository by its name there.
    pub(super) repository: String,
    /// The repository's own address, with a slash at its end. Credentials go to this scheme, host and port only.
    pub(super) root: Url,
    /// The registry that a proxy is to fetch from, as its `ns` parameter.
    pub(super) namespace: Option<String>,
    /// For connections to this scheme, host and port.
    pub(super) tls: Tls,
    /// Sent to this scheme, host and port only.
    pub(super) headers: HeaderMap,
    /// What it is.
    pub(super) role: Role,
    /// What it may be asked for.
    pub(super) serves: Serves,
    /// Whether nobody's certificate counts, because the user said so.
    pub(super) trusts_everybody: bool,
    /// Hosts, without ports, that the configuration names: it may lead there, also into a private network.
    pub(super) named: Arc<HashSet<String>>,
}

impl Endpoint {
    /// Scheme, host and port.
    pub(super) fn origin(&self) -> String {
        origin(&self.root)
    }

    /// Whether `other` is the same place, spoken to otherwise.
    pub(super) fn is_other_way_of(&self, other: &Self) -> bool {
        self.registry == other.registry && self.repository == other.repository && self.role == other.role
    }

    /// The certificates for a connection to `url`, which is here or where this host sent us. Elsewhere its authorities are
    /// trusted too, because an organisation that signs for its registry signs for the storage behind it; but we do not show
    /// our certificate there, and do not overlook that of a stranger.
    pub(super) fn tls_for(&self, url: &Url) -> Tls {
        if origin(url) == self.origin() {
            return self.tls.clone();
        }
        let same_host = url.host() == self.root.host();
        Tls {
            authorities: self.tls.authorities.clone(),
            pairs: Vec::new(),
            verify: if same_host || self.trusts_everybody { self.tls.verify } else { Verify::Certificate },
        }
    }

    /// The policy for addresses that it chooses.
    pub(super) fn guide(&self) -> Guide<'_> {
        Guide { home: &self.root, named: &self.named }
    }

    /// Where a redirect of this host, or the place of an upload, leads from `from`, when it may be followed.
    pub(super) fn follow(&self, from: &Url, location: &[u8]) -> Result<Url, String> {
        // Not every server encodes the letters of a path; the URL parser does.
        let location = String::from_utf8_lossy(location);
        let mut next =
            from.join(&location).map_err(|_| "a redirect to something that is not a URL".to_owned())?;
        match (from.scheme(), next.scheme()) {
            (_, "https") | ("http", "http") => {}
            // The user said that certificates do not matter here; then neither does what goes over the wire.
            ("https", "http") if self.tls.verify == Verify::Nothing => {}
            ("https", "http") => return Err(format!("a redirect from https to http at {}", host_of(&next))),
            _ => return Err("a redirect to something that is not http".into()),
        }
        if origin(&next) != origin(from) {
            self.guide().check_host(&next).map_err(|reason| format!("a redirect {reason}"))?;
        }
        next.set_fragment(None);
        Ok(next)
    }

    /// The URL of something in the repository.
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

    /// In whose name it is asked.
    pub(super) fn scope(self: &Arc<Self>, access: Access) -> Scope {
        Scope { endpoint: self.clone(), access }
    }
}

/// All addresses of one repository, in the order of asking.
#[derive(Debug)]
pub(super) struct Route {
    /// Invariant: not empty, and the last one is the primary.
    pub(super) endpoints: Vec<Arc<Endpoint>>,
}

impl Route {
    /// Those that may say what a tag points at, which may be none.
    pub(super) fn for_tags(&self) -> Vec<Arc<Endpoint>> {
        self.endpoints.iter().filter(|endpoint| endpoint.serves.tags).cloned().collect()
    }

    /// Those that may be asked for a digest, which may be none.
    pub(super) fn for_digests(&self) -> Vec<Arc<Endpoint>> {
        self.endpoints.iter().filter(|endpoint| endpoint.serves.digests).cloned().collect()
    }

    /// The ways to the registry itself: more than one when it is not known whether it speaks TLS.
    pub(super) fn primaries(&self) -> Vec<Arc<Endpoint>> {
        self.endpoints.iter().filter(|endpoint| endpoint.role == Role::Primary).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Places;
    use crate::registry::config::Config;

    fn endpoint(registry: &str, tls_verify: Option<bool>) -> Arc<Endpoint> {
        let given = crate::registry::config::Given { tls_verify, ..Default::default() };
        let config = Config::load(&Places::default(), given).unwrap();
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
