//! `ocifs verify`: one line per comparison, and the exit code of the worst result.
//!
//! A mount is verified as the reference that it shows, with the cache that it reads from.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;

use clap::Args;
use serde::Serialize;

use crate::image::{CheckOutcome, VerifyCheck};
use crate::io::FaultClass;
use crate::mount;

use super::args::ImageArgs;
use super::exit::CliError;
use super::output::{self, printed, safe, stdout};
use super::output_format::OutputFormat;
use super::setup::{open, start};

/// The arguments of `verify`.
#[derive(Args, Debug)]
pub(super) struct VerifyCommandArgs {
    #[command(flatten)]
    pub(super) image: ImageArgs,

    /// Form of the output.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(super) format: OutputFormat,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VerifyReport<'a> {
    schema_version: u32,
    reference: &'a str,
    checks: &'a [VerifyCheck],
}

/// Replaces a directory in the arguments by the reference mounted at it, so that `ocifs verify DIR` verifies the
/// content of DIR.
pub(super) fn resolve(argv: Vec<OsString>) -> Result<Vec<OsString>, CliError> {
    if argv.get(1).is_none_or(|command| command != "verify") {
        return Ok(argv);
    }
    let resolved = argv.into_iter().enumerate().map(|(at, word)| {
        // A directory without a mount of ocifs is still parsed as a reference.
        if at < 2 || !Path::new(&word).is_dir() {
            return Ok(word);
        }
        Ok(mount::reference_at(Path::new(&word))?.map_or(word, OsString::from))
    });
    resolved.collect()
}

/// Runs the command.
pub(super) fn verify(args: &VerifyCommandArgs) -> Result<(), CliError> {
    let runtime = start(&args.image)?;
    let (reference, checks) = runtime.block_on(async {
        let family = open(&args.image).await?;
        let (mut checks, mut broken) = (Vec::new(), Ok(()));
        family
            .verify(&mut |check| {
                if args.format == OutputFormat::Text && broken.is_ok() {
                    broken = line(&check);
                }
                checks.push(check);
            })
            .await;
        printed(broken)?;
        Ok::<_, CliError>((family.pinned().to_owned(), checks))
    })?;
    if args.format == OutputFormat::Json {
        let report = VerifyReport { schema_version: 1, reference: &reference, checks: &checks };
        let mut out = stdout();
        printed(output::json(&mut out, &report).and_then(|()| out.flush()))?;
    }
    // A mismatch counts more than unavailable content.
    let faults = || checks.iter().filter_map(|check| check.fault);
    let worst = faults().find(|fault| *fault == FaultClass::Mismatch).or_else(|| faults().next());
    let bad = checks.iter().filter(|check| check.fault.is_some()).count();
    match worst {
        None => Ok(()),
        Some(fault) => {
            Err(CliError::of(fault, format!("{reference}: {bad} of {} comparisons failed", checks.len())))
        }
    }
}

/// Prints one line at once: large images take their time.
fn line(check: &VerifyCheck) -> std::io::Result<()> {
    let result = match check.result {
        CheckOutcome::Ok => "ok",
        CheckOutcome::Mismatch => "MISMATCH",
        CheckOutcome::Unreadable => "UNREADABLE",
        CheckOutcome::Skipped => "skipped",
    };
    let mut out = stdout();
    write!(out, "{result:<10} {:<8} ", check.kind)?;
    safe(&mut out, check.subject.as_bytes())?;
    if let Some(detail) = &check.detail {
        out.write_all(b": ")?;
        safe(&mut out, detail.as_bytes())?;
    }
    out.write_all(b"\n")?;
    out.flush()
}
