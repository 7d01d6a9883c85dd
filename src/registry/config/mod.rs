//! This machine's registry configuration, in the files of other container tools.
//!
//! Every configuration format ends in the same structure, the route of a repository. No request is made here, and no
//! file is written. Formats: containers-registries.conf(5), containers-registries.conf.d(5), containers-certs.d(5),
//! docker's `certs.d`, and the hosts.toml of containerd.

mod certs;
mod file;
mod hosts;
mod paths;
mod registries;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use reqwest::Url;
use reqwest::header::HeaderMap;

use super::RegistryError;
use super::endpoint::{
    AddressAuthor, EndpointRole, EndpointScope, LoginUse, RegistryEndpoint, RepositoryRoute, TlsConfig,
    TlsVerify,
};
use super::reach::{RedirectGuide, is_loopback};
use super::redact::{host_of, sanitised};
use crate::oci::{OciError, Reference};

use file::{broken, canonical};
use hosts::HostsFile;
pub use paths::ConfigPaths;
use registries::{PrefixEntry, RegistriesConf};

/// Connection options of the command line.
#[derive(Clone, Debug, Default)]
pub(super) struct ConnectionArgs {
    pub(super) plain_http: bool,
    pub(super) tls_verify: Option<bool>,
    pub(super) cert_dir: Option<PathBuf>,
    pub(super) ca_file: Option<PathBuf>,
}

impl ConnectionArgs {
    fn accepts_any_certificate(&self) -> bool {
        self.tls_verify == Some(false)
    }

    /// Whether an option accepts plain HTTP beyond this machine.
    fn accepts_plain_http(&self) -> bool {
        self.plain_http || self.accepts_any_certificate()
    }

    /// Whether an option asks for TLS even on loopback addresses.
    fn wants_tls(&self) -> bool {
        self.tls_verify == Some(true) || self.cert_dir.is_some() || self.ca_file.is_some()
    }
}

/// The configuration as loaded.
#[derive(Debug)]
pub(super) struct RegistryConfig {
    given: ConnectionArgs,
    registries: RegistriesConf,
    /// Directories with `HOST:PORT/` in them; the first that has a host decides.
    certs: Vec<PathBuf>,
    hosts: Option<PathBuf>,
    /// Hosts named in the files, without ports: redirects may lead there.
    named: Arc<HashSet<String>>,
}

impl RegistryConfig {
    /// Loads the files. The directories of hosts are read when a host is first used.
    pub(super) fn load(places: &ConfigPaths, given: ConnectionArgs) -> Result<Self, RegistryError> {
        let hosts = places.hosts.clone();
        if let Some(dir) = hosts.as_ref().filter(|dir| !dir.is_dir()) {
            return Err(broken(dir, "it is not a directory"));
        }
        let in_it = |dir: &Option<PathBuf>| dir.as_ref().map(|dir| dir.join("certs.d"));
        let certs = [&places.user, &places.system, &places.docker];
        let registries = RegistriesConf::load(places)?;
        let named = registries.named_places().filter_map(|place| {
            let authority = place.split('/').next().unwrap_or_default();
            let url = format!("http://{authority}/").parse::<Url>().ok()?;
            url.host_str().map(str::to_owned)
        });
        Ok(Self {
            given,
            named: Arc::new(named.collect()),
            registries,
            certs: certs.into_iter().filter_map(in_it).collect(),
            hosts,
        })
    }

    /// The full name of a reference without a host.
    pub(super) fn expand(&self, reference: &Reference) -> Result<Reference, RegistryError> {
        self.registries.expand(reference)
    }

    /// The endpoints for the repository of `reference`.
    pub(super) fn route(&self, reference: &Reference) -> Result<RepositoryRoute, RegistryError> {
        self.check_blocked(reference.registry(), reference.repository())?;
        let endpoints = match &self.hosts {
            Some(dir) => match hosts::find(dir, reference)? {
                Some(file) => self.by_hosts(&file, reference)?,
                None => self.by_registries(reference)?,
            },
            None => self.by_registries(reference)?,
        };
        Ok(RepositoryRoute { endpoints: endpoints.into_iter().map(Arc::new).collect() })
    }

