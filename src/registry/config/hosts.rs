//! containerd's `hosts.toml`: mirrors of a registry, and the settings of each.
//!
//! Each registry has one directory; `_default` is for all others. Its hosts are tried in the order of the file, the
//! file's own `server` last.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use toml::Spanned;

use super::certs;
use super::file::{at, canonical, parse, read};
use crate::oci::Reference;
use crate::registry::RegistryError;
use crate::registry::endpoint::{EndpointScope, TlsConfig, TlsVerify};

/// The most hosts in one file.
const MAX_HOSTS: usize = 64;

/// The content of one directory.
#[derive(Debug)]
pub(super) struct HostsFile {
    /// In the order of failover.
    pub(super) hosts: Vec<HostEntry>,
    /// The registry itself.
    pub(super) server: HostEntry,
}

/// One host of a file.
#[derive(Debug)]
pub(super) struct HostEntry {
    /// The root of its API, usually ending in `/v2`; `None` for the registry's own address.
    pub(super) url: Option<Url>,
    pub(super) serves: EndpointScope,
    pub(super) tls: TlsConfig,
    /// Sent with every request to the host.
    pub(super) headers: HeaderMap,
}

/// The form of a file: the fields of `Written` for the server, and a table for each host.
#[derive(Deserialize)]
struct WrittenFile {
    server: Option<Spanned<String>>,
    #[serde(default)]
    host: BTreeMap<Spanned<String>, HostsToml>,
    #[serde(flatten)]
    own: HostsToml,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct HostsToml {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<CertificatePairs>,
    skip_verify: bool,
    /// Untyped, because a type error would quote it.
    header: Option<toml::Value>,
    override_path: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum CertificatePairs {
    /// One file with certificate and key.
    One(String),
    Many(Vec<OneOrMany>),
}

/// The entry of the registry of `reference` below `root`; `None` if there is no directory for it.
pub(super) fn find(root: &Path, reference: &Reference) -> Result<Option<HostsFile>, RegistryError> {
    let host = reference.registry();
    // Some file systems allow no colons, so containerd accepts both forms.
    let with_port = host.rsplit_once(':').map(|(name, port)| format!("{name}_{port}_"));
    let names: Vec<&str> = with_port.as_deref().into_iter().chain([host]).collect();
    let is_it = |name: &str| canonical(&unescaped(name)) == host;
    let found = certs::named(root, &names, is_it).or_else(|| certs::named(root, &["_default"], |_| false));
    let Some(dir) = found else { return Ok(None) };
    let path = dir.join("hosts.toml");
    match read(&path)?.filter(|text| !text.trim().is_empty()) {
        Some(text) => of_text(&path, &text).map(Some),
        None => {
            let tls = certs::of_directory(&dir)?;
            let server = HostEntry { url: None, serves: EndpointScope::ALL, tls, headers: HeaderMap::new() };
            Ok(Some(HostsFile { hosts: Vec::new(), server }))
        }
    }
}

/// Turns `HOST_PORT_` into `HOST:PORT`; other names stay unchanged.
fn unescaped(name: &str) -> String {
    match name.strip_suffix('_').and_then(|name| name.rsplit_once('_')) {
        Some((host, port)) => format!("{host}:{port}"),
        None => name.to_owned(),
    }
}

/// Parses the text of a file. Relative paths in it are relative to its directory.
pub(super) fn of_text(path: &Path, text: &str) -> Result<HostsFile, RegistryError> {
    let written: WrittenFile = parse(path, text)?;
    let dir = path.parent().unwrap_or(path);
    if written.host.len() > MAX_HOSTS {
        return Err(at(path, text, 0, format!("it names more than {MAX_HOSTS} hosts")));
    }
    let mut hosts = Vec::new();
    for (name, host) in written.host {
        let offset = name.span().start;
        let host =
            host.checked(Some(name.get_ref()), dir).map_err(|reason| at(path, text, offset, reason))?;
        hosts.push((offset, host));
    }
    hosts.sort_by_key(|(offset, _)| *offset);
    let offset = written.server.as_ref().map_or(0, |server| server.span().start);
    let name =
        written.server.as_ref().map(|server| server.get_ref().as_str()).filter(|name| !name.is_empty());
    let server = written.own.checked(name, dir).map_err(|reason| at(path, text, offset, reason))?;
    Ok(HostsFile { hosts: hosts.into_iter().map(|(_, host)| host).collect(), server })
}

impl HostsToml {
    fn checked(self, name: Option<&str>, dir: &Path) -> Result<HostEntry, String> {
        let url = name.map(|name| address(name, self.override_path)).transpose()?;
        let serves = match &self.capabilities {
            None => EndpointScope::ALL,
            Some(listed) if listed.is_empty() => EndpointScope::ALL,
            Some(listed) => {
                let mut serves = EndpointScope { tags: false, digests: false };
                for capability in listed {
                    match capability.to_ascii_lowercase().as_str() {
                        "pull" => serves.digests = true,
                        "resolve" => serves.tags = true,
                        // Pushes go to the registry itself.
                        "push" => {}
                        _ => return Err(format!("capability {capability:?} is not pull, resolve or push")),
                    }
                }
                serves
            }
        };
        let file = |name: String| dir.join(name);
        let authorities = match self.ca {
            None => Vec::new(),
            Some(OneOrMany::One(name)) => vec![file(name)],
            Some(OneOrMany::Many(names)) => names.into_iter().map(file).collect(),
        };
        let pairs = match self.client {
            None => Vec::new(),
            Some(CertificatePairs::One(name)) => vec![(file(name), None)],
            Some(CertificatePairs::Many(pairs)) => {
                pairs.into_iter().map(|pair| pair.pair(dir)).collect::<Result<_, _>>()?
            }
        };
        let verify = if self.skip_verify { TlsVerify::Nothing } else { TlsVerify::Certificate };
        let headers = self.header.as_ref().map(headers).transpose()?.unwrap_or_default();
        Ok(HostEntry { url, serves, tls: TlsConfig { authorities, pairs, verify }, headers })
    }
}

impl OneOrMany {
    fn pair(self, dir: &Path) -> Result<(PathBuf, Option<PathBuf>), String> {
        match self {
            OneOrMany::One(both) => Ok((dir.join(both), None)),
            OneOrMany::Many(files) => match files.as_slice() {
                [certificate, key] => Ok((dir.join(certificate), Some(dir.join(key)))),
                _ => Err(format!("a client pair is a certificate and a key, not {} files", files.len())),
            },
        }
    }
}

/// The root of the API at a host: `/v2` is appended unless the file declares the path to be the root.
fn address(name: &str, is_root: bool) -> Result<Url, String> {
    let text = if name.contains("://") { name.to_owned() } else { format!("https://{name}") };
    let mut url: Url = text.parse().map_err(|_| "a host is not a URL".to_owned())?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err("a host is not a URL of http or https".into());
    }
    if !url.username().is_empty()
        || url.password().is_some()
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return Err("the URL of a host has more than a host and a path".into());
    }
    let path = url.path().trim_end_matches('/').to_owned();
    let path = if is_root || path.ends_with("/v2") { path } else { format!("{path}/v2") };
    url.set_path(&path);
    Ok(url)
}

/// Parses a table of headers. Errors do not quote the values, which may be credentials.
fn headers(written: &toml::Value) -> Result<HeaderMap, String> {
    let table = written.as_table().ok_or("header is not a table")?;
    let mut headers = HeaderMap::new();
    for (name, value) in table {
        let parsed: HeaderName = name.parse().map_err(|_| format!("{name:?} is not the name of a header"))?;
        let values = match value {
            toml::Value::Array(values) => values.as_slice(),
            one => std::slice::from_ref(one),
        };
        for value in values {
            let text = value.as_str().ok_or_else(|| format!("header {name:?} is not text"))?;
            let mut value: HeaderValue =
                text.parse().map_err(|_| format!("header {name:?} has a value that no header can have"))?;
            value.set_sensitive(true);
            headers.append(parsed.clone(), value);
        }
    }
    Ok(headers)
}
