//! Certificates by host: the `certs.d` directories of containers and docker.
//!
//! The first directory for a host decides. A file's extension declares its content: `NAME.crt` an authority,
//! `NAME.cert` with `NAME.key` a client certificate. Files are only listed here, and read when a connection needs
//! them.

use std::path::{Path, PathBuf};

use super::file::{broken, canonical};
use crate::registry::RegistryError;
use crate::registry::endpoint::{TlsConfig, TlsVerify};

/// The most files of one kind: a host's directory holds a handful.
const MAX_FILES: usize = 256;

/// The directory of `host` (with its port, as in a reference) below the first of `roots` that has one. Other
/// spellings of the host match too.
pub(super) fn directory_of(roots: &[PathBuf], host: &str) -> Option<PathBuf> {
    // The host is part of a reference, so it has no slash and does not consist of dots alone.
    roots.iter().find_map(|root| named(root, &[host], |name| canonical(name) == host))
}

/// The directory in `root` with the first existing one of `names`, else the first by name that satisfies `is_it`.
pub(super) fn named(root: &Path, names: &[&str], is_it: impl Fn(&str) -> bool) -> Option<PathBuf> {
    if let Some(dir) = names.iter().map(|name| root.join(name)).find(|dir| dir.is_dir()) {
        return Some(dir);
    }
    // If the root cannot be listed, only the exact names are found.
    let mut others: Vec<PathBuf> = std::fs::read_dir(root)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_str().is_some_and(&is_it))
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    others.sort();
    others.into_iter().next()
}

/// The certificates in a directory, in name order.
pub(super) fn of_directory(dir: &Path) -> Result<TlsConfig, RegistryError> {
    let entries = std::fs::read_dir(dir).map_err(|error| broken(dir, error))?;
    let mut files = Vec::new();
    for entry in entries {
        files.push(entry.map_err(|error| broken(dir, error))?.path());
    }
    files.sort();
    let with = |ending: &str| -> Vec<PathBuf> {
        files.iter().filter(|file| file.extension().is_some_and(|it| it == ending)).cloned().collect()
    };
    let (authorities, certificates, keys) = (with("crt"), with("cert"), with("key"));
    if authorities.len().max(certificates.len()) > MAX_FILES {
        return Err(broken(dir, format!("it holds more than {MAX_FILES} certificates")));
    }
    let mut pairs = Vec::new();
    for certificate in certificates {
        let key = certificate.with_extension("key");
        if !keys.contains(&key) {
            return Err(broken(&certificate, format!("its key {} is missing", key.display())));
        }
        pairs.push((certificate, Some(key)));
    }
    if let Some(key) = keys.iter().find(|key| !files.contains(&key.with_extension("cert"))) {
        return Err(broken(key, "its certificate is missing, which ends in .cert"));
    }
    Ok(TlsConfig { authorities, pairs, verify: TlsVerify::Certificate })
}
