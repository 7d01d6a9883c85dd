//! The two files of one content, by name.
//!
//! Nothing here opens them.

use std::path::PathBuf;

/// A data file and its sidecar, by name.
pub(super) struct Files {
    pub(super) data: PathBuf,
    pub(super) map: PathBuf,
}

impl Files {
    /// The files of the content whose data lies at `data`.
    pub(super) fn of(data: PathBuf) -> Self {
        let mut map = data.clone().into_os_string();
        map.push(".map");
        Self { data, map: map.into() }
    }
}
