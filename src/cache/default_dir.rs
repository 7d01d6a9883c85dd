//! The default cache directory.

use std::io;
use std::path::{Path, PathBuf};

/// Environment variable that names the cache directory for all programs of a user.
pub const CACHE_DIR_VARIABLE: &str = "OCIFS_CACHE_DIR";

/// `$OCIFS_CACHE_DIR`, else `$XDG_CACHE_HOME/ocifs`, else `~/.cache/ocifs`; `/var/cache/ocifs` for a system service,
/// which has no home.
pub fn default_directory() -> io::Result<PathBuf> {
    let named = std::env::var_os(CACHE_DIR_VARIABLE).map(PathBuf::from);
    directory(named.as_deref())
}

/// The directory `given`, as an absolute path. Without one, or with an empty one, the default directory of the user.
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
