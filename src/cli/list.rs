//! `list`: the mounts of ocifs on this machine.

use std::io::Write;
use std::os::unix::ffi::OsStrExt as _;

use clap::Args;
use serde::Serialize;

use crate::mount::{self, MountState};

use super::exit::CliError;
use super::output;
use super::output_format::OutputFormat;

/// How to list mounts.
#[derive(Args, Debug)]
pub(super) struct MountListArgs {
    /// Form of the output.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: OutputFormat,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ListReport {
    schema_version: u32,
    mounts: Vec<MountReport>,
}

#[derive(Serialize)]
struct MountReport {
    /// Lossy UTF-8: invalid bytes are replaced.
    directory: String,
    reference: String,
    state: &'static str,
}

/// Lists all mounts.
pub(super) fn list(args: &MountListArgs) -> Result<(), CliError> {
    let mounts = mount::list()?;
    let mut out = output::stdout();
    let written = match args.format {
        OutputFormat::Json => {
            let mounts = mounts.iter().map(|mount| MountReport {
                directory: mount.dir.to_string_lossy().into_owned(),
                reference: mount.reference.clone(),
                state: words(mount.state),
            });
            let report = ListReport { schema_version: 1, mounts: mounts.collect() };
            output::json(&mut out, &report)
        }
        OutputFormat::Text => mounts.iter().try_for_each(|mount| {
            write!(out, "{:<8} ", words(mount.state))?;
            output::safe(&mut out, mount.dir.as_os_str().as_bytes())?;
            out.write_all(b"  ")?;
            output::safe(&mut out, mount.reference.as_bytes())?;
            out.write_all(b"\n")
        }),
    };
    output::printed(written.and_then(|()| out.flush()))
}

fn words(state: MountState) -> &'static str {
    match state {
        MountState::Served => "served",
        MountState::Waiting => "waiting",
        MountState::Dead => "dead",
        MountState::Unknown => "unknown",
    }
}
