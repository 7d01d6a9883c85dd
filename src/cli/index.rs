//! `ocifs index build` and `ocifs index push`.

use std::io::Write as _;

use clap::{Args, Subcommand};

use crate::oci::Digest;

use super::args::ImageArgs;
use super::exit::CliError;
use super::output::{self, human};
use super::setup::{only, open, start};

#[derive(Subcommand, Debug)]
pub(super) enum IndexCommand {
    /// Read every layer once and keep its index: later mounts need no pass over it.
    Build(IndexArgs),
    /// Publish the indexes beside the image for other machines, and build those that are missing.
    Push(IndexArgs),
}

#[derive(Args, Debug)]
pub(super) struct IndexArgs {
    #[command(flatten)]
    pub(super) image: ImageArgs,
}

/// Builds the index of every layer and stores it in the cache.
pub(super) fn build(args: &IndexArgs) -> Result<(), CliError> {
    let runtime = start(&args.image)?;
    let built = runtime
        .block_on(async { Ok::<_, CliError>(only(&open(&args.image).await?)?.build_indexes().await?) })?;
    print_layers(built.iter().map(|layer| (&layer.digest, layer.bytes.len() as u64, layer.stored)))
}

/// Builds the index of every layer and publishes the indexes beside the image.
pub(super) fn push(args: &IndexArgs) -> Result<(), CliError> {
    let runtime = start(&args.image)?;
    let (built, published) = runtime.block_on(async {
        let family = open(&args.image).await?;
        let image = only(&family)?;
        image.check_publishable()?;
        let built = image.build_indexes().await?;
        let published = image.push_indexes(&built).await?;
        Ok::<_, CliError>((built, published))
    })?;
    print_layers(built.iter().map(|layer| (&layer.digest, layer.bytes.len() as u64, layer.stored)))?;
    let mut out = output::stdout();
    output::printed(writeln!(out, "published {published}").and_then(|()| out.flush()))
}

fn print_layers<'a>(layers: impl Iterator<Item = (&'a Digest, u64, u64)>) -> Result<(), CliError> {
    let mut out = output::stdout();
    let mut written = Ok(());
    for (digest, index, stored) in layers {
        let share = index as f64 * 100.0 / stored.max(1) as f64;
        let line = writeln!(out, "{digest}  {} of {} stored ({share:.2} %)", human(index), human(stored));
        written = written.and(line);
    }
    output::printed(written.and_then(|()| out.flush()))
}
