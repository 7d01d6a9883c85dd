//! `ocifs pull`: fetches whole references into the cache.

use std::io::{self, IsTerminal as _, Write as _};

use clap::Args;
use serde::Serialize;

use crate::image::{ArchiveOptions, ArchiveSelection, ImageSet, OpenOptions, PlatformScope, PullSummary};
use crate::oci::Reference;
use crate::registry::RegistryClient;
use crate::source::ImageLocation;

use super::again::{OutputGuard, once_more};
use super::args::ImageArgs;
use super::exit::CliError;
use super::export::{platforms, report_left_out, select};
use super::index_source_args::IndexPublishArgs;
use super::output::{self, human, printed, stdout};
use super::output_format::OutputFormat;
use super::progress::{ProgressArgs, ProgressLine};
use super::setup::{self, start};

/// The arguments of `pull`.
#[derive(Args, Debug)]
pub(super) struct PullArgs {
    #[command(flatten)]
    pub(super) image: ImageArgs,

    /// More references.
    #[arg(value_name = "REF")]
    more: Vec<ImageLocation>,

    /// Take every platform of an index, as --platform=all.
    #[arg(long)]
    all_platforms: bool,

    /// Form of the output.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: OutputFormat,

    #[command(flatten)]
    publish: IndexPublishArgs,

    #[command(flatten)]
    progress: ProgressArgs,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PullReport {
    schema_version: u32,
    images: Vec<PulledImage>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PulledImage {
    reference: String,
    digest: String,
    /// Number of blobs and documents; `present` of them were on this machine before.
    blobs: usize,
    present: usize,
    size: u64,
    fetched: u64,
}

/// Publishes the indexes of a pulled reference. A repository that fails costs a warning, because the pull is done.
async fn publish_indexes(
    args: &PullArgs,
    registry: &RegistryClient,
    pinned: &str,
    to: &Reference,
) -> Result<(), CliError> {
    let location: ImageLocation =
        pinned.parse().map_err(|error| CliError::usage(format!("{pinned}: {error}")))?;
    let platforms = match args.all_platforms || args.image.platform.len() > 1 {
        true => PlatformScope::All,
        false => setup::one_platform(&args.image)?,
    };
    let options = OpenOptions { platforms, ..setup::options(&args.image, &location, registry)? };
    let family = ImageSet::open(&options, registry, setup::cache(&args.image)?).await?;
    for image in family.images() {
        if let Err(error) = image.store_indexes(to).await {
            tracing::warn!(reference = pinned, error = error.chain(), "indexes are not published");
            break;
        }
    }
    Ok(())
}

/// Runs the command.
pub(super) fn pull(args: &PullArgs) -> Result<(), CliError> {
    setup::refuse_selection(&args.image, "everything is fetched")?;
    if args.image.cache.is_private() {
        return Err(CliError::usage("--no-cache discards the pulled content"));
    }
    let mut options: ArchiveOptions = platforms(&args.image, args.all_platforms);
    if args.image.referrers {
        options = options.with_referrers();
    }
    let runtime = start(&args.image)?;
    let images = runtime.block_on(once_more(&OutputGuard::default(), async || {
        let selections = select(&args.image, &args.more, &options).await?;
        if !args.progress.quiet {
            report_left_out(&selections);
        }
        // Also rejects references that fit one by one but not together: the last would evict the first.
        ArchiveSelection::check_room(&selections)?;
        let mut images = Vec::new();
        for selection in &selections {
            let progress = ProgressLine::start(&args.progress, Some(selection.size()));
            let PullSummary { blobs, present, size, fetched } =
                selection.pull(&|bytes| progress.advance(bytes)).await?;
            progress.finish("read and compared");
            let (reference, digest) = (selection.pinned().to_owned(), selection.digest().to_string());
            images.push(PulledImage { reference, digest, blobs, present, size, fetched });
        }
        if let Some(to) = &args.publish.publish_index {
            let registry = setup::registry(&args.image)?;
            let to = to.in_full(&registry)?;
            for selection in &selections {
                publish_indexes(args, &registry, selection.pinned(), &to).await?;
            }
        }
        Ok::<_, CliError>(images)
    }))?;
    let mut out = stdout();
    // A whole digest fills a line of 80 columns.
    let gap = if io::stdout().is_terminal() { "\n  " } else { "  " };
    let printed_rows = match args.format {
        OutputFormat::Json => output::json(&mut out, &PullReport { schema_version: 1, images }),
        OutputFormat::Text => images.iter().try_for_each(|image| {
            write!(out, "{}{gap}", image.reference)?;
            match image.present == image.blobs {
                true => writeln!(out, "already cached: {} blobs, {}", image.blobs, human(image.size)),
                false => writeln!(
                    out,
                    "{} blobs, {}: fetched {}, {} already cached",
                    image.blobs,
                    human(image.size),
                    human(image.fetched),
                    image.present
                ),
            }
        }),
    };
    printed(printed_rows.and_then(|()| out.flush()))
}
