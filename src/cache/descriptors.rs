//! Limit of file descriptors: number of contents that may be open, and the error past the limit.

use std::io;

use nix::sys::resource::{Resource, getrlimit};

/// Descriptors that stay free for connections, FUSE and other files: this many, or half of a small limit.
const SPARE: u64 = 256;
/// Descriptors of an open content: the data and the sidecar, and the data once more while it is handed out.
const EACH: u64 = 3;

/// Number of contents that a process may have open at once, by its limit of descriptors.
pub(super) fn most_open() -> usize {
    let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    let most = (soft - SPARE.min(soft / 2)) / EACH;
    usize::try_from(most).unwrap_or(usize::MAX).max(1)
}

/// Whether an error means that the process, or the machine, has no descriptor left.
pub(super) fn is_out_of_files(error: &io::Error) -> bool {
    use nix::errno::Errno;
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EMFILE | Errno::ENFILE))
}
