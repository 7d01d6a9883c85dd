//! `status`: what a mount says about itself, for people and for programs.
//!
//! Asks the mount and nobody else. The idea: one line answers how lazy the mount was, one bar for each blob shows where, and
//! each layer says why.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;

use crate::image::{BlobStatus, Status};
use crate::mount;

use super::args::Format;
use super::exit::Failure;
use super::output::{self, human, safe};
use super::status_html;

/// How to show a mount's status.
#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    /// The mount point.
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// How to print.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,

    /// Print a page for a browser, with a picture of what is cached and what was read.
    #[arg(long, conflicts_with = "format")]
    html: bool,
}

/// Cells of a bar.
const CELLS: u64 = 40;

/// Shows the status of a mount.
pub(super) fn status(args: &StatusArgs) -> Result<(), Failure> {
    let status = mount::status(&args.dir)?;
    let mut out = output::stdout();
    let dir = args.dir.display().to_string();
    let written = match args.format {
        _ if args.html => status_html::write(&status, &dir, &mut out),
        Format::Json => output::json(&mut out, &status),
        Format::Text => text(&status, &mut out),
    };
    output::printed(written.and_then(|()| out.flush()))
}

/// Sums over all blobs.
pub(super) struct Sums {
    /// Stored bytes.
    pub(super) size: u64,
    /// Those that the cache has.
    pub(super) cached: u64,
    /// Those that this mount got from elsewhere.
    pub(super) fetched: u64,
    /// Those that it gave out of blobs.
    pub(super) served: u64,
}

impl Sums {
    pub(super) fn of(status: &Status) -> Self {
        let sum = |of: fn(&BlobStatus) -> u64| status.blobs.iter().map(of).fold(0, u64::saturating_add);
        Self {
            size: sum(|blob| blob.size),
            cached: sum(|blob| blob.cached),
            fetched: sum(|blob| blob.fetched),
            served: sum(|blob| blob.served),
        }
    }
}

/// How many hundredths of `whole` a part is; of nothing it is all.
pub(super) fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 100.0 } else { part as f64 * 100.0 / whole as f64 }
}

fn text(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    let field = |out: &mut dyn Write, name: &str, value: &str| {
        write!(out, "{name:<10} ")?;
        safe(out, value.as_bytes())?;
        out.write_all(b"\n")
    };
    field(out, "reference", &status.reference)?;
    if status.waiting {
        field(out, "waiting", "for its registry: no name in it is known yet")?;
        return status.errors.iter().try_for_each(|error| field(out, "error", error));
    }
    if let Some(key) = &status.signed_by {
        field(out, "signed by", key.as_str())?;
    }
    let sums = Sums::of(status);
    let part = |bytes: u64| format!("{} ({:.1} %)", human(bytes), percent(bytes, sums.size));
    field(out, "stored", &format!("{} in {} blobs", human(sums.size), status.blobs.len()))?;
    field(out, "cached", &part(sums.cached))?;
    field(out, "fetched", &format!("{} by this mount", part(sums.fetched)))?;
    for blob in &status.blobs {
        let line = format!("{}  {}  {}", blob.digest, human(blob.size), blob.media_type);
        field(out, "blob", &line)?;
        let told = format!(
            "    [{}] {:.0} % cached, {}, verified: {}",
            bar(blob),
            percent(blob.cached, blob.size),
            blob.state,
            blob.verified
        );
        field(out, "", &told)?;
    }
    for layer in &status.layers {
        let index = layer.index.as_deref().map(|index| format!(", index: {index}")).unwrap_or_default();
        let encoding = layer.encoding.as_deref().map(|encoding| format!(" {encoding}")).unwrap_or_default();
        field(out, "layer", &format!("{:02}{encoding}  {}{index}: {}", layer.layer, layer.mode, layer.why))?;
    }
    for member in &status.members {
        field(out, "member", &format!("{}  {}  {}", member.directory, member.digest, member.state))?;
    }
    for (name, lines) in
        [("conflict", &status.conflicts), ("warning", &status.warnings), ("error", &status.errors)]
    {
        for line in lines {
            field(out, name, line)?;
        }
    }
    if status.blobs.iter().any(|blob| blob.extents.is_some()) {
        out.write_all(b"\n# read by this mount   = cached   . not here\n")?;
    }
    Ok(())
}

/// The blob from left to right.
fn bar(blob: &BlobStatus) -> String {
    let Some(extents) = &blob.extents else { return "?".repeat(CELLS as usize) };
    let cell = |at: u64| {
        let edge = |at: u64| (u128::from(blob.size) * u128::from(at) / u128::from(CELLS)) as u64;
        let (start, end) = (edge(at), edge(at + 1).max(edge(at) + 1));
        let touches = |ranges: &[(u64, u64)]| ranges.iter().any(|range| range.0 < end && start < range.1);
        match (touches(&extents.read), touches(&extents.cached)) {
            (true, _) => '#',
            (false, true) => '=',
            (false, false) => '.',
        }
    };
    (0..CELLS).map(cell).collect()
}

#[cfg(test)]
mod tests {
    use crate::image::ExtentsStatus;
    use crate::oci::Digest;

    use super::*;

    fn blob(size: u64, extents: Option<ExtentsStatus>) -> BlobStatus {
        BlobStatus {
            digest: Digest::sha256(b""),
            media_type: String::new(),
            size,
            cached: 0,
            served: 0,
            fetched: 0,
            verified: String::new(),
            state: String::new(),
            extents,
        }
    }

    #[test]
    fn a_bar_shows_what_was_read_over_what_is_cached() {
        let extents = ExtentsStatus { unit: 1, cached: vec![(0, 200)], read: vec![(0, 1), (150, 160)] };
        let bar = super::bar(&blob(400, Some(extents)));
        assert_eq!(bar, "#==============#====...................."); // 40 cells of ten bytes
        assert_eq!(
            super::bar(&blob(0, Some(ExtentsStatus { unit: 1, cached: vec![], read: vec![] }))),
            ".".repeat(40)
        );
        assert_eq!(super::bar(&blob(9, None)), "?".repeat(40));
        let large = ExtentsStatus { unit: 1, cached: vec![(0, u64::MAX)], read: vec![] };
        assert_eq!(super::bar(&blob(u64::MAX, Some(large))), "=".repeat(40));
    }
}
