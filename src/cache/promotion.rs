//! Promotion of verified content: renames its files to the names that all origins use.
//!
//! Files are renamed only while no process can open the content under the new names. The caller has verified the
//! content.

use std::io;

use super::CacheError;
use super::files::BlockPaths;
use super::quota::CacheQuota;
use super::remove::{hold_alone, is_same, on_disk};

/// Renames `from` to `to`, and returns the disk space of replaced files to `room`. The data first: a sidecar under
/// its final name vouches for the data beside it. Content at `to` that another process uses stays: its lock is on its
/// open sidecar, and would not cover other data.
pub(super) fn promote(from: &BlockPaths, to: &BlockPaths, room: &CacheQuota) -> Result<(), CacheError> {
    let Some((_alone, found)) = hold_alone(to)? else { return Ok(()) };
    if !is_same(&found, &to.map) {
        return Ok(());
    }
    let bytes = on_disk(&to.data) + on_disk(&to.map);
    let removal = room.begin_removal(bytes);
    let map = &to.map;
    for (from, to) in [(&from.data, &to.data), (&from.map, &to.map)] {
        if let Err(error) = std::fs::rename(from, to) {
            // Another process was faster. The empty file that we made for its lock is not a sidecar.
            if found.len() == 0 {
                drop(std::fs::remove_file(map));
            }
            removal.finish(0);
            return Err(CacheError::io("rename", from, error));
        }
    }
    removal.finish(bytes);
    Ok(())
}

/// Renames `from` to `to`, unless one of the new names exists. Readers that open `to` meanwhile get both files, or a
/// data file whose blocks have no records.
pub(super) fn publish(from: &BlockPaths, to: &BlockPaths) -> io::Result<()> {
    for (from, to) in [(&from.data, &to.data), (&from.map, &to.map)] {
        std::fs::hard_link(from, to)?;
        std::fs::remove_file(from)?;
    }
    Ok(())
}
