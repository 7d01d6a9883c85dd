//! Reading configuration files: a size limit, errors with line numbers, and the spelling of hosts.
//!
//! Parsers report offsets, and users look for lines. Errors do not quote the file, which may hold headers with
//! credentials.

use std::io::{ErrorKind, Read as _};
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::oci::canonical_host;
use crate::registry::RegistryError;
use crate::registry::redact::host_of;

/// The largest file that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 1024 * 1024;

/// The text of a file; `None` if it does not exist.
pub(super) fn read(path: &Path) -> Result<Option<String>, RegistryError> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(broken(path, error)),
    };
    let mut text = String::new();
    file.take(MAX_CONFIG_BYTES + 1).read_to_string(&mut text).map_err(|error| broken(path, error))?;
    if text.len() as u64 > MAX_CONFIG_BYTES {
        return Err(broken(path, format!("it has more than {MAX_CONFIG_BYTES} bytes")));
    }
    Ok(Some(text))
}

/// Parses a file as TOML. Unknown keys are ignored.
pub(super) fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, RegistryError> {
    toml::from_str(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        // One line, without the parser's excerpt of the file.
        let reason = error.message().lines().next().unwrap_or("not valid").to_owned();
        at(path, text, offset, reason)
    })
}

/// An error about the text at `offset`.
pub(super) fn at(path: &Path, text: &str, offset: usize, reason: impl Into<String>) -> RegistryError {
    RegistryError::Config { place: place(path, text, offset), reason: reason.into() }
}

/// `FILE line N`.
pub(super) fn place(path: &Path, text: &str, offset: usize) -> String {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    format!("{} line {line}", path.display())
}

/// An error about a whole file or directory.
pub(super) fn broken(path: &Path, reason: impl std::fmt::Display) -> RegistryError {
    RegistryError::Config { place: path.display().to_string(), reason: reason.to_string() }
}

/// The canonical spelling of a host in a file, also of an internationalised one. Other text is returned unchanged.
pub(super) fn canonical(host: &str) -> String {
    canonical_host(host)
        .or_else(|| canonical_host(&host_of(&format!("http://{host}/").parse().ok()?)))
        .unwrap_or_else(|| host.to_owned())
}
