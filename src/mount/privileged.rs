//! Mounting and unmounting: by the process that kept the rights, else by this one.

use std::os::fd::OwnedFd;
use std::path::Path;

use super::error::{MountError, UnmountMode};
use super::options::MountOptions;
use super::{kernel, monitor, mount_table};

/// Mounts a new FUSE connection at `dir`, always read-only, and returns its descriptor.
pub(super) fn mount(dir: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    match monitor::of(dir) {
        Some(kept) => kept.mount(&options.source),
        None => kernel::mount(dir, options),
    }
}

/// Unmounts `dir`.
pub(super) fn detach(dir: &Path, how: UnmountMode) -> Result<(), MountError> {
    match monitor::of(dir).and_then(|kept| kept.unmount(how)) {
        Some(unmounted) => unmounted,
        None => kernel::unmount(dir, how),
    }
}

/// Raises the readahead of the mount with this device number, in KiB. Root only; without it a READ has at most 128
/// KiB.
pub(super) fn raise_readahead(major: u32, minor: u32, kib: u32) -> std::io::Result<()> {
    monitor::raise_readahead(major, minor, kib).unwrap_or_else(|| kernel::raise_readahead(major, minor, kib))
}

/// Unmounts `dir` if it is a mount of ours.
pub fn unmount(dir: &Path, how: UnmountMode) -> Result<(), MountError> {
    detach(&mount_table::ours(dir)?, how)
}
