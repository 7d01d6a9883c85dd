//! `ocifs cache`: lists, measures, verifies and cleans the cache.

use std::collections::HashSet;
use std::io::{self, Write};
use std::ops::ControlFlow;

use serde::Serialize;

use crate::cache::{
    BlockCache, CacheError, CacheInventory, ContentDamage, ContentItem, ContentName, GcReport, ItemKind,
    PrunePolicy, ScannedFile, VerificationState,
};
use crate::image;
use crate::oci::Digest;
use crate::registry::RegistryOptions;

use super::cache_args::{
    CacheCommand, CacheListArgs, CacheSubject, CacheVerifyArgs, CollectArgs, PruneArgs, RemoveArgs,
};
use super::exit::CliError;
use super::network;
use super::output::{self, human};
use super::output_format::OutputFormat;

/// The schema version of the JSON output.
const SCHEMA_VERSION: u32 = 1;
/// Most unknown files listed by path in JSON; further ones are only counted.
const UNKNOWN: usize = 1000;

/// Runs a subcommand of `cache`.
pub(super) fn run(command: &CacheCommand) -> Result<(), CliError> {
    output::start_log(None)?;
    match command {
        CacheCommand::Ls(args) => list(args),
        CacheCommand::Du(args) => usage(args),
        CacheCommand::Rm(args) => remove(args),
        CacheCommand::Prune(args) => prune(args),
        CacheCommand::Verify(args) => verify(args),
        CacheCommand::Gc(args) => collect(args),
    }
}

/// One item of the cache in JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ContentRow<'a> {
    kind: &'static str,
    digest: &'a str,
    /// Digits of the origin scope; `None` for content that all scopes share.
    place: Option<&'a str>,
    /// Distinguishes items of the same digest and origin scope; `None` for kinds without such a part.
    part: Option<&'a str>,
    size: Option<u64>,
    on_disk: u64,
    state: &'static str,
    /// Seconds since 1970.
    last_used: u64,
    in_use: bool,
}

impl<'a> ContentRow<'a> {
    fn of(item: &'a ContentItem) -> Self {
        Self {
            kind: item.entry.kind.name(),
            digest: item.entry.digest.as_str(),
            place: item.entry.place.as_deref(),
            part: item.entry.part.as_deref(),
            size: item.size,
            on_disk: item.on_disk,
            state: state(item.state),
            last_used: item.last_used,
            in_use: item.in_use,
        }
    }
}

fn state(state: Option<VerificationState>) -> &'static str {
    match state {
        None => "none",
        Some(VerificationState::Partial) => "partial",
        Some(VerificationState::Complete) => "complete",
        Some(VerificationState::Verified) => "verified",
        Some(VerificationState::Poisoned) => "poisoned",
    }
}

/// Files whose names have no meaning in the cache format.
#[derive(Default, Serialize)]
struct UnknownFiles {
    count: u64,
    paths: Vec<String>,
}

impl UnknownFiles {
    /// Prints the path at once as text, or collects it for the JSON output.
    fn note(&mut self, path: &std::path::Path, format: OutputFormat) {
        self.count += 1;
        match format {
            OutputFormat::Text => report_unknown(path),
            OutputFormat::Json if self.paths.len() < UNKNOWN => self.paths.push(path.display().to_string()),
            OutputFormat::Json => {}
        }
    }
}

fn report_unknown(path: &std::path::Path) {
    let mut text = b"ocifs: skipped, not a file of ocifs: ".to_vec();
    // Writing to memory cannot fail, and standard error may be closed.
    output::safe(&mut text, path.as_os_str().as_encoded_bytes()).ok();
    text.push(b'\n');
    io::stderr().write_all(&text).ok();
}

/// Visits all content, and counts unknown files. Stops at the first error of the output.
fn each(
    inventory: &CacheInventory,
    format: OutputFormat,
    mut visit: impl FnMut(&ContentItem) -> io::Result<()>,
) -> Result<UnknownFiles, CliError> {
    let used = inventory.used()?;
    let mut unknown = UnknownFiles::default();
    let broken = inventory.walk(|found| {
        match found {
            ScannedFile::Content(entry) => {
                if let Some(item) = inventory.look(&entry, &used)?
                    && let Err(error) = visit(&item)
                {
                    return Ok(ControlFlow::Break(error));
                }
            }
            ScannedFile::Unknown(path) => unknown.note(&path, format),
            ScannedFile::Other(_) => {}
        }
        Ok(ControlFlow::Continue(()))
    })?;
    match broken {
        Some(error) => output::printed(Err(error)).map(|()| unknown),
        None => Ok(unknown),
    }
}

