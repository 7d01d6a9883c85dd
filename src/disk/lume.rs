//! lume disks in three forms: chunks with offsets, splits numbered by a parameter of the media type, and LZ4 chunks
//! in manifest order.
//!
//! The label `+lzfse` is ignored: such layers hold plain bytes. The rules are those of lume's
//! `ImageContainerRegistry.swift` and of its published images, where splits are also labelled as tar archives. The
//! config may be that of a container image, so the layers decide.

use std::collections::BTreeMap;

use crate::oci::{Descriptor, Manifest};

use super::chunks::{DiskChunk, DiskClaims, digest, number, parse, shown, tile};
use super::name::UniqueNames;
use super::{DiskDetection, DiskFormat, DiskPacking, PartPlan};

const DISK: &str = "application/vnd.trycua.lume.disk.v1";
const LZ4: &str = "application/octet-stream+lz4";
const NUMBER: &str = "org.trycua.lume.part.number";
const TOTAL: &str = "org.trycua.lume.part.total";
const OFFSET: &str = "org.trycua.lume.part.offset";
const SIZE: &str = "org.trycua.lume.content.uncompressed-size";
const CONTENT: &str = "org.trycua.lume.content.uncompressed-digest";
const WHOLE_SIZE: &str = "org.trycua.lume.total-uncompressed-size";

/// The disk of a machine in lume; each machine has one.
const NAME: &str = "disk.img";

/// The form in which a layer is part of the disk.
enum PartForm<'a> {
    /// By its type; the rest is in annotations.
    Chunk,
    /// By parameters of its type.
    Split { number: &'a str, total: Option<&'a str> },
    /// By its type, without a title of another file.
    Lz4,
}

fn form(layer: &Descriptor) -> Option<PartForm<'_>> {
    let essence = layer.media_type.essence();
    if essence == DISK {
        return Some(PartForm::Chunk);
    }
    if let Some(number) = parameter(layer, "part.number") {
        return Some(PartForm::Split { number, total: parameter(layer, "part.total") });
    }
    let named = layer.title().is_some_and(|title| !title.is_empty() && !title.starts_with(NAME));
    (essence == LZ4 && !named).then_some(PartForm::Lz4)
}

/// A parameter of the media type. Its name may contain a dot by RFC 2045.
fn parameter<'a>(layer: &'a Descriptor, name: &str) -> Option<&'a str> {
    layer.media_type.as_written().split(';').skip(1).find_map(|parameter| {
        let (key, value) = parameter.split_once('=')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"'))
    })
}

/// Whether any layer has one of the forms.
pub(super) fn has_disks(manifest: &Manifest) -> bool {
    manifest.layers.iter().any(|layer| form(layer).is_some())
}

/// The disk.
pub(super) fn detect(manifest: &Manifest) -> DiskDetection {
    let mut found = DiskDetection::default();
    found.add(manifest, &mut UniqueNames::default(), (NAME, &DiskFormat::Raw), parts(manifest));
    found
}

fn parts(manifest: &Manifest) -> Result<Vec<PartPlan>, String> {
    let (mut chunks, mut totals) = (Vec::new(), BTreeMap::new());
    for (index, layer) in manifest.layers.iter().enumerate() {
        let Some(form) = form(layer) else { continue };
        let notes = &layer.annotations;
        let mut chunk = DiskChunk::bare(index, packing(layer));
        chunk.offset = number(notes, OFFSET)?;
        chunk.size = number(notes, SIZE)?;
        chunk.content = digest(notes, CONTENT)?;
        chunk.number = number(notes, NUMBER)?;
        let mut total = number(notes, TOTAL)?;
        if let PartForm::Split { number, total: of } = form {
            let value =
                |text: &str| parse(text).ok_or_else(|| format!("{:?} is no number of a part", shown(text)));
            chunk.number = Some(value(number)?);
            total = of.map(value).transpose()?;
        }
        totals.extend(total.map(|total| (total, index)));
        chunks.push(chunk);
    }
    if totals.len() > 1 {
        return Err(format!("its parts state different counts: {:?}", totals.keys().take(4)));
    }
    let chunks_claimed = totals.keys().next().copied();
    tile(
        manifest,
        chunks,
        DiskClaims { chunks: chunks_claimed, size: number(&manifest.annotations, WHOLE_SIZE)? },
    )
}