    fn check_blocked(&self, host: &str, repository: &str) -> Result<(), RegistryError> {
        match self.registries.blocking(host, repository) {
            Some(entry) => Err(RegistryError::Blocked {
                name: format!("{host}/{repository}"),
                place: entry.place.clone(),
            }),
            None => Ok(()),
        }
    }

    fn by_registries(&self, reference: &Reference) -> Result<Vec<RegistryEndpoint>, RegistryError> {
        let Some(entry) = self.registries.entry(reference) else {
            return self.ways(reference, EndpointRole::Primary, EndpointScope::ALL, &TlsConfig::default());
        };
        let tls = |insecure| {
            let verify = if insecure { TlsVerify::Nothing } else { TlsVerify::Certificate };
            TlsConfig { verify, ..TlsConfig::default() }
        };
        let rewritten = |location: &str| rewritten(entry, location, reference);
        let mut endpoints = Vec::new();
        for mirror in &entry.mirrors {
            let there = rewritten(&mirror.location)?;
            endpoints.extend(self.ways(
                &there,
                EndpointRole::Mirror,
                mirror.serves,
                &tls(mirror.insecure),
            )?);
        }
        let there = match &entry.location {
            Some(location) => rewritten(location)?,
            None => reference.clone(),
        };
        endpoints.extend(self.ways(
            &there,
            EndpointRole::Primary,
            EndpointScope::ALL,
            &tls(entry.insecure),
        )?);
        Ok(endpoints)
    }

    /// The endpoints at the host of `there`: two, HTTPS and HTTP, if certificates are not verified, otherwise one.
    fn ways(
        &self,
        there: &Reference,
        role: EndpointRole,
        serves: EndpointScope,
        configured: &TlsConfig,
    ) -> Result<Vec<RegistryEndpoint>, RegistryError> {
        let (tls, has_certs) = self.tls(there.registry(), role, configured)?;
        let endpoint = |scheme: &str, tls: &TlsConfig| {
            let text = format!("{scheme}://{}/v2/{}/", there.host(), there.repository());
            self.endpoint(&text, there, role, serves, tls)
        };
        let plain = endpoint("http", &TlsConfig::default())?;
        let local = is_loopback(&plain.root);
        if self.given.plain_http || (local && !has_certs && !self.given.wants_tls()) {
            return Ok(vec![plain]);
        }
        let secure = endpoint("https", &tls)?;
        Ok(match tls.verify {
            TlsVerify::Certificate => vec![secure],
            TlsVerify::Nothing => vec![secure, plain],
        })
    }

    /// The endpoint of the file at `url`: the URL itself, with the certificates for its host.
    pub(super) fn file(&self, url: &Url, author: &AddressAuthor) -> Result<RegistryEndpoint, RegistryError> {
        let registry = canonical(&host_of(url));
        let repository = url.path().trim_start_matches('/').to_owned();
        self.check_blocked(&registry, &repository)?;
        let (mut tls, _) = self.tls(&registry, EndpointRole::Primary, &TlsConfig::default())?;
        let led_by = match author {
            AddressAuthor::User => None,
            AddressAuthor::Image { home } => {
                // The certificate is for addresses that the user names.
                tls.pairs.clear();
                home.clone()
            }
        };
        if let Some(home) = &led_by {
            RedirectGuide { home, named: &self.named }.check_host(url).map_err(|reason| {
                let what = "the address of a layer".to_owned();
                RegistryError::Misled { host: registry.clone(), what, reason }
            })?;
        }
        Ok(RegistryEndpoint {
            registry,
            repository,
            root: url.clone(),
            led_by,
            logins: match url.scheme() == "http" && !is_loopback(url) && !self.given.accepts_plain_http() {
                true => LoginUse::Withheld,
                false => LoginUse::Sent,
            },
            namespace: None,
            tls,
            headers: HeaderMap::new(),
            role: EndpointRole::Primary,
            serves: EndpointScope::ALL,
            accepts_any_certificate: self.given.accepts_any_certificate(),
            named: self.named.clone(),
        })
    }

