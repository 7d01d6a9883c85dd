//! vmlab templates: a qcow2 cut into chunks of one size, each a zstd file of its own.
//!
//! The digest of the whole disk is not used, because only a reader of all bytes could compare it. The rules are those
//! of vmlab's description of its artifacts: the manifest has the number of chunks and the total size, each layer its
//! index and unpacked size.

use crate::oci::Manifest;

use super::chunks::{DiskChunk, DiskClaims, number, tile};
use super::name::UniqueNames;
use super::{DiskDetection, DiskFormat, DiskPacking, PartPlan};

const CHUNK: &str = "application/vnd.vmlab.template.chunk.v1";
const COUNT: &str = "vnd.vmlab.template.chunk.count";
const WHOLE_SIZE: &str = "vnd.vmlab.template.total.size";
const NUMBER: &str = "vnd.vmlab.template.chunk.index";
const SIZE: &str = "vnd.vmlab.template.chunk.uncompressed.size";

fn layers(manifest: &Manifest) -> impl Iterator<Item = (usize, DiskPacking)> {
    manifest.layers.iter().enumerate().filter_map(|(index, layer)| {
        let essence = layer.media_type.essence();
        match essence.strip_prefix(CHUNK)? {
            "" => Some((index, DiskPacking::Stored)),
            suffix => suffix.starts_with('+').then_some((index, DiskPacking::Packed)),
        }
    })
}

/// Whether any layer is a chunk.
pub(super) fn has_disks(manifest: &Manifest) -> bool {
    layers(manifest).next().is_some()
}

/// The disk.
pub(super) fn detect(manifest: &Manifest) -> DiskDetection {
    let mut found = DiskDetection::default();
    found.add(manifest, &mut UniqueNames::default(), ("disk.qcow2", &DiskFormat::Qcow2), parts(manifest));
    found
}

fn parts(manifest: &Manifest) -> Result<Vec<PartPlan>, String> {
    let chunk = |(index, packing): (usize, DiskPacking)| {
        let annotations = &manifest.layers[index].annotations;
        let (number, size) = (number(annotations, NUMBER)?, number(annotations, SIZE)?);
        Ok(DiskChunk { number, size, ..DiskChunk::bare(index, packing) })
    };
    let chunks = layers(manifest).map(chunk).collect::<Result<_, String>>()?;
    let whole = DiskClaims {
        chunks: number(&manifest.annotations, COUNT)?,
        size: number(&manifest.annotations, WHOLE_SIZE)?,
    };
    tile(manifest, chunks, whole)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{layers, manifest};
    use super::super::{PartOrder, detect};
    use super::*;

    fn template(numbers: &[&str]) -> Manifest {
        let kind = format!("{CHUNK}+zstd");
        let mut template =
            manifest("application/vnd.vmlab.template.v1", numbers.iter().map(|_| (kind.as_str(), "")));
        for (layer, number) in template.layers.iter_mut().zip(numbers) {
            layer.annotations = [(NUMBER.to_owned(), (*number).to_owned())].into();
            layer.annotations.insert(SIZE.into(), "536870912".into());
        }
        template.annotations.insert(COUNT.into(), numbers.len().to_string());
        template.annotations.insert(WHOLE_SIZE.into(), (numbers.len() << 29).to_string());
        template
    }

    #[test]
    fn chunks_are_joined_by_number() {
        let found = detect(&template(&["1", "0", "2"]), PartOrder::Epoch);
        assert!(found.problems.is_empty() && found.warnings.is_empty(), "{found:?}");
        let disk = &found.disks[0];
        assert_eq!(
            (disk.name.as_str(), &disk.label, disk.size),
            ("disk.qcow2", &DiskFormat::Qcow2, Some(3 << 29))
        );
        assert_eq!(layers(disk), [1, 0, 2]);
    }

    #[test]
    fn a_chunk_that_is_missing_is_no_disk() {
        let mut template = template(&["0", "1", "2"]);
        template.layers.pop();
        let found = detect(&template, PartOrder::Epoch);
        assert!(found.disks.is_empty() && found.problems[0].reason.contains("manifest states 3"));
    }
}
