//! `registries.conf`, version 2: mirrors, rewritten locations, insecure and blocked registries, and short names.
//!
//! Files are merged in order: an entry of a later file replaces the one with the same prefix. Only the entry with the
//! longest matching prefix applies to a name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;
use toml::Spanned;

use super::file::{at, broken, canonical, parse, place, read};
use super::paths::ConfigPaths;
use crate::oci::Reference;
use crate::registry::RegistryError;
use crate::registry::endpoint::EndpointScope;

/// The most drop-in files in a directory.
const MAX_FILES: usize = 1024;

/// All files, merged.
#[derive(Debug, Default)]
pub(super) struct RegistriesConf {
    entries: Vec<PrefixEntry>,
    /// Short names to full names; an empty full name removes an alias.
    aliases: BTreeMap<String, ShortNameAlias>,
    /// Registries searched for short names; `None` if no file sets them.
    search: Option<Vec<String>>,
}

/// The settings for the names with one prefix.
#[derive(Debug)]
pub(super) struct PrefixEntry {
    /// `host[:port][/path]`, or `*.domain`.
    prefix: String,
    /// The replacement of the prefix at the registry itself; `None` keeps the name.
    pub(super) location: Option<String>,
    pub(super) insecure: bool,
    pub(super) blocked: bool,
    /// In the order of failover.
    pub(super) mirrors: Vec<MirrorEntry>,
    /// File and line, for messages.
    pub(super) place: String,
}

/// A mirror.
#[derive(Debug)]
pub(super) struct MirrorEntry {
    /// The replacement of the prefix at the mirror.
    pub(super) location: String,
    pub(super) insecure: bool,
    pub(super) serves: EndpointScope,
}

#[derive(Debug)]
struct ShortNameAlias {
    name: String,
    place: String,
}

