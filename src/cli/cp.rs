//! `ocifs cp`: copies a file or a directory of a reference to this machine.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use crate::export;
use crate::tree::InodeKind;
use crate::view::{MountNamespace, ViewScope};

use super::again::{OutputGuard, once_more};
use super::args::ImageArgs;
use super::exit::CliError;
use super::export::report_incomplete;
use super::preserve::PreserveArgs;
use super::progress::{ProgressArgs, ProgressLine};
use super::setup::{StopSignals, open, start};

/// The arguments of `cp`.
#[derive(Args, Debug)]
pub(super) struct CpArgs {
    #[command(flatten)]
    pub(super) image: ImageArgs,

    /// Path of a file or a directory in the mount: disk/NAME.qcow2, merged/etc, files/NAME.
    #[arg(value_name = "PATH")]
    path: OsString,

    /// Destination: a name or a directory for a file; a new or empty directory for a directory.
    #[arg(value_name = "DEST")]
    dest: PathBuf,

    #[command(flatten)]
    preserve: PreserveArgs,

    #[command(flatten)]
    progress: ProgressArgs,
}

/// Runs the command.
pub(super) fn cp(args: &CpArgs) -> Result<(), CliError> {
    if args.dest.as_os_str() == "-" {
        return Err(CliError::usage(
            "cp writes files; to standard output: ocifs cat REF PATH (a file of this name is ./-)",
        ));
    }
    let runtime = start(&args.image)?;
    runtime.block_on(async {
        let mut stop = StopSignals::new()?;
        let door = OutputGuard::default();
        tokio::select! {
            copied = once_more(&door, async || copy(args).await) => copied,
            () = stop.wait() => Err(CliError::interrupted()),
        }
    })
}

async fn copy(args: &CpArgs) -> Result<(), CliError> {
    let path = args.path.as_bytes();
    let namespace = MountNamespace::open(Arc::new(open(&args.image).await?), &ViewScope::default()).await?;
    let node = namespace.resolve(path).await?;
    namespace.settle(node).await?;
    let attributes = namespace.attributes(node);
    if attributes.is_some_and(|attributes| matches!(attributes.kind, InodeKind::Directory)) {
        let progress = ProgressLine::start(&args.progress, None);
        let report = export::write_tree(&namespace, path, &args.dest, args.preserve.chosen(), &|bytes| {
            progress.advance(bytes)
        })
        .await?;
        progress.finish(&format!("{}: {} names", args.dest.display(), report.names));
        if !args.progress.quiet {
            report_incomplete(&report);
        }
        return Ok(());
    }
    let mut dest = args.dest.clone();
    if dest.is_dir() {
        let name = path.split(|byte| *byte == b'/').rfind(|name| !name.is_empty()).unwrap_or_default();
        if matches!(name, b"" | b"." | b"..") {
            return Err(CliError::usage(format!("{} is a directory: give the file a name", dest.display())));
        }
        dest.push(OsString::from_vec(name.to_vec()));
    }
    let progress = ProgressLine::start(&args.progress, attributes.map(|attributes| attributes.size));
    export::copy_file(&namespace, path, &dest, &|bytes| progress.advance(bytes)).await?;
    progress.finish(&dest.display().to_string());
    Ok(())
}
