//! `--delay-connect`: a mount that is in the tree before its registry could be asked.
//!
//! The idea: a look for a name waits until the registry answers, so that nothing has to be made up meanwhile; what needs no name is
//! answered at once.

use std::path::Path;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::image::Family;
use crate::mount::{self, Attached, MountOptions};

use super::args::MountArgs;
use super::commands::{say, scope};
use super::exit::Failure;
use super::service::Service;

/// A mount that is there before what is in it.
pub(super) struct Delayed {
    pub(super) attached: Attached,
}

impl Delayed {
    /// Mounts, and says so.
    pub(super) fn attach(
        args: &MountArgs,
        dir: &Path,
        options: &MountOptions,
        in_background: bool,
        service: &Service,
    ) -> Result<Self, Failure> {
        let attached = mount::attach(dir, options, scope(&args.serve), &Handle::current())?;
        let message =
            format!("{} mounted at {}, to be opened when it can", options.source, attached.dir().display());
        if let Err(failure) = say(&message, in_background) {
            attached.detach()?;
            return Err(failure);
        }
        service.ready(&message);
        Ok(Self { attached })
    }

    /// Opens, however often it takes while the network or a registry is away, and nobody took the mount away.
    pub(super) async fn until_open<F: Future<Output = Result<Family, Failure>>>(
        &self,
        open: impl Fn() -> F,
    ) -> Result<Family, Failure> {
        /// Between two attempts, which are patient themselves.
        const PAUSE: Duration = Duration::from_secs(2);
        loop {
            let opened = tokio::select! {
                opened = open() => opened,
                () = self.gone() => return Err(self.taken()),
            };
            match opened {
                Err(failure) if failure.is_passing() => {
                    tracing::warn!(%failure, "it cannot be opened yet");
                    self.attached.note_error(failure.to_string());
                    tokio::time::sleep(PAUSE).await;
                    if !self.attached.is_in_place() {
                        return Err(self.taken());
                    }
                }
                other => return other,
            }
        }
    }

    /// Waits until somebody has taken the mount away.
    async fn gone(&self) {
        /// The kernel tells nobody who does not read requests.
        const LOOK: Duration = Duration::from_millis(500);
        while self.attached.is_in_place() {
            tokio::time::sleep(LOOK).await;
        }
    }

    fn taken(&self) -> Failure {
        Failure::from(mount::MountError::NotMounted { dir: self.attached.dir().to_owned() })
    }

    /// Takes it away, if it is still there.
    pub(super) fn detach(self) {
        if let Err(error) = self.attached.detach() {
            tracing::warn!(%error, "the mount could not be taken away");
        }
    }
}
