//! Manifests as each tool writes them, and claims that contradict each other.

use super::super::{DiskFormat, DiskPacking, PartOrder, detect};
use crate::oci::Manifest;

mod tart {
    use super::super::super::DiskBody;
    use super::super::super::fixtures::{layer, manifest};
    use super::*;
    use crate::oci::Digest;

    const V1: &str = "application/vnd.cirruslabs.tart.disk.v1";
    const V2: &str = "application/vnd.cirruslabs.tart.disk.v2";
    const SIZE: &str = "org.cirruslabs.tart.uncompressed-size";
    const CONTENT: &str = "org.cirruslabs.tart.uncompressed-content-digest";
    const WHOLE_SIZE: &str = "org.cirruslabs.tart.uncompressed-disk-size";

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

mod vetu {
    use super::super::super::fixtures::{layer, layers, manifest};
    use super::*;
    use crate::oci::Digest;

    const DISK: &str = crate::artifact::VETU_DISK;
    const NAME: &str = "org.cirruslabs.vetu.name";
    const SIZE: &str = "org.cirruslabs.vetu.uncompressed-size";
    const CONTENT: &str = "org.cirruslabs.vetu.uncompressed-digest";

    #[test]
    fn vetu_disks_are_separated_by_name() {
        let kernel = ("application/vnd.cirruslabs.vetu.kernel.v1", "");
        let mut vetu = manifest("", [kernel, ("application/vnd.cirruslabs.vetu.initramfs.v1", "")]);
        vetu.config = Some(layer("application/vnd.oci.image.config.v1+json", None, 2, "stub"));
        for (number, name) in ["root.img", "data", "root.img"].iter().enumerate() {
            let mut disk = layer(DISK, None, 9, &number.to_string());
            disk.annotations.insert(NAME.into(), (*name).into());
            disk.annotations.insert(SIZE.into(), "500000000".into());
            disk.annotations.insert(CONTENT.into(), Digest::sha256(&[number as u8]).to_string());
            vetu.layers.push(disk);
        }
        let found = detect(&vetu, PartOrder::Epoch);
        assert!(found.problems.is_empty() && found.warnings.is_empty(), "{found:?}");
        let rows: Vec<_> =
            found.disks.iter().map(|disk| (disk.name.as_str(), layers(disk), disk.size)).collect();
        assert_eq!(
            rows,
            [("root.img", vec![2, 4], Some(1_000_000_000)), ("data.raw", vec![3], Some(500_000_000))]
        );
    }

    #[test]
    fn a_disk_with_a_bad_claim_does_not_hide_the_others() {
        let mut vetu = manifest("", [(DISK, ""), (DISK, "")]);
        vetu.layers[0].annotations =
            [(NAME.to_owned(), "a".to_owned()), (SIZE.to_owned(), "x".to_owned())].into();
        vetu.layers[1].annotations = [(NAME.to_owned(), "../b".to_owned())].into();
        let found = detect(&vetu, PartOrder::Epoch);
        assert_eq!((found.problems.len(), found.problems[0].subject.as_str()), (1, "a"));
        assert_eq!((found.disks[0].name.as_str(), found.disks[0].size), ("disk.raw", None));
        assert!(found.warnings[0].contains("no safe file name"));
    }
}

mod vmlab {
    use super::super::super::fixtures::{layers, manifest};
    use super::*;

    const CHUNK: &str = "application/vnd.vmlab.template.chunk.v1";
    const COUNT: &str = "vnd.vmlab.template.chunk.count";
    const WHOLE_SIZE: &str = "vnd.vmlab.template.total.size";
    const NUMBER: &str = "vnd.vmlab.template.chunk.index";
    const SIZE: &str = "vnd.vmlab.template.chunk.uncompressed.size";

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

mod geranos {
    use super::super::super::fixtures::{layer, layers, manifest};
    use super::*;

    const SEGMENT: &str = "application/online.jarosik.tomasz.geranos.segment";
    const NAME: &str = "filename";
    const RANGE: &str = "range";

    fn geranos(segments: &[(&str, &str)]) -> Manifest {
        let mut geranos = manifest("", segments.iter().map(|_| (SEGMENT, "")));
        geranos.config = Some(layer("application/vnd.oci.image.config.v1+json", None, 2, "stub"));
        for (layer, (name, range)) in geranos.layers.iter_mut().zip(segments) {
            layer.annotations =
                [(NAME.to_owned(), (*name).to_owned()), (RANGE.to_owned(), (*range).to_owned())].into();
        }
        geranos
    }

    #[test]
    fn segments_are_joined_by_range() {
        let found = detect(
            &geranos(&[
                ("disk.img", "10-19"),
                ("aux.img", "0-0"),
                ("disk.img", "0-9"),
                ("config.json", "0-1"),
            ]),
            PartOrder::Epoch,
        );
        assert!(found.problems.is_empty() && found.warnings.is_empty(), "{found:?}");
        let rows: Vec<_> =
            found.disks.iter().map(|disk| (disk.name.as_str(), layers(disk), disk.size)).collect();
        assert_eq!(rows, [("aux.img", vec![1], Some(1)), ("disk.img", vec![2, 0], Some(20))]);
    }

    #[test]
    fn ranges_that_do_not_tile_are_no_disk() {
        for (ranges, reason) in [
            (["0-9", "11-19"], "gap"),
            (["0-9", "9-19"], "overlap"),
            (["1-9", "10-19"], "first 1 bytes"),
            (["0-9", "19-10"], "ends before it begins"),
            (["0-9", "10"], "not FIRST-LAST"),
            (["0-18446744073709551615", "0-0"], "ends before it begins"),
        ] {
            let found = detect(&geranos(&[("d.img", ranges[0]), ("d.img", ranges[1])]), PartOrder::Epoch);
            assert!(found.disks.is_empty(), "{ranges:?}");
            assert!(found.problems[0].reason.contains(reason), "{:?}", found.problems);
        }
    }
}
