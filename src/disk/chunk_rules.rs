//! Chunked packagings: one row of rules for each tool that cuts a disk into layers.
//!
//! A row names the media type of the chunks, the name of the disk, and the annotations with sizes, numbers and digests.
//! [`tile`] checks the claims and joins the chunks. lume has several forms and a file of its own.

use std::collections::BTreeMap;

use crate::artifact::{TART_DISK, VETU_DISK};
use crate::oci::{Descriptor, Manifest};

use super::chunks::{DiskChunk, DiskClaims, digest, number, parse, shown, tile};
use super::name::UniqueNames;
use super::{DiskDetection, DiskFormat, DiskPacking, PartPlan};

/// The rules of one packaging. A field without a key is `None`.
pub(super) struct ChunkRules {
    /// The tool, for messages.
    tool: &'static str,
    /// The media type of a chunk.
    chunk: &'static str,
    encoding: ChunkEncoding,
    disks: DiskNaming,
    /// The annotation with the unpacked bytes of a chunk.
    size: SizeRule,
    /// The annotation with the digest of the unpacked bytes.
    content: Option<&'static str>,
    /// The annotation with the number of a chunk.
    number: Option<&'static str>,
    /// The annotation of the manifest with the bytes of the disk.
    whole_size: Option<&'static str>,
    /// The annotation of the manifest with the number of chunks.
    whole_count: Option<&'static str>,
    /// A media type of an older form that cannot be read at random, and the reason.
    refused: Option<(&'static str, &'static str)>,
}

/// How the bytes of a chunk are encoded.
enum ChunkEncoding {
    /// Compressed, each chunk on its own.
    Packed,
    /// By the suffix of the media type: compressed with one, plain without.
    BySuffix,
}