/// The form of one file.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct RegistriesToml {
    unqualified_search_registries: Option<Vec<String>>,
    registry: Vec<Spanned<WrittenEntry>>,
    aliases: BTreeMap<String, Spanned<String>>,
    /// Present in version 1 of the format.
    registries: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct WrittenEntry {
    prefix: Option<String>,
    location: Option<String>,
    insecure: bool,
    blocked: bool,
    mirror_by_digest_only: bool,
    mirror: Vec<WrittenMirror>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct WrittenMirror {
    location: String,
    insecure: bool,
    pull_from_mirror: Option<String>,
}

impl RegistriesConf {
    /// Reads `registries.conf` and its drop-ins. If the user has a `registries.conf`, the system's files are not
    /// read.
    pub(super) fn load(places: &ConfigPaths) -> Result<Self, RegistryError> {
        let main = |dir: &Option<PathBuf>| dir.as_ref().map(|dir| dir.join("registries.conf"));
        let drop_ins = |dir: &Option<PathBuf>| dir.as_ref().map(|dir| dir.join("registries.conf.d"));
        let mut all = Self::default();
        let mut dirs = vec![drop_ins(&places.system), drop_ins(&places.user)];
        if let Some(named) = &places.registries {
            let text = read(named)?.ok_or_else(|| broken(named, "the file does not exist"))?;
            all.add(named, &text)?;
        } else if let Some((user, text)) = present(main(&places.user))? {
            all.add(&user, &text)?;
            dirs.remove(0);
        } else if let Some((system, text)) = present(main(&places.system))? {
            all.add(&system, &text)?;
        }
        for dir in dirs.into_iter().flatten() {
            for file in configuration_files(&dir)? {
                // A file removed since the listing is skipped.
                if let Some(text) = read(&file)? {
                    all.add(&file, &text)?;
                }
            }
        }
        Ok(all)
    }

    /// Merges a file over the present entries.
    pub(super) fn add(&mut self, path: &Path, text: &str) -> Result<(), RegistryError> {
        let written: RegistriesToml = parse(path, text)?;
        if written.registries.is_some() {
            tracing::warn!(file = %path.display(), "version 1 of registries.conf is not supported; its [registries] are ignored");
        }
        // Within a file the first entry of a prefix applies, across files the last.
        let mut fresh: Vec<PrefixEntry> = Vec::new();
        for entry in written.registry {
            let offset = entry.span().start;
            let entry = entry
                .into_inner()
                .checked(place(path, text, offset))
                .map_err(|reason| at(path, text, offset, reason))?;
            if entry.prefix.contains('@')
                || entry.prefix.rsplit_once('/').is_some_and(|(_, last)| last.contains(':'))
            {
                tracing::warn!(
                    place = entry.place,
                    "a prefix with a tag or digest is not supported; ignored"
                );
            } else if fresh.iter().all(|other| other.prefix != entry.prefix) {
                fresh.push(entry);
            }
        }
        self.entries.retain(|entry| fresh.iter().all(|other| other.prefix != entry.prefix));
        self.entries.extend(fresh);
        for (short, name) in written.aliases {
            let place = place(path, text, name.span().start);
            self.aliases.insert(short, ShortNameAlias { name: name.into_inner(), place });
        }
        if written.unqualified_search_registries.is_some() {
            self.search = written.unqualified_search_registries;
        }
        Ok(())
    }

    /// The entry for a reference: the one with the longest prefix.
    pub(super) fn entry(&self, reference: &Reference) -> Option<&PrefixEntry> {
        self.entry_of(reference.registry(), reference.repository())
    }

    /// The entry that blocks a repository. A port that a scheme implies may be left out. So a host is blocked with
    /// and without it, unless the other spelling has an entry of its own. A domain is blocked with all ports.
    pub(super) fn blocking(&self, host: &str, repository: &str) -> Option<&PrefixEntry> {
        let own = self.entry_of(host, repository);
        if let Some(own) = own.filter(|own| own.blocked || !own.is_domain()) {
            return own.blocked.then_some(own);
        }
        let bare = [":80", ":443"].iter().find_map(|port| host.strip_suffix(port)).map(str::to_owned);
        let others = bare.into_iter().chain([format!("{host}:80"), format!("{host}:443")]);
        let name =
            &host[..host.rfind(':').filter(|colon| !host[*colon..].contains(']')).unwrap_or(host.len())];
        let domain = self.entry_of(name, repository).filter(|entry| entry.is_domain());
        let mut found = others.filter_map(|other| self.entry_of(&other, repository)).chain(domain);
        found.find(|entry| entry.blocked)
    }

    fn entry_of(&self, host: &str, repository: &str) -> Option<&PrefixEntry> {
        let matching = self.entries.iter().filter(|entry| entry.rest_of(host, repository).is_some());
        // A `*.domain` entry yields to any entry with a full host name.
        matching.max_by_key(|entry| (!entry.is_domain(), entry.prefix.len()))
    }

    /// The locations that the files name, each beginning with its host.
    pub(super) fn named_places(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().flat_map(|entry| {
            let mirrors = entry.mirrors.iter().map(|mirror| mirror.location.as_str());
            [entry.prefix.as_str()].into_iter().chain(entry.location.as_deref()).chain(mirrors)
        })
    }

    /// The full name of a reference without a host: its alias, or its name in the only registry that is searched. If
    /// none or several are searched, it stays a name of Docker Hub.
    pub(super) fn expand(&self, reference: &Reference) -> Result<Reference, RegistryError> {
        let Some(short) = reference.short_name() else { return Ok(reference.clone()) };
        if let Some(alias) = self.aliases.get(short).filter(|alias| !alias.name.is_empty()) {
            let bad = |reason: String| RegistryError::Config { place: alias.place.clone(), reason };
            let (host, repository) = alias.name.split_once('/').unwrap_or((&alias.name, ""));
            if !(host == "localhost" || host.contains(['.', ':'])) {
                return Err(bad(format!("alias {:?} does not begin with a host", alias.name)));
            }
            return reference.elsewhere(host, repository).map_err(|error| bad(error.to_string()));
        }
        match self.search.as_deref() {
            Some([only]) => reference.elsewhere(only, short).map_err(|error| RegistryError::Config {
                place: "unqualified-search-registries".into(),
                reason: error.to_string(),
            }),
            Some([_, _, ..]) => {
                tracing::info!(%reference, "several registries are searched for short names, which could mean several images: Docker Hub is taken");
                Ok(reference.clone())
            }
            _ => Ok(reference.clone()),
        }
    }
}

impl WrittenEntry {
    fn checked(self, place: String) -> Result<PrefixEntry, String> {
        let location = self.location.map(|location| checked_location(&location)).transpose()?;
        let prefix = match (self.prefix.filter(|prefix| !prefix.is_empty()), &location) {
            (Some(prefix), _) => checked_location(&prefix)?,
            (None, Some(location)) => location.clone(),
            (None, None) => return Err("a registry has neither prefix nor location".into()),
        };
        let mut mirrors = Vec::new();
        for mirror in self.mirror {
            let serves = match mirror.pull_from_mirror.as_deref() {
                Some(_) if self.mirror_by_digest_only => {
                    return Err("mirror-by-digest-only and pull-from-mirror exclude each other".into());
                }
                None if self.mirror_by_digest_only => EndpointScope { tags: false, digests: true },
                None | Some("" | "all") => EndpointScope::ALL,
                Some("digest-only") => EndpointScope { tags: false, digests: true },
                Some("tag-only") => EndpointScope { tags: true, digests: false },
                Some(other) => {
                    return Err(format!("pull-from-mirror {other:?} is not all, digest-only or tag-only"));
                }
            };
            let location = checked_location(&mirror.location)?;
            if location.starts_with("*.") {
                return Err("a mirror is a place, not *.domain".into());
            }
            mirrors.push(MirrorEntry { location, insecure: mirror.insecure, serves });
        }
        if location.as_ref().is_some_and(|location| location.starts_with("*.")) {
            return Err("a location is a place, not *.domain".into());
        }
        Ok(PrefixEntry { prefix, location, insecure: self.insecure, blocked: self.blocked, mirrors, place })
    }
}

/// A location without trailing slash, its host in canonical spelling.
fn checked_location(text: &str) -> Result<String, String> {
    let location = text.trim_end_matches('/');
    if location.is_empty() {
        return Err("a location is empty".into());
    }
    if location.contains("://") {
        return Err(format!(
            "{location:?} has a scheme: write the host, and insecure = true where it speaks http"
        ));
    }
    if location.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(format!("{location:?} is no place"));
    }
    let (host, path) = location.split_at(location.find('/').unwrap_or(location.len()));
    Ok(match host.strip_prefix("*.") {
        Some(domain) => format!("*.{}{path}", canonical(domain)),
        None => format!("{}{path}", canonical(host)),
    })
}

