//! `ocifs umount`.

use std::path::PathBuf;

use clap::Args;

use crate::mount::{self, UnmountMode};

use super::exit::CliError;

#[derive(Args, Debug)]
pub(super) struct UmountArgs {
    /// Mount point.
    #[arg(value_name = "DIR", required = true)]
    pub(super) dirs: Vec<PathBuf>,

    /// Detach the mount even while it is in use.
    #[arg(short, long)]
    pub(super) lazy: bool,
}

/// Unmounts directories.
pub(super) fn umount(args: &UmountArgs) -> Result<(), CliError> {
    let how = if args.lazy { UnmountMode::Lazy } else { UnmountMode::Now };
    let mut result = Ok(());
    for dir in &args.dirs {
        // The first failure is reported; the other directories are unmounted all the same.
        result = result.and(mount::unmount(dir, how));
    }
    Ok(result?)
}
