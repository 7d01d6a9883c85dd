//! `ocifs ls`: names in a reference, without a mount.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use clap::Args;

use crate::export::{self, ListDepth};
use crate::view::{MountNamespace, ViewScope};

use super::args::ImageArgs;
use super::exit::CliError;
use super::setup::{open, start};
use super::{listing, output};

#[derive(Args, Debug)]
pub(super) struct LsArgs {
    #[command(flatten)]
    pub(super) image: ImageArgs,

    /// Path in the mount. Default: the top.
    #[arg(value_name = "PATH")]
    pub(super) path: Option<OsString>,

    /// Show type, mode, owner, size, time and link target.
    #[arg(short, long)]
    pub(super) long: bool,

    /// List all names below the path.
    #[arg(short = 'R', long)]
    pub(super) recursive: bool,
}

/// Lists names.
pub(super) fn ls(args: &LsArgs) -> Result<(), CliError> {
    let runtime = start(&args.image)?;
    let path = args.path.as_deref().map_or(&b""[..], OsStr::as_bytes);
    let depth = if args.recursive { ListDepth::All } else { ListDepth::One };
    let mut out = output::stdout();
    let mut written = Ok(());
    runtime.block_on(async {
        let family = open(&args.image).await?;
        let namespace = MountNamespace::open(Arc::new(family), &ViewScope::default()).await?;
        let detail = if args.long { export::ListDetail::Attributes } else { export::ListDetail::Names };
        // A name that is missing may be missing for the reason of a warning.
        let early = namespace.family().warnings();
        output::warn(&early);
        export::list(&namespace, path, depth, detail, |listed| {
            written = listing::line(&mut out, &listed, args.long);
            written.is_ok()
        })
        .await
        .map_err(CliError::from)?;
        let mut late = namespace.family().warnings();
        late.retain(|warning| !early.contains(warning));
        output::warn(&late);
        Ok::<_, CliError>(())
    })?;
    output::printed(written.and_then(|()| out.flush()))
}
