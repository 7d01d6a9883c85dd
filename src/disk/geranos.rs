//! geranos disks: segments of files, each with its file name and byte range.
//!
//! Only files named as disks are presented as disks; others are in `files/` alone. The rules are those of geranos'
//! `pkg/filesegment`: `range` is the first and the last byte, both included, and each segment is compressed with zstd
//! on its own.

use std::collections::BTreeMap;

use crate::oci::{Descriptor, Manifest};

use super::chunks::{DiskChunk, DiskClaims, parse, shown, tile};
use super::name::UniqueNames;
use super::{DiskDetection, DiskFormat, DiskPacking, PartPlan};

const SEGMENT: &str = "application/online.jarosik.tomasz.geranos.segment";
const NAME: &str = "filename";
const RANGE: &str = "range";

fn segments(manifest: &Manifest) -> impl Iterator<Item = (usize, &Descriptor)> {
    let layers = manifest.layers.iter().enumerate();
    layers.filter(|(_, layer)| layer.media_type.essence() == SEGMENT)
}

/// Whether any layer is a segment.
pub(super) fn has_segments(manifest: &Manifest) -> bool {
    segments(manifest).next().is_some()
}

/// The files that are named as disks.
pub(super) fn detect(manifest: &Manifest) -> DiskDetection {
    let mut disks: BTreeMap<&str, (DiskFormat, Vec<usize>)> = BTreeMap::new();
    for (index, layer) in segments(manifest) {
        let Some(name) = layer.annotations.get(NAME) else { continue };
        if let Some(label) = DiskFormat::by_extension(name) {
            disks.entry(name).or_insert((label, Vec::new())).1.push(index);
        }
    }
    let (mut found, mut names) = (DiskDetection::default(), UniqueNames::default());
    for (name, (label, indices)) in disks {
        found.add(manifest, &mut names, (name, &label), parts(manifest, &indices));
    }
    found
}

fn parts(manifest: &Manifest, indices: &[usize]) -> Result<Vec<PartPlan>, String> {
    let chunk = |index: &usize| {
        let range = manifest.layers[*index].annotations.get(RANGE).map_or("", String::as_str);
        let (first, last) = range
            .split_once('-')
            .and_then(|(first, last)| Some((parse(first)?, parse(last)?)))
            .ok_or_else(|| format!("the range {:?} of layer {index} is not FIRST-LAST", shown(range)))?;
        let size = last.checked_sub(first).and_then(|size| size.checked_add(1));
        let size = size.ok_or_else(|| format!("the range {range} of layer {index} ends before it begins"))?;
        Ok(DiskChunk {
            offset: Some(first),
            size: Some(size),
            ..DiskChunk::bare(*index, DiskPacking::Packed)
        })
    };
    let chunks = indices.iter().map(chunk).collect::<Result<_, String>>()?;
    tile(manifest, chunks, DiskClaims::default())
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{layer, layers, manifest};
    use super::super::{PartOrder, detect};
    use super::*;

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