    fn by_hosts(
        &self,
        file: &HostsFile,
        reference: &Reference,
    ) -> Result<Vec<RegistryEndpoint>, RegistryError> {
        let mut endpoints = Vec::new();
        let mirrors = file.hosts.iter().map(|host| (host, EndpointRole::Mirror));
        for (host, role) in mirrors.chain([(&file.server, EndpointRole::Primary)]) {
            let Some(url) = &host.url else {
                // The registry's own address, with the settings of the file.
                for mut way in self.ways(reference, role, host.serves, &host.tls)? {
                    way.headers = host.headers.clone();
                    endpoints.push(way);
                }
                continue;
            };
            let authority = canonical(&host_of(url));
            let (tls, _) = self.tls(&authority, role, &host.tls)?;
            let text = format!("{}/{}/", url.as_str().trim_end_matches('/'), reference.repository());
            let mut endpoint = self.endpoint(&text, reference, role, host.serves, &tls)?;
            if authority != reference.registry() && authority != reference.host() {
                endpoint.namespace = Some(reference.registry().to_owned());
            }
            endpoint.registry = authority;
            endpoint.headers = host.headers.clone();
            endpoints.push(endpoint);
        }
        Ok(endpoints)
    }

    fn endpoint(
        &self,
        root: &str,
        there: &Reference,
        role: EndpointRole,
        serves: EndpointScope,
        tls: &TlsConfig,
    ) -> Result<RegistryEndpoint, RegistryError> {
        let bad = |reason: String| RegistryError::Address {
            host: sanitised(there.registry()),
            what: format!("repository {}", there.repository()),
            reason,
        };
        let root = root.parse::<Url>().map_err(|error| bad(error.to_string()))?;
        if !root.username().is_empty() || root.password().is_some() || root.query().is_some() {
            return Err(bad("it has a user or a query".into()));
        }
        Ok(RegistryEndpoint {
            registry: there.registry().to_owned(),
            repository: there.repository().to_owned(),
            root,
            led_by: None,
            logins: LoginUse::Sent,
            namespace: None,
            tls: tls.clone(),
            headers: HeaderMap::new(),
            role,
            serves,
            accepts_any_certificate: self.given.accepts_any_certificate(),
            named: self.named.clone(),
        })
    }

    /// The configured TLS settings with the certificates for a host added, and whether there are any certificates.
    fn tls(
        &self,
        host: &str,
        role: EndpointRole,
        configured: &TlsConfig,
    ) -> Result<(TlsConfig, bool), RegistryError> {
        let dir = match &self.given.cert_dir {
            Some(dir) => Some(dir.clone()),
            None => certs::directory_of(&self.certs, host),
        };
        let mut found = dir.as_deref().map(certs::of_directory).transpose()?.unwrap_or_default();
        if role == EndpointRole::Mirror && self.given.cert_dir.is_some() {
            // The client certificate is for the registry that the user named, not for its mirrors.
            found.pairs.clear();
        }
        let mut tls = configured.clone();
        let has_certs = dir.is_some() || tls != TlsConfig { verify: tls.verify, ..TlsConfig::default() };
        tls.authorities.extend(found.authorities);
        tls.authorities.extend(self.given.ca_file.clone());
        tls.pairs.extend(found.pairs);
        tls.verify = match self.given.tls_verify {
            Some(false) => TlsVerify::Nothing,
            Some(true) => TlsVerify::Certificate,
            None => tls.verify,
        };
        Ok((tls, has_certs))
    }
}

/// The name of `reference` at `location`, which replaces the entry's prefix.
fn rewritten(entry: &PrefixEntry, location: &str, reference: &Reference) -> Result<Reference, RegistryError> {
    let rest = entry.rest(reference).unwrap_or_default();
    let name = format!("{location}{rest}");
    let (host, repository) = name.split_once('/').unwrap_or((&name, ""));
    reference.elsewhere(host, repository).map_err(|error: OciError| RegistryError::Config {
        place: entry.place.clone(),
        reason: format!("location {location:?} makes no name of {reference}: {error}"),
    })
}

#[cfg(test)]
mod tests;
