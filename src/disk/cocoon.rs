//! cocoonstack disks: layers of eight media types, joined by title.
//!
//! The media type marks a layer as (part of) a disk and names the format; the title names the disk and the part.
//! Formats and names are not mixed, whereas epoch joins all layers of these types.

use crate::oci::{ArtifactKind, Manifest, MediaType, classify_manifest};

use super::assemble::{DiskCandidate, assemble};
use super::name::UniqueNames;
use super::title::PartEvidence;
use super::{DiskBody, DiskDetection, DiskFormat, DiskPacking, DiskPlan, PartOrder};

/// Prefix of the disk types, and the prefix of the first Windows images (epoch `manifest/media.go`).
const PREFIXES: [&str; 2] =
    ["application/vnd.cocoonstack.disk.", "application/vnd.cocoonstack.windows.disk."];

/// The format and role of one of the eight types. No other type is a disk, whatever its suffix.
fn disk_type(media_type: &MediaType) -> Option<(DiskFormat, PartEvidence)> {
    let essence = media_type.essence();
    let kind = PREFIXES.iter().find_map(|prefix| essence.strip_prefix(prefix))?;
    match kind {
        "qcow2" => Some((DiskFormat::Qcow2, PartEvidence::Whole)),
        "qcow2.part" => Some((DiskFormat::Qcow2, PartEvidence::Part)),
        "raw" => Some((DiskFormat::Raw, PartEvidence::Whole)),
        "raw.part" => Some((DiskFormat::Raw, PartEvidence::Part)),
        _ => None,
    }
}

/// Whether any layer has one of the types.
pub(super) fn has_disks(manifest: &Manifest) -> bool {
    manifest.layers.iter().any(|layer| disk_type(&layer.media_type).is_some())
}

/// The disks of a manifest that declares a cloud image.
pub(super) fn cloud_image(manifest: &Manifest, order: PartOrder) -> DiskDetection {
    if !has_disks(manifest) {
        return DiskDetection::problem("disk", "cloud image manifest has no disk layers");
    }
    disks(manifest, order)
}

/// The disks of a manifest with disk layers and no declared kind. Epoch refuses it. Its layers are enough to present
/// the disks, unless the manifest declares another kind.
pub(super) fn unclassified(manifest: &Manifest, order: PartOrder) -> DiskDetection {
    if classify_manifest(manifest) == ArtifactKind::ContainerImage {
        return DiskDetection::problem(
            "disk",
            "has disk layers, but is a container image and not a cloud image",
        );
    }
    let mut found = disks(manifest, order);
    found.warnings.push("the artifact type is not that of a cloud image: taken by its layers".into());
    found
}

/// The disks of a snapshot. Its layers hold only the data of their files, packed by a map in the config, so its disks
/// are the files with their holes restored. Its overlay names a backing file: a base image on the machine of the
/// snapshot.
pub(super) fn snapshot(manifest: &Manifest) -> DiskDetection {
    let (mut found, mut names) = (DiskDetection::default(), UniqueNames::default());
    for (layer, descriptor) in manifest.layers.iter().enumerate() {
        let Some((label, _)) = disk_type(&descriptor.media_type) else { continue };
        let (name, warning) = names.name(descriptor.title().unwrap_or_default(), &label);
        found.warnings.extend(warning);
        found.disks.push(DiskPlan { name, label, body: DiskBody::File { layer }, size: None });
    }
    found
}

fn disks(manifest: &Manifest, order: PartOrder) -> DiskDetection {
    let candidates: Vec<_> = manifest
        .layers
        .iter()
        .enumerate()
        .filter_map(|(index, layer)| {
            let (label, role) = disk_type(&layer.media_type)?;
            let title = layer.title().unwrap_or_default();
            Some(DiskCandidate { index, title, label, role, packing: DiskPacking::Stored })
        })
        .collect();
    assemble(manifest, &candidates, order)
}

#[cfg(test)]
mod tests {
    use super::super::detect;
    use super::super::fixtures::*;
    use super::*;

    const CLOUD: &str = "application/vnd.cocoonstack.os-image.v1+json";