/// The disks that the chunks belong to.
enum DiskNaming {
    /// One disk of this name and format.
    Only(&'static str, DiskFormat),
    /// Disks by an annotation, in the order of their first chunks; raw unless the name claims another format.
    Each(&'static str),
    /// Files by an annotation, of which those named as disks are disks.
    Files(&'static str),
}

/// Where the size of a chunk stands.
enum SizeRule {
    /// In this annotation, which the tool requires.
    Required(&'static str),
    /// In this annotation, if it is there.
    Optional(&'static str),
    /// In this annotation: the first and the last byte, both included.
    Range(&'static str),
}

/// tart: `OCI/Manifest.swift` and `OCI/Layerizer/DiskV2.swift`. Chunks of at most 512 MiB, each an Apple LZ4 stream of
/// its own, in manifest order; the config is the stub of a container image.
pub(super) const TART: ChunkRules = ChunkRules {
    tool: "tart",
    chunk: TART_DISK,
    encoding: ChunkEncoding::Packed,
    disks: DiskNaming::Only("disk.raw", DiskFormat::Raw),
    size: SizeRule::Required("org.cirruslabs.tart.uncompressed-size"),
    content: Some("org.cirruslabs.tart.uncompressed-content-digest"),
    number: None,
    whole_size: Some("org.cirruslabs.tart.uncompressed-disk-size"),
    whole_count: None,
    refused: Some((
        "application/vnd.cirruslabs.tart.disk.v1",
        "the layers of tart's disk.v1 are pieces of one compressed stream, which has to be unpacked from its \
         start to be read; newer versions of tart do not read it either",
    )),
};

/// vetu: its `internal/oci` packages. Several disks, each cut into LZ4 frames in manifest order; the kernel and the
/// initramfs have types of their own and are not disks.
pub(super) const VETU: ChunkRules = ChunkRules {
    tool: "vetu",
    chunk: VETU_DISK,
    encoding: ChunkEncoding::Packed,
    disks: DiskNaming::Each("org.cirruslabs.vetu.name"),
    size: SizeRule::Optional("org.cirruslabs.vetu.uncompressed-size"),
    content: Some("org.cirruslabs.vetu.uncompressed-digest"),
    number: None,
    whole_size: None,
    whole_count: None,
    refused: None,
};

/// geranos: its `pkg/filesegment`. Segments of files, each compressed with zstd on its own.
pub(super) const GERANOS: ChunkRules = ChunkRules {
    tool: "geranos",
    chunk: "application/online.jarosik.tomasz.geranos.segment",
    encoding: ChunkEncoding::Packed,
    disks: DiskNaming::Files("filename"),
    size: SizeRule::Range("range"),
    content: None,
    number: None,
    whole_size: None,
    whole_count: None,
    refused: None,
};

/// vmlab: the description of its artifacts. A qcow2 in chunks of one size. The digest of the whole disk is not used,
/// because only a reader of all bytes could compare it.
pub(super) const VMLAB: ChunkRules = ChunkRules {
    tool: "vmlab",
    chunk: "application/vnd.vmlab.template.chunk.v1",
    encoding: ChunkEncoding::BySuffix,
    disks: DiskNaming::Only("disk.qcow2", DiskFormat::Qcow2),
    size: SizeRule::Optional("vnd.vmlab.template.chunk.uncompressed.size"),
    content: None,
    number: Some("vnd.vmlab.template.chunk.index"),
    whole_size: Some("vnd.vmlab.template.total.size"),
    whole_count: Some("vnd.vmlab.template.chunk.count"),
    refused: None,
};

impl ChunkRules {
    /// Whether any layer is a chunk, or of the refused form.
    pub(super) fn fits(&self, manifest: &Manifest) -> bool {
        self.is_refused(manifest) || self.chunks(manifest).next().is_some()
    }

    fn is_refused(&self, manifest: &Manifest) -> bool {
        self.refused
            .is_some_and(|(kind, _)| manifest.layers.iter().any(|layer| layer.media_type.essence() == kind))
    }

    /// The layers that are chunks.
    fn chunks<'a>(&'a self, manifest: &'a Manifest) -> impl Iterator<Item = ChunkLayer<'a>> {
        manifest.layers.iter().enumerate().filter_map(|(index, layer)| {
            let essence = layer.media_type.essence();
            let suffix = essence.strip_prefix(self.chunk)?;
            let packing = match (&self.encoding, suffix) {
                (ChunkEncoding::Packed, "") => DiskPacking::Packed,
                (ChunkEncoding::BySuffix, "") => DiskPacking::Stored,
                (ChunkEncoding::BySuffix, suffix) if suffix.starts_with('+') => DiskPacking::Packed,
                _ => return None,
            };
            Some(ChunkLayer { index, layer, packing })
        })
    }

    /// The disks.
    pub(super) fn detect(&self, manifest: &Manifest) -> DiskDetection {
        if let Some((_, reason)) = self.refused.filter(|_| self.is_refused(manifest)) {
            let name = match &self.disks {
                DiskNaming::Only(name, _) => name,
                DiskNaming::Each(_) | DiskNaming::Files(_) => self.tool,
            };
            return DiskDetection::problem(name, reason);
        }
        let (mut found, mut names) = (DiskDetection::default(), UniqueNames::default());
        for (name, label, chunks) in self.grouped(manifest) {
            found.add(manifest, &mut names, (name, &label), self.parts(manifest, &chunks));
        }
        if let SizeRule::Required(key) = self.size {
            for disk in found.disks.iter().filter(|disk| disk.size.is_none()) {
                let (name, tool) = (&disk.name, self.tool);
                found.warnings.push(format!("{name}: some layers lack {key}, which {tool} requires"));
            }
        }
        found
    }

    /// The chunks of each disk, with its name and format.
    fn grouped<'a>(&'a self, manifest: &'a Manifest) -> Vec<(&'a str, DiskFormat, Vec<ChunkLayer<'a>>)> {
        let key = match &self.disks {
            DiskNaming::Only(name, format) => {
                return vec![(*name, format.clone(), self.chunks(manifest).collect())];
            }
            DiskNaming::Each(key) | DiskNaming::Files(key) => *key,
        };
        let mut disks: Vec<(&str, DiskFormat, Vec<ChunkLayer<'_>>)> = Vec::new();
        let mut places = BTreeMap::new();
        for chunk in self.chunks(manifest) {
            let name = chunk.layer.annotations.get(key).map(String::as_str);
            let label = name.and_then(DiskFormat::by_extension);
            let (name, label) = match (&self.disks, name, label) {
                (DiskNaming::Files(_), Some(name), Some(label)) => (name, label),
                (DiskNaming::Files(_), ..) => continue,
                (_, name, label) => {
                    let label = label.filter(|label| *label != DiskFormat::Unlabelled);
                    (name.unwrap_or_default(), label.unwrap_or(DiskFormat::Raw))
                }
            };
            let place = *places.entry(name).or_insert(disks.len());
            match disks.get_mut(place) {
                Some((.., chunks)) => chunks.push(chunk),
                None => disks.push((name, label, vec![chunk])),
            }
        }
        if matches!(self.disks, DiskNaming::Files(_)) {
            disks.sort_by_key(|(name, ..)| *name);
        }
        disks
    }

    fn parts(&self, manifest: &Manifest, chunks: &[ChunkLayer<'_>]) -> Result<Vec<PartPlan>, String> {
        let chunks = chunks.iter().map(|chunk| self.claims(chunk)).collect::<Result<_, String>>()?;
        let of_manifest = |key: Option<&str>| key.map_or(Ok(None), |key| number(&manifest.annotations, key));
        let whole =
            DiskClaims { chunks: of_manifest(self.whole_count)?, size: of_manifest(self.whole_size)? };
        tile(manifest, chunks, whole)
    }

    /// The claims of one chunk.
    fn claims(&self, chunk: &ChunkLayer<'_>) -> Result<DiskChunk, String> {
        let notes = &chunk.layer.annotations;
        let mut claims = DiskChunk::bare(chunk.index, chunk.packing);
        if let Some(key) = self.number {
            claims.number = number(notes, key)?;
        }
        match self.size {
            SizeRule::Required(key) | SizeRule::Optional(key) => claims.size = number(notes, key)?,
            SizeRule::Range(key) => {
                let (first, size) = range(notes.get(key).map_or("", String::as_str), chunk.index)?;
                (claims.offset, claims.size) = (Some(first), Some(size));
            }
        }
        if let Some(key) = self.content {
            claims.content = digest(notes, key)?;
        }
        Ok(claims)
    }
}

/// A layer that is a chunk.
struct ChunkLayer<'a> {
    index: usize,
    layer: &'a Descriptor,
    packing: DiskPacking,
}

/// The offset and size in a range of the form FIRST-LAST.
fn range(range: &str, index: usize) -> Result<(u64, u64), String> {
    let (first, last) =
        range
            .split_once('-')
            .and_then(|(first, last)| Some((parse(first)?, parse(last)?)))
            .ok_or_else(|| format!("the range {:?} of layer {index} is not FIRST-LAST", shown(range)))?;
    let size = last.checked_sub(first).and_then(|size| size.checked_add(1));
    let size = size.ok_or_else(|| format!("the range {range} of layer {index} ends before it begins"))?;
    Ok((first, size))
}

#[cfg(test)]
mod tests;
