//! tart disks: chunks of at most 512 MiB, each an Apple LZ4 stream of its own, in manifest order.
//!
//! The older `disk.v1` is not presented, because its layers are pieces of one stream. The rules are those of tart's
//! `OCI/Manifest.swift` and `OCI/Layerizer/DiskV2.swift`: every chunk states the size and digest of its unpacked
//! bytes. The config is the stub of a container image, so the types of the layers decide.

use crate::oci::Manifest;

use super::chunks::{DiskChunk, DiskClaims, digest, number, tile};
use super::name::UniqueNames;
use super::{DiskDetection, DiskFormat, DiskPacking, PartPlan};

const V1: &str = "application/vnd.cirruslabs.tart.disk.v1";
const V2: &str = crate::artifact::TART_DISK;
const SIZE: &str = "org.cirruslabs.tart.uncompressed-size";
const CONTENT: &str = "org.cirruslabs.tart.uncompressed-content-digest";
const WHOLE_SIZE: &str = "org.cirruslabs.tart.uncompressed-disk-size";

/// The disk of a machine in tart; each machine has one.
const NAME: &str = "disk.raw";

fn layers<'a>(manifest: &'a Manifest, kind: &'a str) -> impl Iterator<Item = usize> + 'a {
    let layers = manifest.layers.iter().enumerate();
    layers.filter(move |(_, layer)| layer.media_type.essence() == kind).map(|(index, _)| index)
}

/// Whether any layer has one of the types.
pub(super) fn has_disks(manifest: &Manifest) -> bool {
    layers(manifest, V1).chain(layers(manifest, V2)).next().is_some()
}

/// The disk.
pub(super) fn detect(manifest: &Manifest) -> DiskDetection {
    if layers(manifest, V1).next().is_some() {
        let reason = "the layers of tart's disk.v1 are pieces of one compressed stream, which has to be unpacked from its \
                      start to be read; newer versions of tart do not read it either";
        return DiskDetection::problem(NAME, reason);
    }
    let mut found = DiskDetection::default();
    found.add(manifest, &mut UniqueNames::default(), (NAME, &DiskFormat::Raw), parts(manifest));
    if let Some(disk) = found.disks.first().filter(|disk| disk.size.is_none()) {
        let name = &disk.name;
        found.warnings.push(format!("{name}: some layers lack {SIZE}, which tart requires"));
    }
    found
}

fn parts(manifest: &Manifest) -> Result<Vec<PartPlan>, String> {
    let chunk = |index: usize| {
        let annotations = &manifest.layers[index].annotations;
        let (size, content) = (number(annotations, SIZE)?, digest(annotations, CONTENT)?);
        Ok(DiskChunk { size, content, ..DiskChunk::bare(index, DiskPacking::Packed) })
    };
    let chunks = layers(manifest, V2).map(chunk).collect::<Result<_, String>>()?;
    let whole = DiskClaims { chunks: None, size: number(&manifest.annotations, WHOLE_SIZE)? };
    tile(manifest, chunks, whole)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{layer, manifest};
    use super::super::{DiskBody, PartOrder, detect};
    use super::*;
    use crate::oci::Digest;

    /// As `tart push` writes it: a stub of a container image's config, config, disk and nvram as layers.
    fn tart(sizes: &[u64]) -> Manifest {
        let mut tart = manifest("", [("application/vnd.cirruslabs.tart.config.v1", "")]);
        tart.config = Some(layer("application/vnd.oci.image.config.v1+json", None, 200, "stub"));
        for (number, size) in sizes.iter().enumerate() {
            let mut disk = layer(V2, None, 7, &format!("disk {number}"));
            disk.annotations.insert(SIZE.into(), size.to_string());
            disk.annotations.insert(CONTENT.into(), Digest::sha256(&[number as u8]).to_string());
            tart.layers.push(disk);
        }
        tart.layers.push(layer("application/vnd.cirruslabs.tart.nvram.v1", None, 3, "nvram"));
        let whole: u64 = sizes.iter().sum();
        tart.annotations.insert(WHOLE_SIZE.into(), whole.to_string());
        tart
    }

    #[test]
    fn chunks_are_joined_as_listed_with_sizes_and_digests() {
        let found = detect(&tart(&[512 << 20, 512 << 20, 1000]), PartOrder::Epoch);
        assert!(found.problems.is_empty() && found.warnings.is_empty(), "{found:?}");
        let disk = &found.disks[0];
        assert_eq!((disk.name.as_str(), &disk.label), ("disk.raw", &DiskFormat::Raw));
        assert_eq!(disk.size, Some((1 << 30) + 1000));
        let DiskBody::Parts(parts) = &disk.body else { panic!("{disk:?}") };
        assert_eq!(disk.layers().collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!((parts[2].packing, parts[2].size), (DiskPacking::Packed, Some(1000)));
        assert_eq!(parts[1].content, Some(Digest::sha256(&[1])));
    }

    #[test]
    fn claims_that_contradict_each_other_are_no_disk() {
        let mut short = tart(&[5, 6]);
        short.annotations.insert(WHOLE_SIZE.into(), "12".into());
        let found = detect(&short, PartOrder::Epoch);
        assert!(found.disks.is_empty() && found.problems[0].reason.contains("11 bytes together"));
        for (key, value) in [(SIZE, "many"), (CONTENT, "sha256:00"), (CONTENT, "blake3:00")] {
            let mut odd = tart(&[5, 6]);
            odd.layers[1].annotations.insert(key.into(), value.into());
            let found = detect(&odd, PartOrder::Epoch);
            assert!(found.disks.is_empty() && found.problems[0].reason.contains(key), "{found:?}");
        }
        let found = detect(&tart(&[u64::MAX / 2, 1]), PartOrder::Epoch);
        assert!(found.problems[0].reason.contains("2^63 - 1"));
    }

    #[test]
    fn chunk_without_a_size_is_read_and_reported() {
        let mut bare = tart(&[5, 6]);
        bare.layers[1].annotations.clear();
        let found = detect(&bare, PartOrder::Epoch);
        assert_eq!((found.disks[0].size, found.warnings.len()), (None, 1));
    }

    #[test]
    fn the_first_version_is_named_as_absent() {
        let old = manifest("", [(V1, ""), (V1, "")]);
        let found = detect(&old, PartOrder::Epoch);
        assert!(found.disks.is_empty() && found.problems[0].reason.contains("one compressed stream"));
    }
}
