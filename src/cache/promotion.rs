//! Promotion of verified content: its files get the names under which every place finds them.
//!
//! Nothing here decides that content is verified. The idea: files get other names only while no process can open what has those names.

use std::io;
use std::path::Path;

use super::CacheError;
use super::files::Files;
use super::remove::{hold_alone, is_same, occupied};
use super::room::Room;

/// Gives the files at `from` the names `to`, and gives back to `room` the disk space of files that had them. The data first: a
/// sidecar under its final name vouches for the data beside it. Content at `to` that another process uses stays: its lock is on the
/// sidecar that it has open, and would not cover other data.
pub(super) fn promote(from: &Files, to: &Files, room: &Room) -> Result<(), CacheError> {
    let mark = room.mark();
    let Some((_alone, found)) = hold_alone(to)? else { return Ok(()) };
    if !is_same(&found, &to.map) {
        return Ok(());
    }
    let bytes = on_disk(&to.data) + on_disk(&to.map);
    let map = &to.map;
    for (from, to) in [(&from.data, &to.data), (&from.map, &to.map)] {
        if let Err(error) = std::fs::rename(from, to) {
            // Another process was faster. What we made for its lock is no sidecar.
            if found.len() == 0 {
                drop(std::fs::remove_file(map));
            }
            return Err(CacheError::io("rename", from, error));
        }
    }
    room.give_back(bytes, mark);
    Ok(())
}

/// The bytes of the disk that a file takes; none, when there is none.
fn on_disk(path: &Path) -> u64 {
    std::fs::symlink_metadata(path).map_or(0, |found| occupied(&found))
}

/// Gives the files at `from` the names `to`, unless there is anything under either of these. Readers that open `to` meanwhile get
/// both files or a data file whose blocks have no records.
pub(super) fn publish(from: &Files, to: &Files) -> io::Result<()> {
    for (from, to) in [(&from.data, &to.data), (&from.map, &to.map)] {
        std::fs::hard_link(from, to)?;
        std::fs::remove_file(from)?;
    }
    Ok(())
}
