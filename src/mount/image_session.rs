//! Session of a kernel-served mount: EROFS in front, and one FUSE file behind it.
//!
//! Names, attributes, links and warm reads stay in the kernel. Only data that it has not cached is read from the file.

use std::path::Path;
use std::sync::Arc;

use fuser::{Session, SessionACL};
use rustix::io::Errno;
use tokio::runtime::Handle;

use crate::view::{KernelDisk, MountNamespace};

use super::error::{MountError, UnmountMode};
use super::handover::HandoverPlace;
use super::image_file::ImageFile;
use super::kernel_mount::ImageTerms;
use super::options::{MountOptions, MountPersistence};
use super::session::{self, ServedMount};
use super::takeover::{self, SurvivingMount};
use super::{mountpoint, privileged, status_socket};

/// Has the kernel mount `disk` at `dir`. The status is that of `namespace`.
pub fn mount_image(
    disk: KernelDisk,
    namespace: &Arc<MountNamespace>,
    dir: &Path,
    options: &MountOptions,
    runtime: &Handle,
) -> Result<ServedMount, MountError> {
    let dir = mountpoint::take(dir, options.flags)?;
    let failed = |source: std::io::Error| match Errno::from_io_error(&source) {
        Some(Errno::NOTBLK) => MountError::NoFileMounts,
        _ => MountError::Mount { dir: dir.clone(), source },
    };
    let (device, connection) = privileged::connect(&dir).map_err(failed)?;
    let is_kept = options.keep == MountPersistence::ByManager;
    let second = is_kept.then(|| device.try_clone()).transpose().map_err(failed)?;
    let kept = second.zip(options.record.clone());
    let terms = ImageTerms { reference: options.source.clone(), metadata_bytes: disk.metadata_bytes };
    let (_, config) = session::settings(options);
    let file = ImageFile::new(disk.bytes, runtime.clone());
    let session = Session::from_fd(file, device, SessionACL::All, config).map_err(failed)?;
    let ended = session::serve(session).map_err(failed)?;
    // The kernel reads the image while it mounts it.
    let ((major, minor), listener) =
        privileged::place_image(connection, &dir, terms, options).map_err(failed)?;
    let finish = || {
        status_socket::answer(listener, namespace, ended.clone(), runtime).map_err(failed)?;
        if let Some((_, record)) = &kept {
            record
                .note_image(disk.identity)
                .and_then(|()| record.mounted(&dir, major, minor))
                .map_err(failed)?;
        }
        let served =
            ServedMount::new(&HandoverPlace { dir: dir.clone(), major, minor }, ended.clone(), kept)?;
        privileged::note_serving(&dir);
        Ok(served)
    };
    finish().inspect_err(|_| {
        if let Err(error) = privileged::detach(&dir, UnmountMode::Lazy) {
            tracing::warn!(dir = %dir.display(), %error, "the mount stays, and nothing serves it");
        }
    })
}

/// Resumes the kernel-served mount of `survivor` with `disk`, which must be the image of its journal.
pub fn take_over_image(
    disk: KernelDisk,
    namespace: &Arc<MountNamespace>,
    survivor: &SurvivingMount,
    options: &MountOptions,
    runtime: &Handle,
) -> Result<ServedMount, MountError> {
    let (record, place) = (survivor.record(), survivor.place());
    let failed = |source| MountError::TakeOver { dir: place.dir.clone(), source };
    if record.image() != Some(disk.identity) {
        let message = "the kernel has mounted another image";
        return Err(failed(std::io::Error::new(std::io::ErrorKind::InvalidData, message)));
    }
    record.taken_over().map_err(failed)?;
    let listener = privileged::resume_image(&place.dir, (place.major, place.minor)).map_err(failed)?;
    let (_, config) = session::settings(options);
    let file = ImageFile::new(disk.bytes, runtime.clone());
    let session =
        takeover::on_descriptor(file, survivor.device(), SessionACL::All, config).map_err(failed)?;
    takeover::resend(survivor.device()).map_err(failed)?;
    let ended = session::serve(session).map_err(failed)?;
    status_socket::answer(listener, namespace, ended.clone(), runtime).map_err(failed)?;
    let device = survivor.device().try_clone().map_err(failed)?;
    ServedMount::new(place, ended, Some((device, record.clone())))
}