    /// The contents of the parts of the only disk, joined; a layer's content is its title.
    fn only_disk(manifest: &Manifest) -> (String, String) {
        let found = detect(manifest, PartOrder::Epoch);
        assert!(found.problems.is_empty() && found.disks.len() == 1, "{found:?}");
        let titles = found.disks[0].layers().map(|index| manifest.layers[index].title().unwrap_or("?"));
        (found.disks[0].name.clone(), titles.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn parts_are_joined_by_title_and_checksums_are_skipped() {
        let contents = ["BBBB", "sums", "AAAA"];
        let manifest = manifest(
            CLOUD,
            [
                (PART, "win.qcow2.01.qcow2.part"),
                ("text/plain", "SHA256SUMS"),
                (PART, "win.qcow2.00.qcow2.part"),
            ],
        );
        let found = detect(&manifest, PartOrder::Epoch);
        let joined: String = found.disks[0].layers().map(|index| contents[index]).collect();
        assert_eq!(joined, "AAAABBBB");
        assert_eq!((found.disks[0].name.as_str(), found.disks[0].size), ("win.qcow2", Some(8)));
        assert!(found.problems.is_empty() && found.warnings.is_empty());
    }

    #[test]
    fn exactly_the_eight_types_are_disks() {
        for prefix in PREFIXES {
            for kind in ["qcow2", "qcow2.part", "raw", "raw.part"] {
                let media_type = format!("{prefix}{kind}");
                assert!(disk_type(&media_type.as_str().into()).is_some(), "{media_type}");
                for suffix in ["+gzip", "+zstd", ".gz", "x"] {
                    let other = format!("{media_type}{suffix}");
                    assert!(disk_type(&other.as_str().into()).is_none(), "{other}");
                }
            }
            assert!(disk_type(&prefix.into()).is_none());
        }
        for other in ["application/vnd.cocoonstack.vm.config+json", BYTES, "text/plain", ""] {
            assert!(disk_type(&other.into()).is_none(), "{other}");
        }
    }

    #[test]
    fn cloud_image_without_disk_layers_is_reported() {
        let found =
            detect(&manifest(CLOUD, [("text/plain", "SHA256SUMS"), (BYTES, "a.qcow2")]), PartOrder::Epoch);
        assert!(found.disks.is_empty());
        assert_eq!(found.problems[0].reason, "cloud image manifest has no disk layers");
    }

    #[test]
    fn a_container_image_is_not_a_cloud_image() {
        let mut image = manifest("", [(PART, "win.qcow2.00")]);
        image.config = Some(layer("application/vnd.oci.image.config.v1+json", None, 2, "{}"));
        image.layers.push(layer("application/vnd.oci.image.layer.v1.tar+gzip", None, 2, "root"));
        let found = detect(&image, PartOrder::Epoch);
        assert!(found.disks.is_empty());
        assert!(found.problems[0].reason.contains("not a cloud image"));
        image.layers.clear();
        assert_eq!(detect(&image, PartOrder::Epoch), DiskDetection::default());
    }

    #[test]
    fn disk_layers_of_an_unknown_artifact_are_presented_with_a_warning() {
        let found = detect(&manifest("", [(PART, "win.qcow2.00")]), PartOrder::Epoch);
        assert_eq!((found.disks.len(), found.warnings.len()), (1, 1));
    }

    #[test]
    fn disks_of_a_snapshot_are_its_files() {
        let snapshot = manifest(
            "application/vnd.cocoonstack.snapshot.v1+json",
            [("application/vnd.cocoonstack.vm.memory", "memory-ranges"), (WHOLE, "overlay.qcow2")],
        );
        let found = detect(&snapshot, PartOrder::Epoch);
        assert!(found.problems.is_empty() && found.disks.len() == 1, "{found:?}");
        assert_eq!(
            (found.disks[0].name.as_str(), &found.disks[0].body),
            ("overlay.qcow2", &DiskBody::File { layer: 1 })
        );
        assert_eq!(found.clone().with_file_sizes(|layer| Some(layer as u64 + 4)).disks[0].size, Some(5));
        assert!(found.with_file_sizes(|_| None).disks.is_empty(), "without a file there is no disk");
    }

    #[test]
    fn two_formats_are_two_disks() {
        let found = detect(
            &manifest(CLOUD, [(PART, "a.00"), (RAW_PART, "a.01"), (PART, "a.01"), (RAW_PART, "a.00")]),
            PartOrder::Epoch,
        );
        let disks: Vec<_> = found.disks.iter().map(|disk| (disk.name.as_str(), layers(disk))).collect();
        assert_eq!(disks, [("a.qcow2", vec![0, 2]), ("a.raw", vec![3, 1])]);
    }

    #[test]
    fn untitled_parts_are_joined_as_listed() {
        let mut cloud = manifest(CLOUD, [(PART, ""), (PART, ""), (PART, "")]);
        for layer in &mut cloud.layers {
            layer.annotations.clear();
        }
        assert_eq!(only_disk(&cloud), ("disk.qcow2".into(), "? ? ?".into()));
        let found = detect(&cloud, PartOrder::Epoch);
        assert_eq!(layers(&found.disks[0]), [0, 1, 2]);
        assert_eq!(found.warnings.len(), 1);
    }

    #[test]
    fn whole_disks_are_never_joined() {
        let found = detect(&manifest(CLOUD, [(WHOLE, "a.qcow2"), (WHOLE, "a.qcow2")]), PartOrder::Epoch);
        assert!(found.disks.is_empty());
        assert!(found.problems[0].reason.contains("2 different layers"));
        let mut same = manifest(CLOUD, [(WHOLE, "a.qcow2"), (WHOLE, "a.qcow2")]);
        same.layers[1].digest = same.layers[0].digest.clone();
        assert_eq!(only_disk(&same), ("a.qcow2".into(), "a.qcow2".into()));
    }

    #[test]
    fn unpadded_numbers_need_an_order() {
        let titles: Vec<_> = (9..=10).chain(0..9).map(|n| format!("a.qcow2.part{n}")).collect();
        let cloud = cloud(titles.iter().map(String::as_str));
        let refused = detect(&cloud, PartOrder::Epoch);
        assert!(refused.disks.is_empty());
        assert!(
            refused.problems[0].to_string().starts_with("a.qcow2: the numbers of its parts are not padded")
        );
        let natural: Vec<_> = (2..11).chain(0..2).collect();
        assert_eq!(layers(&detect(&cloud, PartOrder::Natural).disks[0]), natural);
        assert_eq!(layers(&detect(&cloud, PartOrder::Manifest).disks[0]), (0..11).collect::<Vec<_>>());
    }

    #[test]
    fn a_hundred_parts_of_split_keep_their_order() {
        let numbers = (0..90).map(|n| format!("{n:02}")).chain((0..60).map(|n| format!("9{n:03}")));
        let titles: Vec<_> = numbers.map(|n| format!("win.qcow2.{n}.qcow2.part")).collect();
        let found = detect(&cloud(titles.iter().rev().map(String::as_str)), PartOrder::Epoch);
        assert_eq!(layers(&found.disks[0]), (0..150).rev().collect::<Vec<_>>());
        assert!(found.problems.is_empty());
    }
}