/// Chunks are gzip files. Otherwise the label decides, except for the one that is known to be wrong.
fn packing(layer: &Descriptor) -> DiskPacking {
    let essence = layer.media_type.essence();
    match essence.rsplit_once('+') {
        _ if essence == DISK => DiskPacking::Packed,
        Some((_, "lzfse")) | None => DiskPacking::Stored,
        Some(_) => DiskPacking::Packed,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{layer, layers, manifest};
    use super::super::{DiskBody, DiskPlan, PartOrder, detect};
    use super::*;
    use crate::oci::Digest;

    fn only(manifest: &Manifest) -> DiskPlan {
        let found = detect(manifest, PartOrder::Epoch);
        assert!(found.problems.is_empty() && found.warnings.is_empty(), "{found:?}");
        assert_eq!((found.disks.len(), found.disks[0].name.as_str()), (1, NAME));
        found.disks[0].clone()
    }

    fn problem(manifest: &Manifest) -> String {
        let found = detect(manifest, PartOrder::Epoch);
        assert!(found.disks.is_empty(), "{found:?}");
        found.problems[0].to_string()
    }

    /// Number, offset and size of each chunk, as `lume push` writes them.
    fn chunked(chunks: &[(u64, u64, u64)]) -> Manifest {
        let mut lume = manifest("application/vnd.trycua.lume.config.v1+json", []);
        for (number, offset, size) in chunks {
            let mut chunk = layer(DISK, Some(&format!("disk.img.part.{number}")), 5, &offset.to_string());
            let mut note = |key: &str, value: String| chunk.annotations.insert(key.into(), value);
            note(NUMBER, number.to_string());
            note(TOTAL, chunks.len().to_string());
            note(OFFSET, offset.to_string());
            note(SIZE, size.to_string());
            note(CONTENT, Digest::sha256(&offset.to_be_bytes()).to_string());
            lume.layers.push(chunk);
        }
        lume.layers.push(layer("application/vnd.trycua.lume.nvram.v1", Some("nvram.bin"), 3, "nvram"));
        let whole: u64 = chunks.iter().map(|chunk| chunk.2).sum();
        lume.annotations.insert(WHOLE_SIZE.into(), whole.to_string());
        lume
    }

    #[test]
    fn chunks_with_offsets_tile_the_disk() {
        let disk = only(&chunked(&[(1, 512, 512), (0, 0, 512), (2, 1024, 7)]));
        assert_eq!((layers(&disk), disk.size), (vec![1, 0, 2], Some(1031)));
        let DiskBody::Parts(parts) = disk.body else { unreachable!("lume has no members") };
        assert_eq!((parts[2].packing, parts[2].size), (DiskPacking::Packed, Some(7)));
        assert_eq!(parts[0].content, Some(Digest::sha256(&0u64.to_be_bytes())));
    }

    #[test]
    fn chunks_that_got_lost_or_overlap_are_no_disk() {
        assert!(problem(&chunked(&[(0, 0, 512), (1, 513, 512)])).contains("gap"));
        assert!(problem(&chunked(&[(0, 0, 512), (1, 511, 512)])).contains("overlap"));
        let mut lost = chunked(&[(0, 0, 512), (1, 512, 512), (2, 1024, 7)]);
        lost.layers.remove(1);
        assert!(problem(&lost).contains("manifest states 3"));
        for layer in &mut lost.layers {
            layer.annotations.remove(TOTAL);
        }
        assert!(problem(&lost).contains("between the numbers 0 and 2"));
    }

    #[test]
    fn splits_are_numbered_by_parameters_of_their_type() {
        for kind in ["application/vnd.oci.image.layer.v1.tar", "application/octet-stream+lzfse"] {
            let kinds = [3, 1, 2].map(|number| format!("{kind};part.number={number};part.total=3"));
            let titled = kinds.iter().map(|kind| (kind.as_str(), "disk.img.part.ab"));
            let mut split = manifest("", titled);
            split.config = Some(layer("application/vnd.oci.image.config.v1+json", None, 2, "{}"));
            split.layers.push(layer("application/octet-stream", Some("nvram.bin"), 3, "nvram"));
            let disk = only(&split);
            assert_eq!((layers(&disk), disk.size), (vec![1, 2, 0], Some(12)), "stored as they are");
            split.layers.remove(1);
            assert!(problem(&split).contains("manifest states 3"));
        }
        let odd = [("application/octet-stream;part.number=one", "a")];
        assert!(problem(&manifest("", odd)).contains("no number of a part"));
        let kinds = ["x/y;part.number=1;part.total=2", "x/y;part.number=2;part.total=3"];
        assert!(problem(&manifest("", kinds.map(|kind| (kind, "")))).contains("state different counts"));
    }

    #[test]
    fn the_oldest_chunks_are_joined_as_listed() {
        let disk = only(&manifest(
            "",
            [(LZ4, "disk.img.part.0"), (LZ4, ""), ("application/octet-stream", "nvram.bin")],
        ));
        assert_eq!((layers(&disk), disk.size), (vec![0, 1], None));
        let other = manifest("", [(LZ4, "notes.txt.lz4")]);
        assert_eq!(detect(&other, PartOrder::Epoch), DiskDetection::default());
    }
}
