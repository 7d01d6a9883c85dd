//! `list`: the mounts of ocifs on this machine.

use std::io::Write;
use std::os::unix::ffi::OsStrExt as _;

use clap::Args;
use serde::Serialize;

use crate::mount::{self, State};

use super::args::Format;
use super::exit::Failure;
use super::output;

/// How to list mounts.
#[derive(Args, Debug)]
pub(super) struct ListArgs {
    /// Form of the output.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
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
pub(super) fn list(args: &ListArgs) -> Result<(), Failure> {
    let mounts = mount::list()?;
    let mut out = output::stdout();
    let written = match args.format {
        Format::Json => {
            let mounts = mounts.iter().map(|mount| MountReport {
                directory: mount.dir.to_string_lossy().into_owned(),
                reference: mount.reference.clone(),
                state: words(mount.state),
            });
            let report = Report { schema_version: 1, mounts: mounts.collect() };
            output::json(&mut out, &report)
        }
        Format::Text => mounts.iter().try_for_each(|mount| {
            write!(out, "{:<8} ", words(mount.state))?;
            output::safe(&mut out, mount.dir.as_os_str().as_bytes())?;
            out.write_all(b"  ")?;
            output::safe(&mut out, mount.reference.as_bytes())?;
            out.write_all(b"\n")
        }),
    };
    output::printed(written.and_then(|()| out.flush()))
}

fn words(state: State) -> &'static str {
    match state {
        State::Served => "served",
        State::Waiting => "waiting",
        State::Dead => "dead",
        State::Unknown => "unknown",
    }
}
