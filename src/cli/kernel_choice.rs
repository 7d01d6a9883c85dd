//! `--kernel`: whether the kernel's EROFS serves a mount, and the reason where it does not.
//!
//! `on` turns a reason into an error. `auto` logs it, shows it in the status, and mounts by FUSE.

use std::time::Duration;

use crate::mount;
use crate::view::{KernelDisk, MountNamespace};

use super::args::{KernelWhen, ServeArgs};
use super::exit::CliError;
use super::progress::{ProgressArgs, ProgressLine};

/// Interval between two looks at the cache for the progress line.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// How the status names a mount that the kernel serves.
pub(super) const BY_KERNEL: &str = "the kernel (EROFS)";

/// The server of a mount.
pub(super) enum MountServer {
    /// FUSE.
    Fuse,
    /// The kernel's EROFS on this disk; a failure is an error.
    Kernel(KernelDisk),
    /// The kernel's EROFS on this disk; where the kernel refuses it, FUSE.
    KernelFirst(KernelDisk),
}

impl MountServer {
    /// The disk for the kernel; `None` for FUSE.
    pub(super) fn disk(&self) -> Option<&KernelDisk> {
        match self {
            MountServer::Fuse => None,
            MountServer::Kernel(disk) | MountServer::KernelFirst(disk) => Some(disk),
        }
    }
}

/// The choice for one mount, as far as it is made before its image is known.
pub(super) struct KernelChoice {
    when: KernelWhen,
    /// Why FUSE serves the mount; `None` while that is open.
    refused: Option<String>,
}

impl KernelChoice {
    /// The choice by arguments and machine. Called while the process has its rights.
    pub(super) fn of(args: &ServeArgs) -> Result<Self, CliError> {
        let when = args.kernel;
        let refused = match when {
            KernelWhen::Off => None,
            _ => in_arguments(args)
                .map(str::to_owned)
                .or_else(|| mount::kernel_obstacle().map(|obstacle| obstacle.to_string())),
        };
        match refused {
            Some(why) if when == KernelWhen::On => Err(CliError::usage(format!("--kernel=on: {why}"))),
            refused => Ok(Self { when, refused }),
        }
    }

    /// The server of the mount. `left_image` is whether the kernel serves the mount that is taken over; `None` without
    /// one.
    pub(super) async fn server(
        &self,
        namespace: &MountNamespace,
        left_image: Option<bool>,
    ) -> Result<MountServer, CliError> {
        if self.when == KernelWhen::Off {
            return Ok(MountServer::Fuse);
        }
        let refused = match (left_image, &self.refused) {
            (Some(false), _) => Some("an earlier process mounted it by FUSE".to_owned()),
            (_, Some(why)) => Some(why.clone()),
            (None, None) if self.when == KernelWhen::Auto => self.unready(namespace),
            (_, None) => namespace.kernel_refusal().map(str::to_owned),
        };
        if let Some(why) = refused {
            return match self.when {
                KernelWhen::On if left_image.is_none() => Err(CliError::usage(format!("--kernel=on: {why}"))),
                _ => Ok(by_fuse(namespace, &why)),
            };
        }
        if self.when == KernelWhen::On || left_image.is_some() {
            let compared = with_progress(namespace).await;
            compared.map_err(|error| CliError::read(&error.within("--kernel=on")))?;
        }
        match namespace.kernel_disk().await {
            Ok(disk) if self.when == KernelWhen::On => Ok(MountServer::Kernel(disk)),
            Ok(disk) => Ok(MountServer::KernelFirst(disk)),
            Err(error) if self.when == KernelWhen::On => Err(CliError::read(&error.within("--kernel=on"))),
            Err(error) => Ok(by_fuse(namespace, &error.chain())),
        }
    }

    /// Why the kernel cannot serve now, without a pass over a layer.
    fn unready(&self, namespace: &MountNamespace) -> Option<String> {
        namespace.kernel_refusal().map(str::to_owned).or_else(|| namespace.unknown_layer())
    }
}

/// Logs and records why FUSE serves a mount.
pub(super) fn by_fuse(namespace: &MountNamespace, why: &str) -> MountServer {
    tracing::info!(why, "FUSE serves the mount, not the kernel's EROFS");
    namespace.note_serving(format!("FUSE: {why}"));
    MountServer::Fuse
}

/// What in the arguments excludes a kernel mount.
fn in_arguments(args: &ServeArgs) -> Option<&'static str> {
    let is_tree = |view: &str| view == "merged" || view.starts_with("layers");
    if !args.view.as_deref().is_some_and(is_tree) {
        Some("it is for --view merged or --view layers/N")
    } else if args.subdir.is_some() && args.view.as_deref() == Some("merged") {
        Some("EROFS shows the whole tree, without --subdir")
    } else if args.hide_symlinks {
        Some("EROFS shows every name, without --hide-symlinks")
    } else if args.delay_connect {
        Some("the image is needed before the mount, without --delay-connect")
    } else {
        None
    }
}

/// Compares all layers, with a progress line on a terminal.
async fn with_progress(namespace: &MountNamespace) -> Result<(), crate::io::ReadError> {
    let (mut cached, total) = namespace.cached_bytes();
    let line = ProgressLine::start(&ProgressArgs::default(), Some(total));
    line.advance(cached);
    let mut comparing = std::pin::pin!(namespace.compare_layers());
    loop {
        tokio::select! {
            compared = &mut comparing => return compared,
            () = tokio::time::sleep(PROGRESS_INTERVAL) => {
                let (now, _) = namespace.cached_bytes();
                line.advance(now.saturating_sub(cached));
                cached = cached.max(now);
            }
        }
    }
}