fn list(args: &CacheListArgs) -> Result<(), CliError> {
    let inventory = CacheInventory::open(&args.kept.dir()?)?;
    let mut out = output::stdout();
    match args.format {
        OutputFormat::Text => {
            let Some(inventory) = inventory else { return Ok(()) };
            let mut is_first = true;
            each(&inventory, args.format, |item| {
                if std::mem::take(&mut is_first) {
                    writeln!(
                        out,
                        "{:<8} {:>10} {:>10} {:<8} {:<20} {:<3} DIGEST",
                        "KIND", "SIZE", "ON DISK", "STATE", "LAST USE", "USE"
                    )?;
                }
                row(&mut out, item)
            })?;
        }
        OutputFormat::Json => {
            // One item at a time: there may be many.
            let begun = write!(out, "{{\n  \"schemaVersion\": {SCHEMA_VERSION},\n  \"contents\": [");
            output::printed(begun)?;
            let mut comma = "";
            let unknown = match &inventory {
                None => UnknownFiles::default(),
                Some(inventory) => each(inventory, args.format, |item| {
                    write!(out, "{}\n    ", std::mem::replace(&mut comma, ","))?;
                    output::json_line(&mut out, &ContentRow::of(item))
                })?,
            };
            let ended = write!(out, "\n  ],\n  \"unknown\": ")
                .and_then(|()| output::json_line(&mut out, &unknown))
                .and_then(|()| out.write_all(b"\n}\n"));
            output::printed(ended)?;
        }
    }
    output::printed(out.flush())
}

fn row(out: &mut dyn Write, item: &ContentItem) -> io::Result<()> {
    let time = i64::try_from(item.last_used)
        .ok()
        .and_then(|seconds| chrono::DateTime::from_timestamp(seconds, 0))
        .map_or_else(|| "?".to_owned(), |time| time.format("%Y-%m-%dT%H:%M:%SZ").to_string());
    write!(
        out,
        "{:<8} {:>10} {:>10} {:<8} {time:<20} {:<3} {}",
        item.entry.kind.name(),
        item.size.map_or_else(|| "?".to_owned(), human),
        human(item.on_disk),
        state(item.state),
        if item.in_use { "yes" } else { "-" },
        item.entry.digest,
    )?;
    tail(out, &item.entry)?;
    out.write_all(b"\n")
}

/// Prints the part and the origin scope, which distinguish entries of one digest.
fn tail(out: &mut dyn Write, entry: &ContentName) -> io::Result<()> {
    if let Some(part) = &entry.part {
        write!(out, " {part}")?;
    }
    if let Some(place) = &entry.place {
        write!(out, " of {place}")?;
    }
    Ok(())
}

/// Usage of one kind of content.
#[derive(Clone, Copy, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct KindTotal {
    count: u64,
    /// Sum of the known content sizes in bytes, stored or not.
    size: u64,
    on_disk: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CacheUsageRow {
    schema_version: u32,
    kinds: Vec<KindUsage>,
    total: KindTotal,
    unknown: UnknownFiles,
}

#[derive(Serialize)]
struct KindUsage {
    kind: &'static str,
    #[serde(flatten)]
    sum: KindTotal,
}

fn usage(args: &CacheListArgs) -> Result<(), CliError> {
    let mut sums = ItemKind::ALL.map(|kind| KindUsage { kind: kind.name(), sum: KindTotal::default() });
    let mut total = KindTotal::default();
    let unknown = match CacheInventory::open(&args.kept.dir()?)? {
        None => UnknownFiles::default(),
        Some(inventory) => each(&inventory, args.format, |item| {
            let of_kind = sums.iter_mut().filter(|sum| sum.kind == item.entry.kind.name());
            for sum in of_kind.map(|usage| &mut usage.sum).chain([&mut total]) {
                sum.count += 1;
                sum.size = sum.size.saturating_add(item.size.unwrap_or(0));
                sum.on_disk += item.on_disk;
            }
            Ok(())
        })?,
    };
    let mut out = output::stdout();
    let printed = match args.format {
        OutputFormat::Json => {
            let usage = CacheUsageRow { schema_version: SCHEMA_VERSION, kinds: sums.into(), total, unknown };
            output::json(&mut out, &usage)
        }
        OutputFormat::Text => {
            let line = |out: &mut dyn Write, name: &str, sum: KindTotal| {
                writeln!(out, "{name:<10} {:>8} {:>10}", sum.count, human(sum.on_disk))
            };
            writeln!(out, "{:<10} {:>8} {:>10}", "KIND", "COUNT", "ON DISK")
                .and_then(|()| sums.iter().try_for_each(|usage| line(&mut out, usage.kind, usage.sum)))
                .and_then(|()| line(&mut out, "total", total))
        }
    };
    output::printed(printed.and_then(|()| out.flush()))
}

/// Prints a line about content that was removed, is in use or is damaged.
fn print_entry(entry: &ContentName, what: &str) {
    let mut line = Vec::new();
    // Writing to memory cannot fail; a closed standard output is ignored.
    write!(line, "{what} {} {}", entry.kind.name(), entry.digest).and_then(|()| tail(&mut line, entry)).ok();
    line.push(b'\n');
    output::stdout().write_all(&line).ok();
}

