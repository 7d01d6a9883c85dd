//! nosi disks: one raw disk, compressed, beside files such as its checksum and build report.
//!
//! The archives that nosi publishes for containers, WSL or the network are not disks. The rules are those of nosi's
//! `oras-push.sh`: the type of the layer marks a disk, and its suffix only names the compression.

use crate::oci::{Manifest, MediaType};

use super::assemble::{DiskCandidate, assemble};
use super::compressed;
use super::title::PartEvidence;
use super::{DiskDetection, DiskFormat, DiskPacking, PartOrder};

const LAYER: &str = "application/vnd.nosi.disk-image.layer.v1";

/// The encoding of a layer of the disk type; `None` for other types.
fn packing(media_type: &MediaType) -> Option<DiskPacking> {
    let essence = media_type.essence();
    match essence.strip_prefix(LAYER)? {
        "" => Some(DiskPacking::Stored),
        suffix => suffix.starts_with('+').then_some(DiskPacking::Packed),
    }
}

/// Whether any layer has the type.
pub(super) fn has_disks(manifest: &Manifest) -> bool {
    manifest.layers.iter().any(|layer| packing(&layer.media_type).is_some())
}

/// The disk.
pub(super) fn detect(manifest: &Manifest, order: PartOrder) -> DiskDetection {
    let mut candidates = Vec::new();
    for (index, layer) in manifest.layers.iter().enumerate() {
        let Some(labelled) = packing(&layer.media_type) else { continue };
        let written = layer.title().unwrap_or_default();
        let title = compressed::inner(written);
        let packing = if title == written { labelled } else { DiskPacking::Packed };
        let label = DiskFormat::by_extension(title).filter(|label| *label != DiskFormat::Unlabelled);
        let label = label.unwrap_or(DiskFormat::Raw);
        candidates.push(DiskCandidate { index, title, label, role: PartEvidence::Whole, packing });
    }
    assemble(manifest, &candidates, order)
}

#[cfg(test)]
mod tests {
    use super::super::detect;
    use super::super::fixtures::*;
    use super::*;

    #[test]
    fn the_disk_is_found_among_its_sidecars() {
        let nosi = manifest(
            "application/vnd.nosi.disk-image.v1+gzip",
            [
                ("application/vnd.nosi.disk-image.layer.v1+gzip", "nosi-debian-13-x86_64.img.gz"),
                ("text/plain", "nosi-debian-13-x86_64.img.gz.sha256"),
                ("application/vnd.nosi.build-report.v1+zip", "nosi-debian-13-x86_64.report.zip"),
                ("text/plain", "nosi-debian-13-x86_64.report.zip.sha256"),
                ("application/vnd.nosi.metadata.v1+json", "nosi-debian-13.metadata.json"),
            ],
        );
        let found = detect(&nosi, PartOrder::Epoch);
        assert!(found.problems.is_empty() && found.warnings.is_empty(), "{found:?}");
        assert_eq!(found.disks.len(), 1);
        let disk = &found.disks[0];
        assert_eq!(
            (disk.name.as_str(), &disk.label, disk.size),
            ("nosi-debian-13-x86_64.img", &DiskFormat::Raw, None)
        );
        assert_eq!(layers(disk), [0]);
    }

    #[test]
    fn archives_for_other_uses_are_no_disks() {
        for (kind, layer, title) in [
            ("wsl-rootfs.v1+gzip", "wsl-rootfs.layer.v1+gzip", "a.tar.gz"),
            ("lxc-rootfs.v1+zstd", "lxc-rootfs.layer.v1+zstd", "a.tar.zst"),
            ("netboot-bundle.v1+tar+gzip", "netboot-bundle.layer.v1+tar+gzip", "a.tar.gz"),
            // Even under the name of a disk: the type says what it is.
            ("wsl-rootfs.v1+gzip", "wsl-rootfs.layer.v1+gzip", "rootfs.img.gz"),
        ] {
            let (kind, layer) =
                (format!("application/vnd.nosi.{kind}"), format!("application/vnd.nosi.{layer}"));
            let found = detect(&manifest(&kind, [(layer.as_str(), title)]), PartOrder::Epoch);
            assert_eq!(found, DiskDetection::default(), "{kind} {title}");
        }
    }
}