impl PrefixEntry {
    /// The part of a name after the prefix; `None` if the prefix does not match. Only whole components match, so
    /// `example.com/ab` does not begin with `example.com/a`.
    pub(super) fn rest(&self, reference: &Reference) -> Option<String> {
        self.rest_of(reference.registry(), reference.repository())
    }

    fn rest_of(&self, host: &str, path: &str) -> Option<String> {
        if let Some(domain) = self.prefix.strip_prefix('*') {
            return host.ends_with(domain).then(|| format!("/{path}"));
        }
        let name = format!("{host}/{path}");
        let rest = name.strip_prefix(&self.prefix)?;
        (rest.is_empty() || rest.starts_with('/')).then(|| rest.to_owned())
    }

    /// Whether the entry is for all hosts below a domain.
    fn is_domain(&self) -> bool {
        self.prefix.starts_with("*.")
    }
}

/// An optional file and its text; `None` if it does not exist.
fn present(path: Option<PathBuf>) -> Result<Option<(PathBuf, String)>, RegistryError> {
    let Some(path) = path else { return Ok(None) };
    let text = read(&path)?;
    Ok(text.map(|text| (path, text)))
}

/// The files in a directory that end in `.conf`, in name order.
fn configuration_files(dir: &Path) -> Result<Vec<PathBuf>, RegistryError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(broken(dir, error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| broken(dir, error))?.path();
        if path.extension().is_some_and(|ending| ending == "conf") && path.is_file() {
            files.push(path);
        }
        if files.len() > MAX_FILES {
            return Err(broken(dir, format!("it holds more than {MAX_FILES} files")));
        }
    }
    files.sort();
    Ok(files)
}
