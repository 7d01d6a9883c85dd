//! `ocifs cat`: files of a reference on standard output, without a mount.

use std::cell::Cell;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use clap::Args;

use crate::export;
use crate::view::{MountNamespace, ViewScope};

use super::again::{OutputGuard, once_more};
use super::args::ImageArgs;
use super::exit::CliError;
use super::output::{self, stdout_fd};
use super::setup::{open, start};

#[derive(Args, Debug)]
pub(super) struct CatArgs {
    #[command(flatten)]
    pub(super) image: ImageArgs,

    /// Path of a file in the mount: merged/etc/os-release, disk/NAME.qcow2, blobs/sha256/...; disk alone names the only disk.
    #[arg(value_name = "PATH", required = true)]
    pub(super) paths: Vec<OsString>,
}

/// Writes files to standard output.
pub(super) fn cat(args: &CatArgs) -> Result<(), CliError> {
    let runtime = start(&args.image)?;
    let door = OutputGuard::default();
    let is_warned = Cell::new(false);
    runtime.block_on(once_more(&door, async || {
        let namespace =
            MountNamespace::open(Arc::new(open(&args.image).await?), &ViewScope::default()).await?;
        // A path that is missing may be missing for the reason of a warning.
        if !is_warned.replace(true) {
            output::warn(&namespace.family().warnings());
        }
        // Not line buffered, and not locked: the writer moves between threads.
        let mut out = door.outgoing(std::fs::File::from(stdout_fd()?));
        for path in &args.paths {
            export::cat(&namespace, path.as_bytes(), &mut out).await?;
        }
        Ok(())
    }))
}
