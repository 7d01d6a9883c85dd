//! `ocifs index build` and `ocifs index push`.

use std::io::Write as _;

use crate::image::{PrefetchMode, ReadRecording, StoredIndex};
use crate::oci::Digest;
use crate::registry::PushOutcome;

use super::exit::CliError;
use super::index_args::{IndexBuildArgs, IndexPushArgs};
use super::index_source_args::RepositoryArg;
use super::output::{self, human};
use super::setup::{only, open, open_with, registry, start};

/// Builds the index of every layer and stores it in the cache.
pub(super) fn build(args: &IndexBuildArgs) -> Result<(), CliError> {
    let runtime = start(&args.image)?;
    let (built, stored) = runtime.block_on(async {
        let registry = registry(&args.image)?;
        let to = args.publish.publish_index.as_ref().map(|to| to.in_full(&registry)).transpose()?;
        let family = open_with(&args.image, &registry, PrefetchMode::None, ReadRecording::Off).await?;
        let image = only(&family)?;
        let built = image.build_indexes().await?;
        let stored = match &to {
            Some(to) => Some(image.store_indexes(to).await?),
            None => None,
        };
        Ok::<_, CliError>((built, stored))
    })?;
    match stored {
        Some(stored) => print_stored(&stored),
        None => {
            print_layers(built.iter().map(|layer| (&layer.digest, layer.bytes.len() as u64, layer.stored)))
        }
    }
}

/// Builds the index of every layer and publishes the indexes, beside the image or in an index repository.
pub(super) fn push(args: &IndexPushArgs) -> Result<(), CliError> {
    match &args.to {
        Some(to) => store(args, to),
        None => push_beside(args),
    }
}

/// Publishes the indexes that an index repository lacks.
fn store(args: &IndexPushArgs, to: &RepositoryArg) -> Result<(), CliError> {
    let runtime = start(&args.image)?;
    let (stored, trace) = runtime.block_on(async {
        let registry = registry(&args.image)?;
        let to = to.in_full(&registry)?;
        let family = open_with(&args.image, &registry, PrefetchMode::None, ReadRecording::Off).await?;
        let image = only(&family)?;
        let stored = image.store_indexes(&to).await?;
        let trace = image.store_trace(&to).await?.map(|bytes| (image.manifest_digest().clone(), bytes));
        Ok::<_, CliError>((stored, trace))
    })?;
    print_stored(&stored)?;
    let Some((image, bytes)) = trace else { return Ok(()) };
    let mut out = output::stdout();
    output::printed(writeln!(out, "{image}  trace of {}  published", human(bytes)).and_then(|()| out.flush()))
}

fn print_stored(stored: &[StoredIndex]) -> Result<(), CliError> {
    let mut out = output::stdout();
    let mut written = Ok(());
    for index in stored {
        let what = match index.outcome {
            PushOutcome::Stored => "published",
            PushOutcome::WasThere => "already there",
        };
        let (bytes, share) = (human(index.bytes), share(index.bytes, index.stored));
        let stored = human(index.stored);
        written = written
            .and_then(|()| writeln!(out, "{}  {bytes} of {stored} stored ({share})  {what}", index.layer));
    }
    output::printed(written.and_then(|()| out.flush()))
}

fn push_beside(args: &IndexPushArgs) -> Result<(), CliError> {
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
        let share = share(index, stored);
        let line = writeln!(out, "{digest}  {} of {} stored ({share})", human(index), human(stored));
        written = written.and(line);
    }
    output::printed(written.and_then(|()| out.flush()))
}

/// Bytes of an index as a share of its layer.
fn share(index: u64, stored: u64) -> String {
    format!("{:.2} %", index as f64 * 100.0 / stored.max(1) as f64)
}
