//! `ocifs record`, and the choice of prefetched content.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use crate::image::{ImageSet, MAX_TRACE, OpenImage, PrefetchMode, ReadRecording, ReadTrace};
use crate::mount::{self, MountOptions};
use crate::view::{MountNamespace, ViewScope};

use super::args::{ImageArgs, PrefetchUse};
use super::exit::CliError;
use super::run_child::{ForwardedSignals, TemporaryMountpoint, run};
use super::setup::{LAST_TASKS, only, open_with, registry, start};

#[derive(Args, Debug)]
pub(super) struct RecordArgs {
    #[command(flatten)]
    pub(super) image: ImageArgs,

    /// Mount only one of the views as the root: merged, files, disk, layers, blobs or export.
    #[arg(long, value_name = "VIEW")]
    pub(super) view: Option<String>,

    /// Write the trace to this file too. The cache keeps it in any case.
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,

    /// Publish the trace beside the image, for other machines.
    #[arg(long)]
    pub(super) push: bool,

    /// Command and its arguments. {} and the variable OCIFS_MOUNT stand for the mount.
    #[arg(value_name = "CMD", required = true, last = true)]
    pub(super) command: Vec<OsString>,
}

/// The content that a mount prefetches. A missing trace is an error if it was requested.
pub(super) async fn chosen(
    family: &ImageSet,
    wanted: PrefetchUse,
    file: Option<&Path>,
) -> Result<PrefetchMode, CliError> {
    if file.is_some() && wanted != PrefetchUse::Trace {
        return Err(CliError::usage("--trace is for --prefetch=trace"));
    }
    Ok(match wanted {
        PrefetchUse::None => PrefetchMode::None,
        PrefetchUse::Landmarks => PrefetchMode::Landmarks,
        PrefetchUse::All => PrefetchMode::All,
        PrefetchUse::Trace => PrefetchMode::Trace(match (file, only(family)?) {
            (Some(path), image) => load(path, image)?,
            (None, image) => image.find_trace().await?.ok_or_else(|| {
                let digest = image.manifest_digest();
                CliError::usage(format!(
                    "no trace of {digest}; record one with \"ocifs record\", or name a file with --trace"
                ))
            })?,
        }),
    })
}

fn load(path: &Path, image: &OpenImage) -> Result<ReadTrace, CliError> {
    use std::io::Read as _;
    let what = || format!("reading the trace {}", path.display());
    let failed = |error: std::io::Error| CliError::local(what(), &error);
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_TRACE as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    let trace = ReadTrace::parse(&bytes)
        .map_err(|error| CliError::read(&error.within(path.display().to_string())))?;
    if trace.manifest != image.manifest_digest().as_str() {
        let (of, wanted) = (&trace.manifest, image.manifest_digest());
        tracing::warn!(%of, %wanted, "the trace is of another image: only blobs that both have are fetched");
    }
    Ok(trace)
}

/// Runs a command on a mount and records its reads. The exit code is the command's.
pub(super) fn record(args: &RecordArgs) -> Result<(), CliError> {
    let runtime = start(&args.image)?;
    let result = runtime.block_on(async {
        let family = Arc::new(
            open_with(&args.image, &registry(&args.image)?, PrefetchMode::None, ReadRecording::On).await?,
        );
        let image = only(&family)?;
        if args.push {
            image.check_publishable()?;
        }
        let scope = ViewScope { view: args.view.clone(), ..ViewScope::default() };
        let namespace = Arc::new(MountNamespace::open(family.clone(), &scope).await?);
        let options = MountOptions { source: image.pinned().to_owned(), ..MountOptions::default() };
        let mut signals = ForwardedSignals::new()?;
        let place = TemporaryMountpoint::new()?;
        let (handle, dir) = (tokio::runtime::Handle::current(), place.path().to_owned());
        let mounted = tokio::task::spawn_blocking(move || mount::mount(namespace, &dir, &options, &handle))
            .await
            .map_err(|error| CliError::local("mounting", &error))??;
        let ran = run(&args.command, mounted.dir(), &mut signals).await;
        mounted.unmount().await?;
        let code = ran?;
        keep(image, args).await?;
        Ok::<_, CliError>(code)
    });
    runtime.shutdown_timeout(LAST_TASKS);
    match result? {
        0 => Ok(()),
        code => Err(CliError::already_reported(code)),
    }
}

async fn keep(image: &Arc<OpenImage>, args: &RecordArgs) -> Result<(), CliError> {
    let Some(trace) = image.trace() else { return Ok(()) };
    let json = trace.to_json();
    if let Some(path) = &args.output {
        let failed = |error| CliError::local(format!("writing the trace {}", path.display()), &error);
        std::fs::write(path, &json).map_err(failed)?;
    }
    image.keep_trace(&json)?;
    let bytes: u64 = trace.reads.iter().map(|read| read.end - read.start).sum();
    tracing::info!(ranges = trace.reads.len(), bytes, "recorded");
    if args.push {
        image.push_trace(json).await?;
    }
    Ok(())
}
