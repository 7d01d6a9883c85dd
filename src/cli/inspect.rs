//! What `inspect` prints: what is in a reference and how lazily each part can be read, from documents alone.

use std::io::{self, Write};

use serde::Serialize;

use crate::disk::{self, Class};
use crate::image::Image;
use crate::layer::{IndexKind, LayerState};
use crate::oci::{Digest, Document};

use super::args::Format;
use super::output::{human, safe};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    schema_version: u32,
    reference: String,
    digest: String,
    class: &'static str,
    kind: Option<String>,
    platforms: Vec<String>,
    layers: Vec<LayerReport>,
    files: Vec<FileReport>,
    disks: Vec<DiskReport>,
    warnings: Vec<String>,
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
    /// The index that makes its files readable at random, if there is one.
    index: Option<String>,
    access: String,
}

#[derive(Serialize)]
struct FileReport {
    path: String,
    layer: usize,
    size: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DiskReport {
    path: String,
    format: String,
    parts: usize,
    size: u64,
}

/// Prints the report on `image`; `offered` are the indexes that lie beside it. Reads no blob.
pub(super) fn print(
    image: &Image,
    offered: &[(Digest, IndexKind)],
    format: Format,
    out: &mut dyn Write,
) -> io::Result<()> {
    let report = report(image, offered);
    match format {
        Format::Json => {
            serde_json::to_writer_pretty(&mut *out, &report)?;
            out.write_all(b"\n")
        }
        Format::Text => text(&report, out),
    }
}

fn report(image: &Image, offered: &[(Digest, IndexKind)]) -> Report {
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
        index: index(image, offered, at).map(|kind| kind.to_string()),
        access: access(image, offered, at),
    });
    let platforms = match image.document() {
        Document::Index(index) => {
            let platforms = index.manifests.iter().filter_map(|entry| entry.platform.as_ref());
            platforms.filter(|platform| !platform.is_unknown()).map(ToString::to_string).collect()
        }
        Document::Manifest(_) => Vec::new(),
    };
    Report {
        schema_version: 1,
        reference: image.pinned().to_owned(),
        digest: image.digest().to_string(),
        class: class(image),
        kind: image.manifest().kind().map(|kind| kind.as_written().to_owned()),
        platforms,
        layers: layers.collect(),
        files: image
            .files()
            .files
            .iter()
            .map(|file| FileReport {
                path: format!("files/{}", file.path),
                layer: file.layer,
                size: image.manifest().layers[file.layer].size,
            })
            .collect(),
        disks: image
            .detection()
            .disks
            .iter()
            .map(|plan| DiskReport {
                path: format!("disk/{}", plan.name),
                format: plan.label.to_string(),
                parts: plan.parts.len(),
                size: plan.size,
            })
            .collect(),
        warnings: image.warnings(),
    }
}

fn class(image: &Image) -> &'static str {
    match disk::classify(&Document::Manifest(image.manifest().clone())) {
        Class::CloudImage => "cloud image",
        Class::Snapshot => "machine snapshot",
        Class::ContainerImage => "container image",
        Class::Index => "index",
        Class::Unknown => "artifact",
    }
}

/// The index of the layer with this number, as far as documents and the cache tell.
fn index(image: &Image, offered: &[(Digest, IndexKind)], at: usize) -> Option<IndexKind> {
    let descriptor = &image.manifest().layers[at];
    let layer = image.archive(at)?;
    layer
        .known_index()
        .or_else(|| offered.iter().find(|(digest, _)| *digest == descriptor.digest).map(|(_, kind)| *kind))
}

/// How the layer with this number can be read, as far as its label and the cache tell.
fn access(image: &Image, offered: &[(Digest, IndexKind)], at: usize) -> String {
    let descriptor = &image.manifest().layers[at];
    if descriptor.digest.algorithm().is_none() {
        return format!("not served: digest algorithm {} is unknown", descriptor.digest.algorithm_name());
    }
    let Some(layer) = image.archive(at) else { return "by range".into() };
    match (layer.state(), index(image, offered, at)) {
        (LayerState::Failed(error), _) => format!("archive that cannot be read: {}", error.chain()),
        (_, Some(IndexKind::Local)) => "archive, indexed in the cache: by range".into(),
        (_, Some(kind)) => format!("archive with a {kind} index: by range"),
        (_, None) if descriptor.media_type.claims_uncompressed_tar() => {
            "archive, by range after a walk over its headers".into()
        }
        (_, None) => "archive, by range as stored; its files after one pass over it".into(),
    }
}

fn text(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let field = |out: &mut dyn Write, name: &str, value: &str| {
        write!(out, "{name:<10} ")?;
        safe(out, value.as_bytes())?;
        out.write_all(b"\n")
    };
    field(out, "reference", &report.reference)?;
    field(out, "class", report.class)?;
    if let Some(kind) = &report.kind {
        field(out, "type", kind)?;
    }
    if !report.platforms.is_empty() {
        field(out, "platforms", &report.platforms.join(", "))?;
    }
    for layer in &report.layers {
        let title = layer.title.as_deref().unwrap_or("-");
        let line = format!(
            "{:02}  {}  {} ({} cached)  {}  {}\n{:15}{}",
            layer.layer,
            layer.digest,
            human(layer.size),
            human(layer.cached),
            layer.media_type,
            title,
            "",
            layer.access
        );
        for (at, line) in line.lines().enumerate() {
            field(out, if at == 0 { "layer" } else { "" }, line.trim_end())?;
        }
    }
    for file in &report.files {
        field(out, "file", &format!("{}  {}", file.path, human(file.size)))?;
    }
    for disk in &report.disks {
        let line = format!("{}  {}  {}, {} parts", disk.path, human(disk.size), disk.format, disk.parts);
        field(out, "disk", &line)?;
    }
    for warning in &report.warnings {
        field(out, "warning", warning)?;
    }
    Ok(())
}
