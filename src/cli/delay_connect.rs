//! `--delay-connect`: mounts before the registry answers.
//!
//! Lookups of names wait until the registry answers, so that no answer is made up meanwhile. Requests without a name
//! are answered at once.

use std::path::Path;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::image::ImageSet;
use crate::mount::{self, AttachedMount, MountOptions};

use super::args::MountArgs;
use super::background::say;
use super::exit::CliError;
use super::service::ManagedService;
use super::setup::scope;

/// A mount whose image is not open yet.
pub(super) struct DelayedMount {
    pub(super) attached: AttachedMount,
}

impl DelayedMount {
    /// Mounts, and reports the mount.
    pub(super) fn attach(
        args: &MountArgs,
        dir: &Path,
        options: &MountOptions,
        in_background: bool,
        service: &ManagedService,
    ) -> Result<Self, CliError> {
        let attached = mount::attach(dir, options, scope(args), &Handle::current())?;
        let message = format!(
            "{} mounted at {}, to be opened when its registry answers",
            options.source,
            attached.dir().display()
        );
        if let Err(failure) = say(&message, in_background) {
            attached.detach()?;
            return Err(failure);
        }
        service.ready(&message);
        Ok(Self { attached })
    }

    /// Opens the image. Retries while the network or a registry is unavailable and the mount is in place.
    pub(super) async fn until_open<F: Future<Output = Result<ImageSet, CliError>>>(
        &self,
        open: impl Fn() -> F,
    ) -> Result<ImageSet, CliError> {
        /// Pause between two attempts, each of which has retries of its own.
        const CONNECT_RETRY_DELAY: Duration = Duration::from_secs(2);
        loop {
            let opened = tokio::select! {
                opened = open() => opened,
                () = self.gone() => return Err(self.taken()),
            };
            match opened {
                Err(failure) if failure.is_passing() => {
                    tracing::warn!(%failure, "cannot open the image yet; retrying");
                    self.attached.note_error(failure.to_string());
                    tokio::time::sleep(CONNECT_RETRY_DELAY).await;
                    if !self.attached.is_in_place() {
                        return Err(self.taken());
                    }
                }
                other => return other,
            }
        }
    }

    /// Waits until the mount is no longer in place.
    async fn gone(&self) {
        /// Poll interval: the kernel reports an unmount only to a process that reads requests.
        const MOUNT_POLL_INTERVAL: Duration = Duration::from_millis(500);
        while self.attached.is_in_place() {
            tokio::time::sleep(MOUNT_POLL_INTERVAL).await;
        }
    }

    fn taken(&self) -> CliError {
        CliError::from(mount::MountError::NotMounted { dir: self.attached.dir().to_owned() })
    }

    /// Unmounts, if the mount is still in place.
    pub(super) fn detach(self) {
        if let Err(error) = self.attached.detach() {
            tracing::warn!(%error, "cannot unmount");
        }
    }
}
