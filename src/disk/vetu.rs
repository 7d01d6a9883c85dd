//! vetu disks: several, each named by an annotation and cut into LZ4 frames in manifest order.
//!
//! Only layers of one name are joined. The rules are those of vetu's `internal/oci` packages: the kernel and the
//! initramfs have types of their own and are not disks.

use crate::oci::Manifest;

use super::chunks::{DiskChunk, DiskClaims, digest, number, tile};
use super::name::UniqueNames;
use super::{DiskDetection, DiskFormat, DiskPacking, PartPlan};

const DISK: &str = crate::artifact::VETU_DISK;
const NAME: &str = "org.cirruslabs.vetu.name";
const SIZE: &str = "org.cirruslabs.vetu.uncompressed-size";
const CONTENT: &str = "org.cirruslabs.vetu.uncompressed-digest";

/// The layers that are parts of disks: the name and the index of each.
fn layers(manifest: &Manifest) -> impl Iterator<Item = (&str, usize)> {
    let layers = manifest.layers.iter().enumerate();
    let disks = layers.filter(|(_, layer)| layer.media_type.essence() == DISK);
    disks.map(|(index, layer)| (layer.annotations.get(NAME).map_or("", String::as_str), index))
}

/// Whether any layer has the type.
pub(super) fn has_disks(manifest: &Manifest) -> bool {
    layers(manifest).next().is_some()
}

/// The disks, in the order of their first layers.
pub(super) fn detect(manifest: &Manifest) -> DiskDetection {
    let mut disks: Vec<(&str, Vec<usize>)> = Vec::new();
    let mut places = std::collections::BTreeMap::new();
    for (name, index) in layers(manifest) {
        let place = *places.entry(name).or_insert(disks.len());
        match disks.get_mut(place) {
            Some((_, indices)) => indices.push(index),
            None => disks.push((name, vec![index])),
        }
    }
    let (mut found, mut names) = (DiskDetection::default(), UniqueNames::default());
    for (name, indices) in disks {
        let label = DiskFormat::by_extension(name).filter(|label| *label != DiskFormat::Unlabelled);
        let label = label.unwrap_or(DiskFormat::Raw);
        found.add(manifest, &mut names, (name, &label), parts(manifest, &indices));
    }
    found
}

fn parts(manifest: &Manifest, indices: &[usize]) -> Result<Vec<PartPlan>, String> {
    let chunk = |index: &usize| {
        let annotations = &manifest.layers[*index].annotations;
        let (size, content) = (number(annotations, SIZE)?, digest(annotations, CONTENT)?);
        Ok(DiskChunk { size, content, ..DiskChunk::bare(*index, DiskPacking::Packed) })
    };
    let chunks = indices.iter().map(chunk).collect::<Result<_, String>>()?;
    tile(manifest, chunks, DiskClaims::default())
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{layer, layers, manifest};
    use super::super::{PartOrder, detect};
    use super::*;
    use crate::oci::Digest;

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
