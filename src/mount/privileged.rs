//! Mounting and unmounting: by the process that kept the rights, else by this one.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use super::error::{MountError, UnmountMode};
use super::kernel_mount::{self, ImageTerms, PlacedImage};
use super::mount_table::{self, MountEntry};
use super::options::MountOptions;
use super::{kernel, monitor};

/// Mounts a new FUSE connection at `dir`, always read-only, and returns its descriptor.
pub(super) fn mount(dir: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    match monitor::of(dir) {
        Some(kept) => kept.mount(&options.source),
        None => kernel::mount(dir, options),
    }
}

/// A FUSE mount in no tree, until EROFS has opened its file.
pub(super) enum ImageConnection {
    /// Held by the monitor.
    Monitored,
    /// Held by this process.
    Own(OwnedFd),
}

/// Makes a FUSE mount that is in no tree. Returns its device.
pub(super) fn connect(dir: &Path) -> io::Result<(OwnedFd, ImageConnection)> {
    match monitor::of(dir) {
        Some(kept) => Ok((kept.connect()?, ImageConnection::Monitored)),
        None => kernel_mount::connect().map(|(device, mount)| (device, ImageConnection::Own(mount))),
    }
}

/// Mounts the file of `connection` as EROFS at `dir`. Returns the device number, and the listener of the record.
pub(super) fn place_image(
    connection: ImageConnection,
    dir: &Path,
    terms: ImageTerms,
    options: &MountOptions,
) -> io::Result<((u32, u32), UnixListener)> {
    match (connection, monitor::of(dir)) {
        (ImageConnection::Own(mount), _) => {
            kernel_mount::place(&mount, dir, &terms, options.flags).map(own_parts)
        }
        (ImageConnection::Monitored, Some(kept)) => {
            kept.place_image(terms).map(|(number, listener)| (number, listener.into()))
        }
        (ImageConnection::Monitored, None) => Err(io::ErrorKind::NotConnected.into()),
    }
}

/// The listener of the record of the EROFS mount at `dir` with this number.
pub(super) fn resume_image(dir: &Path, number: (u32, u32)) -> io::Result<UnixListener> {
    match monitor::of(dir) {
        Some(kept) => kept.resume_image(number).map(|(_, listener)| listener.into()),
        None => kernel_mount::resume(dir, number).map(|placed| placed.listener),
    }
}

fn own_parts(placed: PlacedImage) -> ((u32, u32), UnixListener) {
    (placed.number, placed.listener)
}

/// Whether the process of a kernel-served mount is gone. The monitor connects to the socket of the record where this
/// process may not.
pub(super) fn is_abandoned(entry: &MountEntry) -> bool {
    match monitor::of(&entry.dir) {
        Some(kept) => kept.is_abandoned().unwrap_or_else(|error| {
            tracing::warn!(%error, "the monitor of the mount is gone");
            false
        }),
        None => entry.is_abandoned(),
    }
}

/// Reports to the monitor, if there is one, that the mount at `dir` answers.
pub(super) fn note_serving(dir: &Path) {
    if let Some(kept) = monitor::of(dir) {
        kept.note_serving();
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
