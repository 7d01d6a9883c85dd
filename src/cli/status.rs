//! `ocifs status`: the report of a mount, as text, JSON or HTML.
//!
//! Only the mount is queried. One line answers how lazy the mount was, one bar for each blob shows where, and states
//! that several layers share are explained once.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;

use crate::image::{BlobStatus, ImageStatus};
use crate::mount;

use super::blob_totals::{BlobTotals, percent};
use super::exit::CliError;
use super::output::{self, human};
use super::output_format::OutputFormat;
use super::status_html;
use super::table::{TextColor, TextStyle, grouped, runs};

/// How to show a mount's status.
#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    /// Mount point.
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// Form of the output.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: OutputFormat,

    /// Print an HTML report.
    #[arg(long, conflicts_with = "format")]
    html: bool,

    /// Show whole digests.
    #[arg(long)]
    no_trunc: bool,
}

/// Width of a bar in characters.
const CELLS: u64 = 34;

/// Prints the status of a mount.
pub(super) fn status(args: &StatusArgs) -> Result<(), CliError> {
    let status = mount::status(&args.dir)?;
    let mut out = output::plain_stdout();
    // The page is read elsewhere, where a relative path has no meaning.
    let dir = std::path::absolute(&args.dir).unwrap_or_else(|_| args.dir.clone());
    let dir = dir.display().to_string();
    let written = match args.format {
        _ if args.html => status_html::write(&status, &dir, &mut out),
        OutputFormat::Json => output::json(&mut out, &status),
        OutputFormat::Text => text(&status, TextStyle::of_stdout(!args.no_trunc), &mut out),
    };
    output::printed(written.and_then(|()| out.flush()))
}

fn text(status: &ImageStatus, look: TextStyle, out: &mut dyn Write) -> io::Result<()> {
    let field = |out: &mut dyn Write, name: &str, value: &str| look.field(out, name, TextColor::Plain, value);
    field(out, "reference", &look.reference(&status.reference))?;
    if status.waiting {
        field(out, "waiting", "for its registry: no name in it is known yet")?;
        return status.errors.iter().try_for_each(|error| look.field(out, "error", TextColor::Bad, error));
    }
    if let Some(words) = &status.served_by {
        field(out, "served by", words)?;
    }
    if let Some(key) = &status.signed_by {
        field(out, "signed by", &look.digest(key.as_str()))?;
    }
    let sums = BlobTotals::of(status);
    let part = |bytes: u64| format!("{} ({:.1} %)", human(bytes), percent(bytes, sums.size));
    field(out, "stored", &format!("{} in {} blobs", human(sums.size), status.blobs.len()))?;
    field(out, "cached", &part(sums.cached))?;
    field(out, "fetched", &format!("{} by this mount", part(sums.fetched)))?;
    field(out, "read", &format!("{} by programs, from blobs", human(sums.served)))?;
    blobs(status, look, out)?;
    layers(status, look, out)?;
    for member in &status.members {
        let digest = look.digest(member.digest.as_str());
        field(out, "member", &format!("{}  {digest}  {}", member.directory, member.state))?;
    }
    for (name, tone, lines) in [
        ("conflict", TextColor::Doubtful, &status.conflicts),
        ("warning", TextColor::Doubtful, &status.warnings),
        ("error", TextColor::Bad, &status.errors),
    ] {
        for line in lines {
            look.field(out, name, tone, line)?;
        }
    }
    Ok(())
}

