//! Where a repository is asked for: addresses in their order, and how each one is spoken to.
//!
//! Nothing is sent here. The idea: a route is the list of hosts that may have the bytes of one repository, mirrors first and the
//! registry itself last; what may be believed of them is decided by digests, so a route is only about who is asked, by what
//! name, and with which certificates and headers.

use std::path::PathBuf;
use std::sync::Arc;

use reqwest::Url;
use reqwest::header::HeaderMap;

use super::RegistryError;
use super::auth::{Access, Scope, origin};
use super::redact::sanitised;

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