fn total(swept: &GcReport) -> Result<(), CliError> {
    let mut out = output::stdout();
    let printed = writeln!(out, "{} removed, {} freed", swept.removed, human(swept.bytes));
    output::printed(printed.and_then(|()| out.flush()))
}

fn remove(args: &RemoveArgs) -> Result<(), CliError> {
    let dir = args.kept.dir()?;
    let Some(inventory) = CacheInventory::open(&dir)? else {
        return Err(CliError::absent(format!("the cache {} is empty", dir.display())));
    };
    let mut wanted: HashSet<Digest> = HashSet::new();
    let mut locations = Vec::new();
    for name in &args.names {
        match name {
            CacheSubject::Digest(digest) => {
                wanted.insert(digest.clone());
            }
            CacheSubject::Location(location) => locations.push(location),
        }
    }
    if !locations.is_empty() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|error| CliError::local("starting threads", &error))?;
        let registry = args.network.client(args.network.authfile.as_deref(), RegistryOptions::default())?;
        let cache = BlockCache::open(&dir)?;
        for location in locations {
            let location = network::in_full(location, &registry)?;
            wanted.extend(runtime.block_on(image::named(&location, &registry, &cache))?);
        }
    }
    let swept = inventory.remove(
        |entry| wanted.contains(&entry.digest),
        |entry, bytes| print_entry(entry, if bytes.is_some() { "removed" } else { "in use:" }),
    )?;
    if swept.removed == 0 && swept.in_use == 0 {
        return Err(CliError::absent("no cached content matches"));
    }
    total(&swept)?;
    if swept.in_use > 0 {
        return Err(CliError::busy(format!("{} contents are in use by a mount and stay", swept.in_use)));
    }
    Ok(())
}

fn prune(args: &PruneArgs) -> Result<(), CliError> {
    let swept = match CacheInventory::open(&args.kept.dir()?)? {
        None => GcReport::default(),
        Some(inventory) => {
            let limits = PrunePolicy { older_than: args.older_than, keep: args.keep };
            inventory.prune(limits, |entry, _| print_entry(entry, "removed"))?
        }
    };
    total(&swept)
}

fn verify(args: &CacheVerifyArgs) -> Result<(), CliError> {
    let dir = args.kept.dir()?;
    let Some(inventory) = CacheInventory::open(&dir)? else {
        return Err(CliError::absent(format!("the cache {} is empty", dir.display())));
    };
    let wanted: HashSet<&Digest> = args.digests.iter().collect();
    let used = inventory.used()?;
    let (mut count, mut bytes, mut damaged) = (0u64, 0u64, 0u64);
    inventory.walk(|found| {
        match found {
            ScannedFile::Content(entry) if wanted.is_empty() || wanted.contains(&entry.digest) => {
                let scrubbed = inventory.scrub(&entry, &used)?;
                count += 1;
                bytes += scrubbed.bytes;
                if let Some(damage) = scrubbed.damage {
                    damaged += 1;
                    let fate = if scrubbed.dropped { "dropped" } else { "in use, stays" };
                    print_entry(&entry, &format!("damaged ({}; {fate}):", describe(damage)));
                }
            }
            ScannedFile::Unknown(path) if wanted.is_empty() => report_unknown(&path),
            ScannedFile::Content(_) | ScannedFile::Unknown(_) | ScannedFile::Other(_) => {}
        }
        Ok::<_, CacheError>(ControlFlow::<()>::Continue(()))
    })?;
    if count == 0 && !wanted.is_empty() {
        return Err(CliError::absent("no cached content matches"));
    }
    let mut out = output::stdout();
    let printed = writeln!(out, "{count} verified, {} read, {damaged} damaged", human(bytes));
    output::printed(printed.and_then(|()| out.flush()))?;
    if damaged > 0 {
        return Err(CliError::mismatch(format!(
            "{damaged} contents were damaged; dropped blocks are fetched again on the next read"
        )));
    }
    Ok(())
}

fn describe(damage: ContentDamage) -> String {
    match damage {
        ContentDamage::Blocks(1) => "1 block".to_owned(),
        ContentDamage::Blocks(blocks) => format!("{blocks} blocks"),
        ContentDamage::Sidecar => "its checksums".to_owned(),
        ContentDamage::Data => "no data".to_owned(),
        ContentDamage::Digest => "digest mismatch".to_owned(),
        ContentDamage::File => "checksum mismatch".to_owned(),
    }
}

fn collect(args: &CollectArgs) -> Result<(), CliError> {
    let Some(inventory) = CacheInventory::open(&args.kept.dir()?)? else {
        return total(&GcReport::default());
    };
    inventory.walk(|found| {
        if let ScannedFile::Unknown(path) = found {
            report_unknown(&path);
        }
        Ok::<_, CacheError>(ControlFlow::<()>::Continue(()))
    })?;
    let swept = inventory.collect(|path, reason, _| {
        let line = format!("removed {} ({})\n", path.display(), reason.name());
        output::stdout().write_all(line.as_bytes()).ok();
    })?;
    total(&swept)
}
