//! Where the cache is when nobody says where.

use std::io;
use std::path::{Path, PathBuf};

/// Names the cache directory for all programs of a user.
pub const VARIABLE: &str = "OCIFS_CACHE_DIR";

/// `$OCIFS_CACHE_DIR`, else `$XDG_CACHE_HOME/ocifs`, else `~/.cache/ocifs`; a system service, which has no home, keeps it where
/// services do.
pub fn default_directory() -> io::Result<PathBuf> {
    let named = std::env::var_os(VARIABLE).map(PathBuf::from);
    directory(named.as_deref())
}

/// The directory that is given, as an absolute name; one without a name is none, and leaves the place of the user.
pub fn directory(given: Option<&Path>) -> io::Result<PathBuf> {
    if let Some(dir) = given.filter(|dir| !dir.as_os_str().is_empty()) {
        return std::path::absolute(dir);
    }
    let from = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    if let Some(dir) = from("XDG_CACHE_HOME") {
        return Ok(dir.join("ocifs"));
    }
    Ok(from("HOME").map_or_else(|| "/var/cache/ocifs".into(), |home| home.join(".cache/ocifs")))
}
