//! `ocifs inspect`: the content of a reference, and how lazily each part can be read. Only documents are read.

use std::io::{self, Write};

use clap::Args;
use serde::Serialize;

use crate::artifact::FileBody;
use crate::disk::{self, DiskBody, DiskPacking};
use crate::image::{ImageSet, MemberStatus, OpenImage};
use crate::layer::IndexKind;
use crate::oci::{Digest, ManifestDocument, classify, classify_manifest, differing_properties};
use crate::view;

use super::args::ImageArgs;
use super::blob_totals::percent;
use super::exit::CliError;
use super::output::{self, human};
use super::output_format::OutputFormat;
use super::setup::{open, start};
use super::table::{COLUMNS, TextColor, TextStyle, grouped, runs, short_type};

#[derive(Args, Debug)]
pub(super) struct InspectArgs {
    #[command(flatten)]
    pub(super) image: ImageArgs,

    /// Form of the output.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub(super) format: OutputFormat,

    /// Show whole digests, types and titles.
    #[arg(long)]
    pub(super) no_trunc: bool,
}

/// Prints the content of a reference.
pub(super) fn inspect(args: &InspectArgs) -> Result<(), CliError> {
    let runtime = start(&args.image)?;
    let (family, offered) = runtime.block_on(async {
        let family = open(&args.image).await?;
        let offered = match family.main() {
            Some(image) if image.has_archives() => image.offered_indexes().await,
            _ => Vec::new(),
        };
        Ok::<_, CliError>((family, offered))
    })?;
    let mut out = output::plain_stdout();
    let look = TextStyle::of_stdout(!args.no_trunc);
    output::printed(print(&family, &offered, args.format, look, &mut out).and_then(|()| out.flush()))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InspectReport {
    schema_version: u32,
    reference: String,
    digest: String,
    class: &'static str,
    kind: Option<String>,
    /// The directories of a mount that show the image.
    shown_in: Vec<&'static str>,
    /// Path of the merged tree as a disk, an EROFS image that the kernel and virtual machines mount; `None` without
    /// one.
    #[serde(skip_serializing_if = "Option::is_none")]
    rootfs: Option<&'static str>,
    platforms: Vec<String>,
    /// The entries of the index; empty for a manifest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    manifests: Vec<EntryReport>,
    layers: Vec<LayerReport>,
    files: Vec<FileReport>,
    disks: Vec<DiskReport>,
    /// Images that are shown in directories of their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    members: Vec<MemberStatus>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EntryReport {
    digest: String,
    platform: Option<String>,
    media_type: String,
    artifact_type: Option<String>,
    /// Properties that distinguish the entry from similar ones, as --select takes them.
    distinguished_by: Vec<String>,
    /// Whether the root of a mount shows this entry.
    shown: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LayerReport {
    layer: usize,
    digest: String,
    media_type: String,
    size: u64,
    cached: u64,
    title: Option<String>,
    /// The kind of the index that gives random access to its files; `None` without one.
    index: Option<String>,
    access: String,
}

#[derive(Serialize)]
struct FileReport {
    path: String,
    /// The layers that the file consists of.
    layers: Vec<usize>,
    /// Size in bytes; `None` for a directory.
    size: Option<u64>,
    /// How the layers become the file.
    form: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DiskReport {
    path: String,
    format: String,
    /// The layers that the disk consists of, in order; empty for a file of the merged tree.
    layers: Vec<usize>,
    /// Size in bytes; `None` when only unpacking reveals it.
    size: Option<u64>,
    /// Path of the raw form of a qcow2 disk, as the machine sees it; `None` where there is none. The header may still
    /// exclude it.
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: Option<String>,
    access: &'static str,
}

/// Prints the report on `family`; `offered` are the indexes published beside its image. Reads no blob.
fn print(
    family: &ImageSet,
    offered: &[(Digest, IndexKind)],
    format: OutputFormat,
    look: TextStyle,
    out: &mut dyn Write,
) -> io::Result<()> {
    let report = report(family, offered);
    match format {
        OutputFormat::Json => output::json(out, &report),
        OutputFormat::Text => text(&report, look, out),
    }
}

fn report(family: &ImageSet, offered: &[(Digest, IndexKind)]) -> InspectReport {
    let entries = match family.document() {
        ManifestDocument::Index(index) => &index.manifests[..],
        ManifestDocument::Manifest(_) => &[],
    };
    let platforms = entries.iter().filter_map(|entry| entry.platform.as_ref());
    let listed: Vec<_> = entries.iter().collect();
    let properties = differing_properties(&listed);
    let manifests = entries.iter().zip(properties).map(|(entry, properties)| EntryReport {
        digest: entry.digest.to_string(),
        platform: entry.platform.as_ref().map(ToString::to_string),
        media_type: entry.media_type.as_written().to_owned(),
        artifact_type: entry.artifact_type.as_ref().map(|kind| kind.as_written().to_owned()),
        distinguished_by: properties.iter().map(|(key, value)| format!("{key}={value}")).collect(),
        shown: family.main().is_some_and(|image| *image.manifest_digest() == entry.digest),
    });
    let image = family.main();
    InspectReport {
        schema_version: 1,
        reference: family.pinned().to_owned(),
        digest: family.digest().to_string(),
        class: class(family),
        kind: image
            .map_or_else(|| family.document().kind(), |image| image.manifest().kind())
            .map(|kind| kind.as_written().to_owned()),
        shown_in: image.map(|image| view::directories(image)).unwrap_or_default(),
        rootfs: image.and_then(|image| view::rootfs(image)),
        platforms: platforms.filter(|platform| !platform.is_unknown()).map(ToString::to_string).collect(),
        manifests: manifests.collect(),
        layers: image.map(|image| layers(image, offered)).unwrap_or_default(),
        files: image.map(|image| files(image)).unwrap_or_default(),
        disks: image.map(|image| disks(image)).unwrap_or_default(),
        members: family.status().members,
        warnings: family.warnings(),
    }
}

fn layers(image: &OpenImage, offered: &[(Digest, IndexKind)]) -> Vec<LayerReport> {
    let status = image.status();
    let cached = |digest: &str| {
        status.blobs.iter().find(|blob| blob.digest.as_str() == digest).map_or(0, |blob| blob.cached)
    };
    let layers = image.manifest().layers.iter().enumerate().map(|(at, descriptor)| LayerReport {
        layer: at,
        digest: descriptor.digest.to_string(),
        media_type: descriptor.media_type.as_written().to_owned(),
        size: descriptor.size,
        cached: cached(descriptor.digest.as_str()),
        title: descriptor.title().map(str::to_owned),
        index: image.index_of(at, offered).map(|kind| kind.to_string()),
        access: image.access(at, offered).to_string(),
    });
    layers.collect()
}

fn files(image: &OpenImage) -> Vec<FileReport> {
    let size_of = |layer: &usize| image.manifest().layers[*layer].size;
    let files = image.contents().files.iter().map(|file| {
        let (layers, size, form) = match &file.body {
            FileBody::Layer(layer) => (vec![*layer], Some(size_of(layer)), "as stored"),
            FileBody::Config => {
                (Vec::new(), image.manifest().config.as_ref().map(|config| config.size), "the config")
            }
            FileBody::Sparse { layer, size, .. } => (vec![*layer], Some(*size), "with its holes put back"),
            FileBody::Joined(segments) => (
                segments.iter().map(|segment| segment.layer).collect(),
                Some(segments.iter().map(|segment| segment.size).sum()),
                "joined",
            ),
            FileBody::Tree(tree) if tree.lenient => {
                (vec![tree.layer], None, "unpacked: its first bytes decide")
            }
            FileBody::Tree(tree) => (vec![tree.layer], None, "unpacked as a directory"),
        };
        FileReport { path: format!("files/{}", file.path), layers, size, form }
    });
    files.collect()
}

fn disks(image: &OpenImage) -> Vec<DiskReport> {
    let disks = image.detection().disks.iter().zip(image.detection().raw_names()).map(|(plan, raw)| DiskReport {
        path: format!("disk/{}", plan.name),
        format: match plan.label {
            disk::DiskFormat::Unlabelled => "format by its content".to_owned(),
            ref label => label.to_string(),
        },
        layers: plan.layers().collect(),
        size: plan.size,
        raw: raw.map(|name| format!("disk/{name}")),
        access: match &plan.body {
            DiskBody::Member { .. } => "a file of merged/, by range like those, perhaps one of several",
            DiskBody::File { .. } => "by range, holes need none",
            DiskBody::Parts(parts) if parts.iter().all(|part| part.packing == DiskPacking::Stored) => "by range",
            DiskBody::Parts(_) if plan.size.is_some() => "compressed: each part is unpacked when it is read",
            DiskBody::Parts(_) => {
                "compressed: its size is known once it was unpacked, unless the format records it; then by range as far as \
                 the format allows"
            }
        },
    });
    disks.collect()
}

fn class(family: &ImageSet) -> &'static str {
    let class = match family.main() {
        Some(image) => classify_manifest(image.manifest()),
        None => classify(family.document()),
    };
    class.words()
}

fn text(report: &InspectReport, look: TextStyle, out: &mut dyn Write) -> io::Result<()> {
    let field = |out: &mut dyn Write, name: &str, value: &str| look.field(out, name, TextColor::Plain, value);
    field(out, "reference", &look.reference(&report.reference))?;
    field(out, "class", report.class)?;
    if let Some(kind) = &report.kind {
        field(out, "type", kind)?;
    }
    if !report.shown_in.is_empty() {
        field(out, "shown in", &report.shown_in.join(", "))?;
    }
    if let Some(rootfs) = report.rootfs {
        field(
            out,
            "rootfs",
            &format!(
                "{rootfs}  EROFS image of merged/: for virtual machines, loop devices and mount -t erofs"
            ),
        )?;
    }
    if !report.platforms.is_empty() {
        field(out, "platforms", &report.platforms.join(", "))?;
    }
    for entry in &report.manifests {
        let platform = entry.platform.as_deref().unwrap_or("no platform");
        let shown = if entry.shown { "  (shown)" } else { "" };
        let line = format!(
            "{}  {platform}  {}{shown}",
            look.digest(&entry.digest),
            entry.distinguished_by.join("  ")
        );
        field(out, "manifest", line.trim_end())?;
    }
    for member in &report.members {
        let digest = look.digest(member.digest.as_str());
        field(out, "member", &format!("{}  {digest}  {}", member.directory, member.state))?;
    }
    table(&report.layers, look, out)?;
    for file in &report.files {
        let kind = if file.form.contains("its first bytes decide") {
            "a directory or a file"
        } else {
            "a directory"
        };
        let size = file.size.map_or_else(|| kind.to_owned(), human);
        field(out, "file", &format!("{}  {size}  {}", file.path, file.form))?;
    }
    for disk in &report.disks {
        let size = disk.size.map_or_else(|| "size not known yet".to_owned(), human);
        let parts = match disk.layers.len() {
            0 | 1 => "in one part".to_owned(),
            parts => format!("in {parts} parts"),
        };
        field(out, "disk", &format!("{}  {size}  {}, {parts}", disk.path, disk.format))?;
        field(out, "", disk.access)?;
        if let Some(raw) = &disk.raw {
            field(out, "", &format!("also as {raw}, unless its header allows no raw form"))?;
        }
    }
    for warning in &report.warnings {
        look.field(out, "warning", TextColor::Doubtful, warning)?;
    }
    Ok(())
}

/// Prints one line per layer, the sum, and how each layer is read.
fn table(layers: &[LayerReport], look: TextStyle, out: &mut dyn Write) -> io::Result<()> {
    if layers.is_empty() {
        return Ok(());
    }
    let digits = layers.iter().map(|layer| look.digest(&layer.digest).len()).max().unwrap_or_default();
    let kinds = layers.iter().map(|layer| short_type(&layer.media_type).chars().count().min(28));
    let kind_width = kinds.max().unwrap_or_default().max(4);
    let title = if layers.iter().any(|layer| layer.title.is_some()) { "TITLE" } else { "" };
    let head =
        format!("LAYER {:<digits$} {:>10} {:>7} {:<kind_width$} {title}", "DIGEST", "SIZE", "CACHED", "TYPE");
    writeln!(out, "\n{}", look.toned(TextColor::Heading, head.trim_end()))?;
    let share = |cached: u64, size: u64| {
        let share = percent(cached, size);
        let tone = if share >= 100.0 { TextColor::Good } else { TextColor::Plain };
        look.toned(tone, &format!("{:>7}", format!("{share:.0} %")))
    };
    for layer in layers {
        let kind = look.cut(short_type(&layer.media_type), kind_width);
        let taken = 6 + digits + 11 + 8 + 1 + kind_width + 1;
        let title = layer.title.as_deref().unwrap_or_default();
        let title = look.cut(title, COLUMNS.saturating_sub(taken).max(8));
        let digest = look.digest(&layer.digest);
        let line = format!(
            "{:>5} {digest:<digits$} {:>10} {} {kind:<kind_width$} {title}",
            format!("{:02}", layer.layer),
            human(layer.size),
            share(layer.cached, layer.size),
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    let sum = |of: fn(&LayerReport) -> u64| layers.iter().map(of).fold(0, u64::saturating_add);
    let (size, cached) = (sum(|layer| layer.size), sum(|layer| layer.cached));
    let count = format!("{} {}", layers.len(), if layers.len() == 1 { "layer" } else { "layers" });
    writeln!(out, "{:<5} {count:<digits$} {:>10} {}", "total", human(size), share(cached, size))?;
    out.write_all(b"\n")?;
    for (numbers, access) in grouped(layers.iter().map(|layer| (layer.layer, &layer.access[..]))) {
        look.field(out, "reads", TextColor::Plain, &format!("{}: {access}", runs(&numbers)))?;
    }
    Ok(())
}
