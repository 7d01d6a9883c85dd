//! Disk detection: from a manifest to its packaging and the parts of its disks.
//!
//! Reads no blob. A missing, doubtful or unsupported disk becomes a [`DiskProblem`](super::DiskProblem).

use crate::oci::{ArtifactKind, Manifest, classify_manifest};

use super::chunk_rules::{GERANOS, TART, VETU, VMLAB};
use super::{DiskDetection, PartOrder, by_title, cocoon, kubevirt, lume, nosi, podman_machine, sardinecake};

/// Finds the disks of a manifest. Container images have none here: a disk inside their files is found in their tree.
pub fn detect(manifest: &Manifest, order: PartOrder) -> DiskDetection {
    match classify_manifest(manifest) {
        ArtifactKind::Snapshot => cocoon::snapshot(manifest),
        ArtifactKind::CloudImage => cocoon::cloud_image(manifest, order),
        ArtifactKind::Sardinecake => sardinecake::detect(manifest),
        _ if cocoon::has_disks(manifest) => cocoon::unclassified(manifest, order),
        // These are identified by the types of their layers; some have the config of a container image as a stub.
        _ if TART.fits(manifest) => TART.detect(manifest),
        _ if VETU.fits(manifest) => VETU.detect(manifest),
        _ if lume::has_disks(manifest) => lume::detect(manifest),
        _ if GERANOS.fits(manifest) => GERANOS.detect(manifest),
        _ if VMLAB.fits(manifest) => VMLAB.detect(manifest),
        _ if kubevirt::has_disks(manifest) => kubevirt::detect(manifest, order),
        _ if nosi::has_disks(manifest) => nosi::detect(manifest, order),
        ArtifactKind::ContainerImage => DiskDetection::default(),
        _ if podman_machine::has_disk(manifest) => podman_machine::detect(manifest, order),
        _ => by_title::detect(manifest, order),
    }
}

#[cfg(test)]
mod tests {
    use super::super::MAX_PARTS;
    use super::super::fixtures::*;
    use super::*;

    fn names(found: &DiskDetection) -> Vec<(&str, Vec<usize>)> {
        found.disks.iter().map(|disk| (disk.name.as_str(), layers(disk))).collect()
    }

    fn reasons(found: &DiskDetection) -> String {
        found.problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_disk_that_may_be_raw_takes_no_name_from_a_qcow2() {
        let found = detect(&artifact(["a.img", "a.qcow2", "b.img", "c.raw"]), PartOrder::Epoch);
        let names: Vec<_> =
            found.disks.iter().map(|disk| disk.name.as_str()).zip(found.raw_names()).collect();
        let raw = |name: &str| Some(name.to_owned());
        let expected =
            [("a.qcow2", raw("a.raw")), ("a.img", raw("a-2.raw")), ("b.img", raw("b.raw")), ("c.raw", None)];
        assert_eq!(names.len(), 4);
        assert!(expected.iter().all(|row| names.contains(row)), "{names:?}");
    }

    #[test]
    fn two_stems_are_two_disks() {
        let found = detect(
            &cloud(["b.qcow2.01.qcow2.part", "a.qcow2.00.qcow2.part", "b.qcow2.00.qcow2.part"]),
            PartOrder::Epoch,
        );
        assert_eq!(names(&found), [("a.qcow2", vec![1]), ("b.qcow2", vec![2, 0])]);
    }

    #[test]
    fn a_gap_in_one_disk_does_not_hide_the_other() {
        let found = detect(&cloud(["a.qcow2.00", "a.qcow2.01", "a.qcow2.03", "b.qcow2"]), PartOrder::Epoch);
        assert_eq!(names(&found), [("b.qcow2", vec![3])]);
        assert_eq!(reasons(&found), r#"a.qcow2: a part is missing between "a.qcow2.01" and "a.qcow2.03""#);
    }

    #[test]
    fn numbered_and_unnumbered_layers_of_one_name_are_no_disk() {
        let found = detect(&cloud(["a.qcow2", "a.qcow2.01"]), PartOrder::Epoch);
        assert!(found.disks.is_empty());
        assert!(reasons(&found).contains("some are not"));
    }

    #[test]
    fn a_version_in_a_title_is_a_number_only_in_company() {
        let found = detect(&cloud(["ubuntu-22.04.qcow2.part", "debian-12.5.qcow2.part"]), PartOrder::Epoch);
        assert_eq!(names(&found), [("debian-12.5.qcow2", vec![1]), ("ubuntu-22.04.qcow2", vec![0])]);
        let found = detect(&cloud(["x.02.part", "x.00.part", "x.01.part"]), PartOrder::Epoch);
        assert_eq!(names(&found), [("x.qcow2", vec![1, 2, 0])]);
    }

    #[test]
    fn untitled_parts_beside_titled_ones_are_no_disk() {
        let mut manifest = cloud(["a.qcow2.00", "a.qcow2.01", "x"]);
        manifest.layers[2].annotations.clear();
        let found = detect(&manifest, PartOrder::Epoch);
        assert!(found.disks.is_empty(), "{found:?}");
        assert!(reasons(&found).contains("no title"));
    }

    #[test]
    fn sizes_add_up_to_the_limit_and_no_further() {
        let mut manifest = cloud(["a.qcow2.00", "a.qcow2.01", "a.qcow2.02"]);
        manifest.layers[0].size = 0;
        manifest.layers[1].size = 1;
        manifest.layers[2].size = i64::MAX as u64 - 1;
        assert_eq!(detect(&manifest, PartOrder::Epoch).disks[0].size, Some(i64::MAX as u64));
        for size in [i64::MAX as u64, u64::MAX] {
            manifest.layers[2].size = size;
            let found = detect(&manifest, PartOrder::Epoch);
            assert!(found.disks.is_empty() && reasons(&found).contains("2^63 - 1"));
        }
    }

    #[test]
    fn parts_count_to_the_limit_and_no_further() {
        let titles: Vec<_> = (0..=MAX_PARTS).map(|n| format!("a.qcow2.{n:04}")).collect();
        let at = detect(&cloud(titles[..MAX_PARTS].iter().map(String::as_str)), PartOrder::Epoch);
        assert_eq!(layers(&at.disks[0]).len(), MAX_PARTS);
        let past = detect(&cloud(titles.iter().map(String::as_str)), PartOrder::Epoch);
        assert!(past.disks.is_empty() && reasons(&past).contains("more than the limit of 4096"));
    }

    #[test]
    fn a_digest_that_cannot_be_checked_is_no_disk() {
        let mut manifest = cloud(["a.qcow2"]);
        manifest.layers[0].digest = "blake3:af1349b9".parse().unwrap();
        assert!(reasons(&detect(&manifest, PartOrder::Epoch)).contains("blake3:af1349b9"));
    }
}
