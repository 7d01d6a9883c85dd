//! `ocifs resolve`: prints the digest that a reference names now.

use std::io::Write as _;

use clap::Args;
use serde::Serialize;

use crate::image::{self, OpenOptions, PlatformScope};

use super::args::{ImageArgs, PlatformChoice};
use super::exit::CliError;
use super::output::{self, printed, stdout};
use super::output_format::OutputFormat;
use super::setup::{self, start};

/// The arguments of `resolve`.
#[derive(Args, Debug)]
pub(super) struct ResolveArgs {
    #[command(flatten)]
    pub(super) image: ImageArgs,

    /// Form of the output.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: OutputFormat,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResolveReport<'a> {
    schema_version: u32,
    reference: &'a str,
    digest: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    media_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
}

/// Runs the command.
pub(super) fn resolve(args: &ResolveArgs) -> Result<(), CliError> {
    setup::refuse_selection(&args.image, "a digest is that of the whole")?;
    let platforms = match &args.image.platform[..] {
        [] => PlatformScope::Host,
        [PlatformChoice::One(platform)] => PlatformScope::One(platform.clone()),
        [..] => {
            return Err(CliError::usage(
                "one reference has one digest: name one platform, or none for the index",
            ));
        }
    };
    let runtime = start(&args.image)?;
    let resolved = runtime.block_on(async {
        let registry = setup::registry(&args.image)?;
        let options =
            OpenOptions { platforms, ..setup::options(&args.image, &args.image.location, &registry)? };
        Ok::<_, CliError>(image::resolve(&options, &registry, setup::cache(&args.image)?).await?)
    })?;
    let mut out = stdout();
    let written = match args.format {
        OutputFormat::Text => writeln!(out, "{}", resolved.pinned),
        OutputFormat::Json => {
            let report = ResolveReport {
                schema_version: 1,
                reference: &resolved.pinned,
                digest: resolved.digest.as_str(),
                media_type: resolved.media_type.as_ref().map(|kind| kind.as_written()),
                size: resolved.size,
            };
            output::json(&mut out, &report)
        }
    };
    printed(written.and_then(|()| out.flush()))
}
