//! `ocifs doctor`: checks whether this machine can mount, and the abilities of a registry.
//!
//! Findings of the machine, the cache and the registry form one list. A bad finding fails the command.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::cache::BlockCache;
use crate::image::{BlobProbe, ImageSet, OpenImage};
use crate::mount::{self, CheckedFact, FactHealth};
use crate::source::ImageLocation;

use super::args::ImageArgs;
use super::exit::{self, CliError};
use super::output::{self, human, safe};
use super::output_format::OutputFormat;
use super::setup::{open, start};
use super::table::takes_colours;

/// Stands for the absent reference. No host has such a name.
const PLACEHOLDER_REFERENCE: &str = "nothing.invalid/nothing:none";

/// The arguments of `doctor`.
#[derive(Args, Debug)]
#[command(mut_arg("location", |arg| {
    arg.required(false)
        .default_value(PLACEHOLDER_REFERENCE)
        .hide_default_value(true)
        .help("Check this reference too: its registry, and how lazily it is read")
}))]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    image: ImageArgs,

    /// Form of the output.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: OutputFormat,
}

/// Checks the machine, the cache, and the registry of a reference.
pub(super) fn doctor(args: &DoctorArgs) -> Result<(), CliError> {
    let runtime = start(&args.image)?;
    let mut findings = mount::checkup();
    findings.push(cache(&args.image));
    if PLACEHOLDER_REFERENCE.parse().is_ok_and(|nothing: ImageLocation| args.image.location != nothing) {
        findings.extend(runtime.block_on(reference(&args.image)));
    }
    let mut out = output::plain_stdout();
    let written = match args.format {
        OutputFormat::Json => json(&findings, &mut out),
        OutputFormat::Text => text(&findings, takes_colours(&io::stdout()), &mut out),
    };
    output::printed(written.and_then(|()| out.flush()))?;
    match findings.iter().any(|finding| finding.health == FactHealth::Bad) {
        true => Err(CliError::already_reported(exit::GENERIC)),
        false => Ok(()),
    }
}

fn cache(args: &ImageArgs) -> CheckedFact {
    let hint = "choose another directory with --cache-dir";
    let dir = match args.cache.dir() {
        Ok(dir) => dir,
        Err(failure) => return CheckedFact::bad("cache", failure.to_string(), hint),
    };
    let opened = BlockCache::open_limited(&dir, args.cache_size.limit()).map_err(CliError::from);
    match opened.and_then(|_| {
        nix::sys::statvfs::statvfs(&dir).map_err(|errno| CliError::local("looking at the cache", &errno))
    }) {
        Ok(disk) => {
            let free = disk.blocks_available().saturating_mul(disk.fragment_size());
            let detail = format!("{} takes files, {} are free there", dir.display(), human(free));
            match free {
                ..0x4000_0000 => CheckedFact::limited(
                    "cache",
                    detail,
                    "evicted content is fetched again; free space, or choose another directory with --cache-dir",
                ),
                _ => CheckedFact::good("cache", detail),
            }
        }
        Err(failure) => CheckedFact::bad("cache", failure.to_string(), hint),
    }
}

async fn reference(args: &ImageArgs) -> Vec<CheckedFact> {
    let begun = Instant::now();
    let family = match open(args).await {
        Ok(family) => family,
        Err(failure) => {
            let hint = failure.hint().unwrap_or("\"ocifs inspect\" fails likewise").to_owned();
            return vec![CheckedFact::bad("reference", failure.to_string(), hint)];
        }
    };
    let mut findings = vec![CheckedFact::good(
        "reference",
        format!("{} opens in {}", family.pinned(), millis(begun.elapsed())),
    )];
    if let Some(image) = family.main() {
        findings.push(ranges(image).await);
        findings.push(laziness(image).await);
    } else {
        findings.push(several(&family));
    }
    findings
}

async fn ranges(image: &OpenImage) -> CheckedFact {
    match image.probe().await {
        Ok(None) => CheckedFact::good("ranges", "no blob to request"),
        Ok(Some(probe)) if probe.ranges => CheckedFact::good(
            "ranges",
            format!(
                "{} of the largest blob, {} of {}, come in {}, {} at once in {}",
                human(BlobProbe::PROBE_BYTES.min(probe.size)),
                probe.blob,
                human(probe.size),
                millis(probe.first),
                BlobProbe::PROBE_CONCURRENCY,
                millis(probe.parallel)
            ),
        ),
        Ok(Some(_)) => CheckedFact::limited(
            "ranges",
            "the registry answers a range with the whole blob",
            "the first read of a blob waits for every byte before it; a mirror that serves ranges helps (docs/registries.md)",
        ),
        Err(error) => CheckedFact::bad(
            "ranges",
            error.chain(),
            "the manifest is readable and its blobs are not: may this user read both?",
        ),
    }
}

async fn laziness(image: &OpenImage) -> CheckedFact {
    let offered = if image.has_archives() { image.offered_indexes().await } else { Vec::new() };
    let count = image.manifest().layers.len();
    let slow: Vec<_> = (0..count).filter(|at| !image.access(*at, &offered).is_lazy()).collect();
    match slow.as_slice() {
        [] => CheckedFact::good("laziness", format!("all of {count} layers can be read by range")),
        slow => {
            let numbers: Vec<_> = slow.iter().map(ToString::to_string).collect();
            CheckedFact::limited(
                "laziness",
                format!(
                    "layers {} of {count} are compressed and have no index: each is read once before its files can be",
                    numbers.join(", ")
                ),
                "\"ocifs index build\" builds the index on this machine, \"ocifs index push\" publishes it for others; --prefetch=all does not wait for the first reader",
            )
        }
    }
}

fn several(family: &ImageSet) -> CheckedFact {
    let count = family.members().len();
    CheckedFact::good("laziness", format!("the index has {count} manifests and none is chosen"))
}

fn millis(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DoctorReport<'a> {
    schema_version: u32,
    findings: Vec<FindingReport<'a>>,
}

#[derive(Serialize)]
struct FindingReport<'a> {
    subject: &'a str,
    health: &'static str,
    told: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
}

fn json(findings: &[CheckedFact], out: &mut dyn Write) -> io::Result<()> {
    let findings = findings.iter().map(|finding| FindingReport {
        subject: finding.subject,
        health: words(finding.health),
        told: &finding.detail,
        hint: finding.hint.as_deref(),
    });
    output::json(out, &DoctorReport { schema_version: 1, findings: findings.collect() })
}

fn text(findings: &[CheckedFact], colours: bool, out: &mut dyn Write) -> io::Result<()> {
    for finding in findings {
        let word = words(finding.health);
        let colour = match finding.health {
            FactHealth::Good => "32",
            FactHealth::Limited => "33",
            FactHealth::Bad => "31",
        };
        if colours {
            write!(out, "\x1b[{colour}m{word:<8}\x1b[0m")?
        } else {
            write!(out, "{word:<8}")?
        }
        write!(out, "{:<13}", finding.subject)?;
        safe(out, finding.detail.as_bytes())?;
        out.write_all(b"\n")?;
        if let Some(hint) = &finding.hint {
            write!(out, "{:21}", "")?;
            safe(out, hint.as_bytes())?;
            out.write_all(b"\n")?;
        }
    }
    Ok(())
}

fn words(health: FactHealth) -> &'static str {
    match health {
        FactHealth::Good => "good",
        FactHealth::Limited => "limited",
        FactHealth::Bad => "bad",
    }
}
