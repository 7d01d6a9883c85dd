//! KubeVirt machine exports: one layer per disk, named by an annotation.
//!
//! The capacity of the claim, which is in the annotations too, is not the size of the disk. The rules are those of
//! KubeVirt's enhancement 256. A disk inside a container image is handled in `container.rs`.

use crate::oci::{Manifest, MediaType};

use super::assemble::{DiskCandidate, assemble};
use super::compressed;
use super::title::PartEvidence;
use super::{DiskDetection, DiskFormat, DiskPacking, PartOrder};

const PREFIX: &str = "application/vnd.kubevirt.disk.";
const NAME: &str = "io.kubevirt.disk.name";

/// The format in a media type, and the encoding of the disk.
fn disk_type(media_type: &MediaType) -> Option<(DiskFormat, DiskPacking)> {
    let essence = media_type.essence();
    let kind = essence.strip_prefix(PREFIX)?;
    let (format, suffix) = kind.split_once('+').map_or((kind, None), |(format, by)| (format, Some(by)));
    let label = DiskFormat::by_extension(&format!("x.{format}"))?;
    Some((label, if suffix.is_some() { DiskPacking::Packed } else { DiskPacking::Stored }))
}

/// Whether any layer has such a type.
pub(super) fn has_disks(manifest: &Manifest) -> bool {
    manifest.layers.iter().any(|layer| disk_type(&layer.media_type).is_some())
}

/// The disks.
pub(super) fn detect(manifest: &Manifest, order: PartOrder) -> DiskDetection {
    let mut candidates = Vec::new();
    for (index, layer) in manifest.layers.iter().enumerate() {
        let Some((label, labelled)) = disk_type(&layer.media_type) else { continue };
        let named = layer.annotations.get(NAME).filter(|name| !name.is_empty());
        let written = layer.title().unwrap_or_default();
        let titled = compressed::inner(written);
        // Either the title or the type may name a compression; uncompressed bytes are unpacked as themselves.
        let packing = if titled == written { labelled } else { DiskPacking::Packed };
        let title = named.map_or(titled, String::as_str);
        candidates.push(DiskCandidate { index, title, label, role: PartEvidence::Whole, packing });
    }
    assemble(manifest, &candidates, order)
}

#[cfg(test)]
mod tests {
    use super::super::detect;
    use super::super::fixtures::*;
    use super::*;

    fn export(disks: &[(&str, &str, &str)]) -> Manifest {
        let layers = disks.iter().map(|(kind, title, _)| (*kind, *title));
        let mut export = manifest("application/vnd.kubevirt.virtualmachine.v1", layers);
        for (layer, (_, _, name)) in export.layers.iter_mut().zip(disks) {
            if !name.is_empty() {
                layer.annotations.insert(NAME.into(), (*name).into());
            }
            layer.annotations.insert("io.kubevirt.pvc.capacity".into(), "10Gi".into());
        }
        export
    }

    #[test]
    fn disk_title_gives_the_compression_that_its_type_lacks() {
        let export = export(&[
            ("application/vnd.kubevirt.disk.raw", "a.raw.zst", ""),
            ("application/vnd.kubevirt.disk.raw", "b.raw", ""),
        ]);
        let found = detect(&export, PartOrder::Epoch);
        let packing = found.disks.iter().map(|disk| match &disk.body {
            super::super::DiskBody::Parts(parts) => (disk.name.as_str(), parts[0].packing),
            _ => unreachable!("a layer is a part"),
        });
        let packing: Vec<_> = packing.collect();
        assert_eq!(packing, [("a.raw", DiskPacking::Packed), ("b.raw", DiskPacking::Stored)]);
    }

    #[test]
    fn every_disk_of_a_machine_has_its_name() {
        let zstd = "application/vnd.kubevirt.disk.raw+zstd";
        let export = export(&[
            (zstd, "rootdisk.raw.zst", "rootdisk"),
            (zstd, "other.raw.zst", "data-1.2"),
            ("application/vnd.kubevirt.disk.qcow2", "", ""),
            (zstd, "third.raw.zst", ""),
        ]);
        let found = detect(&export, PartOrder::Epoch);
        assert!(found.problems.is_empty() && found.warnings.is_empty(), "{found:?}");
        let rows: Vec<_> =
            found.disks.iter().map(|disk| (disk.name.as_str(), layers(disk), disk.size)).collect();
        assert_eq!(
            rows,
            [
                ("disk.qcow2", vec![2], Some(4)),
                ("data-1.2.raw", vec![1], None),
                ("rootdisk.raw", vec![0], None),
                ("third.raw", vec![3], None)
            ]
        );
    }

    #[test]
    fn two_disks_of_one_name_are_no_disk() {
        let kind = "application/vnd.kubevirt.disk.raw+gzip";
        let found =
            detect(&export(&[(kind, "a.raw.gz", "root"), (kind, "b.raw.gz", "root")]), PartOrder::Epoch);
        assert!(
            found.disks.is_empty() && found.problems[0].reason.contains("(a.raw.gz, b.raw.gz)"),
            "{found:?}"
        );
    }
}