/// Prints one line per blob, and the sum.
fn blobs(status: &ImageStatus, look: TextStyle, out: &mut dyn Write) -> io::Result<()> {
    let digits = status.blobs.iter().map(|blob| look.digest(blob.digest.as_str()).len()).max();
    let Some(digits) = digits else { return Ok(()) };
    let head = format!("{:<digits$} {:>10} {:>7} {:<9} PARTS", "BLOB", "SIZE", "CACHED", "STATE");
    writeln!(out, "\n{}", look.toned(TextColor::Heading, &head))?;
    let share = |cached: u64, size: u64| {
        let share = percent(cached, size);
        let tone = if share >= 100.0 { TextColor::Good } else { TextColor::Plain };
        look.toned(tone, &format!("{:>7}", format!("{share:.0} %")))
    };
    let mut reasons = Vec::new();
    for blob in &status.blobs {
        let digest = look.digest(blob.digest.as_str());
        // A reason has several words, and gets a line of its own.
        let is_word = !blob.state.contains(' ');
        if !is_word {
            reasons.push((digest.clone(), &blob.state));
        }
        let state = if is_word { &blob.state[..] } else { "see below" };
        let tone = match state {
            "verified" => TextColor::Good,
            "poisoned" => TextColor::Bad,
            _ => TextColor::Plain,
        };
        let state = look.toned(tone, &format!("{state:<9}"));
        let cached = share(blob.cached, blob.size);
        writeln!(out, "{digest:<digits$} {:>10} {cached} {state} [{}]", human(blob.size), bar(blob))?;
    }
    let sums = BlobTotals::of(status);
    let key = "# read  = cached  . not cached";
    let cached = share(sums.cached, sums.size);
    let total = look.toned(TextColor::Heading, &format!("{:<digits$}", "total"));
    writeln!(
        out,
        "{total} {:>10} {cached} {:<9} {}",
        human(sums.size),
        "",
        look.toned(TextColor::Soft, key)
    )?;
    for (digest, reason) in reasons {
        look.field(out, "blob", TextColor::Plain, &format!("{digest}: {reason}"))?;
    }
    Ok(())
}

/// Prints one line per layer, and the meaning of the states.
fn layers(status: &ImageStatus, look: TextStyle, out: &mut dyn Write) -> io::Result<()> {
    if status.layers.is_empty() {
        return Ok(());
    }
    let head = format!(
        "{:<5} {:<12} {:<9} {:<8} {:<10} {:>10}",
        "LAYER", "DIGEST", "STATE", "ENCODING", "INDEX", "DECODED"
    );
    writeln!(out, "\n{}", look.toned(TextColor::Heading, &head))?;
    for layer in &status.layers {
        let tone = match &layer.mode[..] {
            "failed" => TextColor::Bad,
            "indexed" => TextColor::Good,
            _ => TextColor::Plain,
        };
        let line = format!(
            "{:>5} {:<12} {} {:<8} {:<10} {:>10}",
            format!("{:02}", layer.layer),
            look.digest(layer.digest.as_str()),
            look.toned(tone, &format!("{:<9}", layer.mode)),
            layer.encoding.as_deref().map_or("-".into(), crate::io::printable),
            layer.index.as_deref().map_or("-".into(), crate::io::printable),
            layer.stream_bytes.map_or_else(|| "-".to_owned(), human),
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    let decoded = status.layers.iter().filter_map(|layer| layer.stream_bytes).fold(0, u64::saturating_add);
    let count =
        format!("{} {}", status.layers.len(), if status.layers.len() == 1 { "layer" } else { "layers" });
    let total = look.toned(TextColor::Heading, "total");
    writeln!(out, "{total} {count:<12} {:<9} {:<8} {:<10} {:>10}", "", "", "", human(decoded))?;
    out.write_all(b"\n")?;
    for (numbers, why) in grouped(status.layers.iter().map(|layer| (layer.layer, &layer.why[..]))) {
        look.field(out, "layers", TextColor::Plain, &format!("{}: {why}", runs(&numbers)))?;
    }
    Ok(())
}

/// The bar of a blob: read, cached and absent bytes by offset.
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
    fn status_bar_draws_read_blocks_over_cached_ones() {
        let extents = ExtentsStatus { unit: 1, cached: vec![(0, 200)], read: vec![(0, 1), (150, 160)] };
        let bar = super::bar(&blob(400, Some(extents)));
        assert_eq!(bar, "#===========##===................."); // 34 cells of 11 or 12 bytes
        assert_eq!(
            super::bar(&blob(0, Some(ExtentsStatus { unit: 1, cached: vec![], read: vec![] }))),
            ".".repeat(34)
        );
        assert_eq!(super::bar(&blob(9, None)), "?".repeat(34));
        let large = ExtentsStatus { unit: 1, cached: vec![(0, u64::MAX)], read: vec![] };
        assert_eq!(super::bar(&blob(u64::MAX, Some(large))), "=".repeat(34));
    }
}
