//! Paths of the data file and the sidecar of one content.

use std::path::PathBuf;

/// A data file and its sidecar, by name.
pub(super) struct BlockPaths {
    pub(super) data: PathBuf,
    pub(super) map: PathBuf,
}

impl BlockPaths {
    /// The files of the content whose data file is `data`.
    pub(super) fn of(data: PathBuf) -> Self {
        let mut map = data.clone().into_os_string();
        map.push(".map");
        Self { data, map: map.into() }
    }
}
